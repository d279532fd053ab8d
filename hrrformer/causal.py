"""Causal HRR attention: the same formulas with sums over the past, and the state that decoding carries.

Token t retrieves from β_t = Σ_{s≤t} k_s ⊛ v_s, and its softmax sums over the tokens up to t. Both sums are
prefix sums, so a sequence can be read in pieces. The state after any number of tokens is one H-vector and
one number per head. Each token has its own memory, so the sums run over spectra.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from hrrformer import passes, spectral
from hrrformer.variant import Variant

BLOCK = 128  # tokens with memories in the working set at once
NEVER = -2.0  # below every cosine: a finite -∞ for maxima


class CausalState(NamedTuple):
    """State of causal sequences between two calls: H + 1 numbers per head, zeros before the first token.

    Attributes:
      memory: Sum β = Σ k ⊛ v over the tokens so far, (*B, N, H).
      log_normalizer: Logarithm log Σ exp(a / τ) over them, (*B, N); unused before the first valid token.
      num_tokens: Number of valid tokens so far, (*B,).
    """

    memory: Float[Array, "*B N H"]
    log_normalizer: Float[Array, "*B N"]
    num_tokens: Int[Array, "*B"]


def init_causal_state(
    batch_shape: int | tuple[int, ...], num_heads: int, head_size: int, dtype: DTypeLike = jnp.float32
) -> CausalState:
    """Returns the state before the first token.

    Args:
      batch_shape: Batch shape *B, or B for one axis.
      num_heads: Number of heads N.
      head_size: Head size H.
      dtype: Dtype float32, or float64 for inputs of that type.

    >>> init_causal_state((2,), 4, 16).memory.shape
    (2, 4, 16)
    """
    batch = (batch_shape,) if isinstance(batch_shape, int) else batch_shape
    return CausalState(
        jnp.zeros((*batch, num_heads, head_size), dtype),
        jnp.zeros((*batch, num_heads), dtype),
        jnp.zeros(batch, jnp.int32),
    )


def attend(
    variant: Variant,
    state: CausalState | None,
    query: Float[Array, "*B T N H"],
    key: Float[Array, "*B T N H"],
    value: Float[Array, "*B T N H"],
    valid: Bool[Array, "*#B T"] | None,
    temperature: Float[Array, "*#B 1 #N"] | None,
) -> tuple[Float[Array, "*B T N H"], Float[Array, "*B N T"], CausalState]:
    """Computes causal attention over the T tokens after `state`; None is the state before the first token.

    Returns:
      The output in the inputs' common dtype, the weights, and the state after the last token.
    """
    *batch, length, _, _ = query.shape
    state = _before_first(query) if state is None else state
    valid = jnp.broadcast_to(jnp.asarray(True) if valid is None else valid, (*batch, length))
    scores, unbound, memory = _scores(variant, state.memory, query, key, value, valid)
    weights, log_normalizer = _softmax(scores, valid[..., None, :], temperature, state)
    counts = jnp.expand_dims(state.num_tokens, -1) + jnp.cumsum(valid, axis=-1, dtype=jnp.int32)
    if variant.rescale:
        weights = weights * counts[..., None, :].astype(weights.dtype)
    if unbound is None:
        out = jnp.einsum("...nt,...tnh->...tnh", weights, value.astype(weights.dtype)).astype(value.dtype)
    else:
        out = unbound
    return out, weights, CausalState(memory, log_normalizer, counts[..., -1])


def _before_first(query: Float[Array, "*B T N H"]) -> CausalState:
    """Makes the state before the first token from the query, so that it is sharded, or varies, alike."""
    first, dtype = query[..., 0, :, :], spectral.accumulation_dtype(query.dtype)
    return CausalState(
        memory=jnp.zeros_like(first, dtype=dtype),
        log_normalizer=jnp.zeros_like(jnp.sum(first, axis=-1), dtype=dtype),
        num_tokens=jnp.zeros_like(jnp.sum(first, axis=(-2, -1)), dtype=jnp.int32),
    )


def _scores(
    variant: Variant,
    memory: Float[Array, "*B N H"],
    query: Array,
    key: Array,
    value: Array,
    valid: Bool[Array, "*B T"],
) -> tuple[Float[Array, "*B N T"], Float[Array, "*B T N H"] | None, Float[Array, "*B N H"]]:
    """Returns a_t = cos(v_t, v̂_t), v̂_t / rms(v̂_t) where it is the output, and the memory after all tokens."""
    *batch, length, _, size = query.shape
    dtype = spectral.accumulation_dtype(query.dtype)
    implementation = variant.implementation
    precision = spectral.matmul_precision(query.dtype, variant.precision)
    block = min(BLOCK, length)
    num_blocks = -(-length // block)
    scale = spectral.bin_scale(size, dtype)

    def blocks(x: Array) -> Array:
        """(*B, T, …) → (T / block, *B, block, …), padded with zeros, which for `valid` is False."""
        axis = len(batch)
        fill = [(0, 0)] * x.ndim
        fill[axis] = (0, num_blocks * block - length)
        x = jnp.pad(x, fill)
        return jnp.moveaxis(x.reshape(*batch, num_blocks, block, *x.shape[axis + 1 :]), axis, 0)

    def step(before: Array, xs: tuple[Array, Array, Array, Array]) -> tuple[Array, tuple[Array, Any]]:
        q, k, v = (jnp.swapaxes(x, -3, -2).astype(dtype) for x in xs[:3])
        q_spectrum, k_spectrum, v_spectrum = (
            spectral.to_spectrum(x, implementation, precision) for x in (q, k, v)
        )
        # d is the scale of spectra: a spectrum has one factor d, the product of two has two; see `spectral`.
        d = jnp.expand_dims(scale, range(q.ndim - 1))
        bound = jnp.where(xs[3][..., None, :, None], spectral.multiply(k_spectrum, v_spectrum) / d, 0.0)
        past = before[..., None, :] + jnp.cumsum(bound, axis=-2)
        cue = (
            spectral.reciprocal(q_spectrum / d)
            if variant.inverse == "exact"
            else spectral.conjugate(q_spectrum) / d
        )
        peak = jax.lax.stop_gradient(jnp.max(jnp.abs(past), axis=-1, keepdims=True))
        retrieved = spectral.multiply(cue, past / jnp.where(peak >= jnp.finfo(dtype).tiny, peak, 1.0))
        unit = retrieved * passes.reciprocal_norm(retrieved)
        cosines = passes.inner(unit, v_spectrum * passes.reciprocal_norm(v_spectrum))
        unbound = None
        if variant.output == "unbound":
            unbound = spectral.from_spectrum(unit, size, implementation, precision) * math.sqrt(size)
            unbound = jnp.swapaxes(jnp.where(xs[3][..., None, :, None], unbound, 0.0), -3, -2)
            unbound = unbound.astype(value.dtype)
        return past[..., -1, :], (cosines, unbound)

    def joined(x: Array, axis: int) -> Array:
        """(T / block, …, block, …) → (…, T, …); `axis` is that of blocks without the first axis."""
        x = jnp.moveaxis(x, 0, axis)
        x = x.reshape(*x.shape[:axis], num_blocks * block, *x.shape[axis + 2 :])
        return jax.lax.slice_in_dim(x, 0, length, axis=axis)

    # In `jax.shard_map`, the sum makes a state that all devices share vary over them as the queries do.
    memory = memory.astype(dtype) + jnp.zeros_like(query[..., 0, :, :], dtype=dtype)
    before = spectral.to_spectrum(memory, implementation, precision)
    # The backward pass keeps only the inputs of a block, and computes the rest again.
    after, (cosines, unbound) = jax.lax.scan(
        jax.checkpoint(step, prevent_cse=False), before, tuple(map(blocks, (query, key, value, valid)))
    )
    memory = spectral.from_spectrum(after, size, implementation, precision)
    out = None if unbound is None else joined(unbound, len(batch))
    return joined(cosines, len(batch) + 1), out, memory


def _softmax(
    scores: Float[Array, "*B N T"],
    valid: Bool[Array, "*B 1 T"],
    temperature: Float[Array, "*#B 1 #N"] | None,
    state: CausalState,
) -> tuple[Float[Array, "*B N T"], Float[Array, "*B N"]]:
    """Returns exp(a_t / τ) / Σ_{s≤t} exp(a_s / τ) over the valid tokens, and log Σ exp(a / τ) over all.

    The sum over a prefix is a pair (largest a, sum of exp((a - largest) / τ)), which does not overflow.
    """
    tau = jnp.ones((), scores.dtype) if temperature is None else jnp.swapaxes(temperature, -1, -2)
    tau = jnp.broadcast_to(tau, (*scores.shape[:-1], 1))

    def join(left: tuple[Array, Array], right: tuple[Array, Array]) -> tuple[Array, Array]:
        peak = jax.lax.stop_gradient(jnp.maximum(left[0], right[0]))
        first, second = (total * jnp.exp((largest - peak) / tau) for largest, total in (left, right))
        return peak, first + second

    log_normalizer = state.log_normalizer.astype(scores.dtype)[..., None]
    started = (state.num_tokens > 0)[..., None, None]
    before = jnp.where(started, log_normalizer * tau, NEVER)
    largest = jnp.concatenate([before, jnp.where(valid, scores, NEVER)], axis=-1)
    counted = [
        jnp.where(started, jnp.ones_like(log_normalizer), 0.0),
        jnp.where(valid, jnp.ones_like(scores), 0.0),
    ]
    pairs = largest, jnp.concatenate(counted, axis=-1)
    peak, total = jax.lax.associative_scan(join, pairs, axis=-1)
    peak, total = peak[..., 1:], total[..., 1:]
    some = total > 0.0
    safe = jnp.where(some, total, 1.0)
    weights = jnp.where(valid, jnp.exp(jnp.where(valid, scores - peak, 0.0) / tau) / safe, 0.0)
    after = jnp.where(some, peak / tau + jnp.log(safe), 0.0)
    return weights, after[..., -1]
