"""The position-bound holographic memory: each pair of key and value is bound to its position and fades.

In the Fourier coefficients over H the memory at token t is a sum over tokens with complex weights,

    M_t = Σ_s m_s G_{t-s} K_s V_s,     G_τ = gain₀ exp((-rate₀ + i phase₀) τ)     for τ ≥ 0,
                                       G_τ = gain₁ exp((-rate₁ + i phase₁) |τ|)   for τ < 0,

or a sum of such G over several poles, and the result is V̂_t = conj(Q_t) M_t. The sequence is cut into blocks.
Inside a block the sum is a convolution over tokens. Every other block contributes through one state per pole
and side, which fades on its way:

    past:   Σ_s exp((-rate₀ + i phase₀) (last - s)) K_s V_s     handed to later blocks
    future: Σ_s exp((-rate₁ + i phase₁) (s - first)) K_s V_s    handed to earlier blocks

As in `hrrformer.passes`, arrays have shape (*B, P, L, N, H): P segments, which devices may share, of L
tokens. By "fft" the blocks of a segment run one after the other, so that the working set is one block per
segment; by "matmul" they run at once. JAX differentiates the code, and the backward pass computes everything
again from the inputs of a block: the derivative of the sum is the same sum with time reversed.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Complex, Float, Inexact

from hrrformer import fft, passes, spectral
from hrrformer.arguments import GivenMemory, Mask, check_memory
from hrrformer.variant import AxisName

Method: TypeAlias = Literal["fft", "matmul"]

BLOCKS = {"fft": 128, "matmul": 32}  # most tokens of a block


def hrr_memory(
    query: Float[Array, "*B T N H"],
    key: Float[Array, "*B T N H"],
    value: Float[Array, "*B T N H"],
    *,
    rate: float | Float[Array, "..."],
    phase: float | Float[Array, "..."],
    gain: float | Inexact[Array, "..."] | None = None,
    mask: Mask | None = None,
    is_causal: bool = False,
    implementation: Method | None = None,
    precision: jax.lax.PrecisionLike = None,
    axis_name: AxisName | None = None,
) -> Float[Array, "*B T N H"]:
    """Retrieves from a holographic memory whose pairs are bound to their positions and fade.

    For every head, with a sum over the valid tokens s (with `is_causal`, over those up to t):

        v̂_t = q_t* ⊛ Σ_s g_{t-s} ⊛ k_s ⊛ v_s

    ⊛ is circular convolution over H, * the involution. g_τ is a vector with the Fourier coefficients
    gain₀ exp((-rate₀ + i phase₀) τ) for τ ≥ 0, the past and the token itself, and
    gain₁ exp((-rate₁ + i phase₁) |τ|) for τ < 0, the future, or a sum of such terms over several poles; its
    coefficients 0 and H/2 are the real parts. So each token retrieves values of other tokens:
    `hrrformer/reference.py` has these lines as code.

    Args:
      query, key, value: Arrays (*B, T, N, H) of one shape, in float16, bfloat16, float32 or float64. Sums,
        powers and transforms are computed in float32 (float64 for float64 input).
      rate: Decay rates > 0 in nepers per token, an array that broadcasts to (2, N, K), K = H // 2 + 1, past
        first; with `is_causal` to (N, K). A pair fades to 1/e over 1 / rate tokens.
        With a last axis more, (2, N, K, M) or (N, K, M), every coefficient has M poles.
      phase: Phases in radians per token, of the shapes of `rate`.
      gain: Factors of g, real or complex, of the shapes of `rate`; None for 1. √(1 - exp(-2 rate)) gives the
        sums over independent pairs of the past one size for all rates.
      mask: Key-padding mask, as in `hrrformer.hrr_attention`. The content of masked tokens changes nothing,
        and they get 0. They do count as distance: pad prompts on the left, since tokens that follow padding
        on the right are that much farther away.
      is_causal: Sum over the tokens up to t. `hrr_memory_step` reads a sequence in pieces. By "fft" a token
        receives later ones of its block as rounding errors; by "matmul" it receives nothing of them.
      implementation: Method for the sums inside a block of tokens: "fft" by FFT over tokens, "matmul" by
        products with Toeplitz matrices. None picks "fft" on CPU, and "matmul" on GPU and TPU, a rule of
        thumb.
      precision: Precision of the matrix products. None means full float32 products; for 16-bit inputs it
        means the platform's default.
      axis_name: Mesh axes that share T inside `jax.shard_map`: each device sends one state of M·N·K
        complex numbers per sequence and side. Under `jax.jit` it is None.

    Returns:
      v̂ (*B, T, N, H), not normalized, in the dtype of `value`.

    Raises:
      TypeError, ValueError: For other shapes or dtypes, and an unknown implementation; each message reports
        the given value.

    Cost: O(T·H·(log C + M)) time by "fft" and O(T·H·(C + M)) by "matmul" for blocks of C tokens, and O(T·H)
    memory, per head and sequence, beside the transforms over H.

    Source: Plate's binding with the fractional powers of a vector as positions (spatial semantic pointers),
    and a decay. Coefficient by coefficient it is a complex diagonal linear recurrence, as in S4D and LRU.

    >>> import jax, jax.numpy as jnp
    >>> q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 5, 4, 16))
    >>> hrr_memory(q, k, v, rate=jnp.full((2, 4, 9), 0.1), phase=jnp.zeros((2, 4, 9))).shape
    (2, 5, 4, 16)
    """
    out, _ = _retrieve(
        query, key, value, rate, phase, gain, None, mask, is_causal, implementation, precision, axis_name
    )
    return out


def hrr_memory_step(
    query: Float[Array, "*B T N H"],
    key: Float[Array, "*B T N H"],
    value: Float[Array, "*B T N H"],
    state: Complex[Array, "..."],
    *,
    rate: float | Float[Array, "..."],
    phase: float | Float[Array, "..."],
    gain: float | Inexact[Array, "..."] | None = None,
    mask: Mask | None = None,
    implementation: Method | None = None,
    precision: jax.lax.PrecisionLike = None,
) -> tuple[Float[Array, "*B T N H"], Complex[Array, "..."]]:
    """Continues a causal holographic memory by the next token or tokens of sequences.

    A sequence read in pieces of any sizes gives the same result as `hrr_memory` with `is_causal=True` on the
    whole. The cost of a token does not depend on the number of earlier tokens.

    Args:
      query, key, value: Arrays (*B, T, N, H) of the next T tokens.
      state: Result of the previous call; `init_memory_state` before the first token.
      rate, phase, gain, mask, implementation, precision: As in `hrr_memory` with `is_causal=True`.

    Returns:
      v̂ (*B, T, N, H) in the dtype of `value`, and the state after these tokens.

    Raises:
      ValueError: For a state of another shape; and as `hrr_memory`.

    >>> import jax, jax.numpy as jnp
    >>> q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 6, 4, 16))
    >>> fading = {"rate": jnp.full((4, 9), 0.1), "phase": jnp.full((4, 9), 0.2)}
    >>> state = init_memory_state(2, 4, 16)
    >>> first, state = hrr_memory_step(q[:, :5], k[:, :5], v[:, :5], state, **fading)
    >>> last, state = hrr_memory_step(q[:, 5:], k[:, 5:], v[:, 5:], state, **fading)
    >>> whole = hrr_memory(q, k, v, is_causal=True, **fading)
    >>> bool(jnp.allclose(jnp.concatenate([first, last], axis=1), whole, atol=1e-5))
    True
    """
    return _retrieve(query, key, value, rate, phase, gain, state, mask, True, implementation, precision, None)


def init_memory_state(
    batch_shape: int | tuple[int, ...],
    num_heads: int,
    head_size: int,
    dtype: DTypeLike = jnp.float32,
    *,
    num_poles: int | None = None,
) -> Complex[Array, "..."]:
    """Returns the state of a causal memory before the first token: zeros.

    Args:
      batch_shape: Batch shape *B, or B for one axis.
      num_heads: Number of heads N.
      head_size: Head size H; K = H // 2 + 1.
      dtype: Dtype of real and imaginary part: float32, or float64 for inputs of that type.
      num_poles: Number M of poles, for rates with an axis of poles; None for rates without one.

    >>> init_memory_state(2, 4, 16).shape, init_memory_state(2, 4, 16, num_poles=3).shape
    ((2, 4, 9), (2, 4, 9, 3))
    """
    batch = (batch_shape,) if isinstance(batch_shape, int) else batch_shape
    poles = () if num_poles is None else (num_poles,)
    return jnp.zeros((*batch, num_heads, head_size // 2 + 1, *poles), spectral.complex_dtype(dtype))


def _retrieve(
    query: Array,
    key: Array,
    value: Array,
    rate: float | Array,
    phase: float | Array,
    gain: float | Array | None,
    state: Array | None,
    mask: Mask | None,
    is_causal: bool,
    implementation: Method | None,
    precision: jax.lax.PrecisionLike,
    axis_name: AxisName | None,
) -> tuple[Float[Array, "*B T N H"], Complex[Array, "..."]]:
    """Computes v̂ and, for a causal memory, the state after the last token."""
    has_poles = state is not None and jnp.ndim(state) == jnp.ndim(query)  # as init_memory_state made it
    if state is not None and not has_poles:
        state = jnp.asarray(state)[..., None]
    given = check_memory(query, key, value, rate, phase, gain, state, mask, is_causal=is_causal)
    if implementation is None:
        implementation = "fft" if jax.default_backend() == "cpu" else "matmul"
    if implementation not in BLOCKS:
        raise ValueError(f"implementation must be None or one of {(*BLOCKS,)}; got {implementation!r}.")
    out, after = _compute(given, implementation, BLOCKS[implementation], precision, axis_name)
    after = jnp.moveaxis(after, -3, -1) if has_poles else after[..., 0, :, :]
    return out.astype(jnp.asarray(value).dtype), after if state is None else after.astype(state.dtype)


@functools.partial(jax.jit, static_argnums=(1, 2, 3, 4))  # or JAX would compile the loops at every call
def _compute(
    given: GivenMemory,
    method: Method,
    most: int,
    precision: jax.lax.PrecisionLike,
    axis_name: AxisName | None,
) -> tuple[Float[Array, "*B T N H"], Complex[Array, "*B M N K"]]:
    segments = 1 if axis_name is not None else passes.num_segments(given.query)
    memory = _Memory(given, segments, method, most, precision)
    arrays = tuple(memory.blocks(x, -3) for x in (given.query, given.key, given.value))
    valid = None if given.valid is None else memory.blocks(given.valid, -1)
    pairs, ends = memory.over_blocks(memory.bind, (memory.is_last, *arrays[1:], valid))
    before, after = _incoming(memory, given.state, ends, axis_name)
    out = memory.over_blocks(memory.retrieve, (memory.is_last, arrays[0], pairs, valid, before))
    return memory.joined(out), after


class _Memory:
    """The sums of one memory over its sequence, in blocks.

    Attributes:
      length, block, count: Tokens L of a segment, tokens C of a block, and number of blocks of a segment.
      is_last: True for the last block of a segment, which may have fewer than C tokens.
    """

    def __init__(
        self, given: GivenMemory, segments: int, method: Method, most: int, precision: jax.lax.PrecisionLike
    ) -> None:
        *_, length, _, size = given.query.shape
        self._segments = segments
        self._method = method
        self._precision = spectral.matmul_precision(given.query.dtype, precision)
        self._size, self._dtype = size, given.rate.dtype
        self._scale = spectral.bin_scale(size, self._dtype)
        self._rate, self._phase, self._gain = given.rate, given.phase, given.gain
        self.length = length // self._segments
        self.count, self.block = 1, self.length
        if passes.is_symbolic(length) or self.length > most:
            self.count = -(-self.length // most)
            self.block = most if passes.is_symbolic(length) else -(-self.length // self.count)
        self.is_last = jnp.arange(self.count) == self.count - 1
        self.end = self.length - (self.count - 1) * self.block
        self._kernel = self._kernel_by_fft() if method == "fft" else self._kernel_by_matmul()
        # The weights of tokens in the state that their block hands on, and of received states at tokens; for
        # the last block of a segment and for the others.
        tokens = jnp.arange(self.block)
        lags = [(jnp.maximum(end - 1 - tokens, 0), tokens) for end in (self.end, self.block)]
        self._to_end = [[self.powers(side, lag[side]) for lag in lags] for side in self.sides]
        lags = [(tokens + 1, jnp.maximum(end - tokens, 0)) for end in (self.end, self.block)]
        self._from_start = [[self.powers(side, lag[side], gain=True) for lag in lags] for side in self.sides]

    @property
    def sides(self) -> range:
        """Indices of the sides: 0 is the past, and 1 is the future, which a causal memory lacks."""
        return range(self._rate.shape[0])

    def powers(self, side: int, lags: Any, *, gain: bool = False) -> Complex[Array, "M N K m"]:
        """Returns exp((-rate + i phase) τ) for lags τ ≥ 0 (m,), times the gain if asked for.

        They are exponentials: repeated products lose digits.
        """
        lags = jnp.expand_dims(jnp.asarray(lags).astype(self._dtype), (0, 1, 2))
        size = jnp.exp(-self._rate[side, ..., None] * lags)
        angle = self._phase[side, ..., None] * lags
        found = jax.lax.complex(size * jnp.cos(angle), size * jnp.sin(angle))
        return found * self._gain[side, ..., None] if gain else found

    def _weights(self, side: int, lags: Any) -> Complex[Array, "N K m"]:
        """Returns the coefficients of g on one side, sums over the poles."""
        return jnp.sum(self.powers(side, lags, gain=True), axis=0)

    # Weights inside a block

    def _kernel_by_fft(self) -> tuple[Array, Array]:
        """Returns the spectra over tokens of Re G and Im G, (N, K, F)."""
        n = self._num_points = 1 << (2 * self.block - 2).bit_length()  # at least 2 C - 1: no wrap-around
        weights = self._weights(0, jnp.arange(self.block))
        padding = [(0, 0), (0, 0), (0, n - self.block)]
        kernel = jnp.pad(weights, padding)
        for side in self.sides[1:]:  # negative lags wrap around
            weights = self._weights(side, jnp.arange(self.block - 1, 0, -1))
            kernel = kernel + jnp.pad(weights, [(0, 0), (0, 0), (n - self.block + 1, 0)])
        return fft.rfft(kernel.real), fft.rfft(kernel.imag)

    def _kernel_by_matmul(self) -> Array:
        """Returns the Toeplitz matrices that map (Re z, Im z) to (Re M, Im M), (N, K, 2C, 2C)."""
        lags = np.subtract.outer(np.arange(self.block), np.arange(self.block))
        kernel = jnp.zeros((), spectral.complex_dtype(self._dtype))
        for side, applies in zip(self.sides, (lags >= 0, lags < 0), strict=False):
            weights = self._weights(side, np.arange(self.block))[..., abs(lags)]
            kernel = jnp.where(
                np.expand_dims(applies, (0, 1)), weights, jnp.broadcast_to(kernel, weights.shape)
            )
        return jnp.block([[kernel.real, -kernel.imag], [kernel.imag, kernel.real]])

    def _convolve(self, z: Complex[Array, "*B N K C"]) -> Complex[Array, "*B N K C"]:
        """Returns the sums of a block over its own tokens."""
        if self._method == "matmul":
            both = jnp.concatenate([z.real, z.imag], axis=-1)
            summed = jnp.einsum("nkts,...nks->...nkt", self._kernel, both, precision=self._precision)
            return jax.lax.complex(*jnp.split(summed, 2, axis=-1))
        padding = [(0, 0)] * (z.ndim - 1) + [(0, self._num_points - self.block)]
        real, imag = (fft.rfft(jnp.pad(x, padding)) for x in (z.real, z.imag))
        g, h = (jnp.expand_dims(x, range(z.ndim - 3)) for x in self._kernel)
        parts = (fft.irfft(f, n=self._num_points) for f in (g * real - h * imag, g * imag + h * real))
        return jax.lax.complex(*(jax.lax.slice_in_dim(x, 0, self.block, axis=x.ndim - 1) for x in parts))

    # One block of every segment

    def _spectrum(self, x: Float[Array, "*B C N H"], *, scaled: bool = True) -> Complex[Array, "*B N K C"]:
        """Returns the spectra of tokens; not `scaled`, without the factor d of `hrrformer.spectral`."""
        x = jnp.swapaxes(x, -3, -2).astype(self._dtype)
        spectrum = spectral.to_spectrum(x, precision=self._precision)
        if not scaled:
            spectrum = spectrum / jnp.expand_dims(self._scale, range(x.ndim - 1))
        return jax.lax.complex(*jnp.split(jnp.swapaxes(spectrum, -1, -2), 2, axis=-2))

    def bind(self, xs: tuple[Any, ...]) -> tuple[Complex[Array, "*B N K C"], tuple[Array, ...]]:
        """Returns the pairs K V of a block, and the state that it hands on for each side, (*B, M, N, K)."""
        is_last, key, value, valid = xs
        pairs = self._spectrum(key) * self._spectrum(value, scaled=False)
        if valid is not None:
            pairs = jnp.where(valid[..., None, None, :], pairs, 0.0)
        weights = (jnp.where(is_last, *self._to_end[side]) for side in self.sides)
        return pairs, tuple(
            jnp.sum(jnp.expand_dims(pairs, -4) * jnp.expand_dims(w, range(pairs.ndim - 3)), axis=-1)
            if len(w) == 1
            else jnp.einsum("...nkc,mnkc->...mnk", pairs, w, precision=jax.lax.Precision.HIGHEST)
            for w in weights
        )

    def retrieve(self, xs: tuple[Any, ...]) -> Float[Array, "*B C N H"]:
        """Returns v̂ of a block from its pairs and the states that it receives."""
        is_last, query, pairs, valid, states = xs
        memory = self._convolve(pairs)
        for weights, state in zip(self._from_start, states, strict=True):
            weights = jnp.where(is_last, *weights)
            if len(weights) == 1:
                weights = jnp.expand_dims(weights, range(memory.ndim - 3))
                memory = memory + (weights * state[..., None])[..., 0, :, :, :]
            else:
                faded = jnp.einsum("mnkc,...mnk->...nkc", weights, state, precision=jax.lax.Precision.HIGHEST)
                memory = memory + faded
        found = jnp.conj(self._spectrum(query, scaled=False)) * memory
        spectrum = jnp.swapaxes(jnp.concatenate([found.real, found.imag], axis=-2), -1, -2)
        out = spectral.from_spectrum(spectrum, self._size, precision=self._precision)
        if valid is not None:
            out = jnp.where(valid[..., None, :, None], out, 0.0)
        return jnp.swapaxes(out, -3, -2).astype(query.dtype)

    # All blocks

    def over_blocks(self, step: Callable[[Any], Any], xs: Any) -> Any:
        """Maps a function over the blocks of the segments, keeping its inputs only for the backward pass."""
        step = jax.checkpoint(step, prevent_cse=False)
        if self._method == "matmul" or self.is_one:
            return jax.vmap(step)(xs)
        return jax.lax.map(step, xs)

    @property
    def is_one(self) -> bool:
        """Whether a segment is a single block."""
        return not passes.is_symbolic(self.count) and self.count == 1

    def blocks(self, x: Array, axis: int) -> Array:
        """(*B, T, …) → (count, *B, P, C, …), padded with zeros, which for a mask is False."""
        axis %= x.ndim
        x = passes.cut(x, axis, self._segments)
        if self.is_one:
            return x[None]
        fill = [(0, 0)] * x.ndim
        fill[axis + 1] = (0, self.count * self.block - self.length)
        x = jnp.pad(x, fill)
        shape = (*x.shape[: axis + 1], self.count, self.block, *x.shape[axis + 2 :])
        return jnp.moveaxis(x.reshape(shape), axis + 1, 0)

    def joined(self, x: Array) -> Array:
        """(count, *B, P, C, N, H) → (*B, T, N, H)."""
        if self.is_one:
            return passes.join(x[0], -4)
        x = passes.join(jnp.moveaxis(x, 0, -4), -4)
        return passes.join(jax.lax.slice_in_dim(x, 0, self.length, axis=x.ndim - 3), -4)


def _incoming(
    memory: _Memory,
    state: Complex[Array, "*B M N K"] | None,
    ends: tuple[Complex[Array, "count *B P M N K"], ...],
    axis_name: AxisName | None,
) -> tuple[list[Complex[Array, "count *B P M N K"]], Complex[Array, "*B M N K"]]:
    """Computes the states that each block receives, and the past after the last token.

    First inside each segment, then across segments, or across devices inside `jax.shard_map`.
    """
    received: list[Array] = []
    totals: list[Array] = []
    length, block, count = memory.length, memory.block, memory.count
    for side, handed in zip(memory.sides, ends, strict=True):
        past = side == 0
        end = memory.end if past else block
        over_block, over_end = (memory.powers(side, [lag])[..., 0] for lag in (block, end))
        if memory.is_one:  # XLA for CPU aborts on the gradient in the rates of a scan over one block
            inside, total = passes.zeros_alike(handed), handed[0]
        else:
            inside, total = _scan(handed, over_block, over_end, past)
        over_segment = memory.powers(side, [length])[..., 0]
        if axis_name is not None:
            total = jax.lax.all_gather(total[..., 0, :, :, :], axis_name)
            outside, last = _scan(total, over_segment, over_segment, past)
            outside = outside[jax.lax.axis_index(axis_name)][None]
        else:
            total = _whole_on_each_device(jnp.moveaxis(total, -4, 0))
            outside, last = _scan(total, over_segment, over_segment, past, state if past else None)
        totals.append(last)
        starts = jnp.arange(count) * block
        lags = starts if past else jnp.maximum(length - starts - block, 0)
        fading = jnp.moveaxis(memory.powers(side, lags), -1, 0)
        fading = jnp.expand_dims(fading, range(1, handed.ndim - 3))
        received.append(inside + fading * jnp.moveaxis(outside, 0, -4)[None])
    return received, totals[0]


def _whole_on_each_device(x: Array) -> Array:
    """Gathers the first axis on an explicit mesh; under `jax.jit` with other meshes XLA does so by itself."""
    sharding = jax.typeof(x).sharding
    if sharding.spec[0] is None:
        return x
    spec = jax.sharding.PartitionSpec(None, *sharding.spec[1:])
    return jax.sharding.reshard(x, jax.sharding.NamedSharding(sharding.mesh, spec))


def _scan(
    handed: Complex[Array, "n *B M N K"],
    decay: Complex[Array, "M N K"],
    last_decay: Complex[Array, "M N K"],
    past: bool,
    start: Complex[Array, "*B M N K"] | None = None,
) -> tuple[Complex[Array, "n *B M N K"], Complex[Array, "*B M N K"]]:
    """Sums over the blocks, or segments, before each one in its direction, and over all.

    Args:
      handed: State that each of them hands on.
      decay: Decay over one of them.
      last_decay: Decay over the one that comes last in the direction.
      past: Whether states go to later blocks; if not, to earlier ones.
      start: State before the first one in the direction; None for zeros.
    """
    decay, last_decay = (jnp.expand_dims(x, range(handed.ndim - 4)) for x in (decay, last_decay))

    def step(state: Array, end: Array) -> tuple[Array, Array]:
        return decay * state + end, state

    zero = passes.zeros_alike(handed[0])
    start = zero if start is None else start + zero  # in `jax.shard_map` it then varies as `handed` does
    _, before = jax.lax.scan(step, start, handed, reverse=not past)
    at = -1 if past else 0
    return before, last_decay * before[at] + handed[at]
