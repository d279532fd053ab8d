"""`hrr_attention`: comparison with the oracle, padding, scaling, cost, and refusals."""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest
from helpers import oracle

from hrrformer import hrr_attention, passes
from hrrformer.spectral import resolve_implementation

pytestmark = pytest.mark.usefixtures("strict_promotion")

IMPLEMENTATIONS = ("fft", "matmul")
SHAPE = (2, 13, 3, 7)  # B, T, N, H: distinct primes
EVEN = (2, 13, 3, 8)
MASK = np.arange(13) < np.array([[13], [8]])
VARIANTS = {
    "paper": {},
    "exact": {"inverse": "exact"},
    "rescale": {"rescale": True},
    "temperature": {"temperature": 0.3},
    "temperature a head": {"temperature": np.array([0.2, 1.0, 3.0])},
    "unbound": {"output": "unbound", "temperature": 0.5},
    "exact unbound rescale": {"inverse": "exact", "output": "unbound", "rescale": True},
}
BOTH = ("paper", "exact unbound rescale")
TOLERANCE = {"float16": 2e-3, "bfloat16": 1e-2, "float32": 1e-5, "float64": 1e-12}


def shape_for(name, implementation):
    """Returns an odd H for one implementation and an even H for the other, swapped for every second variant.

    Tests that take their shape from here share what `run` compiles, and meet all four combinations.
    """
    return (SHAPE, EVEN)[(list(VARIANTS).index(name) + IMPLEMENTATIONS.index(implementation)) % 2]


def draw(shape=SHAPE, seed=0, dtype="float32"):
    """Returns query, key, value and the two cotangents, rounded to `dtype`, as float64."""
    rng = np.random.default_rng(seed)
    *batch, length, heads, _ = shape
    arrays = [rng.normal(size=shape) for _ in range(4)] + [rng.normal(size=(*batch, heads, length))]
    return [x.astype(jnp.dtype(dtype)).astype(np.float64) for x in arrays[:4]] + arrays[4:]


def pull_back(inputs, out_cotangent, weights_cotangent, mask, variant, **static):
    """Returns output, weights, and the gradients of ⟨out, cotangent⟩ + ⟨weights, cotangent⟩."""

    def function(query, key, value):
        return hrr_attention(query, key, value, mask=mask, return_weights=True, **variant, **static)

    results, vjp = jax.vjp(function, *inputs)
    return *results, *vjp(
        (out_cotangent.astype(results[0].dtype), weights_cotangent.astype(results[1].dtype))
    )


STATIC = ("inverse", "implementation", "rescale", "output", "precision")
jitted = jax.jit(pull_back, static_argnames=STATIC)
# XLA's passes without LLVM's: the same HLO in half the compile time. For programs that run once, where only
# the values matter.
jitted_once = jax.jit(
    pull_back, static_argnames=STATIC, compiler_options={"xla_backend_optimization_level": 0}
)


def run(arrays, mask=None, dtype="float32", jitted=jitted, **variant):
    """Runs the compiled function above with inputs of `dtype`."""
    wide = "float64" if dtype == "float64" else "float32"
    static = {name: x for name, x in variant.items() if name != "temperature"}
    traced = {}
    if "temperature" in variant:
        traced["temperature"] = jnp.asarray(variant["temperature"], wide)
    inputs = [jnp.asarray(x, dtype) for x in arrays[:3]]
    cotangents = [jnp.asarray(x, wide) for x in arrays[3:]]
    return jitted(inputs, *cotangents, None if mask is None else jnp.asarray(mask), traced, **static)


@functools.cache
def expected(name, shape=SHAPE, masked=True, dtype="float64", seed=0):
    arrays = draw(shape, seed, dtype)
    mask = MASK if masked else None
    out, weights = oracle.hrr_attention(*arrays[:3], mask=mask, **VARIANTS[name])
    return arrays, mask, (out, weights, *oracle.gradients(*arrays, mask=mask, **VARIANTS[name]))


def error(found, reference):
    found, reference = np.asarray(found, np.float64), np.asarray(reference, np.float64)
    assert found.shape == reference.shape
    return np.linalg.norm(found - reference) / max(np.linalg.norm(reference), 1e-30)


def assert_near(found, reference, tolerance):
    for name, x, y in zip(("out", "weights", "d query", "d key", "d value"), found, reference, strict=True):
        assert error(x, y) <= tolerance, f"{name}: {error(x, y):.1e}"


# The oracle.


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, "float32") for name in VARIANTS]
    + [(name, "float64") for name in ("paper", "temperature a head", "exact unbound rescale")],
)
def test_value_and_gradient_equal_the_oracles(name, dtype, implementation):
    # float32 values are exact in float64, so one oracle serves both.
    arrays, mask, reference = expected(name, shape_for(name, implementation), dtype="float32")
    wide = dtype == "float64"
    compiled = jitted_once if wide else jitted
    with jax.enable_x64(wide):
        found = run(arrays, mask, dtype, compiled, implementation=implementation, **VARIANTS[name])
    assert {x.dtype for x in found} == {jnp.dtype(dtype)}
    assert_near(found, reference, TOLERANCE[dtype])


@pytest.mark.parametrize(
    ("name", "dtype", "implementation"),
    [
        ("paper", "float16", "fft"),
        ("paper", "bfloat16", "matmul"),
        ("exact unbound rescale", "float16", "matmul"),
        ("exact unbound rescale", "bfloat16", "fft"),
    ],
)
def test_half_precision_is_rounded_once(name, dtype, implementation):
    arrays, mask, reference = expected(name, shape_for(name, implementation), dtype=dtype)
    found = run(arrays, mask, dtype, implementation=implementation, **VARIANTS[name])
    assert [x.dtype for x in found] == [jnp.dtype(d) for d in (dtype, "float32", dtype, dtype, dtype)]
    assert_near(found, reference, TOLERANCE[dtype])
    assert error(found[1], reference[1]) <= 1e-5  # the weights are always float32


@pytest.mark.parametrize(
    ("shape", "implementation"),
    [((5, 3, 8), "fft"), ((2, 1, 3, 2, 5), "matmul"), ((1, 1, 2, 7), "fft"), ((1, 1, 2, 8), "matmul")]
    + [
        (shape, implementation)
        for shape in ((2, 5, 2, 1), (2, 5, 2, 2), (1, 3, 2, 64), (1, 2, 1, 97))
        for implementation in IMPLEMENTATIONS
    ],
    ids=str,
)
def test_shapes(shape, implementation):
    arrays, _, reference = expected("paper", shape, masked=False, dtype="float32")
    found = run(arrays, jitted=jitted_once, implementation=implementation)
    if shape[-1] == 1:  # a cosine in one dimension is a sign: its gradient is rounding error
        assert all(error(found[i], reference[i]) <= 1e-5 for i in (0, 1, 4))
        assert np.abs(np.stack(found[2:4])).max() < 1e-5
    elif shape[-3] == 1:  # a single weight is 1 for any query and key
        assert all(error(found[i], reference[i]) <= 1e-6 for i in (0, 1, 4))
        assert np.abs(np.stack(found[2:4])).max() < 1e-6
    else:
        assert_near(found, reference, 1e-5)


@pytest.mark.parametrize(
    ("name", "implementation"),
    [("paper", "matmul"), ("unbound", "matmul"), ("temperature a head", "fft"), ("exact", "fft")],
)
def test_blocks_and_a_partial_block_equal_the_whole(name, implementation, monkeypatch):
    shape = shape_for(name, implementation)
    token = shape[0] * shape[2] * shape[3]
    monkeypatch.setitem(passes.BLOCK_SIZES, "cpu", (4 * token // jax.device_count(),) * 2)
    arrays, mask, reference = expected(name, shape, dtype="float32")
    whiles = []

    def jitted(*arguments, **static):
        program = jitted_once.lower(*arguments, **static)
        whiles.append(program.as_text().count("stablehlo.while"))
        return program.compile()(*arguments)

    jitted_once.clear_cache()
    found = run(arrays, mask, jitted=jitted, implementation=implementation, **VARIANTS[name])
    jitted_once.clear_cache()
    assert whiles == [4]  # one loop per pass: three blocks of 4 tokens; one token follows
    assert_near(found, reference, 1e-5)


@pytest.mark.parametrize(("implementation", "size"), [("fft", 5), ("matmul", 6)])
def test_gradients_equal_finite_differences(implementation, size, x64):
    """Reverse mode, and reverse over reverse, in float64, against differences of the function itself."""
    q, k, v = (jnp.asarray(x) for x in draw((2, 5, 2, size), seed=16)[:3])
    mask = jnp.asarray(MASK[:, :5])
    tau = jnp.asarray([0.5, 2.0])
    for variant in ({}, {"inverse": "exact", "output": "unbound"}):
        options = {"implementation": implementation, "rescale": True, "return_weights": True, **variant}
        function = jax.jit(
            lambda q, k, v, tau, options=options: hrr_attention(
                q, k, v, mask=mask, temperature=tau, **options
            )
        )
        jax.test_util.check_grads(function, (q, k, v, tau), order=2, modes=["rev"], rtol=1e-4, atol=1e-4)


def test_vmap_equals_the_batch():
    arrays, mask, _ = expected("paper", dtype="float32")
    q, k, v = (jnp.asarray(x, jnp.float32) for x in arrays[:3])
    attend = jax.jit(jax.vmap(lambda q, k, v, mask: hrr_attention(q, k, v, mask=mask)))
    batched = attend(q, k, v, jnp.asarray(mask))
    assert error(batched, hrr_attention(q, k, v, mask=jnp.asarray(mask))) < 1e-6


class Variants(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_jit(self):
        with jax.enable_x64(False):
            arrays, mask, reference = expected("paper", dtype="float32")
            function = self.variant(
                functools.partial(hrr_attention, return_weights=True), static_argnames="implementation"
            )
            inputs = (jnp.asarray(x, jnp.float32) for x in arrays[:3])
            out, weights = function(*inputs, mask=jnp.asarray(mask))
        assert error(out, reference[0]) < 1e-5
        assert error(weights, reference[1]) < 1e-5


def test_return_weights():
    arrays, mask, reference = expected("rescale", dtype="float32")
    q, k, v = (jnp.asarray(x, jnp.float32) for x in arrays[:3])
    for variant in ({}, {"rescale": True}, {"output": "unbound"}):
        alone = hrr_attention(q, k, v, mask=jnp.asarray(mask), **variant)
        out, weights = hrr_attention(q, k, v, mask=jnp.asarray(mask), return_weights=True, **variant)
        np.testing.assert_array_equal(alone, out)
        assert weights.shape == (2, 3, 13)
        total = np.array([13.0, 8.0])[:, None] if variant.get("rescale") else 1.0
        np.testing.assert_allclose(weights.sum(-1), np.broadcast_to(total, (2, 3)), rtol=1e-5)
        np.testing.assert_array_equal(weights[1, :, 8:], 0.0)
    assert reference[1].max() > 1.0


def test_unbound_output_has_root_mean_square_one():
    arrays, mask, _ = expected("unbound", dtype="float32")
    out = np.asarray(run(arrays, mask, implementation="matmul", **VARIANTS["unbound"])[0], np.float64)
    np.testing.assert_allclose(np.sqrt(np.mean(out**2, axis=-1))[mask], 1.0, rtol=1e-5)
    assert not out[~mask].any()


def test_temperature_forms_agree(untyped):
    arrays, mask, _ = expected("paper", dtype="float32")
    q, k, v = (jnp.asarray(x, jnp.float32) for x in arrays[:3])
    call = functools.partial(hrr_attention, q, k, v, mask=jnp.asarray(mask))
    reference = call(temperature=0.5)
    for temperature in (jnp.asarray(0.5), jnp.full((3,), 0.5), jnp.full((2, 1, 3), 0.5), jnp.full((1,), 0.5)):
        assert error(call(temperature=temperature), reference) < 1e-6
    assert error(call(temperature=jnp.asarray(1.0)), call()) < 1e-6
    assert error(call(temperature=2), call(temperature=2.0)) == 0.0
    assert error(call(temperature=0.5), call()) > 1e-2


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_temperature_per_head_equals_one_scalar_run_per_head(implementation):
    arrays = draw(shape_for("temperature a head", implementation), seed=14)
    taus = VARIANTS["temperature a head"]["temperature"]
    together = run(arrays, MASK, temperature=taus, implementation=implementation)
    for head, tau in enumerate(taus):
        alone = run(arrays, MASK, temperature=tau, implementation=implementation)
        for i, (x, y) in enumerate(zip(together, alone, strict=True)):
            axis = 1 if i == 1 else 2  # the weights are (B, N, T), the others (B, T, N, H)
            assert error(np.take(np.asarray(x), head, axis), np.take(np.asarray(y), head, axis)) < 1e-6
    assert error(together[1][:, 0], together[1][:, 2]) > 1e-2  # the heads' temperatures differ


# Padding.


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", ["paper", "temperature", "exact unbound rescale"])
def test_padding_changes_nothing(name, implementation):
    size = shape_for(name, implementation)[-1]
    arrays = draw((2, 5, 3, size), seed=3)
    rng = np.random.default_rng(4)
    variant = {**VARIANTS[name], "implementation": implementation}
    reference = run(arrays, **variant)
    for garbage in (0.0, 1.0, 1e4, 1e15):
        padded = [np.concatenate([x, garbage * rng.normal(size=(2, 8, 3, size))], axis=1) for x in arrays[:3]]
        padded.append(np.concatenate([arrays[3], rng.normal(size=(2, 8, 3, size))], axis=1))
        padded.append(np.concatenate([arrays[4], rng.normal(size=(2, 3, 8))], axis=2))
        mask = np.broadcast_to(np.arange(13) < 5, (2, 13))
        out, weights, *slopes = run(padded, mask, **variant)
        real = (out[:, :5], weights[..., :5], *(x[:, :5] for x in slopes))
        assert_near(real, reference, 2e-6)
        for x in (out[:, 5:], weights[..., 5:], *(x[:, 5:] for x in slopes)):
            np.testing.assert_array_equal(x, 0.0)


@pytest.mark.parametrize(
    ("name", "implementation", "size"),
    [("paper", "fft", 7), ("temperature", "matmul", 7), ("exact unbound rescale", "matmul", 8)],
)
def test_an_all_true_mask_equals_no_mask(name, implementation, size):
    arrays = draw((2, 5, 3, size), seed=3)
    variant = {**VARIANTS[name], "implementation": implementation}
    assert_near(run(arrays, **variant), run(arrays, np.ones((2, 5), bool), **variant), 1e-6)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", BOTH)
def test_a_sequence_without_valid_tokens_is_zero(name, implementation):
    arrays = draw(shape_for(name, implementation), seed=5)
    mask = np.array([[False] * 13, [True] * 13])
    found = run(arrays, mask, implementation=implementation, **VARIANTS[name])
    for x in found:
        np.testing.assert_array_equal(x[0], 0.0)
        assert np.isfinite(x).all()
        assert np.any(x[1])


@functools.cache
def slopes_with_temperature(implementation):
    def loss(q, k, v, temperature, cotangent):
        out = hrr_attention(
            q, k, v, mask=jnp.asarray(MASK), temperature=temperature, implementation=implementation
        )
        return jnp.sum(out * cotangent)

    return jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3)))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("temperature", [1e-15, 1e-6, 1e6, 1e15])
def test_extreme_temperatures_with_masked_garbage(temperature, implementation):
    arrays = draw(shape_for("temperature", implementation), seed=6)
    for x in arrays[:3]:
        x[~MASK] *= 1e4
    q, k, v, cotangent = (jnp.asarray(x, jnp.float32) for x in arrays[:4])
    slopes = slopes_with_temperature(implementation)(q, k, v, jnp.float32(temperature), cotangent)
    assert all(np.isfinite(x).all() for x in slopes)
    weights = run(arrays, MASK, temperature=temperature, implementation=implementation)[1]
    np.testing.assert_allclose(weights.sum(-1), 1.0, rtol=1e-5)
    if temperature > 1:  # uniform over the valid tokens
        np.testing.assert_allclose(weights[0], 1 / 13, rtol=1e-5)
        np.testing.assert_allclose(weights[1, :, :8], 1 / 8, rtol=1e-5)
    else:  # the best score takes all the weight
        np.testing.assert_allclose(weights.max(-1), 1.0, rtol=1e-5)


def test_an_empty_batch():
    x = jnp.zeros((0, 5, 2, 8))
    for is_causal in (False, True):
        out, weights = hrr_attention(x, x, x, is_causal=is_causal, return_weights=True)
        assert (out.shape, weights.shape) == ((0, 5, 2, 8), (0, 2, 5))


def test_mask_forms_agree():
    arrays = draw(seed=7)
    q, k, v = (jnp.asarray(x, jnp.float32) for x in arrays[:3])
    attend = jax.jit(hrr_attention)  # for its own shapes; functions that other tests run eagerly are compiled
    one = jnp.asarray(MASK[1:])
    reference = hrr_attention(q, k, v, mask=jnp.tile(one, (2, 1)))
    for mask in (one, one[:, None, None, :], jnp.tile(one, (2, 1))[:, None, None, :]):
        np.testing.assert_array_equal(hrr_attention(q, k, v, mask=mask), reference)
    for mask in (one[0], one[0][None, None, :]):
        assert error(attend(q[0], k[0], v[0], mask=mask), reference[0]) < 1e-6
    two = jnp.asarray(MASK)
    long = attend(q[:, None], k[:, None], v[:, None], mask=two[:, None])
    assert error(long[:, 0], hrr_attention(q, k, v, mask=two[:, None, None])) < 1e-6


# Where a cosine is singular, and scales.


@pytest.mark.parametrize("which", [(0,), (1,), (2,), (0, 1, 2)])
@pytest.mark.parametrize("everywhere", [False, True])
def test_zero_vectors(which, everywhere):
    for implementation in IMPLEMENTATIONS:
        arrays = draw((2, 5, 3, shape_for("paper", implementation)[-1]), seed=8)
        for i in which:
            arrays[i][:, slice(None) if everywhere else slice(1, 3)] = 0.0
        found = run(arrays, implementation=implementation)
        assert all(np.isfinite(x).all() for x in found)
        reference = oracle.hrr_attention(*arrays[:3])
        assert all(error(x, y) <= 1e-5 for x, y in zip(found, reference, strict=False))
        for x, y in zip(found[2:], oracle.gradients(*arrays), strict=True):
            assert np.linalg.norm(x - y) <= 1e-5 * max(np.linalg.norm(y), 1.0)
        swapped = IMPLEMENTATIONS[1 - IMPLEMENTATIONS.index(implementation)]  # as compiled by padding tests
        exact = run(arrays, implementation=swapped, **VARIANTS["exact unbound rescale"])
        assert all(np.isfinite(x).all() for x in exact)


@pytest.mark.parametrize(
    ("dtype", "name", "implementation"),
    [("float32", name, implementation) for name in ("paper", "exact") for implementation in IMPLEMENTATIONS]
    + [("bfloat16", "paper", "matmul"), ("bfloat16", "exact", "fft")],
)
def test_weights_do_not_depend_on_scale(dtype, name, implementation):
    variant = {**VARIANTS[name], "implementation": implementation}
    arrays = draw(shape_for(name, implementation), seed=9, dtype=dtype)
    reference = run(arrays, MASK, dtype, **variant)
    for which in ((0,), (1,), (2,), (0, 1, 2)):
        for scale in (2.0**-40, 1e-6, 1e6, 2.0**40):
            scaled = [x * scale if i in which else x for i, x in enumerate(arrays)]
            out, weights, *slopes = run(scaled, MASK, dtype, **variant)
            rounding = 1e-4 if dtype == "float32" or scale in (2.0**-40, 2.0**40) else 2e-2
            assert error(weights, reference[1]) <= rounding
            ratio = scale if 2 in which else 1.0
            assert error(np.float64(out) / ratio, reference[0]) <= max(rounding, 1e-2)
            assert all(np.isfinite(x).all() for x in slopes)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_the_whole_range_of_floats(implementation):
    arrays = draw(shape_for("paper", implementation), seed=9)
    reference = run(arrays, MASK, implementation=implementation)[1]
    for scales in ((1e-30, 1, 1), (1e30, 1, 1), (1, 1, 1e-30), (1, 1, 1e30), (1e-16,) * 3, (1e16,) * 3):
        scaled = [x * scale for x, scale in zip(arrays, (*scales, 1, 1), strict=True)]
        out, weights, *slopes = run(scaled, MASK, implementation=implementation)
        assert error(weights, reference) <= 1e-4
        assert all(np.isfinite(x).all() for x in (out, *slopes))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("scale", [1e6, 1e-6])
def test_scaled_half_precision_is_single_precision_of_the_same_numbers(scale, implementation):
    shape = shape_for("paper", implementation)
    rounded = [np.float32((x * scale).astype(jnp.bfloat16)) for x in draw(shape, seed=15)[:3]]
    arrays = rounded + draw(shape, seed=15)[3:]
    half, single = (
        run(arrays, MASK, dtype, implementation=implementation)[1] for dtype in ("bfloat16", "float32")
    )
    assert half.dtype == jnp.float32
    assert error(half, single) <= 1e-4
    uniform = MASK[:, None, :] / MASK.sum(-1)[:, None, None]
    assert error(np.broadcast_to(uniform, single.shape), single) > 1e-2  # a uniform result would be visible


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_each_token_has_its_own_scale(implementation):
    """Query and value are normalized per token, not per sequence."""
    arrays = draw(shape_for("paper", implementation), seed=10)
    lengths = 2.0 ** np.random.default_rng(0).integers(-30, 30, size=(2, 13, 3, 1))
    reference = run(arrays, MASK, implementation=implementation)
    scaled = [arrays[0] * lengths, *arrays[1:]]
    assert error(run(scaled, MASK, implementation=implementation)[1], reference[1]) < 1e-5


@pytest.mark.parametrize(("implementation", "size"), [("fft", 5), ("matmul", 6)])
def test_second_derivatives(implementation, size):
    arrays = draw((4, 2, size), seed=11)
    inputs = [jnp.asarray(x, jnp.float32) for x in arrays[:3]]
    direction = [jnp.asarray(x, jnp.float32) for x in draw((4, 2, size), seed=12)[:3]]

    def energy(*x):
        return jnp.sum(jnp.square(hrr_attention(*x, implementation=implementation)))

    slope = jax.grad(energy, argnums=(0, 1, 2))
    bend = jax.jit(lambda x, d: jax.jvp(slope, tuple(x), tuple(d)))  # the slope, and its derivative
    _, second = bend(inputs, direction)
    ends = [
        bend([x + s * 1e-2 * d for x, d in zip(inputs, direction, strict=True)], direction)[0]
        for s in (1, -1)
    ]
    for x, up, down in zip(second, *ends, strict=True):
        assert error(x, (up - down) / 2e-2) < 2e-2
    zeros = [jnp.zeros_like(x) for x in inputs]
    _, second = bend(zeros, direction)
    assert all(np.isfinite(x).all() for x in second)


# Refusals: the messages that users see, without the run-time type checks of the tests.

X = np.zeros(SHAPE, np.float32)


@pytest.mark.parametrize(
    "shape",
    [
        (13, 13),
        (2, 3, 13, 13),
        (2, 12),
        (3, 13),
        (13,),
        (2, 13, 1),
        (2, 3, 1, 13),
        (2, 1, 13, 1),
    ],
)
def test_wrong_mask_shapes_are_refused(shape, untyped):
    with pytest.raises(ValueError, match=rf"mask must be a key-padding .*got {re.escape(str(shape))}"):
        hrr_attention(X, X, X, mask=jnp.ones(shape, bool))


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.float32])
def test_wrong_mask_dtypes_are_refused(dtype, untyped):
    with pytest.raises(TypeError, match=f"mask must be boolean.*got dtype {jnp.dtype(dtype)}"):
        hrr_attention(X, X, X, mask=jnp.ones((2, 13), dtype))


def test_wrong_inputs_are_refused(untyped):
    for name in ("key", "value"):
        shorter = {"query": X, "key": X, "value": X, name: X[:, :5]}
        with pytest.raises(ValueError, match=rf"{name} must have .*got \(2, 5, 3, 7\).*cross-attention"):
            hrr_attention(**shorter)
        with pytest.raises(ValueError, match=rf"{name} must have the shape of query.*\(2, 13, 3, 5\)\.$"):
            hrr_attention(**{**shorter, name: X[..., :5]})
    for name in ("query", "key", "value"):
        for dtype in (jnp.int32, jnp.complex64):
            with pytest.raises(TypeError, match=f"{name} must be real floating point; got dtype"):
                hrr_attention(**{"query": X, "key": X, "value": X, name: jnp.asarray(X).astype(dtype)})
    with pytest.raises(ValueError, match="query must have shape"):
        hrr_attention(X[0, 0], X[0, 0], X[0, 0])
    for index in (1, 2, 3):
        empty = np.take(X, [], axis=index)
        with pytest.raises(ValueError, match="at least one token, head and feature"):
            hrr_attention(empty, empty, empty)


def test_wrong_names_and_temperatures_are_refused(untyped):
    with pytest.raises(ValueError, match=r"inverse must be one of .*got 'pseudo'"):
        hrr_attention(X, X, X, inverse="pseudo")
    with pytest.raises(ValueError, match=r"output must be one of .*got 'sum'"):
        hrr_attention(X, X, X, output="sum")
    known = "'fft', 'matmul', 'pallas', 'reference'"
    with pytest.raises(ValueError, match=f"implementation must be None or one of {known}; got 'cuda'"):
        hrr_attention(X, X, X, implementation="cuda")
    for temperature in (0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="temperature must be positive"):
            hrr_attention(X, X, X, temperature=temperature)
    for shape in ((13,), (13, 3), (2, 1, 1, 3)):  # none of them has one value per head or sequence
        with pytest.raises(ValueError, match=r"temperature must broadcast to \(2, 1, 3\)"):
            hrr_attention(X, X, X, temperature=jnp.ones(shape))
    with pytest.raises(ValueError, match="temperature must broadcast"):
        hrr_attention(X[:, :, :1], X[:, :, :1], X[:, :, :1], temperature=jnp.ones(4))


# Cost.


def takes_ffts(size, **options):
    x = jax.ShapeDtypeStruct((2, 3, 2, size), jnp.float32)
    forward = functools.partial(hrr_attention, **options)
    slope = jax.grad(lambda *x: jnp.sum(forward(*x)), argnums=(0, 1, 2))
    found = {"fft[" in str(jax.make_jaxpr(function)(x, x, x)) for function in (forward, slope)}
    assert len(found) == 1
    return found.pop()


@pytest.mark.parametrize("size", [8, 64, 65, 512])
def test_the_chosen_implementation_runs(size):
    for variant in ({}, {"output": "unbound"}, {"inverse": "exact"}):
        assert takes_ffts(size, implementation="fft", **variant)
        assert not takes_ffts(size, implementation="matmul", **variant)
    assert takes_ffts(size) == (resolve_implementation(None, size) == "fft")


def test_the_default_implementation_depends_on_size(monkeypatch):
    for platform, largest in (("cpu", 64), ("gpu", 256), ("tpu", 256)):
        monkeypatch.setattr(jax, "default_backend", lambda platform=platform: platform)
        assert resolve_implementation(None, largest) == "matmul"
        assert resolve_implementation(None, largest + 1) == "fft"


def compiled_gradient(length, implementation):
    def loss(q, k, v, mask):
        return jnp.sum(jnp.square(hrr_attention(q, k, v, mask=mask, implementation=implementation)))

    x = jax.ShapeDtypeStruct((1, length, 2, 8), jnp.float32)
    mask = jax.ShapeDtypeStruct((1, length), jnp.bool_)
    return jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(x, x, x, mask).compile()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_memory_is_linear_in_length(implementation):
    single, double = (compiled_gradient(length, implementation) for length in (2053, 4106))
    ratio = double.memory_analysis().temp_size_in_bytes / single.memory_analysis().temp_size_in_bytes
    assert 1.5 < ratio < 2.2
    assert re.search(r"2053,2,8\]", single.as_text())
    assert not re.search(r"\[[^\]]*2053[^\]]*,2053[^\]]*\]", single.as_text())


def test_no_retrace_for_equal_shapes():
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def function(q, k, v, mask, temperature):
        return hrr_attention(q, k, v, mask=mask, temperature=temperature)

    for seed in range(3):
        q, k, v = (jnp.asarray(x, jnp.float32) for x in draw(seed=seed)[:3])
        function(q, k, v, jnp.asarray(MASK), jnp.float32(seed + 1))


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_export_with_symbolic_sizes(implementation, is_causal, untyped):
    """One exported program serves every batch, length and number of heads, forward and backward."""

    def step(q, k, v, mask):
        def attend(q, k, v):
            return hrr_attention(
                q, k, v, mask=mask, implementation=implementation, is_causal=is_causal, temperature=0.5
            )

        out, pull = jax.vjp(attend, q, k, v)
        return (out, *pull(out))

    batch, length, heads = jax.export.symbolic_shape("b, t, n")
    x = jax.ShapeDtypeStruct((batch, length, heads, 7), jnp.float32)
    exported = jax.export.export(jax.jit(step))(x, x, x, jax.ShapeDtypeStruct((batch, length), jnp.bool_))
    for shape in (SHAPE, (1, 200, 1, 7)):
        q, k, v = (jnp.asarray(x, jnp.float32) for x in draw(shape)[:3])
        mask = jnp.asarray(np.arange(shape[1]) < np.full((shape[0], 1), shape[1] - 2))
        for found, wanted in zip(exported.call(q, k, v, mask), step(q, k, v, mask), strict=True):
            assert error(found, wanted) < 1e-5


@pytest.mark.parametrize("is_causal", [False, True])
def test_numpy_arrays_of_float64_are_float32_while_jax_has_no_float64(is_causal, untyped):
    arrays = draw()[:3]
    found = hrr_attention(*arrays, is_causal=is_causal)
    assert found.dtype == jnp.float32
    wanted = hrr_attention(*map(jnp.float32, arrays), is_causal=is_causal)
    np.testing.assert_array_equal(found, wanted)
