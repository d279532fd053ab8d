"""The laws of the algebra, its gradients, and its behavior near a division by zero."""

import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import arena, oracle
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import hrrformer as hrr
from hrrformer import spectral

pytestmark = pytest.mark.usefixtures("strict_promotion")

SIZES = (1, 2, 7, 8, 66, 97)  # odd and even, for both implementations: the matrix up to 64, then the FFT
EPSILON = {"float16": 2e-3, "bfloat16": 1e-2, "float32": 1e-6, "float64": 1e-13}

entries = st.floats(-8, 8, width=32, allow_subnormal=False)


@st.composite
def vectors(draw, count, batch=()):
    """Draws `count` vectors of one size; simple ones first: zeros, repeated entries, wide ranges."""
    size = draw(st.sampled_from(SIZES))
    return [draw(hnp.arrays(np.float32, (*batch, size), elements=entries)) for _ in range(count)]


def regular(size, *shape, seed=0):
    """Returns normal vectors with all Fourier coefficients at least a twentieth of the largest."""
    rng = np.random.default_rng((seed, size))
    spectrum = np.fft.rfft(rng.normal(size=(*shape, size)))
    magnitude = np.abs(spectrum)
    floor = magnitude.max(axis=-1, keepdims=True) / 20
    return np.fft.irfft(spectrum * np.maximum(magnitude, floor) / magnitude, n=size)


def near(found, expected, scale, tolerance=1e-5):
    """Asserts that the error's norm is below `tolerance` times `scale`, the size of the factors."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert np.all(np.isfinite(found))
    assert np.linalg.norm(found - expected) <= tolerance * scale + 1e-30


def norms(*arrays):
    return np.prod([np.linalg.norm(np.asarray(x, np.float64)) for x in arrays])


def largest(*arrays):
    """Returns the largest norm of a binding: H^((n-1)/2) times the norms, reached by constant vectors."""
    return np.shape(arrays[0])[-1] ** ((len(arrays) - 1) / 2) * norms(*arrays)


# Laws. Compiled once per size.

bind = jax.jit(hrr.bind)
unbind = jax.jit(hrr.unbind, static_argnames="exact")
involution = jax.jit(hrr.involution)
inverse = jax.jit(hrr.inverse)
unitary_projection = jax.jit(hrr.unitary_projection)
to_spectrum = jax.jit(spectral.to_spectrum, static_argnums=1)
from_spectrum = jax.jit(spectral.from_spectrum, static_argnums=(1, 2))


@given(vectors(2))
def test_bind_is_the_index_sum_and_commutes(xy):
    x, y = xy
    near(bind(x, y), oracle.bind(*(a.astype(float) for a in xy)), largest(x, y))
    near(bind(x, y), bind(y, x), largest(x, y))


@given(vectors(3))
def test_bind_associates_and_distributes(xyz):
    x, y, z = xyz
    near(bind(bind(x, y), z), bind(x, bind(y, z)), largest(x, y, z))
    near(bind(x, y + z), bind(x, y) + bind(x, z), largest(x, y) + largest(x, z))


@given(vectors(3))
def test_involution(abc):
    a, b, c = abc
    np.testing.assert_array_equal(involution(a), oracle.involution(abc[0]))
    np.testing.assert_array_equal(involution(involution(a)), a)
    near(np.vdot(bind(a, b), c), np.vdot(b, bind(involution(a), c)), largest(a, b) * norms(c))
    near(unbind(b, a), bind(involution(a), b), largest(a, b))
    near(involution(bind(a, b)), bind(involution(a), involution(b)), largest(a, b))  # an automorphism


@given(vectors(1))
def test_the_impulse_is_the_identity(x):
    (x,) = x
    impulse = oracle.impulse(len(x)).astype(np.float32)
    near(bind(x, impulse), x, norms(x))
    near(inverse(impulse), impulse, 1.0)


@given(vectors(2, batch=(2,)), st.sampled_from(["fft", "matmul"]))
def test_spectra_are_isometric_and_invert(xy, implementation):
    x, y = xy
    size = x.shape[-1]
    first, second = (to_spectrum(a, implementation) for a in (x, y))
    assert first.shape == (2, 2 * (size // 2 + 1))
    near(np.vdot(first, second), np.vdot(x, y), norms(x, y))
    near(from_spectrum(first, size, implementation), x, norms(x))
    half = np.fft.rfft(xy[0].astype(float)) * spectral._bin_scale(size)[: size // 2 + 1]
    near(first, np.concatenate([half.real, half.imag], axis=-1), norms(x))


@given(vectors(1))
def test_implementations_agree(x):
    (x,) = x
    fft, dft = (to_spectrum(x, implementation) for implementation in ("fft", "matmul"))
    near(fft, dft, norms(x))
    fft, dft = (from_spectrum(dft, x.shape[-1], implementation) for implementation in ("fft", "matmul"))
    near(fft, dft, norms(x))


@given(st.sampled_from(SIZES), st.integers(0, 1000), st.integers(-30, 30))
def test_inverse(size, seed, exponent):
    x = regular(size, seed=seed)
    found = inverse(jnp.asarray(x, jnp.float32))
    expected = oracle.inverse(x)
    near(found, expected, norms(expected))
    near(bind(found, jnp.asarray(x, jnp.float32)), oracle.impulse(size), 1.0, 1e-4)
    power = float(2.0**exponent)  # a power of two: nothing rounds
    scaled = inverse(jnp.asarray(x * power, jnp.float32))
    near(np.asarray(scaled) * np.float32(power), found, norms(expected), 1e-6)


@given(st.sampled_from(SIZES), st.integers(0, 1000))
def test_exact_unbinding_retrieves(size, seed):
    x, y = regular(size, 2, seed=seed)
    bound = jnp.asarray(oracle.bind(x, y), jnp.float32)
    near(unbind(bound, jnp.asarray(x, jnp.float32), exact=True), y, norms(y), 2e-5)


@given(vectors(1))
def test_unitary_projection(x):
    (x,) = x
    unitary = unitary_projection(x)
    size = x.shape[-1]
    near(np.linalg.norm(unitary), 1.0, 1.0)
    near(unitary_projection(unitary), unitary, 1.0)
    near(inverse(unitary), involution(unitary), 1.0)
    near(bind(involution(unitary), unitary), oracle.impulse(size), 1.0)


@pytest.mark.parametrize("size", [1, 2, 7, 8, 64, 65])
def test_sines_without_a_phase_are_exactly_zero(size):
    """Self-conjugate coefficients have no imaginary part, not even 1e-16, which `phase` would turn into 1."""
    bins = size // 2 + 1
    alone = np.array([2 * k % size == 0 for k in range(bins)])
    assert alone.sum() == (1 if size % 2 else 2)
    matrix = spectral._dft_matrix(size)
    cosines, sines = np.split(matrix, 2, axis=-1)
    np.testing.assert_array_equal(sines[:, alone], 0.0)
    assert np.abs(sines[:, ~alone]).max(axis=0).all()
    assert np.abs(cosines).max(axis=0).all()
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(size), atol=1e-13)
    x = np.random.default_rng(size).normal(size=size).astype(np.float32)
    for implementation in ("fft", "matmul"):
        np.testing.assert_array_equal(to_spectrum(x, implementation)[bins:][alone], 0.0)


def test_leading_dimensions_broadcast():
    x, y = np.random.default_rng(0).normal(size=(3, 2, 1, 7)), np.random.default_rng(1).normal(size=(4, 7))
    expected = oracle.bind(*np.broadcast_arrays(x, y))
    x32, y32 = jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)
    with jax.numpy_rank_promotion("raise"):
        near(bind(x32, y32), expected, norms(expected))
        for function, shape in (
            (hrr.unbind, (3, 2, 4, 7)),
            (functools.partial(hrr.unbind, exact=True), (3, 2, 4, 7)),
            (hrr.cosine_similarity, (3, 2, 4)),
        ):
            assert jax.eval_shape(function, y32, x32).shape == shape


# Dtypes.

FUNCTIONS = {
    "bind": (hrr.bind, 2),
    "unbind": (hrr.unbind, 2),
    "unbind exact": (functools.partial(hrr.unbind, exact=True), 2),
    "involution": (hrr.involution, 1),
    "inverse": (hrr.inverse, 1),
    "unitary_projection": (hrr.unitary_projection, 1),
    "unit": (hrr.unit, 1),
    "cosine_similarity": (hrr.cosine_similarity, 2),
}
COMPILED = {name: jax.jit(function) for name, (function, _) in FUNCTIONS.items()}


@functools.cache
def pull_back(name):
    function, _ = FUNCTIONS[name]
    return jax.jit(lambda inputs, cotangent: jax.vjp(function, *inputs)[1](cotangent))


@functools.cache
def value_and_jacobians(name):
    function, count = FUNCTIONS[name]
    both = (
        differentiate(function, argnums=tuple(range(count))) for differentiate in (jax.jacrev, jax.jacfwd)
    )
    functions = (function, *both)
    return jax.jit(lambda *inputs: [f(*inputs) for f in functions])


DEFINITIONS = {
    "bind": oracle.bind,
    "unbind": lambda b, x: oracle.bind(oracle.involution(x), b),
    "unbind exact": lambda b, x: oracle.bind(oracle.inverse(x), b),
    "involution": oracle.involution,
    "inverse": oracle.inverse,
    "unitary_projection": lambda x: np.stack([oracle.unitary_projection(row)[0] for row in x]),
    "unit": lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True),
    "cosine_similarity": oracle.cosine,
}


@pytest.mark.parametrize(
    ("dtype", "size"), [("float16", 7), ("bfloat16", 66), ("float32", 97), ("float64", 8)]
)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_dtype_is_kept_and_determines_the_rounding(name, dtype, size):
    _, count = FUNCTIONS[name]
    with jax.enable_x64(dtype == "float64"):
        inputs = [jnp.asarray(regular(size, 3, seed=seed), dtype) for seed in range(count)]
        found = COMPILED[name](*inputs)
        assert found.dtype == jnp.dtype(dtype)
        expected = DEFINITIONS[name](*(np.asarray(x, np.float64) for x in inputs))
        near(found, expected, norms(expected), 10 * EPSILON[dtype])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_half_precision_computes_in_single(name):
    """One rounding, at the end: the result is that of float32 for the same numbers, rounded."""
    function, count = FUNCTIONS[name]
    inputs = [jnp.asarray(regular(97, 3, seed=seed), jnp.bfloat16) for seed in range(count)]
    expected = function(*(x.astype(jnp.float32) for x in inputs)).astype(jnp.bfloat16)
    found = function(*inputs)
    near(found, expected, norms(expected), 4e-3 if name == "unbind exact" else 2e-4)


def test_mixed_dtypes_promote():
    x, y = jnp.ones(3, jnp.bfloat16), jnp.ones(3, jnp.float32)
    with jax.numpy_dtype_promotion("standard"):
        for function in (hrr.bind, hrr.unbind, hrr.cosine_similarity):
            assert function(x, y).dtype == jnp.float32


# Gradients.


@pytest.mark.parametrize("size", [1, 2, 7, 66])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients_equal_those_of_the_definition(name, size):
    _, count = FUNCTIONS[name]
    inputs = [regular(size, 1, seed=seed + 10) for seed in range(count)]
    cotangent = np.random.default_rng(size).normal(size=DEFINITIONS[name](*inputs).shape)
    found = pull_back(name)(
        [jnp.asarray(x, jnp.float32) for x in inputs], jnp.asarray(cotangent, jnp.float32)
    )
    for position in range(count):
        steps = 1e-6 * np.eye(size)  # all steps at once, along the leading axis
        up, down = (
            DEFINITIONS[name](*(x + s * steps * (i == position) for i, x in enumerate(inputs)))
            for s in (1, -1)
        )
        slopes = np.sum((cotangent * (up - down)).reshape(size, -1), axis=-1) / 2e-6
        near(found[position], [slopes], norms(slopes) + 1e-2 * norms(cotangent), 1e-4)


@pytest.mark.parametrize("size", [1, 2, 67])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_zero_vectors_have_finite_values_and_gradients(name, size):
    _, count = FUNCTIONS[name]
    for zeros in range(1, 2**count):
        inputs = [
            np.zeros(size, np.float32) if zeros >> i & 1 else regular(size, seed=i).astype(np.float32)
            for i in range(count)
        ]
        found = jax.tree.leaves(value_and_jacobians(name)(*inputs))
        assert len(found) == 1 + 2 * count
        assert all(np.isfinite(x).all() for x in found)


@pytest.mark.parametrize("size", [1, 2, 67])
def test_values_at_zero_vectors(size):
    def found(name, *inputs):
        value, (slope, *_), _ = value_and_jacobians(name)(*inputs)
        return np.asarray(value), np.asarray(slope)

    zero, ones = np.zeros(size, np.float32), np.ones(size, np.float32)
    for name, inputs in (("unit", [zero]), ("cosine_similarity", [zero, ones])):
        value, slope = found(name, *inputs)
        assert not value.any()
        assert not slope.any()
    assert not found("inverse", zero)[0].any()
    value, slope = found("unitary_projection", zero)
    near(value, oracle.impulse(size), 1.0)
    assert not slope.any()


@pytest.mark.parametrize("scale", [1e-37, 1e-30, 1e-18, 1e18, 1e30, 1e37])
def test_unit_and_cosine_at_extreme_scales(scale):
    x, y = regular(7, 2, seed=3)
    scale = np.float32(scale)
    large = jnp.asarray(x * scale, jnp.float32)
    near(COMPILED["unit"](large), x / np.linalg.norm(x), 1.0, 1e-6)
    for other in (np.float32(1.0), scale):
        found = COMPILED["cosine_similarity"](large, jnp.asarray(y * other, jnp.float32))
        near(found, oracle.cosine(x, y), 1.0, 1e-6)
    if 1e-35 < scale < 1e35:  # beyond, the slope itself is near the limits of float32
        slope = value_and_jacobians("cosine_similarity")(large, jnp.asarray(y, jnp.float32))[1][0]
        expected = (y / np.linalg.norm(y) - oracle.cosine(x, y) * x / np.linalg.norm(x)) / np.linalg.norm(x)
        near(np.float64(slope) * scale, expected, norms(expected))


def test_second_derivatives_of_the_cosine():
    x, y = (jnp.asarray(a, jnp.float32) for a in regular(5, 2, seed=4))
    hessian = jax.jit(jax.hessian(hrr.cosine_similarity))
    slope = jax.jit(jax.grad(hrr.cosine_similarity))
    differences = [(slope(x + d, y) - slope(x - d, y)) / 2e-2 for d in 1e-2 * jnp.eye(5)]
    near(hessian(x, y), np.stack(differences), norms(hessian(x, y)), 1e-2)
    assert np.isfinite(hessian(jnp.zeros(5), y)).all()


# Vectors with vanishing Fourier coefficients.


def deficient(size, kind):
    """Returns a vector with some Fourier coefficients that are zero up to rounding errors."""
    ones = np.ones(size)
    rng = np.random.default_rng(size)
    return {
        "constant": 0.3 * ones,
        "alternating": 0.7 * (-1.0) ** np.arange(size),
        "without mean": (lambda x: x - x.mean())(rng.normal(size=size)),
        "one wave": np.cos(2 * np.pi * np.arange(size) / size + 0.4),
    }[kind]


DEFICIENT = [
    (size, kind)
    for kind in ("constant", "alternating", "without mean", "one wave")
    for size in (7, 8, 97, 256)
    if kind != "alternating" or size % 2 == 0
]


@pytest.mark.parametrize(("size", "kind"), DEFICIENT)
def test_inverse_of_deficient_vectors(size, kind):
    inverted = oracle.pseudo_inverse(deficient(size, kind))
    for power in (2.0**-40, 1.0, 2.0**40):  # powers of two: nothing rounds
        x, expected = deficient(size, kind) * power, inverted / power
        near(inverse(jnp.asarray(x, jnp.float32)), expected, norms(expected), 1e-4)
        # d(1 / F) = -dF / F², on the regular coefficients alone
        cotangent = np.random.default_rng(size).normal(size=size) * power
        slope = -oracle.bind(oracle.involution(oracle.bind(expected, expected)), cotangent)
        (found,) = pull_back("inverse")([jnp.asarray(x, jnp.float32)], jnp.asarray(cotangent, jnp.float32))
        near(np.float64(found) * power, slope * power, norms(slope) * power, 1e-4)


@pytest.mark.parametrize(("size", "kind"), DEFICIENT)
def test_unitary_projection_of_deficient_vectors(size, kind):
    x = deficient(size, kind)
    cotangent = np.random.default_rng(size).normal(size=size)
    expected, jacobian = oracle.unitary_projection(x)
    for power in (2.0**-40, 1.0, 2.0**40):
        scaled = jnp.asarray(x * power, jnp.float32)
        near(unitary_projection(scaled), expected, 1.0, 1e-4)
        (found,) = pull_back("unitary_projection")([scaled], jnp.asarray(cotangent, jnp.float32))
        near(np.float64(found) * power, cotangent @ jacobian, norms(cotangent) / norms(x), 1e-4)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_numpy_arrays_of_float64_are_float32_while_jax_has_no_float64(name, untyped):
    function, count = FUNCTIONS[name]
    arrays = list(np.random.default_rng(0).normal(size=(count, 8)))
    np.testing.assert_array_equal(function(*arrays), function(*map(jnp.float32, arrays)))


# Refusals.


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.bool_, jnp.complex64])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_dtypes_other_than_real_floats_are_refused(name, dtype, untyped):
    function, count = FUNCTIONS[name]
    with pytest.raises(TypeError, match=f"real floating-point array; got dtype {jnp.dtype(dtype)}"):
        function(*[jnp.ones(3, dtype)] * count)


@pytest.mark.parametrize("name", [name for name, (_, count) in FUNCTIONS.items() if count == 2])
def test_sizes_must_agree(name, untyped):
    with pytest.raises(ValueError, match=r"one size; got \w+: 3, \w+: 1"):
        FUNCTIONS[name][0](jnp.ones(3), jnp.ones(1))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_last_axis_is_required(name, untyped):
    function, count = FUNCTIONS[name]
    for shape in ((), (3, 0)):
        with pytest.raises(ValueError, match="last axis of at least one element"):
            function(*[jnp.ones(shape)] * count)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_hrr_normal(dtype):
    draws = hrr.hrr_normal(jax.random.key(0), (500, 128), dtype)
    assert draws.dtype == dtype
    x = np.asarray(draws, np.float64)
    assert x.var() == pytest.approx(1 / 128, rel=0.03)
    assert abs(x.mean()) < 2e-3
    assert np.sum(x**2, axis=-1).mean() == pytest.approx(1.0, rel=0.03)
    with pytest.raises(ValueError, match="size of at least 1"):
        hrr.hrr_normal(jax.random.key(0), ())


SIDE_BY_SIDE = """
import jax
import hrrformer as hrr

@jax.jit
def many(x):
    return [hrr.bind(hrr.unit(row), row * number) for number, row in enumerate(x)]

x = hrr.hrr_normal(jax.random.key(0), (8, 512, 1024))
for _ in range(50):
    jax.block_until_ready(many(x))
"""


def test_concurrent_transforms_do_not_deadlock():
    """With jaxlib 0.11.1 and 0.11.2, concurrent transforms wait for each other's threads."""
    subprocess.run([sys.executable, "-c", SIDE_BY_SIDE], env=arena.environment(), timeout=120, check=True)
