"""The Fourier transform over tokens and features: mixing without parameters."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, UInt

from lra_tasks.model.mixers import MixerSpec


class FNetMixer(nnx.Module):
    """The real part of the two-dimensional DFT of the n real tokens, in time O(T log T · D + T · D log D).

    y_kj = Re Σ_{t<n} Σ_d x_td exp(-2πi (kt/n + jd/D)) / √(nD). It has no parameters and no heads.

    Source: Lee-Thorp et al. 2022, FNet, equation 3. There padding is transformed like tokens, so that results
    depend on the padded length. Here each example has a DFT of its own size n. The factor 1/√(nD) is new: it
    keeps the size of x, which the norm after the branch does in the original. Padding is at the end.
    """

    def __init__(self, spec: MixerSpec, *, rngs: nnx.Rngs) -> None:
        del spec, rngs  # no parameters

    def __call__(
        self,
        x: Float[Array, "B T D"],
        mask: Bool[Array, "B T"],
        *,
        deterministic: bool,
        rngs: nnx.Rngs | None,
    ) -> Float[Array, "B T D"]:
        del deterministic, rngs  # no dropout inside
        real = jnp.where(mask[..., None], x.astype(jnp.float32), 0.0)
        number = jnp.maximum(jnp.sum(mask, axis=1), 1)
        spectrum = jnp.fft.fft(real, axis=2)
        scale = jnp.sqrt(number * x.shape[2])[:, None, None]
        return (chirp_z(spectrum, number).real / scale).astype(x.dtype)


def chirp_z(x: Array, number: Array) -> Array:
    """Returns the DFT over the first n entries of axis 1, X_k = Σ_{t<n} x_t w^(kt) with w = exp(-2πi/n).

    2kt = k² + t² - (k - t)² makes it a convolution with a chirp, here by FFTs that do not depend on n
    (Bluestein 1970).

    Args:
      x: Complex array (B, T, D), zero from entry n.
      number: Number n per example, (B,), at least 1.
    """
    length = x.shape[1]
    size = 1 << (2 * length - 2).bit_length()
    turns = _square_mod(jnp.arange(length, dtype=jnp.uint32), 2 * number[:, None].astype(jnp.uint32))
    chirp = jnp.exp(1j * jnp.pi * turns / number[:, None])  # w^(-t²/2), (B, T)
    gap = jnp.zeros((len(x), size - 2 * length + 1), chirp.dtype)
    kernel = jnp.concatenate([chirp, gap, chirp[:, :0:-1]], axis=1)
    spectrum = jnp.fft.fft(x * chirp.conj()[..., None], size, axis=1) * jnp.fft.fft(kernel)[..., None]
    return jnp.fft.ifft(spectrum, axis=1)[:, :length] * chirp.conj()[..., None]


def _square_mod(t: UInt[Array, " T"], modulus: UInt[Array, "B 1"]) -> UInt[Array, "B T"]:
    """Returns t² mod `modulus` in 32 bits, for t and modulus up to 2^19."""
    high, low = t // 1024, t % 1024
    of_high = high * high % modulus * 1024 % modulus * 1024
    return (of_high + 2 * high * low % modulus * 1024 + low * low) % modulus
