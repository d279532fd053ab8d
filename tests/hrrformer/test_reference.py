"""The plain form against the oracle, the fast forms against the plain one, and forward mode."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import oracle
from test_attention import MASK, SHAPE, TOLERANCE, VARIANTS, assert_near, draw, error, pull_back, shape_for

import hrrformer.linen
import hrrformer.nnx
from hrrformer import hrr_attention, hrr_attention_step, init_causal_state

pytestmark = pytest.mark.usefixtures("strict_promotion")

HOLES = np.random.default_rng(0).random((2, 13)) < 0.6
MASKS = {False: MASK, True: HOLES}  # by is_causal


@functools.cache
def compiled(implementation, name, is_causal, dtype):
    """Returns output, weights and gradients for `draw()`, computed as in the tests of `hrr_attention`."""
    options = {**VARIANTS[name], "implementation": implementation, "is_causal": is_causal}
    arrays = draw(shape_for(name, "fft"), seed=1)
    inputs = [jnp.asarray(x, dtype) for x in arrays]
    mask = jnp.asarray(MASKS[is_causal])
    if "temperature" in options:
        options["temperature"] = jnp.asarray(options["temperature"], dtype)
    function = jax.jit(
        lambda q, k, v, *bars: pull_back((q, k, v), *bars, mask, options),
        compiler_options={"xla_backend_optimization_level": 0},  # faster to compile; see test_attention.py
    )
    return function(*inputs)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("name", VARIANTS)
def test_value_and_gradient_equal_the_oracles(name, is_causal, x64):
    arrays = draw(shape_for(name, "fft"), seed=1)
    options = {**VARIANTS[name], "mask": MASKS[is_causal], "is_causal": is_causal}
    expected = (*oracle.hrr_attention(*arrays[:3], **options), *oracle.gradients(*arrays, **options))
    found = compiled("reference", name, is_causal, "float64")
    assert {x.dtype for x in found} == {jnp.dtype("float64")}
    assert_near(found, expected, TOLERANCE["float64"])


SOME = ["paper", "temperature a head", "exact unbound rescale"]  # all variants are compared with the oracle


@pytest.mark.parametrize("name", SOME)
@pytest.mark.parametrize(
    ("implementation", "is_causal"),
    [("fft", False), ("matmul", False), ("pallas", False), ("fft", True), ("matmul", True)],
)
def test_the_fast_forms_equal_the_plain_form(implementation, name, is_causal):
    found = compiled(implementation, name, is_causal, "float32")
    assert_near(found, compiled("reference", name, is_causal, "float32"), 2e-5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision(dtype):
    arrays = draw(dtype=dtype)
    inputs = [jnp.asarray(x, dtype) for x in arrays[:3]]
    out, weights = hrr_attention(*inputs, implementation="reference", return_weights=True)
    assert (out.dtype, weights.dtype) == (jnp.dtype(dtype), jnp.float32)
    assert error(out, oracle.hrr_attention(*arrays[:3])[0]) < TOLERANCE[dtype]


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("name", VARIANTS)
def test_nothing_valid_and_zero_vectors(name, is_causal):
    arrays = draw((2, 5, 3, 7), seed=5)
    options = {"is_causal": is_causal, "implementation": "reference", **VARIANTS[name]}
    if "temperature" in options:
        options["temperature"] = jnp.asarray(options["temperature"], jnp.float32)
    mask = jnp.asarray([[False] * 5, [True] * 5])
    for zero in (slice(1, 3), slice(None)):
        for x in arrays[:3]:
            x[1, zero] = 0.0
        inputs = [jnp.asarray(x, jnp.float32) for x in arrays]
        found = pull_back(inputs[:3], *inputs[3:], mask, options)
        for x in found:
            assert np.isfinite(x).all()
            np.testing.assert_array_equal(x[0], 0.0)
        np.testing.assert_array_equal(found[0][1, zero], 0.0)
        tangents = [jnp.ones_like(x) for x in inputs[:3]]
        function = functools.partial(hrr_attention, mask=mask, **options)
        assert np.isfinite(jax.jvp(function, tuple(inputs[:3]), tuple(tangents))[1]).all()


# Forward mode.


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("name", SOME)
def test_forward_mode(name, is_causal, x64):
    options = {"is_causal": is_causal, "return_weights": True, **VARIANTS[name]}
    if "temperature" in options:
        options["temperature"] = jnp.asarray(options["temperature"])
    inputs = tuple(jnp.asarray(x) for x in draw((4, 3, 5), seed=11)[:3])
    direction = tuple(jnp.asarray(x) for x in draw((4, 3, 5), seed=12)[:3])
    plain = jax.jit(functools.partial(hrr_attention, implementation="reference", **options))
    _, slope = jax.jvp(plain, inputs, direction)
    ends = [plain(*(x + s * 1e-6 * d for x, d in zip(inputs, direction, strict=True))) for s in (1, -1)]
    for x, up, down in zip(slope, *ends, strict=True):
        assert error(x, (up - down) / 2e-6) < 1e-6
    fast = jax.jit(jax.jacrev(functools.partial(hrr_attention, **options), argnums=(0, 1, 2)))
    forward = jax.jit(jax.jacfwd(plain, argnums=(0, 1, 2)))
    for x, y in zip(*(jax.tree.leaves(f(*inputs)) for f in (forward, fast)), strict=True):
        assert error(x, y) < 1e-10


def test_the_fast_forms_refuse_forward_mode():
    x = jnp.ones((4, 2, 8))
    for implementation in (None, "fft", "matmul"):
        function = functools.partial(hrr_attention, implementation=implementation)
        with pytest.raises(TypeError, match="forward-mode"):
            jax.jvp(function, (x, x, x), (x, x, x))


@pytest.mark.parametrize("api", ["linen", "nnx"])
@pytest.mark.parametrize("is_causal", [False, True])
def test_the_layers_run_the_plain_form(api, is_causal):
    options = {"learn_temperature": True, "rescale": True}
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 13, 12)), jnp.float32)
    mask = jnp.asarray(MASK)
    call = {}
    for implementation in ("reference", "matmul"):
        if api == "nnx":
            layer = hrrformer.nnx.HRRAttention(
                3, 12, implementation=implementation, rngs=nnx.Rngs(0), **options
            )
            call[implementation] = jax.jit(functools.partial(layer, mask=mask, is_causal=is_causal))
        else:
            layer = hrrformer.linen.HRRAttention(3, implementation=implementation, **options)
            params = layer.init(jax.random.key(0), x)
            apply = functools.partial(layer.apply, params, mask=mask, is_causal=is_causal)
            call[implementation] = jax.jit(apply)
    assert error(call["reference"](x), call["matmul"](x)) < 1e-5
    _, slope = jax.jvp(call["reference"], (x,), (jnp.ones_like(x),))
    ends = [call["matmul"](x + s) for s in (1e-2, -1e-2)]
    assert error(slope, (ends[0] - ends[1]) / 2e-2) < 1e-2


# Refusals.


def test_refusals(untyped):
    x = jnp.ones(SHAPE)
    with pytest.raises(ValueError, match=r"axis_name must be None with implementation='reference'.*Use 'mat"):
        hrr_attention(x, x, x, implementation="reference", axis_name="devices")
    with pytest.raises(ValueError, match="implementation must be None or one of 'fft', 'matmul'; got 'ref"):
        hrr_attention_step(x, x, x, init_causal_state(2, 3, 7), implementation="reference")
