"""Real FFTs over the last axis that keep a sharded batch on its devices.

From jax 0.12 on they are those of `jax.numpy.fft`. In earlier releases XLA gathers a sharded batch at every
FFT, and its FFT for CPU then fails with an internal error for some layouts. There, both transforms are a
linear primitive with a partitioning rule: every device transforms its own part. All sharded arrays of such
a program must share one mesh, or JAX raises a `ValueError`. Inside `jax.shard_map` devices transform their
own parts anyway, so plain FFTs serve; XLA still gathers axes that `jax.shard_map` leaves to it.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Complex, Float


def rfft(x: Float[Array, "*B H"]) -> Complex[Array, "*B K"]:
    """Returns the K = H // 2 + 1 independent coefficients of `x`, as `jnp.fft.rfft` does."""
    return _transform(x, x.shape[-1], False)


def irfft(f: Complex[Array, "*B K"], n: int) -> Float[Array, "*B H"]:
    """Returns the H = n numbers with the K = n // 2 + 1 coefficients `f`, as `jnp.fft.irfft` does."""
    return _transform(f, n, True)


def _plain(x: Array, size: int, inverse: bool) -> Array:
    return jnp.fft.irfft(x, n=size) if inverse else jnp.fft.rfft(x)


_transform: Callable[[Array, int, bool], Array] = _plain

if jax.__version_info__ < (0, 12):
    from jax.experimental.custom_partitioning import custom_partitioning
    from jax.experimental.layout import Layout, with_layout_constraint
    from jax.extend.core import Primitive, jaxpr_as_fun
    from jax.interpreters import ad, batching, mlir

    def _local(x: Array, size: int, inverse: bool) -> Array:
        """Transforms the part of one device, in row-major layout: XLA's FFT for CPU fails for others."""
        rows = Layout(tuple(range(x.ndim)))
        return with_layout_constraint(_plain(with_layout_constraint(x, rows), size, inverse), rows)

    def _sharding(size: int, inverse: bool, mesh: Any, args: Any, result: Any) -> NamedSharding:
        """Returns the sharding of the operand, with the last axis whole on every device."""
        return NamedSharding(mesh, PartitionSpec(*args[0].sharding.spec[:-1], None))

    def _partition(size: int, inverse: bool, mesh: Any, args: Any, result: Any) -> tuple[Any, ...]:
        sharding = _sharding(size, inverse, mesh, args, result)
        return mesh, functools.partial(_local, size=size, inverse=inverse), sharding, (sharding,)

    _partitioned = custom_partitioning(_plain, static_argnums=(1, 2))
    _partitioned.def_partition(
        _partition,
        infer_sharding_from_operands=_sharding,
        sharding_rule="... i -> ... j",
        need_replication_factors=("i", "j"),
    )
    _real_fft = Primitive("real_fft")

    def _bind(x: Array, size: int, inverse: bool) -> Array:
        if jax.sharding.get_abstract_mesh().manual_axes:
            return _plain(x, size, inverse)
        # A parameter, not made at lowering: JAX looks for partitionings in jaxprs before it lowers them.
        call = jax.make_jaxpr(_partitioned, static_argnums=(1, 2))(x, size, inverse)
        return _real_fft.bind(x, call=call, size=size, inverse=inverse)

    _transform = jax.jit(_bind, static_argnums=(1, 2))

    def _call(x: Array, *, call: Any, size: int, inverse: bool) -> Array:
        return jaxpr_as_fun(call)(x)[0]

    def _batch(args: Any, axes: Any, *, call: Any, size: int, inverse: bool) -> tuple[Array, int]:
        return _transform(jnp.moveaxis(args[0], axes[0], 0), size, inverse), 0

    def _transpose(t: Array, _: Any, *, call: Any, size: int, inverse: bool) -> tuple[Array]:
        """Transposes the transform: a coefficient that represents its conjugate too counts twice."""
        bins = np.arange(size // 2 + 1)
        weights = np.where((bins == 0) | (2 * bins == size), 1.0, 2.0) / size
        f = _transform(t, size, False) if inverse else t
        w = jnp.expand_dims(jnp.asarray(weights, f.dtype), range(f.ndim - 1))
        return (jnp.conj(f * w) if inverse else _transform(jnp.conj(f) / w, size, True),)

    _real_fft.def_impl(_call)
    _real_fft.def_abstract_eval(lambda x, *, call, size, inverse: call.out_avals[0])
    mlir.register_lowering(_real_fft, mlir.lower_fun(_call, multiple_results=False))
    batching.primitive_batchers[_real_fft] = _batch
    ad.deflinear2(_real_fft, _transpose)
