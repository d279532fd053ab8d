"""Causal HRR attention: the same formulas with sums over the past, and the state that decoding carries.

Token t retrieves from β_t = Σ_{s≤t} k_s ⊛ v_s, and its softmax sums over the tokens up to t. Both sums are
prefix sums, so a sequence can be read in pieces. The state after any number of tokens is one H-vector and
one number per head. Each token has its own memory, so the sums run over spectra.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from hrrformer import passes, spectral
from hrrformer.variant import Variant

BLOCK = 128  # tokens with memories in the working set at once


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
    tau = jnp.ones((1,) * (query.ndim - 1), valid.dtype) if temperature is None else temperature
    query, key, value, valid, tau = passes.varying_alike(query, key, value, valid, tau)
    block = BLOCK
    if not passes.is_symbolic(length):
        block = -(-length // -(-length // BLOCK))
    weights, unbound, memory, log_normalizer = _blocks(
        variant, block, state, query, key, value, valid, None if temperature is None else tau
    )
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
        memory=passes.zeros_alike(first, dtype),
        log_normalizer=passes.zeros_alike(jnp.sum(first, axis=-1), dtype),
        num_tokens=passes.zeros_alike(jnp.sum(first, axis=(-2, -1)), jnp.int32),
    )


@functools.partial(jax.jit, static_argnums=(0, 1))  # or JAX would compile the scan at every call
def _blocks(
    variant: Variant,
    block: int,
    state: CausalState,
    query: Array,
    key: Array,
    value: Array,
    valid: Bool[Array, "*B T"],
    temperature: Float[Array, "*#B 1 #N"] | None,
) -> tuple[
    Float[Array, "*B N T"], Float[Array, "*B T N H"] | None, Float[Array, "*B N H"], Float[Array, "*B N"]
]:
    """Computes the sums over the past, block by block.

    Returns:
      Weights that sum to 1, v̂_t / rms(v̂_t) where it is the output, and memory and log_normalizer of the
      state after all tokens.
    """
    *batch, length, _, size = query.shape
    dtype = spectral.accumulation_dtype(query.dtype)
    implementation = variant.implementation
    precision = spectral.matmul_precision(query.dtype, variant.precision)
    num_blocks = -(-length // block)
    scale = spectral.bin_scale(size, dtype)
    tau = 1.0 if temperature is None else jnp.swapaxes(temperature, -1, -2)
    lowest = jnp.finfo(dtype).min / 2  # a score without weight; finite, since -∞ - (-∞) would be NaN

    def blocks(x: Array) -> Array:
        """(*B, T, …) → (T / block, *B, block, …), padded with zeros, which for `valid` is False."""
        axis = len(batch)
        fill = [(0, 0)] * x.ndim
        fill[axis] = (0, num_blocks * block - length)
        x = jnp.pad(x, fill)
        return jnp.moveaxis(x.reshape(*batch, num_blocks, block, *x.shape[axis + 1 :]), axis, 0)

    def step(carry: tuple[Array, Array], xs: tuple[Array, ...]) -> tuple[tuple[Array, Array], Any]:
        so_far, log_total = carry
        shown = xs[3][..., None, :]
        q, k, v = (jnp.swapaxes(x, -3, -2).astype(dtype) for x in xs[:3])
        q_spectrum, k_spectrum, v_spectrum = (
            spectral.to_spectrum(x, implementation, precision) for x in (q, k, v)
        )
        # d is the scale of spectra: a spectrum has one factor d, the product of two has two; see `spectral`.
        d = jnp.expand_dims(scale, range(q.ndim - 1))
        bound = jnp.where(shown[..., None], spectral.multiply(k_spectrum, v_spectrum) / d, 0.0)
        read = so_far[..., None, :] + jnp.cumsum(bound, axis=-2)
        past = before[..., None, :] + read
        cue = (
            spectral.reciprocal(q_spectrum / d)
            if variant.inverse == "exact"
            else spectral.conjugate(q_spectrum) / d
        )
        peak = jax.lax.stop_gradient(jnp.max(jnp.abs(past), axis=-1, keepdims=True))
        retrieved = spectral.multiply(cue, past / jnp.where(peak >= jnp.finfo(dtype).tiny, peak, 1.0))
        unit = retrieved * passes.reciprocal_norm(retrieved)
        cosines = passes.inner(unit, v_spectrum * passes.reciprocal_norm(v_spectrum))
        scores = jnp.where(shown, cosines / tau, lowest)
        totals = jnp.concatenate([log_total[..., None], scores], axis=-1)
        totals = jax.lax.cumlogsumexp(totals, axis=totals.ndim - 1)[..., 1:]
        weights = jnp.where(shown, jnp.exp(scores - totals), 0.0)
        unbound = None
        if variant.output == "unbound":
            unbound = spectral.from_spectrum(unit, size, implementation, precision) * math.sqrt(size)
            unbound = jnp.swapaxes(jnp.where(shown[..., None], unbound, 0.0), -3, -2)
            unbound = unbound.astype(value.dtype)
        return (read[..., -1, :], totals[..., -1]), (weights, unbound)

    def joined(x: Array, axis: int) -> Array:
        """(T / block, …, block, …) → (…, T, …); `axis` is that of blocks without the first axis."""
        x = jnp.moveaxis(x, 0, axis)
        x = x.reshape(*x.shape[:axis], num_blocks * block, *x.shape[axis + 2 :])
        return jax.lax.slice_in_dim(x, 0, length, axis=axis)

    # In `jax.shard_map`, the sum makes a state that all devices share vary over them as the queries do.
    memory = state.memory.astype(dtype) + passes.zeros_alike(query[..., 0, :, :], dtype)
    before = spectral.to_spectrum(memory, implementation, precision)
    log_before = jnp.where((state.num_tokens > 0)[..., None], state.log_normalizer.astype(dtype), lowest)
    log_before = log_before + passes.zeros_alike(memory[..., 0])
    # The backward pass keeps only the inputs of a block, and computes the rest again.
    (new, log_after), (weights, unbound) = jax.lax.scan(
        jax.checkpoint(step, prevent_cse=False),
        (passes.zeros_alike(before), log_before),
        tuple(map(blocks, (query, key, value, valid))),
    )
    # The given memory is not transformed and back, so masked tokens leave every bit of it.
    memory = memory + spectral.from_spectrum(new, size, implementation, precision)
    log_after = jnp.where(log_after > lowest / 2, log_after, 0.0)
    out = None if unbound is None else joined(unbound, len(batch))
    return joined(weights, len(batch) + 1), out, memory, log_after
