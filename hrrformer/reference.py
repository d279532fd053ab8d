"""HRR attention in plain form: the formulas of `hrrformer.hrr_attention`, line by line.

Read this file first. The fast implementations compute the same numbers in blocks and with derivatives in
closed form; here JAX differentiates, forward and in reverse. To try another formula, copy this file.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Inexact

from hrrformer.algebra import bind, cosine_similarity, unbind, unit
from hrrformer.spectral import accumulation_dtype, complex_dtype


def hrr_attention(
    query: Float[Array, "*B T N H"],
    key: Float[Array, "*B T N H"],
    value: Float[Array, "*B T N H"],
    mask: Bool[Array, "*#B T"] | None = None,
    temperature: Float[Array, "*#B 1 #N"] | None = None,
    inverse: str = "approximate",
    rescale: bool = False,
    output: str = "weighted",
    is_causal: bool = False,
) -> tuple[Float[Array, "*B T N H"], Float[Array, "*B N T"]]:
    """Computes holographic attention, without checks of its arguments.

    Args:
      query, key, value: Arrays (*B, T, N, H) in one dtype.
      mask: True for valid tokens; None if all are valid.
      temperature: Temperature τ of the softmax; None for 1.
      inverse, rescale, output, is_causal: As in `hrrformer.hrr_attention`.

    Returns:
      The output (*B, T, N, H) and the weights (*B, N, T), in float32 (float64 for float64 input).

    >>> import jax
    >>> q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 5, 4, 16))
    >>> out, weights = hrr_attention(q, k, v)
    >>> out.shape, weights.shape, weights.sum(-1).round(5).min().item()
    ((2, 5, 4, 16), (2, 4, 5), 1.0)
    """
    query, key, value = (x.astype(accumulation_dtype(x.dtype)) for x in (query, key, value))
    if mask is None:
        mask = jnp.ones((1,) * (query.ndim - 3) + (query.shape[-3],), bool)
    valid = mask[..., None]  # (*B, T, 1), beside the axis of heads

    # The memory: all pairs of key and value in one vector, or for every token the pairs up to it.
    pairs = jnp.where(valid[..., None], bind(key, value), 0.0)
    memory = jnp.cumsum(pairs, axis=-3) if is_causal else jnp.sum(pairs, axis=-3, keepdims=True)

    # The scores: how well the query retrieves the token's own value.
    retrieved = unbind(memory, query, exact=inverse == "exact")
    scores = cosine_similarity(value, retrieved)
    if temperature is not None:
        scores = scores / temperature

    # The softmax over the valid tokens. A masked score is finite: -∞ - (-∞) would be NaN.
    scores = jnp.where(valid, scores, jnp.finfo(scores.dtype).min / 2)
    log_total = (
        jax.lax.cumlogsumexp(scores, axis=scores.ndim - 2)
        if is_causal
        else jax.nn.logsumexp(scores, axis=-2, keepdims=True)
    )
    weights = jnp.where(valid, jnp.exp(scores - log_total), 0.0)
    if rescale:
        count = valid.astype(weights.dtype)
        weights *= jnp.cumsum(count, axis=-2) if is_causal else jnp.sum(count, axis=-2, keepdims=True)

    # The output: the token's own value times its weight, or the retrieved vector.
    if output == "weighted":
        out = weights[..., None] * value
    else:
        out = jnp.where(valid[..., None], unit(retrieved) * math.sqrt(query.shape[-1]), 0.0)
    return out, jnp.swapaxes(weights, -1, -2)


def hrr_memory(
    query: Float[Array, "*B T N H"],
    key: Float[Array, "*B T N H"],
    value: Float[Array, "*B T N H"],
    rate: Float[Array, "sides N K *M"],
    phase: Float[Array, "sides N K *M"],
    gain: Inexact[Array, "sides N K *M"],
    mask: Bool[Array, "*#B T"] | None = None,
) -> Float[Array, "*B T N H"]:
    """Computes a holographic memory, as `hrrformer.hrr_memory`, by its T × T weights; one side is causal."""
    query, key, value = (x.astype(accumulation_dtype(x.dtype)) for x in (query, key, value))
    rate, phase, gain = (x if x.ndim == 4 else x[..., None] for x in (rate, phase, gain))  # with poles last
    tokens = jnp.arange(query.shape[-3])
    lags = (tokens[:, None] - tokens[None])[..., None, None]
    weights = jnp.zeros((*lags.shape[:2], *rate.shape[1:3]), complex_dtype(rate.dtype))
    for side, applies in zip(range(len(rate)), (lags >= 0, lags < 0), strict=False):
        away = abs(lags)[..., None].astype(rate.dtype)
        damped, turned = (jnp.expand_dims(x[side], (0, 1)) * away for x in (-rate, phase))
        power = jnp.exp(jax.lax.complex(damped, turned))
        power = jnp.sum(jnp.expand_dims(gain[side], (0, 1)).astype(power.dtype) * power, axis=-1)
        weights = jnp.where(applies, power, weights)
    pairs = jnp.fft.rfft(key) * jnp.fft.rfft(value)
    valid = jnp.array(True) if mask is None else mask[..., None, None]
    memory = jnp.einsum("tsnk,...snk->...tnk", weights, jnp.where(valid, pairs, 0.0))
    return jnp.where(valid, jnp.fft.irfft(jnp.conj(jnp.fft.rfft(query)) * memory, n=query.shape[-1]), 0.0)
