"""The algebra of holographic reduced representations: binding, unbinding, inverses, similarity.

Every function works over the last axis of size H (odd or even) and takes any leading dimensions. It computes
in float32 (float64 for float64 input), returns the input's dtype, and is differentiable everywhere,
including at zero vectors. Source: T. Plate, "Holographic Reduced Representations", IEEE Trans. Neural
Networks 6(3), 1995.
"""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from hrrformer import spectral


def _checked(**vectors: Array) -> list[Array]:
    """Returns the arrays in the dtypes that JAX gives them, or raises the errors of `bind`."""
    for name, x in vectors.items():
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise TypeError(f"{name} must be a real floating-point array; got dtype {x.dtype}.")
        if x.ndim < 1 or x.shape[-1] < 1:
            raise ValueError(f"{name} must have a last axis of at least one element; got shape {x.shape}.")
    sizes = {name: x.shape[-1] for name, x in vectors.items()}
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{name}: {size}" for name, size in sizes.items())
        raise ValueError(f"The last axes must have one size; got {listed}.")
    return [jnp.asarray(x) for x in vectors.values()]


def _convolve(x: Array, y: Array, *, conjugate_x: bool) -> Array:
    """Circular convolution of x (or of its involution) with y."""
    size = x.shape[-1]
    x, y = jnp.broadcast_arrays(x, y)
    dtype = jnp.promote_types(x.dtype, y.dtype)
    first, second = (spectral.to_spectrum(a.astype(dtype)) for a in (x, y))
    product = spectral.multiply(spectral.conjugate(first) if conjugate_x else first, second)
    scale = jnp.expand_dims(spectral.bin_scale(size, product.dtype), range(product.ndim - 1))
    return spectral.from_spectrum(product / scale, size).astype(dtype)


def bind(x: Float[Array, "*#B H"], y: Float[Array, "*#B H"]) -> Float[Array, "*#B H"]:
    """Binds two vectors: their circular convolution.

        (x ⊛ y)[j] = Σ_i x[i] · y[(j - i) mod H],        F(x ⊛ y) = F(x) F(y)

    Args:
      x, y: Floating-point vectors, broadcast against each other over the leading dimensions.

    Returns:
      The bound vectors, shape (*B, H), in the promoted dtype of x and y.

    Raises:
      TypeError: For integer, boolean or complex input.
      ValueError: For last axes of different size.

    Cost: O(H log H) by FFT, O(H²) by matrix product where that is faster. Source: Plate 1995, eq. 1.

    >>> import jax.numpy as jnp
    >>> bind(jnp.array([1.0, 2.0, 3.0]), jnp.array([0.0, 1.0, 0.0])).round(5)  # a shift by one
    Array([3., 1., 2.], dtype=float32)
    """
    x, y = _checked(x=x, y=y)
    return _convolve(x, y, conjugate_x=False)


def involution(x: Float[Array, "*B H"]) -> Float[Array, "*B H"]:
    """Reverses a vector's indices: the approximate inverse under binding.

        x*[j] = x[-j mod H],        F(x*) = conj F(x)

    Exactly linear and never unstable. x* ⊛ x is the impulse for unitary x, and the impulse plus noise for
    random x. Shape and dtype do not change. Source: Plate 1995, section II-C.

    >>> import jax.numpy as jnp
    >>> involution(jnp.array([1.0, 2.0, 3.0]))
    Array([1., 3., 2.], dtype=float32)
    """
    (x,) = _checked(x=x)
    return jnp.roll(jnp.flip(x, axis=-1), 1, axis=-1)


def inverse(x: Float[Array, "*B H"]) -> Float[Array, "*B H"]:
    """Inverts a vector exactly under binding, where an inverse exists.

        F(x⁻¹)_k = 1 / F(x)_k,   and 0 where |F(x)_k| ≤ 2K · eps · max_j |F(x)_j|,   K = H // 2 + 1

    x⁻¹ ⊛ x is the impulse when every coefficient is regular. Small coefficients make the exact inverse
    amplify noise; coefficients that are rounding error are set to 0 (the pseudo-inverse), with zero
    gradient. The threshold is relative: inverse(c·x) = inverse(x) / c at every scale.

    Returns: shape and dtype of x. Raises: as `bind`. Source: Plate 1995, section II-C; the guard is ours.

    >>> import jax.numpy as jnp
    >>> bind(inverse(jnp.array([4.0, 2.0, 1.0])), jnp.array([4.0, 2.0, 1.0])).round(5) + 0.0
    Array([1., 0., 0.], dtype=float32)
    """
    (x,) = _checked(x=x)
    size = x.shape[-1]
    spectrum = spectral.to_spectrum(x)
    scale = jnp.expand_dims(spectral.bin_scale(size, spectrum.dtype), range(x.ndim - 1))
    return spectral.from_spectrum(spectral.reciprocal(spectrum / scale) * scale, size).astype(x.dtype)


def unbind(
    bound: Float[Array, "*#B H"], x: Float[Array, "*#B H"], *, exact: bool = False
) -> Float[Array, "*#B H"]:
    """Retrieves from `bound` the vector that was bound with `x`.

        x* ⊛ bound   (circular correlation; the default)      or      x⁻¹ ⊛ bound   (`exact=True`)

    Args:
      bound: Bound vector, or superposition (sum) of bound vectors.
      x: Cue, broadcast against `bound` over the leading dimensions.
      exact: Exact inverse instead of the involution; it amplifies noise where |F(x)| is small.

    Returns: shape (*B, H), in the promoted dtype. Raises: as `bind`. Source: Plate 1995, section II-C.

    >>> import jax.numpy as jnp
    >>> x, y = jnp.array([4.0, 2.0, 1.0]), jnp.array([1.0, -1.0, 2.0])
    >>> unbind(bind(x, y), x, exact=True).round(5)
    Array([ 1., -1.,  2.], dtype=float32)
    """
    bound, x = _checked(bound=bound, x=x)
    if exact:
        dtype = jnp.promote_types(bound.dtype, x.dtype)
        wide = spectral.accumulation_dtype(dtype)  # a small cue's inverse may not fit 16 bits
        return _convolve(inverse(x.astype(wide)), bound.astype(wide), conjugate_x=False).astype(dtype)
    return _convolve(x, bound, conjugate_x=True)


def unitary_projection(x: Float[Array, "*B H"]) -> Float[Array, "*B H"]:
    """Projects a vector onto the unitary vectors, where involution and inverse coincide.

        F(x) / |F(x)|,   and 1 where |F(x)_k| ≤ 2K · eps · max_j |F(x)_j|,   K = H // 2 + 1

    The result has norm 1, and binding with it keeps norms. The zero vector becomes the impulse. The
    threshold is that of `inverse`: rounding error has no phase, and below it the gradient is 0.
    Returns: shape and dtype of x. Raises: as `bind`.
    Source: Ganesan et al., "Learning with Holographic Reduced Representations", NeurIPS 2021, eq. 3.

    >>> import jax.numpy as jnp
    >>> u = unitary_projection(jnp.array([4.0, 2.0, 1.0]))
    >>> bind(involution(u), u).round(5) + 0.0
    Array([1., 0., 0.], dtype=float32)
    """
    (x,) = _checked(x=x)
    size = x.shape[-1]
    spectrum = spectral.to_spectrum(x)
    scale = jnp.expand_dims(spectral.bin_scale(size, spectrum.dtype), range(x.ndim - 1))
    return spectral.from_spectrum(spectral.phase(spectrum / scale) * scale, size).astype(x.dtype)


def _unit_and_reciprocal_norm(x: Array) -> tuple[Array, Array]:
    """Computes x / ‖x‖ and 1 / ‖x‖, both 0 for x = 0; squares stay in the range of floats."""
    peak = jnp.max(jnp.abs(x), axis=-1, keepdims=True)
    present = peak >= jnp.finfo(x.dtype).tiny
    peak = jnp.where(present, peak, 1.0)
    scaled = jnp.where(present, x / peak, 0.0)
    squared = jnp.sum(jnp.square(scaled), axis=-1, keepdims=True)
    reciprocal = jnp.where(present, jax.lax.rsqrt(jnp.where(present, squared, 1.0)), 0.0)
    return scaled * reciprocal, reciprocal / peak


@jax.custom_jvp
def _unit(x: Array) -> Array:
    return _unit_and_reciprocal_norm(x)[0]


@_unit.defjvp
def _unit_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (dx,) = primals, tangents
    u, reciprocal = _unit_and_reciprocal_norm(x)
    return u, (dx - u * jnp.sum(u * dx, axis=-1, keepdims=True)) * reciprocal


def unit(x: Float[Array, "*B H"]) -> Float[Array, "*B H"]:
    """Scales a vector to norm 1.

        u = x / ‖x‖,   du = (dx - u ⟨u, dx⟩) / ‖x‖;   both are 0 for x = 0

    The vector is divided by its largest entry before it is squared, so no magnitude from the smallest
    normal to the largest number under- or overflows; a vector below the smallest normal number gives 0.
    Returns: shape and dtype of x. Raises: as `bind`.

    >>> import jax.numpy as jnp
    >>> unit(jnp.array([3e30, -4e30]))
    Array([ 0.6, -0.8], dtype=float32)
    """
    (x,) = _checked(x=x)
    return _unit(x.astype(spectral.accumulation_dtype(x.dtype))).astype(x.dtype)


def cosine_similarity(x: Float[Array, "*#B H"], y: Float[Array, "*#B H"]) -> Float[Array, "*#B"]:
    """Returns the cosine of the angle between two vectors.

        cos(x, y) = ⟨x, y⟩ / (‖x‖ ‖y‖)  in [-1, 1],   and 0, with zero gradient, where x or y is 0

    Args:
      x, y: Floating-point vectors, broadcast against each other over the leading dimensions.

    Returns:
      Cosines without the last axis, in the promoted dtype, independent of the scales of x and y.

    Raises: as `bind`.

    >>> import jax.numpy as jnp
    >>> cosine_similarity(jnp.array([3e-30, 4e-30]), jnp.array([0.0, 1e20]))
    Array(0.8, dtype=float32)
    """
    x, y = _checked(x=x, y=y)
    x, y = jnp.broadcast_arrays(x, y)
    dtype = jnp.promote_types(x.dtype, y.dtype)
    wide = spectral.accumulation_dtype(dtype)
    return jnp.sum(_unit(x.astype(wide)) * _unit(y.astype(wide)), axis=-1).astype(dtype)


def hrr_normal(
    key: PRNGKeyArray, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32
) -> Float[Array, "*B H"]:
    """Draws vectors with independent normal entries of variance 1/H, H the last entry of `shape`.

    Their expected squared norm is 1, and binding keeps it. An initializer in the sense of
    `jax.nn.initializers`. Source: Plate 1995, section III.

    >>> import jax
    >>> hrr_normal(jax.random.key(0), (3, 64)).shape
    (3, 64)
    """
    if not shape or shape[-1] < 1:
        raise ValueError(f"shape must end in a size of at least 1; got {shape}.")
    return jax.random.normal(key, shape, dtype) / jnp.sqrt(jnp.asarray(shape[-1], dtype))
