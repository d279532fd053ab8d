"""Operations that mixers share. All combine tokens on both sides, in float32, and padding never counts.

Shapes: B sequences of T tokens, D features, N heads, M modes of a recurrence.
"""

from collections.abc import Callable
from typing import cast

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Complex, Float
from scipy.fft import next_fast_len

from hrrformer import fft

SLOW = 0.1  # learning rate of the parameters of a recurrence, relative to that of the others


class SlowParam(nnx.Module):
    """A parameter of a recurrence, which learns at a tenth of the rate and without weight decay.

    Its value is 0.1 · p with p flat: steps of Adam do not depend on the scale, and the optimizer decays only
    parameters with more than one axis. State spaces are trained so by their authors (Gu et al. 2022).

    Args:
      value: Initial value.
    """

    def __init__(self, value: Float[Array, "..."]) -> None:
        self.shape = value.shape
        self.flat = nnx.Param(jnp.ravel(value) / SLOW)

    def __call__(self) -> Float[Array, "..."]:
        return SLOW * self.flat[...].reshape(self.shape)


def long_convolution(
    x: Float[Array, "B T D"], kernel: Float[Array, "D L"], mask: Bool[Array, "B T"]
) -> Float[Array, "B T D"]:
    """Convolves every feature with its own kernel, which reaches R tokens to both sides: L = 2R + 1.

        y_t = Σ_s m_s κ_{t-s} x_s,   κ_τ = kernel[:, R + τ],   -R ≤ τ ≤ R

    R may exceed T - 1. The real FFTs cover T + R places, so the ends of the sequence never meet.

    Args:
      x: Features of the tokens.
      kernel: Kernels, with the offset 0 in the middle.
      mask: Mask m that is True for real tokens.

    Returns:
      y in float32. Cost: O(T log T).
    """
    length, reach = x.shape[1], kernel.shape[1] // 2
    unused = max(reach - length + 1, 0)
    reach -= unused
    size = cast(int, next_fast_len(length + reach, real=True))
    kernel = kernel[:, unused : kernel.shape[1] - unused].astype(jnp.float32)
    # The offset 0 comes first, and negative offsets come last.
    kernel = jnp.roll(jnp.pad(kernel, ((0, 0), (0, size - kernel.shape[1]))), -reach, axis=-1)
    x = jnp.where(mask[..., None], x, 0).astype(jnp.float32).swapaxes(1, 2)
    x = jnp.pad(x, ((0, 0), (0, 0), (0, size - length)))
    return fft.irfft(fft.rfft(x) * fft.rfft(kernel), size)[..., :length].swapaxes(1, 2)


def exponential_kernel(
    weight: Complex[Array, "*K D M"] | Float[Array, "*K D M"],
    log_base: Complex[Array, "*#K D M"] | Float[Array, "*#K D M"],
    length: int,
) -> Float[Array, "*K D {length}"]:
    """Sums exponentials: κ_τ = Re Σ_m w_m exp(τ log_base_m), τ = 0 … length - 1.

    With τ = C·j + i, C ≈ √length, this is a product of matrices (j, m) and (m, i). The powers of single
    modes, M · length numbers per feature, are never in memory.

    Returns:
      Kernels in float32. Cost: O(M · length) per feature.
    """
    chunk = max(1, round(length**0.5))
    coarse = jnp.exp(log_base[..., None] * (chunk * jnp.arange(-(-length // chunk))))
    fine = jnp.exp(log_base[..., None] * jnp.arange(chunk))
    coarse = weight[..., None] * coarse

    def product(part: Callable[[Array], Array]) -> Array:
        return jnp.einsum("...dmj,...dmi->...dji", part(coarse), part(fine), precision="highest")

    kernel = product(jnp.real)
    if jnp.iscomplexobj(coarse):
        kernel -= product(jnp.imag)
    return kernel.reshape(*kernel.shape[:-2], -1)[..., :length]


def decayed_linear_attention(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B T N H"],
    value: Float[Array, "B T N P"],
    log_decay: Float[Array, "N"] | Float[Array, "B T N"] | None,
    mask: Bool[Array, "B T"],
    *,
    chunk: int = 64,
) -> Float[Array, "B T N P"]:
    """Attends without a softmax; the weight of a token decays with its distance.

        y_t = Σ_s m_s M_ts ⟨q_t, k_s⟩ v_s,
        M_ts = a_{s+1} ⋯ a_t for s ≤ t,   a_t ⋯ a_{s-1} for s > t,   a = exp(log_decay), and 1 for padding

    So padding is neither read nor forgets, and it does not add to distances. Chunks of tokens exchange sums
    Σ k_s v_sᵀ. All exponents are sums of log-decays, which are at most 0: nothing is divided by a decay.

    Args:
      query, key, value: Arrays of any floating dtype.
      log_decay: Logarithm of the decay, at most 0: per head, per token and head, or None for M = 1.
      mask: Mask m that is True for real tokens.
      chunk: Number of tokens per chunk.

    Returns:
      y in float32. Cost: O(T). Sources: Afzal et al. 2025, "Linear Attention for Efficient Bidirectional
      Sequence Modeling" (LION); Dao & Gu 2024, "Transformers are SSMs", section 6, for the chunks.
    """
    query, key, value = (x.astype(jnp.float32) for x in (query, key, value))
    key = jnp.where(mask[..., None, None], key, 0.0)
    value = jnp.where(mask[..., None, None], value, 0.0)
    if log_decay is None:
        return jnp.einsum("btnh,bnhp->btnp", query, jnp.einsum("bsnh,bsnp->bnhp", key, value))
    length = query.shape[1]
    chunk = min(chunk, length)

    def split(x: Array) -> Array:
        """Splits tokens into chunks: (B, T, N, …) becomes (J, B, N, C, …)."""
        x = jnp.pad(x, ((0, 0), (0, -length % chunk)) + ((0, 0),) * (x.ndim - 2))
        x = x.reshape(x.shape[0], -1, chunk, *x.shape[2:])
        return jnp.moveaxis(x, (1, 3), (0, 2))

    log_decay = jnp.where(mask[..., None], log_decay, 0.0).astype(jnp.float32)
    query, key, value, log_decay = map(split, (query, key, value, log_decay))
    upto = jnp.cumsum(log_decay, axis=-1)  # of all tokens in the chunk up to and with this one
    before, whole = upto - log_decay, upto[..., -1:]

    # Within a chunk: all pairs.
    earlier = jnp.tri(chunk, dtype=bool)
    forward, backward = (x[..., :, None] - x[..., None, :] for x in (upto, before))
    weights = jnp.exp(jnp.where(earlier, forward, -backward))
    result = (weights * (query @ key.mT)) @ value

    # Between chunks: the sums of all chunks on one side, decayed to the border.
    def step(state: Array, inputs: tuple[Array, Array]) -> tuple[Array, Array]:
        decay, own = inputs
        return decay[..., None] * state + own, state

    for to_border, from_border, reverse in ((whole - upto, upto, False), (before, whole - before, True)):
        own = (jnp.exp(to_border)[..., None] * key).mT @ value
        _, states = jax.lax.scan(step, jnp.zeros_like(own[0]), (jnp.exp(whole), own), reverse=reverse)
        result += (jnp.exp(from_border)[..., None] * query) @ states
    result = jnp.moveaxis(result, (0, 2), (1, 3))  # (B, J, C, N, P)
    return result.reshape(result.shape[0], -1, *result.shape[3:])[:, :length]
