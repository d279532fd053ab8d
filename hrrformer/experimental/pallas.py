"""The passes of `hrrformer.passes` as fused kernels for GPU and TPU, written in Pallas.

Each of the four passes is one kernel that reads its operands once and writes its results once; intermediate
arrays, such as v̂ or its cotangent, stay in registers or on-chip memory. XLA makes the H × H Hankel matrix of
the memory, which every program reads. A sum over tokens leaves a program as one H × H matrix per chunk of
tokens, and XLA adds and folds these matrices: there are no atomic additions, and every run gives the same
results.

The lower bound of a pass is the data that it must move. In units of T·N·H numbers, the size of the query:

    forward    superpose             k, v → β                           2
               scores                q, v, β → a  (v̂ / rms(v̂) as well)  2  (3 with output="unbound")
               the weighted values   w, v → o, by XLA                   2  (0)
                                                                        6  (5)
    backward   ⟨o_bar, v⟩            by XLA                             2  (0)
               pull_scores           q, v, o_bar, β → dq, dv', γ        5
               pull_superposition    k, v, dv', γ → dk, dv              5
                                                                       12  (10)

Scores, masks and Hankel matrices add about 1/H of a unit each. Each of the two sums adds up to a quarter of
a unit of partial sums, on GPU and on TPU. The weighted values read the values again, and ⟨o_bar, v⟩ is a
separate step: the softmax divides by a sum over the sequence, which a kernel does not know before the last
token. The partial cotangent dv' is float32, as in `hrrformer.passes`, so that 16-bit gradients are rounded
once. Written and read, it makes the backward pass 14 (12) units of 16-bit numbers. XLA computes the exact
inverse beforehand, in float32, and its derivative afterwards; the bound does not include them.

The lowering depends on the platform:

- GPU: Triton. Of Pallas's two lowerings only Triton takes a kernel of plain blocks, on A100 and on H100, in
  JAX 0.10 and 0.12. Mosaic GPU no longer takes `pallas_call` in 0.12, and requires layouts and matrix
  instructions chosen by hand for each generation. JAX 0.12 warns that Triton is deprecated and will leave
  Pallas: then these kernels have to move. H goes up to 128, padded inside to a power of two. Without
  `precision`, products of float32 are three of TF32 on the matrix units
  (`DotAlgorithmPreset.TF32_TF32_F32_X3`), float32 except for the last bits.
- TPU: Mosaic, with blocks of whole tiles of 128 lanes. The heads of a token are adjacent. A program
  takes as many as fill a multiple of 128 lanes (two with H = 64), under one block-diagonal Hankel matrix, or
  all of them if this number does not divide N. Together they may have 512 numbers. Projections leave heads
  in memory in this way; other inputs are copied first. float16 is refused.
- CPU: interpret mode, for tests: slow, with any H.

Norms are roots of sums of squares here, without the scaling of `hrrformer.passes`: vectors count as 0 below
about 1e-19, and above 1e18 their squares overflow.

This implementation is an explicit choice and untimed: it is compiled for A100, H100 and TPU v5e, but has run
on none, so `implementation=None` never takes it. `experiments/pallas_speed.py` times it on your device.

`jax.jit` and `jax.vmap` work. Only first derivatives exist: a second raises NotImplementedError. XLA cannot
divide a kernel among devices: under `jax.jit` with sharded inputs XLA gathers them on GPU, and JAX raises
NotImplementedError on TPU. Use `jax.shard_map` with `axis_name`; in interpret mode also `check_vma=False`,
since JAX's interpreter fails otherwise.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jax.sharding import ManualAxisType
from jaxtyping import Array, Bool, Float

from hrrformer import passes, spectral
from hrrformer.variant import Variant

# Platform of the blocks that the interpreter takes on CPU, "gpu" or "tpu".
INTERPRETED = "gpu"
# GPU: the largest padded H; tokens per block, by padded H; number of programs in a kernel, each with several
# blocks.
GPU_SIZE = 128
GPU_BLOCK: dict[int | str, int] = {128: 32, "default": 64}
GPU_PROGRAMS = 512
GPU_CHUNK = 8  # least tokens per program, in units of padded H: fewer cost more partial sums
# TPU: the most numbers per token in a program, over its heads; numbers of one operand in a block.
TPU_WIDTH = 512
TPU_BLOCK_SIZE = 2**17

# Operands and results of a kernel. "tokens": (*B, P, L, N, H). "rows": (*B, P, N, L), a number per token and
# head. "valid": (*#B, P, L). "matrix": (*B, 1, N, H, H). "sum": (*B, P, N, H, H), a sum over tokens.
Kind: TypeAlias = Literal["tokens", "rows", "valid", "matrix", "sum"]
Operand: TypeAlias = tuple[Kind, Array | None]
Result: TypeAlias = tuple[Kind, Any]


class FusedPasses(passes.Passes):
    """`hrrformer.passes.Passes` with one kernel per pass; same arguments.

    Raises:
      ValueError: For an H without blocks on the platform, float64 on GPU or TPU, and float16 on TPU.
    """

    def __init__(
        self,
        variant: Variant,
        shape: tuple[int, ...],
        dtype: Any,
        valid: Bool[Array, "*#B P L"] | None,
    ) -> None:
        super().__init__(variant._replace(implementation="matmul"), shape, dtype, valid)
        self._tile = _tile(shape, dtype, variant.precision)

    def superpose(self, key: Array, value: Array) -> Float[Array, "*B 1 N H"]:
        """Returns Σ_t k_t ⊛ v_t over the valid tokens."""

        def block(k: Array, v: Array, valid: Array | None) -> tuple[Array, ...]:
            return (self._tile.product_over_tokens(_kept(k, valid), v),)

        operands: list[Operand] = [("tokens", key), ("tokens", value), ("valid", self._valid)]
        (products,) = self._call("superpose", block, operands, [("sum", self._dtype)])
        return self._maps.finish(products)

    def scores(
        self, query: Array, value: Array, memory: Float[Array, "*B 1 N H"], *, unbound: bool
    ) -> tuple[Float[Array, "*B P N L"], Float[Array, "*B P L N H"] | None]:
        """Returns a_t = cos(v_t, v̂_t), and v̂_t / rms(v̂_t) if `unbound`."""
        tile = self._tile

        def block(q: Array, v: Array, matrix: Array, valid: Array | None) -> tuple[Array, ...]:
            retrieved = tile.product(q, matrix)
            unit = retrieved * tile.reciprocal_norm(retrieved)
            cosines = unit * (v * tile.reciprocal_norm(v))  # `write` sums over the head
            return (cosines, _kept(unit * self._root_size, valid)) if unbound else (cosines,)

        cue = self._cue(query.astype(self._dtype)) if self._exact else query
        operands: list[Operand] = [
            ("tokens", cue),
            ("tokens", value),
            ("matrix", self._maps.prepare(memory)),
            ("valid", self._valid if unbound else None),
        ]
        results: list[Result] = [("rows", self._dtype)]
        if unbound:
            results.append(("tokens", query.dtype))
        scores, *out = self._call("scores", block, operands, results)
        return scores, out[0] if unbound else None

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
        """Pulls cotangents of scores and output back to query, value and memory, as `Passes` does."""
        tile, root_size = self._tile, self._root_size

        def block(
            q: Array,
            v: Array,
            o_bar: Array,
            matrix: Array,
            a: Array,
            a_bar: Array,
            w: Array | None,
            valid: Array | None,
        ) -> tuple[Array, ...]:
            retrieved = tile.product(q, matrix)
            reciprocal, reciprocal_v = tile.reciprocal_norm(retrieved), tile.reciprocal_norm(v)
            unit, unit_v = retrieved * reciprocal, v * reciprocal_v
            retrieved_bar = (a_bar * reciprocal) * (unit_v - a * unit)
            v_bar = (a_bar * reciprocal_v) * (unit - a * unit_v)
            if w is not None:
                v_bar = v_bar + w * o_bar
            else:
                o_bar = _kept(o_bar, valid)
                across = o_bar - tile.total(o_bar * unit) * unit
                retrieved_bar = retrieved_bar + (root_size * reciprocal) * across
            q_bar = tile.product(retrieved_bar, matrix)
            return q_bar, v_bar, tile.product_over_tokens(q, retrieved_bar)

        pull = None
        if self._exact:
            cue, pull = jax.vjp(self._cue, query.astype(self._dtype))
        else:
            cue = query
        operands: list[Operand] = [
            ("tokens", cue),
            ("tokens", value),
            ("tokens", out_bar),
            ("matrix", self._maps.prepare(memory)),
            ("rows", scores),
            ("rows", scores_bar),
            ("rows", weights),
            ("valid", self._valid if weights is None else None),
        ]
        results: list[Result] = [("tokens", cue.dtype), ("tokens", self._dtype), ("sum", self._dtype)]
        cue_bar, value_bar, products = self._call("pull_scores", block, operands, results)
        query_bar = cue_bar if pull is None else pull(cue_bar)[0].astype(query.dtype)
        return query_bar, value_bar, self._maps.finish(products)

    def pull_superposition(
        self, key: Array, value: Array, memory_bar: Float[Array, "*B 1 N H"], value_bar: Array
    ) -> tuple[Array, Array]:
        """Pulls the memory's cotangent back to key and value, and adds `value_bar` to that of value."""
        tile = self._tile

        def block(k: Array, v: Array, v_bar: Array, matrix: Array, valid: Array | None) -> tuple[Array, ...]:
            key_bar = _kept(tile.product(v, matrix), valid)
            return key_bar, v_bar + _kept(tile.product(k, matrix), valid)

        operands: list[Operand] = [
            ("tokens", key),
            ("tokens", value),
            ("tokens", value_bar),
            ("matrix", self._maps.prepare(memory_bar)),
            ("valid", self._valid),
        ]
        results: list[Result] = [("tokens", key.dtype), ("tokens", value.dtype)]
        key_bar, value_bar = self._call("pull_superposition", block, operands, results)
        return key_bar, value_bar

    def _call(
        self,
        name: str,
        block: Callable[..., tuple[Array, ...]],
        operands: Sequence[Operand],
        results: Sequence[Result],
    ) -> list[Array]:
        """Runs `block` on every block of tokens of every head, in one kernel.

        Args:
          name: Name of the kernel in profiles.
          block: Function operands → results of one block, see `_Tile`.
          operands: Kind and array of each operand; `block` gets None for an array that is None.
          results: Kind and dtype of each result; a sum comes last.
        """
        tile = self._tile
        given: list[tuple[Kind, Array]] = [
            (kind, tile.view(kind, x)) for kind, x in operands if x is not None
        ]
        summed = results[-1][0] == "sum"

        def kernel(*refs: Any) -> None:
            sources, targets = refs[: len(given)], refs[len(given) :]
            chunk = pl.program_id(1)

            def step(index: Any, total: Array | None) -> Array | None:
                place = _Place(chunk, index)
                read = iter([tile.read(kind, x, place) for (kind, _), x in zip(given, sources, strict=True)])
                found = block(*(None if x is None else next(read) for _, x in operands))
                for (kind, _), target, x in zip(results, targets, found, strict=True):
                    if kind != "sum":
                        tile.write(kind, target, place, x)
                if not summed:
                    return None
                return found[-1] if total is None else total + found[-1]

            if tile.steps == 1:
                total = step(0, None)
            else:
                none_yet = jnp.zeros((tile.width, tile.width), self._dtype) if summed else None
                total = jax.lax.fori_loop(np.int32(0), np.int32(tile.steps), step, none_yet)
            if summed:
                targets[-1][...] = total

        # In `jax.shard_map`, results vary over the devices as any of the operands does.
        varying = frozenset[Any]().union(*(jax.typeof(x).manual_axis_type.varying for _, x in given))
        axes = ManualAxisType(varying=varying)
        call = pl.pallas_call(
            kernel,
            name=f"hrr_{name}",
            grid=tile.grid,
            in_specs=[tile.spec(kind) for kind, _ in given],
            out_specs=[tile.spec(kind) for kind, _ in results],
            out_shape=[
                jax.ShapeDtypeStruct(tile.view_shape(kind), dtype, manual_axis_type=axes)
                for kind, dtype in results
            ],
            compiler_params=tile.compiler_params,
            interpret=tile.interpret,
        )
        found = _once_differentiable(call)(*(x for _, x in given))
        return [tile.unview(kind, x) for (kind, _), x in zip(results, found, strict=True)]


def _once_differentiable(call: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps `call`, already a derivative: its own derivative raises an error that names the way out."""

    def refuse(primals: Any, tangents: Any) -> Any:
        raise NotImplementedError(
            "implementation='pallas' has first derivatives only; use 'matmul' or 'fft' for higher ones."
        )

    call = jax.custom_jvp(call)
    call.defjvp(refuse)
    return call


class _Place(NamedTuple):
    """Chunk of tokens of a program, and block in the chunk."""

    chunk: Any
    step: Any


@dataclasses.dataclass(frozen=True)
class _Tile:
    """Cuts of arrays into blocks, and the operations of a kernel on a block.

    The grid is (sequences and segments, chunks of tokens, groups of heads). Heads run fastest, so that
    programs that run together read adjacent memory. In a kernel, tokens are (block, width) in the dtype of
    sums, 0 beyond the sequence and the heads' own numbers. Rows are (block, 1); with several heads they are
    (block, width), and the number of a head fills its columns. Matrices are (width, width), block-diagonal
    with several heads.

    Attributes:
      shape: Shape (*B, P, L, N, H).
      platform: Platform that sets the rules for blocks, "gpu" or "tpu".
      interpret: Interpretation of kernels instead of compilation.
      heads: Number of heads in a group.
      width: Numbers per token in a group, padded to a size that the platform takes.
      block: Number of tokens in a block.
      steps: Number of blocks in a chunk.
      dtype: Dtype of sums.
      precision: Precision of matrix products.
    """

    shape: tuple[int, ...]
    platform: str
    interpret: bool
    heads: int
    width: int
    block: int
    steps: int
    dtype: Any
    precision: jax.lax.PrecisionLike

    @property
    def chunk(self) -> int:
        return self.block * self.steps

    @property
    def grid(self) -> tuple[int, int, int]:
        *rest, length, heads, _ = self.shape
        return math.prod(rest), math.ceil(length / self.chunk), heads // self.heads

    @property
    def compiler_params(self) -> Any:
        if self.interpret or self.platform != "gpu":
            return None
        return triton.CompilerParams(num_warps=8 if self.width > 64 else 4, num_stages=2)

    # Outside of a kernel.

    def view_shape(self, kind: Kind) -> tuple[int, ...]:
        """Returns the shape of an array of this kind outside of a kernel."""
        segments, chunks, groups = self.grid
        *_, length, heads, size = self.shape
        token = (heads, size) if self.platform == "gpu" else (heads * size,)
        return {
            "tokens": (segments, length, *token),
            "rows": (segments, groups, self.heads, length),
            "valid": (segments, 1, 1, length),
            "matrix": (segments // self.shape[-4], groups, self.width, self.width),
            "sum": (segments, groups, chunks, self.width, self.width),
        }[kind]

    def spec(self, kind: Kind) -> pl.BlockSpec:
        """Returns the block of that array for each program."""
        one, square, segments = None, (self.width, self.width), np.int32(self.shape[-4])
        if kind == "tokens" and self.platform == "gpu":
            return pl.BlockSpec((one, self.chunk, one, self.width), lambda r, c, g: (r, c, g, 0))
        if kind == "tokens":
            return pl.BlockSpec((one, self.chunk, self.width), lambda r, c, g: (r, c, g))
        if kind == "rows":
            heads = one if self.platform == "gpu" else self.heads
            return pl.BlockSpec((one, one, heads, self.chunk), lambda r, c, g: (r, g, 0, c))
        if kind == "valid":
            head = one if self.platform == "gpu" else 1
            return pl.BlockSpec((one, one, head, self.chunk), lambda r, c, g: (r, 0, 0, c))
        if kind == "matrix":
            return pl.BlockSpec((one, one, *square), lambda r, c, g: (jax.lax.div(r, segments), g, 0, 0))
        return pl.BlockSpec((one, one, one, *square), lambda r, c, g: (r, g, c, 0, 0))

    def view(self, kind: Kind, x: Array) -> Array:
        """Returns x in the shape of an operand."""
        if kind == "valid":
            x = jnp.broadcast_to(x, self.shape[:-2]).astype(self.dtype)
        if kind == "matrix":
            size = self.shape[-1]
            x = x.reshape(-1, self.heads, size, size)
            diagonal = jnp.eye(self.heads, dtype=x.dtype)[None, :, None, :, None]
            x = (x[:, :, :, None, :] * diagonal).reshape(-1, self.heads * size, self.heads * size)
            margin = (0, self.width - self.heads * size)
            x = jnp.pad(x, ((0, 0), margin, margin))
        return x.reshape(self.view_shape(kind))

    def unview(self, kind: Kind, x: Array) -> Array:
        """Returns a result in the shape of its kind."""
        *rest, length, heads, size = self.shape
        if kind == "tokens":
            return x.reshape(self.shape)
        if kind == "rows":
            return x.reshape(*rest, heads, length)
        used = self.heads * size
        x = jnp.sum(x, axis=2)[..., :used, :used].reshape(-1, self.heads, size, self.heads, size)
        return jnp.einsum("rgigj->rgij", x).reshape(*rest, heads, size, size)

    # In a kernel.

    def read(self, kind: Kind, ref: Any, place: _Place) -> Array:
        """Returns the block at `place`."""
        if kind == "matrix":
            return ref[...]
        if kind == "tokens":
            return self._load(ref, (self._tokens(place), slice(None)), place)
        if kind == "valid":
            return self._load(ref, self._row(place, 0), place)
        return self._over_heads([self._load(ref, self._row(place, g), place) for g in range(self.heads)])

    def write(self, kind: Kind, ref: Any, place: _Place, x: Array) -> None:
        """Writes the block at `place`; for rows, the sums of x over each head's columns."""
        if kind == "tokens":
            self._store(ref, (self._tokens(place), slice(None)), place, x)
        else:
            for g in range(self.heads):
                self._store(ref, self._row(place, g), place, jnp.sum(self._of_head(x, g), axis=1))

    def product(self, x: Float[Array, "t W"], matrix: Float[Array, "W W"]) -> Float[Array, "t W"]:
        """Returns unbind(x, m), given the matrix of m."""
        return self._dot(x, matrix, axis=1)

    def product_over_tokens(self, x: Float[Array, "t W"], y: Float[Array, "t W"]) -> Float[Array, "W W"]:
        """Returns xᵀ y, which folds to superpose(x, y)."""
        return self._dot(x, y, axis=0)

    def total(self, x: Float[Array, "t W"]) -> Float[Array, "t #W"]:
        """Returns the sums over each head's columns, as rows."""
        return self._over_heads(
            [jnp.sum(self._of_head(x, g), axis=1, keepdims=True) for g in range(self.heads)]
        )

    def reciprocal_norm(self, x: Float[Array, "t W"]) -> Float[Array, "t #W"]:
        """Returns 1 / ‖x‖ of each head's columns, and 0 where ‖x‖² is below the normal numbers."""
        square = self.total(x * x)
        present = square >= jnp.finfo(self.dtype).tiny
        return jnp.where(present, jax.lax.rsqrt(jnp.where(present, square, 1.0)), 0.0)

    def _dot(self, x: Array, y: Array, axis: int) -> Array:
        over = (((axis,), (0,)), ((), ()))
        return jax.lax.dot_general(x, y, over, precision=self.precision, preferred_element_type=self.dtype)

    def _tokens(self, place: _Place) -> Any:
        return slice(None) if self.steps == 1 else pl.ds(place.step * self.block, self.block)

    def _row(self, place: _Place, head: int) -> tuple[Any, ...]:
        tokens = self._tokens(place)
        return (tokens,) if self.platform == "gpu" else (head, tokens)

    def _of_head(self, x: Array, head: int) -> Array:
        """Returns x with 0 in the columns of other heads."""
        if self.heads == 1:
            return x
        column = jax.lax.broadcasted_iota(jnp.int32, (self.block, self.width), 1)
        first, size = head * self.shape[-1], self.shape[-1]
        return jnp.where((column >= first) & (column < first + size), x, 0.0)

    def _over_heads(self, rows: Sequence[Float[Array, "t 1"]]) -> Float[Array, "t #W"]:
        """Joins one row per head, repeated over its columns."""
        if self.heads == 1:
            return rows[0]
        return sum(self._of_head(row, g) for g, row in enumerate(rows))  # type: ignore[return-value]

    def _inside(self, shape: tuple[int, ...], place: _Place) -> Array | None:
        """Marks the entries of a block (tokens first) that are in the array; None if all are."""
        *_, length, _, size = self.shape
        inside = None
        if length % self.chunk:
            first = place.chunk * self.chunk + place.step * self.block
            inside = first + jax.lax.broadcasted_iota(jnp.int32, shape, 0) < length
        if len(shape) == 2 and self.width > self.heads * size:
            columns = jax.lax.broadcasted_iota(jnp.int32, shape, 1) < self.heads * size
            inside = columns if inside is None else inside & columns
        return inside

    def _load(self, ref: Any, where: tuple[Any, ...], place: _Place) -> Float[Array, "t _"]:
        if self.platform == "gpu":
            ref = ref.at[where]
            inside = self._inside(ref.shape, place)
            x = triton.load(ref, mask=inside, other=None if inside is None else 0.0).astype(self.dtype)
            return x if x.ndim == 2 else x[:, None]
        x = ref[where].astype(self.dtype)
        x = x if x.ndim == 2 else x[:, None]
        inside = self._inside(x.shape, place)
        return x if inside is None else jnp.where(inside, x, 0.0)

    def _store(self, ref: Any, where: tuple[Any, ...], place: _Place, x: Array) -> None:
        if self.platform == "gpu":
            ref = ref.at[where]
            triton.store(ref, x.astype(ref.dtype), mask=self._inside(x.shape, place))
        else:
            ref[where] = x.astype(ref.dtype)


def _kept(x: Float[Array, "t W"], valid: Float[Array, "t 1"] | None) -> Float[Array, "t W"]:
    """Returns x with 0 for tokens that are not valid."""
    return x if valid is None else jnp.where(valid > 0.5, x, 0.0)


def _tile(shape: tuple[int, ...], dtype: Any, precision: jax.lax.PrecisionLike) -> _Tile:
    """Returns the blocks for inputs of `shape`, (*B, P, L, N, H), and `dtype`."""
    platform = jax.default_backend()
    interpret = platform == "cpu"
    sums = spectral.accumulation_dtype(dtype)
    if interpret:
        platform = INTERPRETED
    elif sums == jnp.float64 or (platform == "tpu" and dtype == jnp.float16):
        raise ValueError(
            f"implementation='pallas' does not take {dtype} on {platform.upper()}; use 'matmul'."
        )
    if platform == "gpu":
        heads, width, block, steps = _gpu_blocks(shape, interpret)
    else:
        heads, width, block, steps = _tpu_blocks(shape, interpret)
    default = spectral.matmul_precision(dtype, precision)
    if precision is None and default is not None and platform == "gpu" and not interpret:
        # Float32 to an ulp or two on the matrix units, which do not multiply float32.
        default = jax.lax.DotAlgorithmPreset.TF32_TF32_F32_X3
    return _Tile(shape, platform, interpret, heads, width, block, steps, sums, default)


def _gpu_blocks(shape: tuple[int, ...], interpret: bool) -> tuple[int, int, int, int]:
    """Returns heads, width, block and steps of a `_Tile` for Triton, with sizes in powers of two."""
    *rest, length, heads, size = shape
    width = max(pl.next_power_of_2(size), 16)  # the smallest size for a matrix unit
    if width > GPU_SIZE and not interpret:
        raise ValueError(
            f"implementation='pallas' takes H up to {GPU_SIZE} on GPU; got H = {size}. Use 'fft'."
        )
    block = GPU_BLOCK.get(width, GPU_BLOCK["default"])
    blocks = math.ceil(length / block)
    steps = max(math.prod(rest) * heads * blocks // GPU_PROGRAMS, GPU_CHUNK * width // block, 1)
    return 1, width, block, min(steps, blocks)


def _tpu_blocks(shape: tuple[int, ...], interpret: bool) -> tuple[int, int, int, int]:
    """Returns heads, width, block and steps of a `_Tile` for Mosaic, which tiles the last axis by 128."""
    *_, length, heads, size = shape
    group = 128 // math.gcd(size, 128)
    group = heads if heads % group else group
    width = group * size
    if width > TPU_WIDTH and not interpret:
        raise ValueError(
            f"implementation='pallas' takes up to {TPU_WIDTH} numbers in the least number of heads that fill"
            f" 128 lanes of a TPU; got H = {size} and N = {heads}, {group} heads of {width} numbers."
            " Use 'matmul' or 'fft'."
        )
    block = max(TPU_BLOCK_SIZE // width // 128 * 128, 128)
    return group, width, min(block, length), 1
