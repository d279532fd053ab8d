"""Real FFTs of `hrrformer` against those of `jax.numpy`: every transformation, and eight devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from eight_devices import mesh, sent
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from hrrformer import fft

pytestmark = pytest.mark.usefixtures("strict_promotion")

P = PartitionSpec
SHAPE = (8, 16, 6)


def plain_irfft(f, n):
    return jnp.fft.irfft(f, n=n)


def reals(shape=SHAPE, dtype="float32", seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def near(found, expected):
    """Asserts the same dtype, and equal values up to rounding."""
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_allclose(x, y, rtol=0, atol=100 * jnp.finfo(x.dtype).eps * float(abs(y).max()))


def cubes(rfft, irfft, x):
    """Returns Σ irfft(rfft(x)²)² + Σ Im rfft(x) (Re rfft(x))²; its second derivatives depend on x."""
    f = rfft(x)
    return jnp.sum(irfft(f * f, x.shape[-1]) ** 2) + jnp.sum(jnp.imag(f) * jnp.real(f) ** 2)


@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_values(size, dtype, x64):
    x = reals((3, size), dtype)
    f = jax.lax.complex(*reals((2, 3, size // 2 + 1), dtype, seed=1))  # not the spectrum of a real vector
    for wrap in (lambda function: function, functools.partial(jax.jit, static_argnums=1)):
        near(wrap(lambda x, _: fft.rfft(x))(x, 0), jnp.fft.rfft(x))
        near(wrap(fft.irfft)(f, size), jnp.fft.irfft(f, n=size))
    with jax.disable_jit():
        near(fft.irfft(fft.rfft(x), size), x)


@pytest.mark.parametrize(("size", "dtype"), [(1, "float32"), (2, "float64"), (5, "float32")])
def test_derivatives(size, dtype, x64):
    x, direction = reals((3, size), dtype), reals((3, size), dtype, seed=1)
    f = jax.lax.complex(*reals((2, 3, size // 2 + 1), dtype, seed=2))

    def of(rfft, irfft):
        def inverse(f):
            return irfft(f, size)

        loss = functools.partial(cubes, rfft, irfft)
        return {
            "jvp": jax.jvp(rfft, (x,), (direction,)),
            "jvp of the inverse": jax.jvp(inverse, (f,), (f * f,)),
            "transpose": jax.linear_transpose(rfft, x)(f),
            "transpose of the inverse": jax.linear_transpose(inverse, f)(x),
            "gradient": jax.grad(loss)(x),
            "jvp of the gradient": jax.jvp(jax.grad(loss), (x,), (direction,)),
            "gradient of the gradient": jax.grad(lambda x: jnp.vdot(jax.grad(loss)(x), direction))(x),
            "compiled Hessian": jax.jit(jax.hessian(loss))(x[0]),
            "gradient by recomputing": jax.grad(jax.checkpoint(loss))(x),
        }

    near(of(fft.rfft, fft.irfft), of(jnp.fft.rfft, plain_irfft))


@pytest.mark.parametrize("axis", range(3))
def test_vmap(axis):
    x = reals()

    def of(rfft, irfft):
        map_ = functools.partial(jax.vmap, in_axes=axis)
        loss = functools.partial(cubes, rfft, irfft)
        inverse = map_(lambda x: irfft(rfft(x), x.shape[-1]), out_axes=axis)
        twice = jax.vmap(map_(rfft), in_axes=0, out_axes=-1) if axis < 2 else rfft
        return map_(rfft)(x), inverse(x), twice(x), jax.jit(map_(jax.grad(loss)))(x)

    near(of(fft.rfft, fft.irfft), of(jnp.fft.rfft, plain_irfft))


def round_trip(x):
    """Returns 2 x, computed from the coefficients."""
    return fft.irfft(fft.rfft(x) * jnp.asarray(2, jnp.complex64), x.shape[-1])


def looped(x):
    """Returns 8 x, computed by loops of both kinds."""
    x = jax.lax.fori_loop(0, 2, lambda _, x: round_trip(x), x)
    return jax.lax.scan(lambda x, _: (round_trip(x), None), x, None, length=1)[0]


FUNCTIONS = {
    "transform": (round_trip, 2),
    "vmap": (jax.vmap(round_trip, in_axes=1, out_axes=1), 2),
    "gradient of loops": (jax.grad(lambda x: jnp.sum(looped(x) ** 2)), 128),
}


@pytest.mark.parametrize("spec", [P("x", "y"), P(None, ("x", "y"))], ids=str)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_batch_stays_on_its_devices(name, spec):
    function, factor = FUNCTIONS[name]
    sharding = NamedSharding(mesh(), spec)
    x = jax.device_put(reals(), sharding)
    program = jax.jit(function).lower(x).compile()
    assert sent(program.as_text()) == (set(), 0)
    found = program(x)
    near(found, factor * reals())
    assert found.sharding.is_equivalent_to(sharding, 3)
    near(function(x), factor * reals())  # eagerly


@pytest.mark.parametrize("spec", [P("x", "y"), P()], ids=str)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_explicit_sharding(name, spec):
    function, factor = FUNCTIONS[name]
    over = mesh(axis_types=(AxisType.Explicit,) * 2)
    with jax.set_mesh(over):
        x = jax.device_put(reals(), NamedSharding(over, spec))
        found = jax.jit(function)(x)
        assert jax.typeof(found).sharding.spec == jax.typeof(x).sharding.spec
        assert jax.typeof(fft.rfft(x)).sharding.spec == jax.typeof(x).sharding.spec
        assert sent(jax.jit(function).lower(x).compile().as_text()) == (set(), 0)
    near(found, factor * reals())


@pytest.mark.parametrize(
    ("name", "check_vma"), [*((name, True) for name in FUNCTIONS), ("gradient of loops", False)]
)
def test_shard_map(name, check_vma):
    function, factor = FUNCTIONS[name]
    spec = P("x", "y")
    local = jax.shard_map(function, mesh=mesh(), in_specs=spec, out_specs=spec, check_vma=check_vma)
    x = jax.device_put(reals(), NamedSharding(mesh(), spec))
    assert sent(jax.jit(local).lower(x).compile().as_text()) == (set(), 0)
    near(jax.jit(local)(x), factor * reals())
    near(jax.jit(jax.grad(lambda x: jnp.sum(local(x) ** 2)))(x), 2 * factor**2 * reals())


def test_a_last_axis_that_devices_share_is_gathered():
    x = jax.device_put(reals((8, 16, 8)), NamedSharding(mesh(), P("x", None, "y")))
    program = jax.jit(fft.rfft).lower(x).compile()
    assert sent(program.as_text())[0] == {"all-gather"}
    near(program(x), jnp.fft.rfft(reals((8, 16, 8))))


@pytest.mark.skipif(
    jax.__version_info__ >= (0, 12), reason="XLA on CPU fails where the result of an FFT is gathered"
)
@pytest.mark.parametrize("gathered", [P("x"), P()], ids=str)
def test_results_can_be_gathered(gathered):
    over = mesh()
    x = jax.device_put(reals(), NamedSharding(over, P("x", "y")))
    for function, factor in FUNCTIONS.values():
        near(jax.jit(function, out_shardings=NamedSharding(over, gathered))(x), factor * reals())
