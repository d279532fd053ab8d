"""The passes of HRR attention over a sequence, forward and backward, block by block and in place.

Tokens interact through two maps, each its own transpose up to the roles of its arguments; ⊛ is circular
convolution and * the involution:

    superpose(x, y) = Σ_t x_t ⊛ y_t            a vector of size H
    unbind(x, m)_t  = x_t* ⊛ m                 a vector of size H for every token

Forward, β = superpose(k, v) and v̂ = unbind(q, β). Backward, let û be the cotangent of v̂. Then the
cotangent of q is unbind(û, β), and that of β is γ = superpose(q, û). The cotangent of k is unbind(v, γ), and
that of v is unbind(k, γ). The forward pass needs one map of each kind. The backward pass computes v̂ again,
so it needs four unbindings and one superposition. Among arrays of the sequence's size, only q, k and v are
kept.

Neither map needs a Fourier transform. The H × H matrix M[i, j] = m[(i + j) mod H] gives unbind(x, m) = x M.
superpose sums xᵀ y over tokens and folds this H × H matrix along its diagonals i + j mod H. This is the
implementation "matmul". The implementation "fft" takes real FFTs instead.

Arrays here have shape (*B, P, L, N, H) with T = P · L: P segments, which devices may share, of L tokens. A
pass runs through all segments at once, in blocks of a few tokens. Scores and weights have shape
(*B, P, N, L). Results overwrite their sources block by block, so a pass needs no other memory of the
sequence's size.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.export import is_symbolic_dim
from jaxtyping import Array, Bool, Float

from hrrformer import fft, spectral
from hrrformer.variant import Variant

# Least and most numbers of one input in a block on each device; between them, an eighth of the whole. On CPU
# a block and its intermediate results fit into the caches; elsewhere a block keeps every core busy.
BLOCK_SIZES = {"cpu": (2**16, 2**18), "default": (2**22, 2**25)}


class Maps(NamedTuple):
    """The two maps of the module's docstring over one block, in steps that a loop can share.

    Attributes:
      prepare: Function m (…, H) → second argument of `unbind`.
      unbind: Function x (…, t, H), prepared m → (…, t, H).
      correlate: Function x, y (…, P, N, t, H) → their term of the sum that `finish` takes.
      finish: Function sum → superpose(x, y) (…, 1, N, H), over all segments.
    """

    prepare: Callable[[Array], Array]
    unbind: Callable[[Array, Array], Array]
    correlate: Callable[[Array, Array], Array]
    finish: Callable[[Array], Array]


def maps(implementation: str | None, size: int, precision: jax.lax.PrecisionLike) -> Maps:
    """Returns the maps for vectors of `size` numbers by FFT or by matrix products."""
    if implementation == "fft":
        return Maps(
            prepare=lambda m: jnp.expand_dims(fft.rfft(m), -2),
            unbind=lambda x, m: _tokens_first(
                lambda f: fft.irfft(f, n=size), jnp.conj(_tokens_first(fft.rfft, x)) * m
            ),
            correlate=lambda x, y: jnp.sum(_tokens_first(fft.rfft, x) * _tokens_first(fft.rfft, y), axis=-2),
            finish=lambda total: fft.irfft(jnp.sum(total, axis=-3, keepdims=True), n=size),
        )

    def hankel(m: Array) -> Array:
        """M[i, j] = m[(i + j) mod H]: entry i (H + 1) + j of m repeated is entry (i + j) mod H of m."""
        return _reshape_last(jnp.tile(m, size + 1), 1, size, size + 1)[..., :size]

    def fold(products: Array) -> Array:
        """Sums the entries with (i + j) mod H = m, by the same counting in reverse."""
        padded = jnp.pad(products, [(0, 0)] * (products.ndim - 1) + [(0, 1)])
        folded = jnp.sum(_reshape_last(padded, 2, size + 1, size), axis=-2)
        return jnp.sum(folded, axis=-3, keepdims=True)  # devices exchange H numbers, not H²

    return Maps(
        prepare=hankel,
        unbind=lambda x, m: jnp.einsum("...th,...hj->...tj", x, m, precision=precision),
        correlate=lambda x, y: jnp.einsum("...ti,...tj->...ij", x, y, precision=precision),
        finish=fold,
    )


def _tokens_first(function: Callable[[Array], Array], x: Array) -> Array:
    """Applies an FFT in the order of the arrays in memory, without a transposed copy."""
    return jnp.swapaxes(function(jnp.swapaxes(x, -3, -2)), -3, -2)


def _reshape_last(x: Array, num_axes: int, *sizes: int) -> Array:
    """Reshapes the last axes, which devices do not share; explicit sharding needs the result's sharding."""
    shape = (*x.shape[: x.ndim - num_axes], *sizes)
    sharding = jax.typeof(x).sharding
    spec = sharding.spec[: x.ndim - num_axes]
    if all(axis is None for axis in spec):
        return x.reshape(shape)
    spec = jax.sharding.PartitionSpec(*spec, *(None for _ in sizes))
    return jnp.reshape(x, shape, out_sharding=jax.sharding.NamedSharding(sharding.mesh, spec))


def inner(x: Float[Array, "*B H"], y: Float[Array, "*B H"]) -> Float[Array, "*B"]:
    """Returns ⟨x, y⟩ over the last axis, as a product that XLA does not turn into a scalar loop."""
    dtype = spectral.accumulation_dtype(x.dtype)
    precision = jax.lax.Precision.HIGHEST
    return jnp.einsum("...h,...h->...", x, y, precision=precision, preferred_element_type=dtype)


def reciprocal_norm(x: Float[Array, "*B H"]) -> Float[Array, "*B 1"]:
    """Returns 1 / ‖x‖, and 0 for x = 0; vectors are divided by their largest entry before squaring."""
    peak = jax.lax.stop_gradient(jnp.max(jnp.abs(x), axis=-1, keepdims=True))
    present = peak >= jnp.finfo(x.dtype).tiny
    peak = jnp.where(present, peak, 1.0)
    scaled = x / peak
    square = jnp.where(present, inner(scaled, scaled)[..., None], 1.0)
    return jnp.where(present, jax.lax.rsqrt(square) / peak, 0.0)


def varying_alike(*arrays: Array) -> list[Array]:
    """Makes all arrays vary over the axes of an enclosing `jax.shard_map` over which any of them varies.

    JAX then sums the cotangent of an array that is the same on all devices over them.
    """
    varying = [jax.typeof(x).manual_axis_type.varying for x in arrays]
    missing = [tuple(frozenset().union(*varying) - axes) for axes in varying]
    return [
        jax.lax.pcast(x, axes, to="varying") if axes else x for x, axes in zip(arrays, missing, strict=True)
    ]


def zeros_alike(x: Array, dtype: Any = None) -> Array:
    """Returns zeros that are sharded, or vary in `jax.shard_map`, as x does.

    Outside of `jax.set_mesh`, `jnp.zeros_like` forgets the sharding on an explicit mesh.
    """
    return jnp.where(jnp.array(False), x, jnp.zeros((), x.dtype)).astype(dtype or x.dtype)


def is_symbolic(*sizes: int) -> bool:
    """Whether a program that `jax.export` traces leaves any of the sizes open."""
    return any(map(is_symbolic_dim, sizes))


def num_segments(x: Float[Array, "*B T N H"]) -> int:
    """Returns P, so that the cuts between segments include those between devices.

    The type of an array on an explicit mesh says how many devices share T. Under `jax.jit` with other meshes
    it is not known: P is the largest number of devices that could share T with at least H tokens each. With
    fewer tokens, sums of H × H products would take more memory than the tokens. In `jax.shard_map` each
    device has its own sequence, and P is 1.
    """
    length, size = x.shape[-3], x.shape[-1]
    sharding = jax.typeof(x).sharding
    if axes := sharding.spec[x.ndim - 3]:
        axes = (axes,) if isinstance(axes, str) else axes
        return math.prod(sharding.mesh.shape[axis] for axis in axes)
    if jax.sharding.get_abstract_mesh().manual_axes or is_symbolic(length):
        return 1
    together = math.gcd(length, jax.device_count())
    return max(n for n in range(1, together + 1) if together % n == 0 and (n == 1 or n * size <= length))


def cut(x: Array, axis: int, segments: int) -> Array:
    """Splits the axis of tokens, T, into (P, L)."""
    axis %= x.ndim
    return x.reshape(*x.shape[:axis], segments, x.shape[axis] // segments, *x.shape[axis + 1 :])


def join(x: Array, axis: int) -> Array:
    """Joins the axes (P, L) again; `axis` is that of P."""
    axis %= x.ndim
    return x.reshape(*x.shape[:axis], x.shape[axis] * x.shape[axis + 1], *x.shape[axis + 2 :])


def _block_size(shape: tuple[int, ...]) -> int:
    """Returns the number of tokens of a block; all of them where an exported program leaves sizes open."""
    if is_symbolic(*shape):
        return shape[-3]
    least, most = BLOCK_SIZES.get(jax.default_backend(), BLOCK_SIZES["default"])
    on_each_device = math.prod(shape) / jax.device_count()
    blocks = max(math.ceil(on_each_device / min(max(on_each_device / 8, least), most)), 1)
    return math.ceil(shape[-3] / blocks)


class Passes:
    """The passes of one attention over its sequence, by FFT or by matrix products.

    Args:
      variant: Variant of the attention; its implementation is "fft" or "matmul".
      shape: Shape (*B, P, L, N, H) of query, key and value.
      dtype: Dtype of query, key and value.
      valid: Array (*B, P, L), True for real tokens; None if all are real.
    """

    def __init__(
        self, variant: Variant, shape: tuple[int, ...], dtype: Any, valid: Bool[Array, "*#B P L"] | None
    ) -> None:
        self._shape, self._valid = shape, valid
        self._dtype = spectral.accumulation_dtype(dtype)
        self._implementation, self._exact = variant.implementation, variant.inverse == "exact"
        self._precision = spectral.matmul_precision(dtype, variant.precision)
        self._maps = maps(self._implementation, shape[-1], self._precision)
        self._block = _block_size(shape)

    def superpose(self, key: Array, value: Array) -> Float[Array, "*B 1 N H"]:
        """Returns Σ_t k_t ⊛ v_t over the valid tokens."""

        def block(total: Array, start: Any, size: int) -> Array:
            k, v = self._read(key, start, size), self._read(value, start, size)
            return total + self._maps.correlate(self._kept(k, start, size), v)

        return self._maps.finish(self._over(block, self._no_sum(key)))

    def scores(
        self, query: Array, value: Array, memory: Float[Array, "*B 1 N H"], *, unbound: bool
    ) -> tuple[Float[Array, "*B P N L"], Float[Array, "*B P L N H"] | None]:
        """Returns a_t = cos(v_t, v̂_t), and v̂_t / rms(v̂_t) if `unbound`."""
        prepared = self._maps.prepare(memory)

        def block(carry: tuple[Array, Array | None], start: Any, size: int) -> tuple[Array, Array | None]:
            scores, out = carry
            retrieved = self._maps.unbind(self._cue(self._read(query, start, size)), prepared)
            value_t = self._read(value, start, size)
            unit = retrieved * reciprocal_norm(retrieved)
            cosines = inner(unit, value_t * reciprocal_norm(value_t))
            scores = jax.lax.dynamic_update_slice_in_dim(scores, cosines, start, axis=scores.ndim - 1)
            if out is not None:
                out = _write(out, self._kept(unit * self._root_size, start, size), start)
            return scores, out

        # Made from the inputs, to have their sharding, and to vary in `jax.shard_map` as they do.
        none_yet = zeros_alike(jnp.swapaxes(query[..., 0], -1, -2), self._dtype)
        return self._over(block, (none_yet, zeros_alike(query) if unbound else None))

    def pull_scores(
        self,
        query: Array,
        value: Array,
        memory: Float[Array, "*B 1 N H"],
        scores: Float[Array, "*B P N L"],
        scores_bar: Float[Array, "*B P N L"],
        weights: Float[Array, "*B P N L"] | None,
        out_bar: Array,
    ) -> tuple[Array, Array, Float[Array, "*B 1 N H"]]:
        """Pulls cotangents of scores and output back to query, value and memory.

            v̂_bar = a_bar (v/‖v‖ - a v̂/‖v̂‖) / ‖v̂‖,      v_bar = a_bar (v̂/‖v̂‖ - a v/‖v‖) / ‖v‖ + w o_bar

        Args:
          query, value, memory: Arguments of `scores`.
          scores, scores_bar: Scores a and their cotangent, 0 for tokens that are not valid.
          weights: Weights w if the output is w v; None if it is v̂ / rms(v̂).
          out_bar: Cotangent of the output.

        Returns:
          Cotangents of query, of value (without the part through the memory) and of the memory.
        """
        prepared = self._maps.prepare(memory)

        def block(carry: tuple[Array, Array, Array], start: Any, size: int) -> tuple[Array, Array, Array]:
            query, bar, total = carry  # overwritten by the cotangents of query and v
            v, o_bar = self._read(value, start, size), self._read(bar, start, size)
            a, a_bar = (_part(x, start, size)[..., None] for x in (scores, scores_bar))
            cue, pull = jax.vjp(self._cue, self._read(query, start, size))
            retrieved = self._maps.unbind(cue, prepared)
            reciprocal, reciprocal_v = reciprocal_norm(retrieved), reciprocal_norm(v)
            unit, unit_v = retrieved * reciprocal, v * reciprocal_v
            retrieved_bar = (a_bar * reciprocal) * (unit_v - a * unit)
            v_bar = (a_bar * reciprocal_v) * (unit - a * unit_v)
            if weights is not None:
                v_bar = v_bar + _part(weights, start, size)[..., None] * o_bar
            else:
                o_bar = self._kept(o_bar, start, size)
                across = o_bar - inner(o_bar, unit)[..., None] * unit
                retrieved_bar = retrieved_bar + (self._root_size * reciprocal) * across
            (query_bar,) = pull(self._maps.unbind(retrieved_bar, prepared))
            total = total + self._maps.correlate(cue, retrieved_bar)
            return _write(query, query_bar, start), _write(bar, v_bar, start), total

        carry = (query, out_bar.astype(self._dtype), self._no_sum(query))
        query_bar, value_bar, total = self._over(block, carry)
        return query_bar, value_bar, self._maps.finish(total)

    def pull_superposition(
        self, key: Array, value: Array, memory_bar: Float[Array, "*B 1 N H"], value_bar: Array
    ) -> tuple[Array, Array]:
        """Pulls the memory's cotangent back to key and value, and adds `value_bar` to that of value."""
        prepared = self._maps.prepare(memory_bar)

        def block(carry: tuple[Array, Array], start: Any, size: int) -> tuple[Array, Array]:
            value, value_bar = carry  # the cotangent of k, computed from v alone, overwrites v
            k, v = self._read(key, start, size), self._read(value, start, size)
            key_bar = self._kept(self._maps.unbind(v, prepared), start, size)
            more = self._kept(self._maps.unbind(k, prepared), start, size)
            summed = self._read(value_bar, start, size) + more
            return _write(value, key_bar, start), _write(value_bar, summed, start)

        key_bar, value_bar = self._over(block, (value, value_bar))
        return key_bar, value_bar.astype(value.dtype)

    @property
    def _root_size(self) -> float:
        return math.sqrt(self._shape[-1])

    def _cue(self, query: Array) -> Array:
        """Returns the first argument of `unbind`: q, or (q⁻¹)* for the exact inverse."""
        if not self._exact:
            return query
        size = query.shape[-1]
        scale = jnp.expand_dims(spectral.bin_scale(size, query.dtype), range(query.ndim - 1))
        spectrum = spectral.to_spectrum(query, self._implementation, self._precision) / scale
        inverse = spectral.conjugate(spectral.reciprocal(spectrum)) * scale
        return spectral.from_spectrum(inverse, size, self._implementation, self._precision)

    def _read(self, x: Array, start: Any, size: int) -> Float[Array, "*B P N t H"]:
        part = jax.lax.dynamic_slice_in_dim(x, start, size, axis=x.ndim - 3)
        return jnp.swapaxes(part, -3, -2).astype(self._dtype)

    def _kept(self, x: Array, start: Any, size: int) -> Array:
        """Returns x with 0 for tokens that are not valid."""
        if self._valid is None:
            return x
        return jnp.where(_part(self._valid, start, size)[..., None, :, None], x, 0.0)

    def _no_sum(self, x: Array) -> Array:
        """Returns zeros with the shape of `correlate` over blocks of x."""
        token = self._read(x, 0, 1)
        return zeros_alike(self._maps.correlate(token, token))

    def _over(self, block: Callable[..., Any], carry: Any) -> Any:
        """Runs `block(carry, start, size)` over the tokens of the segments, in all segments at once."""
        whole, rest = divmod(self._shape[-3], self._block)
        if whole == 1:
            carry = block(carry, 0, self._block)
        else:
            carry = jax.lax.fori_loop(
                0, whole, lambda i, carry: block(carry, i * self._block, self._block), carry
            )
        return block(carry, whole * self._block, rest) if rest else carry


def _part(x: Array, start: Any, size: int) -> Array:
    return jax.lax.dynamic_slice_in_dim(x, start, size, axis=x.ndim - 1)


def _write(x: Array, block: Float[Array, "*B P N t H"], start: Any) -> Array:
    block = jnp.swapaxes(block, -3, -2).astype(x.dtype)
    return jax.lax.dynamic_update_slice_in_dim(x, block, start, axis=x.ndim - 3)
