"""HRR attention as a function: its contract, and the choice of an implementation.

Letters in shapes, as in `jax.nn.dot_product_attention`: B batch (any number of leading axes, or none),
T length, N heads, H head size. K = H // 2 + 1 is the number of Fourier coefficients.
"""

from typing import Literal, get_args, overload

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from hrrformer import causal, closed_form, reference, spectral
from hrrformer.arguments import Mask, check, check_state
from hrrformer.causal import CausalState
from hrrformer.variant import AxisName, Fast, Implementation, Inverse, Output, Variant

IMPLEMENTATIONS: tuple[str, ...] = get_args(Fast)


@overload
def hrr_attention(
    query: Float[Array, "*B T N H"],
    key: Float[Array, "*B T N H"],
    value: Float[Array, "*B T N H"],
    *,
    mask: Mask | None = ...,
    inverse: Inverse = ...,
    implementation: Implementation | None = ...,
    rescale: bool = ...,
    temperature: float | Float[Array, "..."] = ...,
    output: Output = ...,
    is_causal: bool = ...,
    return_weights: Literal[False] = ...,
    precision: jax.lax.PrecisionLike = ...,
    axis_name: AxisName | None = ...,
) -> Float[Array, "*B T N H"]: ...


@overload
def hrr_attention(
    query: Float[Array, "*B T N H"],
    key: Float[Array, "*B T N H"],
    value: Float[Array, "*B T N H"],
    *,
    mask: Mask | None = ...,
    inverse: Inverse = ...,
    implementation: Implementation | None = ...,
    rescale: bool = ...,
    temperature: float | Float[Array, "..."] = ...,
    output: Output = ...,
    is_causal: bool = ...,
    return_weights: Literal[True],
    precision: jax.lax.PrecisionLike = ...,
    axis_name: AxisName | None = ...,
) -> tuple[Float[Array, "*B T N H"], Float[Array, "*B N T"]]: ...


def hrr_attention(
    query: Float[Array, "*B T N H"],
    key: Float[Array, "*B T N H"],
    value: Float[Array, "*B T N H"],
    *,
    mask: Mask | None = None,
    inverse: Inverse = "approximate",
    implementation: Implementation | None = None,
    rescale: bool = False,
    temperature: float | Float[Array, "..."] = 1.0,
    output: Output = "weighted",
    is_causal: bool = False,
    return_weights: bool = False,
    precision: jax.lax.PrecisionLike = None,
    axis_name: AxisName | None = None,
) -> Float[Array, "*B T N H"] | tuple[Float[Array, "*B T N H"], Float[Array, "*B N T"]]:
    """Computes holographic self-attention in time linear in the length of the sequence.

    For every head, with sums over the valid tokens (with `is_causal`, over the valid tokens up to t):

        β   = Σ_t k_t ⊛ v_t                    binding and superposition: the memory, one H-vector
        v̂_t = q_t* ⊛ β                         unbinding (q_t⁻¹ ⊛ β with inverse="exact")
        a_t = cos(v_t, v̂_t)                    in [-1, 1]
        w_t = exp(a_t / τ) / Σ_s exp(a_s / τ)   (times the number of summed tokens with rescale=True)
        o_t = w_t v_t                          (v̂_t / rms(v̂_t) with output="unbound")

    ⊛ is circular convolution over H, * the involution. A token's output is its own value times one
    number that the whole sequence decides: no token receives another token's value unless
    output="unbound". Weights differ by at most a factor e^(2/τ). `hrrformer/reference.py` has these
    lines as code.

    Args:
      query, key, value: Arrays (*B, T, N, H) of one shape, in float16, bfloat16, float32 or float64. Sums,
        spectra and scores are kept in float32 (float64 for float64 input).
      mask: Boolean key-padding mask, True for valid tokens: (*B, T) or (*B, 1, 1, T), where an axis of B
        may be 1. It enters β, the softmax and the output. Masked tokens change nothing and get 0; they must
        contain finite numbers of ordinary size. A sequence without a valid token gets 0 everywhere.
        Gradients are finite in both cases. A mask (*B, 1, T, T) with known values, of any dtype, is also
        accepted if it masks keys alone, as `flax.linen.make_attention_mask(m, m)` does. A causal (T, T) mask
        is an error; under `jax.jit`, where values are not known, B = T makes it look like padding.
      inverse: Inverse that unbinds: "approximate" is the involution of the authors' code; "exact" is the
        inverse of the paper's text, guarded where |F(q)| vanishes, see `hrrformer.inverse`.
      implementation: Method for β and v̂: "matmul" by products with H × H matrices, "fft" by real FFTs,
        "pallas" by fused kernels for GPU and TPU, not timed yet, see `hrrformer.experimental.pallas`.
        "reference" is the plain form, differentiated by JAX, for reading and for forward mode. None picks
        "matmul" or "fft" by H and platform.
      rescale: Multiplication of the weights by the number of valid tokens. Their mean is then 1, and the
        output keeps the size of the values at every length. The paper's weights sum to 1.
      temperature: Temperature τ > 0: a number, or an array that broadcasts to (*B, 1, N), such as (N,) for
        one temperature per head.
      output: Kind of output: "weighted" is the paper's; "unbound" returns the unbound vectors, scaled to
        root mean square 1 (0 where v̂_t = 0), independently of the weights.
      is_causal: Sums over tokens up to t, in β and in the softmax: no output depends on a later token. Not
        with "pallas". `hrr_attention_step` reads a sequence in pieces.
      return_weights: Return of the weights w beside the output.
      precision: Precision of the matrix products. None means full float32 products; 16-bit inputs that
        "matmul" or "pallas" bind and unbind take the platform's default. Norms and cosines always have full
        precision, and so has "reference".
      axis_name: Mesh axes that share T inside `jax.shard_map`. Sums over tokens, H + 1 numbers per head
        (H + 2 with a temperature), then cross these devices. Under `jax.jit` it is None, because XLA
        inserts the sums by itself. Not with `is_causal` or "reference".

    Returns:
      The output o, (*B, T, N, H) in the dtype of `value`; with return_weights=True also the weights
      (*B, N, T) in float32 (float64 for float64 input).

    Raises:
      TypeError: For inputs that are not real floating point, or a mask that is not boolean.
      ValueError: For shapes that differ (including cross-attention with another length), or a mask or
        temperature of any other shape. For an unknown inverse, implementation or output, and for an axis
        name or "pallas" with an argument that excludes it. Each message reports the given value.

    Cost: O(T·H²) time by products, O(T·H log H) by FFT, and O(T·H) memory per head and sequence; products
    add a few H². For the gradient, q, k, v, β and the scores are kept; cotangents overwrite their sources.

    Derivatives are in closed form: reverse mode, forward over reverse (`jax.hessian`) and reverse over
    reverse. JAX refuses forward mode alone (`jax.jvp`, `jax.jacfwd`) for the fast forms without
    `is_causal`: implementation="reference" has it.

    The scale of query, key and value does not change the weights: norms and cosines are guarded relative to
    magnitude, and β is normalized per head. Only the sums of k ⊛ v and of v̂ must fit into float32.

    Source: Alam et al., "Recasting Self-Attention with Holographic Reduced Representations", ICML 2023,
    equations 1 to 4. Differences from the authors' code: the mask also enters β, the cosine is guarded where
    it is singular, and gradients are never NaN, so none are replaced. The causal form is ours.

    >>> import jax, jax.numpy as jnp
    >>> q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 5, 4, 16))
    >>> mask = jnp.arange(5) < jnp.array([[5], [3]])
    >>> out, weights = hrr_attention(q, k, v, mask=mask, return_weights=True)
    >>> out.shape, weights.shape, weights.sum(-1).round(5).min().item()
    ((2, 5, 4, 16), (2, 4, 5), 1.0)
    """
    variant = Variant(inverse, implementation, rescale, output, precision, axis_name)
    out, weights = attend(variant, query, key, value, mask, temperature, is_causal=is_causal)
    return (out, weights) if return_weights else out


def hrr_attention_step(
    query: Float[Array, "*B T N H"],
    key: Float[Array, "*B T N H"],
    value: Float[Array, "*B T N H"],
    state: CausalState,
    *,
    mask: Mask | None = None,
    inverse: Inverse = "approximate",
    implementation: Literal["fft", "matmul"] | None = None,
    rescale: bool = False,
    temperature: float | Float[Array, "..."] = 1.0,
    output: Output = "weighted",
    precision: jax.lax.PrecisionLike = None,
) -> tuple[Float[Array, "*B T N H"], Float[Array, "*B N T"], CausalState]:
    """Continues causal holographic attention by the next token or tokens of sequences.

    A sequence read in pieces of any sizes gives the same results as `hrr_attention` with `is_causal=True`
    on the whole. The state has H + 1 numbers per head, and the cost of a token does not depend on the
    number of earlier tokens.

    Args:
      query, key, value: Arrays (*B, T, N, H) of the next T tokens.
      state: Result of the previous call; `init_causal_state(B, N, H)` before the first token.
      mask, inverse, implementation, rescale, temperature, output, precision: As in `hrr_attention`, except
        that implementation is None, "fft" or "matmul"; the same at every call of a sequence. Masked tokens
        leave the state unchanged.

    Returns:
      Output (*B, T, N, H) in the dtype of `value`, weights (*B, N, T), and the state after these tokens, in
      the dtype of the given state.

    Raises:
      ValueError: For a state of other sizes, or of float32 with inputs of float64; and as `hrr_attention`.

    >>> import jax, jax.numpy as jnp
    >>> q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 6, 4, 16))
    >>> from hrrformer import init_causal_state
    >>> state = init_causal_state((2,), 4, 16)
    >>> first, _, state = hrr_attention_step(q[:, :5], k[:, :5], v[:, :5], state)
    >>> last, _, state = hrr_attention_step(q[:, 5:], k[:, 5:], v[:, 5:], state)
    >>> whole = hrr_attention(q, k, v, is_causal=True)
    >>> bool(jnp.allclose(jnp.concatenate([first, last], axis=1), whole, atol=1e-5))
    True
    """
    variant = Variant(inverse, implementation, rescale, output, precision)
    return attend_step(variant, query, key, value, state, mask, temperature)


def attend(
    variant: Variant,
    query: Float[Array, "*B T N H"],
    key: Float[Array, "*B T N H"],
    value: Float[Array, "*B T N H"],
    mask: Mask | None,
    temperature: float | Float[Array, "..."],
    *,
    is_causal: bool,
) -> tuple[Float[Array, "*B T N H"], Float[Array, "*B N T"]]:
    """Computes the output and the weights of `hrr_attention`."""
    query, key, value = map(jnp.asarray, (query, key, value))
    given = check(variant, query, key, value, mask, temperature, is_causal=is_causal)
    if is_causal and variant.axis_name is not None:
        raise ValueError(
            f"axis_name must be None with is_causal=True; got {variant.axis_name!r}. The past of a token"
            " must be on its own device: share the batch or the heads instead."
        )
    known = (*spectral.IMPLEMENTATIONS, "reference") if is_causal else (*IMPLEMENTATIONS, "reference")
    implementation = spectral.resolve_implementation(variant.implementation, query.shape[-1], known)
    variant = variant._replace(implementation=implementation)
    if implementation == "reference":
        if variant.axis_name is not None:
            raise ValueError(
                f"axis_name must be None with implementation='reference'; got {variant.axis_name!r}. Use"
                " 'matmul' or 'fft' for a sequence that devices share."
            )
        out, weights = reference.hrr_attention(
            *given, variant.inverse, variant.rescale, variant.output, is_causal
        )
    elif is_causal:
        out, weights, _ = causal.attend(variant, None, *given)
    else:
        out, weights = closed_form.attend(variant, *given)
    return out.astype(value.dtype), weights


def attend_step(
    variant: Variant,
    query: Float[Array, "*B T N H"],
    key: Float[Array, "*B T N H"],
    value: Float[Array, "*B T N H"],
    state: CausalState,
    mask: Mask | None,
    temperature: float | Float[Array, "..."],
) -> tuple[Float[Array, "*B T N H"], Float[Array, "*B N T"], CausalState]:
    """Computes the results of `hrr_attention_step`."""
    query, key, value = map(jnp.asarray, (query, key, value))
    state = CausalState(*map(jnp.asarray, state))
    given = check(variant, query, key, value, mask, temperature, is_causal=True)
    check_state(state, given.query)
    implementation = spectral.resolve_implementation(variant.implementation, query.shape[-1])
    out, weights, after = causal.attend(variant._replace(implementation=implementation), state, *given)
    after = CausalState(*(new.astype(old.dtype) for new, old in zip(after, state, strict=True)))
    return out.astype(value.dtype), weights, after
