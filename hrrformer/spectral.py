"""Isometric real spectra of real vectors, by FFT or by matrix product.

A vector of H real numbers has K = H // 2 + 1 independent Fourier coefficients F_k. Its *spectrum* here
is the array of 2K real numbers

    [d_0 Re F_0, …, d_{K-1} Re F_{K-1},  d_0 Im F_0, …, d_{K-1} Im F_{K-1}],      d_k = sqrt(w_k / H),

where w_k = 1 for the coefficients without a conjugate partner (k = 0 and, for even H, k = H/2). All others
represent their partner too and have w_k = 2. With these weights norms and inner products of spectra equal
those of the vectors (Parseval), so cosines need no inverse transform. In shapes, S = 2K.
"""

import functools
from typing import Literal, TypeAlias, TypeVar, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from hrrformer import fft

Implementation: TypeAlias = Literal["fft", "matmul"]
IMPLEMENTATIONS: tuple[str, ...] = get_args(Implementation)
Name = TypeVar("Name", bound=str)


def resolve_implementation(
    implementation: Name | None, size: int, known: tuple[str, ...] = IMPLEMENTATIONS
) -> Name | Implementation:
    """Returns the implementation for vectors of `size` numbers; an explicit choice is obeyed.

    `None` takes the matrix product up to size 64 on CPU, where measurements show it faster than the real
    FFT. On GPU and TPU matrix units move the crossover up: there it is 256, a rule of thumb.
    """
    if implementation is None:
        largest = 64 if jax.default_backend() == "cpu" else 256
        return "matmul" if size <= largest else "fft"
    if implementation not in known:
        names = ", ".join(repr(name) for name in known)
        raise ValueError(f"implementation must be None or one of {names}; got {implementation!r}.")
    return implementation


def accumulation_dtype(dtype: DTypeLike) -> DTypeLike:
    """Returns the dtype of sums over inputs of `dtype`: at least float32."""
    return jnp.float64 if jax.dtypes.canonicalize_dtype(dtype) == jnp.float64 else jnp.float32


def complex_dtype(dtype: DTypeLike) -> DTypeLike:
    """Returns the dtype of spectra whose real and imaginary parts have `dtype`, float32 or float64."""
    return jnp.complex128 if jax.dtypes.canonicalize_dtype(dtype) == jnp.float64 else jnp.complex64


@functools.lru_cache(maxsize=64)
def _bin_scale(size: int) -> np.ndarray:
    """Computes d_k for both halves of a spectrum, shape (2K,), float64."""
    bins = np.arange(size // 2 + 1)
    alone = (bins == 0) | (2 * bins == size)
    return np.tile(np.sqrt(np.where(alone, 1.0, 2.0) / size), 2)


@functools.lru_cache(maxsize=64)
def _dft_matrix(size: int) -> np.ndarray:
    """Computes the matrix M (H, 2K) with spectrum = x @ M and x = spectrum @ M.T, float64."""
    turns = np.outer(np.arange(size), np.arange(size // 2 + 1)) % size  # exact integers: no large angles
    angles = 2.0 * np.pi * turns / size
    sines = np.where(2 * turns % size == 0, 0.0, np.sin(angles))  # not 1e-16, which would have a phase
    return np.concatenate([np.cos(angles), -sines], axis=-1) * _bin_scale(size)


def matmul_precision(dtype: jnp.dtype, precision: jax.lax.PrecisionLike) -> jax.lax.PrecisionLike:
    """Returns full precision for float32, where the hardware's default is TF32 or bfloat16."""
    return jax.lax.Precision.HIGHEST if precision is None and dtype.itemsize >= 4 else precision


def bin_scale(size: int, dtype: DTypeLike) -> Float[Array, " S"]:
    """Returns d_k for both halves of a spectrum of `size`-vectors; see the module's formula."""
    return jnp.asarray(_bin_scale(size), dtype)


def to_spectrum(
    x: Float[Array, "*B H"],
    implementation: str | None = None,
    precision: jax.lax.PrecisionLike = None,
) -> Float[Array, "*B S"]:
    """Returns the isometric spectrum of `x` over its last axis, in float32 (float64 for float64 input)."""
    size = x.shape[-1]
    dtype = accumulation_dtype(x.dtype)
    if resolve_implementation(implementation, size) == "matmul":
        precision = matmul_precision(x.dtype, precision)
        return jnp.matmul(x.astype(dtype), jnp.asarray(_dft_matrix(size), dtype), precision=precision)
    coefficients = fft.rfft(x.astype(dtype))
    halves = jnp.concatenate([coefficients.real, coefficients.imag], axis=-1)
    return halves * jnp.expand_dims(bin_scale(size, dtype), range(x.ndim - 1))


def from_spectrum(
    spectrum: Float[Array, "*B S"],
    size: int,
    implementation: str | None = None,
    precision: jax.lax.PrecisionLike = None,
) -> Float[Array, "*B H"]:
    """Returns the vectors of `size` numbers with the isometric spectrum `spectrum`, in its dtype."""
    dtype = spectrum.dtype
    if resolve_implementation(implementation, size) == "matmul":
        precision = matmul_precision(dtype, precision)
        return jnp.matmul(spectrum, jnp.asarray(_dft_matrix(size).T, dtype), precision=precision)
    halves = spectrum / jnp.expand_dims(bin_scale(size, dtype), range(spectrum.ndim - 1))
    return fft.irfft(jax.lax.complex(*jnp.split(halves, 2, axis=-1)), n=size)


def multiply(x: Float[Array, "*#B S"], y: Float[Array, "*#B S"]) -> Float[Array, "*#B S"]:
    """Returns the complex product, coefficient by coefficient."""
    (a, b), (c, d) = jnp.split(x, 2, axis=-1), jnp.split(y, 2, axis=-1)
    return jnp.concatenate([a * c - b * d, a * d + b * c], axis=-1)


def conjugate(x: Float[Array, "*B S"]) -> Float[Array, "*B S"]:
    """Returns the complex conjugate, coefficient by coefficient."""
    real, imaginary = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([real, -imaginary], axis=-1)


def power(x: Float[Array, "*B S"]) -> Float[Array, "*B S"]:
    """Returns the squared magnitude of every coefficient, written into both halves."""
    real, imaginary = jnp.split(x, 2, axis=-1)
    squared = jnp.square(real) + jnp.square(imaginary)
    return jnp.concatenate([squared, squared], axis=-1)


def _split_off_magnitude(
    x: Float[Array, "*B S"],
) -> tuple[Float[Array, "*B S"], Float[Array, "*B 1"], Float[Array, "*B S"], Bool[Array, "*B S"]]:
    """Returns x over its largest entry, that entry, the scaled |F|², and where |F| exceeds rounding error.

    The threshold is relative, S · eps · max|F|, so it is the same at every scale.
    """
    finfo = jnp.finfo(x.dtype)
    peak = jax.lax.stop_gradient(jnp.max(jnp.abs(x), axis=-1, keepdims=True))
    present = peak >= finfo.tiny
    peak = jnp.where(present, peak, 1.0)
    scaled = x / peak
    squared = power(scaled)
    threshold = float((x.shape[-1] * finfo.eps) ** 2) * jnp.max(squared, axis=-1, keepdims=True)
    regular = present & (squared > threshold)
    return scaled, peak, jnp.where(regular, squared, 1.0), regular


def reciprocal(x: Float[Array, "*B S"]) -> Float[Array, "*B S"]:
    """Returns conj(F) / |F|², and 0 where |F| is below rounding error of the largest coefficient.

    The reciprocal of c·x is that of x divided by c at every scale. Below the threshold value and gradient
    are 0: this is the pseudo-inverse.
    """
    scaled, peak, squared, regular = _split_off_magnitude(x)
    return jnp.where(regular, conjugate(scaled) / squared, 0.0) / peak


def phase(x: Float[Array, "*B S"]) -> Float[Array, "*B S"]:
    """Returns F / |F|, and 1, with zero gradient, where |F| is below rounding error of the largest."""
    scaled, _, squared, regular = _split_off_magnitude(x)
    one = jnp.expand_dims(jnp.repeat(jnp.array([1.0, 0.0], x.dtype), x.shape[-1] // 2), range(x.ndim - 1))
    return jnp.where(regular, scaled * jax.lax.rsqrt(squared), one)
