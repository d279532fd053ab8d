"""HRR attention as a function: what it computes, what it accepts, which implementation runs.

Letters in shapes, as in `jax.nn.dot_product_attention`: B batch (any number of leading axes, none
included), T length, N heads, H head size. K = H // 2 + 1 is the number of Fourier coefficients.
"""

from typing import Literal, overload

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from hrrformer import algebra, spectral
from hrrformer.spectral import Implementation

INVERSES = ("approximate", "exact")
OUTPUTS = ("weighted", "unbound")


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
    return_weights: Literal[False] = ...,
    precision: jax.lax.PrecisionLike = ...,
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
    return_weights: Literal[True],
    precision: jax.lax.PrecisionLike = ...,
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
    return_weights: bool = False,
    precision: jax.lax.PrecisionLike = None,
) -> Float[Array, "*B T N H"] | tuple[Float[Array, "*B T N H"], Float[Array, "*B N T"]]:
    """Holographic self-attention, linear in the length of the sequence.

    For every head, with sums over the valid tokens (all of them without a mask):

        β   = Σ_t k_t ⊛ v_t                    binding, superposed: the sequence's memory, one H-vector
        v̂_t = q_t* ⊛ β                         unbinding (q_t⁻¹ ⊛ β with inverse="exact")
        a_t = cos(v_t, v̂_t)                    in [-1, 1]
        w_t = exp(a_t / τ) / Σ_s exp(a_s / τ)   (times the number of valid tokens with rescale=True)
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
      implementation: "fft" (real FFT) or "dft" (matrix product); None picks by H and platform.
      rescale: multiply the weights by the number of valid tokens, so that their mean is 1 and the
        output keeps the size of the values at every length. The paper's weights sum to 1.
      temperature: τ > 0; a number or an array that broadcasts to (*B, 1, N), such as (N,) for one a head.
      output: "weighted" is the paper's; "unbound" returns the unbound vectors, scaled to root mean
        square 1 (0 where v̂_t = 0); the weights do not enter it.
      return_weights: also return the weights w.
      precision: of the matrix products of "dft". None means full float32 products, except for the
        transforms of 16-bit inputs, which take the platform's default.

    Returns:
      The output o, (*B, T, N, H) in the dtype of `value`; with return_weights=True also the weights
      (*B, N, T) in float32 (float64 for float64 input).

    Raises:
      TypeError: for inputs that are not real floating point, or a mask that is not boolean.
      ValueError: for shapes that differ (cross-attention with another length included), a mask or temperature
        of any other shape, or an unknown inverse, implementation or output. Each message says what came.

    Cost: O(T·H log H) time (O(T·H²) with "dft") and O(T·H) memory per head and sequence.

    The weights depend on the scale of neither query, key nor value: cosines are guarded relative to
    magnitude, β is normalised per head, and only the sums of k ⊛ v must lie within float32.

    Source: Alam et al., "Recasting Self-Attention with Holographic Reduced Representations", ICML 2023,
    equations 1 to 4. Differs from the authors' code in that the mask also enters β, that the cosine is
    guarded where it is singular, and that nothing is done to NaN gradients, since there are none.

    >>> import jax, jax.numpy as jnp
    >>> q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 5, 4, 16))
    >>> mask = jnp.arange(5) < jnp.array([[5], [3]])
    >>> out, weights = hrr_attention(q, k, v, mask=mask, return_weights=True)
    >>> out.shape, weights.shape, weights.sum(-1).round(5).min().item()
    ((2, 5, 4, 16), (2, 4, 5), 1.0)
    """
    _check_inputs(query, key, value)
    if inverse not in INVERSES:
        raise ValueError(f"inverse must be one of {INVERSES}; got {inverse!r}.")
    if output not in OUTPUTS:
        raise ValueError(f"output must be one of {OUTPUTS}; got {output!r}.")
    if isinstance(temperature, (int, float)) and not temperature > 0:
        raise ValueError(f"temperature must be positive; got {temperature}.")
    if not _broadcasts(jnp.shape(temperature), (*query.shape[:-3], 1, query.shape[-2])):
        expected = (*query.shape[:-3], 1, query.shape[-2])
        raise ValueError(f"temperature must broadcast to {expected}; got shape {jnp.shape(temperature)}.")
    size = query.shape[-1]
    implementation = spectral.resolve_implementation(implementation, size)  # type: ignore[assignment]
    valid = None if mask is None else _key_padding(mask, query.shape)
    q, k, v = (spectral.to_spectrum(x, implementation, precision) for x in (query, key, value))

    bound = spectral.multiply(k, v)
    memory = jnp.sum(bound if valid is None else jnp.where(valid, bound, 0.0), axis=-3, keepdims=True)
    # The memory carries d_k², F(q⁻¹) carries none and F(q*) one; the spectrum of v̂ is to carry one.
    scale = jnp.expand_dims(spectral.bin_scale(size, q.dtype), range(q.ndim - 1))
    if inverse == "exact":
        cue, memory = spectral.reciprocal(q / scale), memory / scale
    else:
        cue, memory = spectral.conjugate(q), memory / jnp.square(scale)
    unbound = spectral.multiply(cue, _normalise(memory))

    weights = _softmax(algebra.cosine_similarity(v, unbound)[..., None], valid, temperature, rescale)
    if output == "weighted":
        out = weights * value.astype(weights.dtype)
    else:
        out = spectral.from_spectrum(algebra.unit(unbound), size, implementation, precision)
        out = out * float(size) ** 0.5
        out = out if valid is None else jnp.where(valid, out, 0.0)
    out = out.astype(value.dtype)
    return (out, jnp.swapaxes(weights[..., 0], -1, -2)) if return_weights else out


def _check_inputs(query: Array, key: Array, value: Array) -> None:
    for name, x in (("query", query), ("key", key), ("value", value)):
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise TypeError(f"{name} must be real floating point; got dtype {x.dtype}.")
        if x.ndim < 3:
            raise ValueError(f"{name} must have shape (..., T, N, H); got {x.shape}.")
        if 0 in x.shape[-3:]:
            raise ValueError(f"{name} must have at least one token, head and feature; got shape {x.shape}.")
    for name, x in (("key", key), ("value", value)):
        if x.shape != query.shape:
            reason = ""
            if x.ndim == query.ndim and x.shape[-3] != query.shape[-3]:
                reason = (
                    " HRR attention compares the value of token t with what the query of token t retrieves,"
                    " so queries cannot come from a sequence of another length (cross-attention)."
                )
            raise ValueError(f"{name} must have the shape of query, {query.shape}; got {x.shape}.{reason}")


def _broadcasts(shape: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    """Whether an array of `shape` broadcasts to `expected` without widening it."""
    last = expected[len(expected) - len(shape) :]
    return len(shape) <= len(expected) and all(g in (1, w) for g, w in zip(shape, last, strict=True))


def _key_padding(mask: Array, shape: tuple[int, ...]) -> Bool[Array, "*B T 1 1"]:
    """Returns the mask with the axes of the inputs, or raises where it is no key-padding mask."""
    *batch, length = shape[:-2]
    squeezed = mask
    if mask.ndim == len(batch) + 3 and mask.shape[-3:-1] == (1, 1):
        squeezed = mask.reshape(*mask.shape[:-3], mask.shape[-1])
    expected = (*batch, length)
    fits = squeezed.ndim == len(expected) and squeezed.shape[-1] == length
    if not fits or not _broadcasts(squeezed.shape, expected):
        four = (*batch, 1, 1, length)
        raise ValueError(
            f"mask must be a key-padding mask of shape {expected} or {four}; got {mask.shape}. HRR attention"
            " sums all bindings of a sequence into one vector, so a mask can say which tokens are real but"
            " not which token may see which: a (T, T) mask, causal ones included, has no counterpart."
        )
    if mask.dtype != jnp.bool_:
        raise TypeError(f"mask must be boolean, True for valid tokens; got dtype {mask.dtype}.")
    return squeezed[..., None, None]


def _normalise(memory: Float[Array, "*B 1 N S"]) -> Float[Array, "*B 1 N S"]:
    """Divides each head's memory by its largest entry, which no cosine sees: no overflow later."""
    peak = jax.lax.stop_gradient(jnp.max(jnp.abs(memory), axis=-1, keepdims=True))
    return memory / jnp.where(peak >= jnp.finfo(peak.dtype).tiny, peak, 1.0)


def _softmax(
    scores: Float[Array, "*B T N 1"],
    valid: Array | None,
    temperature: float | Array,
    rescale: bool,
) -> Float[Array, "*B T N 1"]:
    """Softmax over the valid tokens; 0 for the others, and for all where none is valid."""
    if not (isinstance(temperature, (int, float)) and temperature == 1):
        tau = jnp.expand_dims(jnp.asarray(temperature, scores.dtype), -1)
        # At temperature 1 a score is at most 1 and needs no maximum subtracted; here it may be anything.
        shown = scores if valid is None else jnp.where(valid, scores, -1.0)
        scores = scores - jax.lax.stop_gradient(jnp.max(shown, axis=-3, keepdims=True))
        scores = scores / jnp.expand_dims(tau, range(scores.ndim - tau.ndim))
        # XLA may compute the same score twice, an ulp apart; divided by a tiny τ that would overflow.
        scores = scores - jax.lax.stop_gradient(jnp.maximum(scores, 0.0))
    if valid is None:
        exponentials = jnp.exp(scores)
        return exponentials / (jnp.mean if rescale else jnp.sum)(exponentials, axis=-3, keepdims=True)
    exponentials = jnp.where(valid, jnp.exp(jnp.where(valid, scores, 0.0)), 0.0)
    total = jnp.sum(exponentials, axis=-3, keepdims=True)
    weights = exponentials / jnp.where(total > 0.0, total, 1.0)
    if rescale:
        weights = weights * jnp.sum(valid, axis=-3, keepdims=True).astype(weights.dtype)
    return weights
