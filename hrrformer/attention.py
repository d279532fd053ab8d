"""HRR attention as a function: what it computes, what it accepts, which implementation runs.

Letters in shapes, as in `jax.nn.dot_product_attention`: B batch (any number of leading axes, none
included), T length, N heads, H head size. K = H // 2 + 1 is the number of Fourier coefficients.
"""

from typing import Literal, TypeAlias, get_args, overload

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from hrrformer import causal, closed_form, spectral
from hrrformer.arguments import check, check_state
from hrrformer.causal import CausalState
from hrrformer.passes import Options
from hrrformer.spectral import accumulation_dtype

Implementation: TypeAlias = Literal["fft", "matmul", "pallas"]
IMPLEMENTATIONS: tuple[str, ...] = get_args(Implementation)
AxisName: TypeAlias = str | tuple[str, ...]


@overload
def hrr_attention(
    query: Float[Array, "*B T N H"],
    key: Float[Array, "*B T N H"],
    value: Float[Array, "*B T N H"],
    *,
    mask: Bool[Array, "..."] | None = ...,
    inverse: Literal["approximate", "exact"] = ...,
    implementation: Implementation | None = ...,
    rescale: bool = ...,
    temperature: float | Float[Array, "..."] = ...,
    output: Literal["weighted", "unbound"] = ...,
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
    mask: Bool[Array, "..."] | None = ...,
    inverse: Literal["approximate", "exact"] = ...,
    implementation: Implementation | None = ...,
    rescale: bool = ...,
    temperature: float | Float[Array, "..."] = ...,
    output: Literal["weighted", "unbound"] = ...,
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
    mask: Bool[Array, "..."] | None = None,
    inverse: Literal["approximate", "exact"] = "approximate",
    implementation: Implementation | None = None,
    rescale: bool = False,
    temperature: float | Float[Array, "..."] = 1.0,
    output: Literal["weighted", "unbound"] = "weighted",
    is_causal: bool = False,
    return_weights: bool = False,
    precision: jax.lax.PrecisionLike = None,
    axis_name: AxisName | None = None,
) -> Float[Array, "*B T N H"] | tuple[Float[Array, "*B T N H"], Float[Array, "*B N T"]]:
    """Holographic self-attention, linear in the length of the sequence.

    For every head, with sums over the valid tokens (all of them without a mask; with `is_causal`, of those
    only the ones up to t):

        β   = Σ_t k_t ⊛ v_t                    binding, superposed: the sequence's memory, one H-vector
        v̂_t = q_t* ⊛ β                         unbinding (q_t⁻¹ ⊛ β with inverse="exact")
        a_t = cos(v_t, v̂_t)                    in [-1, 1]
        w_t = exp(a_t / τ) / Σ_s exp(a_s / τ)   (times the number of summed tokens with rescale=True)
        o_t = w_t v_t                          (v̂_t / rms(v̂_t) with output="unbound")

    ⊛ is circular convolution over H, * the involution. A token's output is its own value times one
    number that the whole sequence decides: no token receives another token's value unless
    output="unbound". Weights differ by at most a factor e^(2/τ).

    Args:
      query, key, value: (*B, T, N, H) with the same shape; float16, bfloat16, float32 or float64.
        Sums, spectra and scores are kept in float32 (float64 for float64 input).
      mask: boolean key-padding mask, True for valid tokens: (*B, T) or (*B, 1, 1, T), where an axis of B
        may be 1. It enters β, the softmax and the output: masked tokens, which must hold finite numbers
        of ordinary size, change nothing and get 0, and a sequence without a valid token gets 0
        everywhere. Gradients are finite in both cases.
      inverse: "approximate" is the involution of the authors' code; "exact" is the inverse of the
        paper's text, guarded where |F(q)| vanishes, see `hrrformer.inverse`.
      implementation: how β and v̂ are computed: "matmul" by products with H × H matrices, "fft" by real
        FFTs, "pallas" by fused kernels for GPU and TPU, untimed so far, see `hrrformer.experimental.pallas`.
        None picks one of the first two by H and platform.
      rescale: multiply the weights by the number of valid tokens, so that their mean is 1 and the
        output keeps the size of the values at every length. The paper's weights sum to 1.
      temperature: τ > 0; a number or an array that broadcasts to (*B, 1, N), such as (N,) for one a head.
      output: "weighted" is the paper's; "unbound" returns the unbound vectors, scaled to root mean
        square 1 (0 where v̂_t = 0); the weights do not enter it.
      is_causal: token t sums over tokens up to itself, in β and in the softmax: no output depends on a later
        token. Not with "pallas". For a sequence that comes in pieces see `hrr_attention_step`.
      return_weights: also return the weights w.
      precision: of the matrix products. None means full float32 products, except where 16-bit inputs are
        bound and unbound by "matmul" or "pallas": those take the platform's default. Norms and cosines are
        always of full precision.
      axis_name: inside `jax.shard_map`, the mesh axes that share out T: sums over tokens, of H + 1 numbers a
        head (H + 2 with a temperature), then go over these devices. None, under `jax.jit` too, where XLA
        does that by itself. Not with `is_causal`.

    Returns:
      The output o, (*B, T, N, H) in the dtype of `value`; with return_weights=True also the weights
      (*B, N, T) in float32 (float64 for float64 input).

    Raises:
      TypeError: for inputs that are not real floating point, or a mask that is not boolean.
      ValueError: for shapes that differ (cross-attention with another length included), a mask or temperature
        of any other shape, an unknown inverse, implementation or output, or `is_causal` with an axis name or
        "pallas". Each message says what came.

    Cost: O(T·H²) time by products, O(T·H log H) by FFT, and O(T·H) memory per head and sequence, to which
    products add a few H². For the gradient, q, k, v, β and the scores are kept, and cotangents are written
    over what they are made of.

    Derivatives are in closed form: reverse mode, and forward over reverse (`jax.hessian`) or reverse over
    reverse. Forward mode alone (`jax.jvp`, `jax.jacfwd`) is refused by JAX, but for `is_causal`.

    The weights depend on the scale of neither query, key nor value: norms and cosines are guarded relative to
    magnitude, β is normalised per head, and only the sums of k ⊛ v and of v̂ must lie within float32.

    Source: Alam et al., "Recasting Self-Attention with Holographic Reduced Representations", ICML 2023,
    equations 1 to 4. Differs from the authors' code in that the mask also enters β, that the cosine is
    guarded where it is singular, and that nothing is done to NaN gradients, since there are none. The causal
    form is ours.

    >>> import jax, jax.numpy as jnp
    >>> q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 5, 4, 16))
    >>> mask = jnp.arange(5) < jnp.array([[5], [3]])
    >>> out, weights = hrr_attention(q, k, v, mask=mask, return_weights=True)
    >>> out.shape, weights.shape, weights.sum(-1).round(5).min().item()
    ((2, 5, 4, 16), (2, 4, 5), 1.0)
    """
    if is_causal and axis_name is not None:
        raise ValueError("axis_name must be None with is_causal=True: the past would be on other devices.")
    given = check(query, key, value, mask, temperature, inverse, output)
    if is_causal and implementation == "pallas":
        raise ValueError("implementation must be None, 'fft' or 'matmul' with is_causal=True; got 'pallas'.")
    chosen = spectral.resolve_implementation(implementation, query.shape[-1], IMPLEMENTATIONS)
    options = Options(chosen, inverse, rescale, output, precision, axis_name)
    if is_causal:
        first, dtype = given.query[..., 0, :, :], accumulation_dtype(given.query.dtype)
        # Of no token yet; made from the query, to be laid over devices, or to vary over them, as it does.
        state = CausalState(
            memory=jnp.zeros_like(first, dtype=dtype),
            log_normalizer=jnp.zeros_like(jnp.sum(first, axis=-1), dtype=dtype),
            num_tokens=jnp.zeros_like(jnp.sum(first, axis=(-2, -1)), dtype=jnp.int32),
        )
        out, weights, _ = causal.attend(options, state, **given._asdict())
    else:
        out, weights = closed_form.attend(options, given)
    out = out.astype(value.dtype)
    return (out, weights) if return_weights else out


def hrr_attention_step(
    query: Float[Array, "*B T N H"],
    key: Float[Array, "*B T N H"],
    value: Float[Array, "*B T N H"],
    state: CausalState,
    *,
    mask: Bool[Array, "..."] | None = None,
    inverse: Literal["approximate", "exact"] = "approximate",
    implementation: Literal["fft", "matmul"] | None = None,
    rescale: bool = False,
    temperature: float | Float[Array, "..."] = 1.0,
    output: Literal["weighted", "unbound"] = "weighted",
    precision: jax.lax.PrecisionLike = None,
) -> tuple[Float[Array, "*B T N H"], Float[Array, "*B N T"], CausalState]:
    """Goes on with causal holographic attention: the next token or tokens of sequences.

    Reading a sequence in pieces of any sizes gives what `hrr_attention` with `is_causal=True` gives for the
    whole. The state has H + 1 numbers a head, and the cost of a token does not depend on how many came
    before.

    Args:
      query, key, value: of the next T tokens, (*B, T, N, H).
      state: `init_causal_state(B, N, H)` before the first token, and then what the last call returned.
      mask, inverse, implementation, rescale, temperature, output, precision: as in `hrr_attention`; the same
        at every call of a sequence. Masked tokens leave the state as it is.

    Returns:
      Output (*B, T, N, H) in the dtype of `value`, weights (*B, N, T), and the state after these tokens, in
      the dtype of the one given.

    Raises:
      ValueError: for a state of other sizes, or of float32 with inputs of float64; and as `hrr_attention`.

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
    given = check(query, key, value, mask, temperature, inverse, output)
    check_state(state, given.query)
    chosen = spectral.resolve_implementation(implementation, query.shape[-1])
    options = Options(chosen, inverse, rescale, output, precision, None)
    out, weights, after = causal.attend(options, state, **given._asdict())
    after = CausalState(*(new.astype(old.dtype) for new, old in zip(after, state, strict=True)))
    return out.astype(value.dtype), weights, after
