"""`hrr_memory` against the oracle and its plain form; pieces, padding, devices, cost, and refusals."""

import functools
import itertools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from helpers import oracle

import hrrformer.linen
import hrrformer.nnx
from hrrformer import hrr_attention, hrr_memory, hrr_memory_step, init_memory_state, memory, reference

pytestmark = pytest.mark.usefixtures("strict_promotion")

METHODS = ("fft", "matmul")
MASK = np.arange(13) < np.array([[13], [8]])


@pytest.fixture(autouse=True)
def short_blocks(monkeypatch):
    """Uses blocks of 4 or 5 tokens, so that 13 tokens are several blocks, the last one shorter."""
    for method in METHODS:
        monkeypatch.setitem(memory.BLOCKS, method, 5)


def draw(size, length=13, sides=2, seed=0):
    """Returns query, key, value, rate, phase and gain in float64."""
    rng = np.random.default_rng(seed)
    poles = (sides, 3, size // 2 + 1)
    inputs = rng.normal(size=(3, 2, length, 3, size))
    return *inputs, np.exp(rng.normal(size=poles) - 1.5), rng.normal(size=poles), rng.normal(size=poles)


@functools.partial(jax.jit, static_argnames=("implementation", "axis_name"))
def run(arrays, mask=None, **options):
    """Calls `hrr_memory` as the oracle is called: with one side it is causal."""
    query, key, value, rate, phase, gain = arrays
    is_causal = len(rate) == 1
    poles = {"rate": rate, "phase": phase, "gain": gain}
    poles = {name: x[0] if is_causal else x for name, x in poles.items()}
    mask = None if mask is None else jnp.asarray(mask)
    return hrr_memory(query, key, value, **poles, mask=mask, is_causal=is_causal, **options)


@functools.partial(jax.jit, static_argnames="implementation")
def summed_slopes(arrays, mask, implementation):
    return jax.grad(lambda x: jnp.sum(run(x, mask, implementation=implementation)))(arrays)


def cast(arrays, dtype="float32"):
    return tuple(jnp.asarray(x, dtype) for x in arrays)


def assert_near(found, expected, tolerance):
    expected = np.asarray(expected, np.float64)
    error = np.abs(np.asarray(found, np.float64) - expected).max()
    assert error <= tolerance * max(np.abs(expected).max(), 1e-30)


# Values and gradients


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("sides", [1, 2])
@pytest.mark.parametrize(("size", "length"), [(7, 13), (8, 13), (1, 13), (2, 1)])
def test_values_equal_the_oracle(method, sides, size, length):
    arrays = draw(size, length, sides)
    mask = MASK if length == 13 else None
    expected = oracle.hrr_memory(*arrays, mask=mask)
    assert_near(run(cast(arrays), mask, implementation=method), expected, 1e-5)
    plain = None if mask is None else jnp.asarray(mask)
    assert_near(reference.hrr_memory(*cast(arrays), mask=plain), expected, 1e-5)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("sides", "size"), [(1, 5), (2, 4)])
def test_gradients_equal_the_oracle(method, sides, size):
    arrays = draw(size, 7, sides)
    cotangent = np.random.default_rng(1).normal(size=arrays[0].shape)
    mask = np.arange(7) < np.array([[7], [5]])
    expected = oracle.memory_gradients(cotangent, *arrays, mask=mask)

    @jax.jit
    def slopes(*arrays):
        return jax.vjp(lambda *x: run(x, mask, implementation=method), *arrays)[1](jnp.float32(cotangent))

    for found, wanted in zip(slopes(*cast(arrays)), expected, strict=True):
        assert_near(found, wanted, 1e-5)


def test_forward_mode_and_second_derivatives():
    arrays = cast(draw(4, 7))

    def loss(rate):
        return jnp.sum(jnp.square(run((*arrays[:3], rate, *arrays[4:]))))

    slope, tangent = jax.jit(jax.grad(loss)), jnp.ones_like(arrays[3])
    assert_near(jax.jvp(loss, (arrays[3],), (tangent,))[1], jnp.sum(slope(arrays[3])), 1e-4)
    curved = jax.jit(lambda x: jax.jvp(jax.grad(loss), (x,), (tangent,))[1])(arrays[3])
    plus, minus = (slope(arrays[3] + step) for step in (1e-2, -1e-2))
    assert_near(curved, (plus - minus) / 2e-2, 5e-3)


def test_bfloat16_and_float64(x64):
    arrays = draw(8)
    rounded = [*(np.asarray(jnp.asarray(x, jnp.bfloat16), np.float64) for x in arrays[:3]), *arrays[3:]]
    found = run((*cast(rounded[:3], "bfloat16"), *cast(rounded[3:])), MASK)
    assert found.dtype == jnp.bfloat16
    assert_near(found, oracle.hrr_memory(*rounded, mask=MASK), 2e-2)
    found = run(cast(arrays, "float64"), MASK)
    assert found.dtype == jnp.float64
    assert_near(found, oracle.hrr_memory(*arrays, mask=MASK), 1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_rates_near_zero_and_large(method):
    query, key, value, rate, phase, gain = draw(8)
    for scale in (1e-12, 1e12):
        arrays = (query, key, value, np.full_like(rate, scale), phase, gain)
        assert_near(run(cast(arrays), implementation=method), oracle.hrr_memory(*arrays), 1e-5)
        slopes = summed_slopes(cast(arrays), None, implementation=method)
        assert all(np.isfinite(x).all() for x in slopes)


def test_a_million_tokens_stay_finite():
    """The sum of equal pairs without phase is a geometric series in closed form."""
    length, rate = 2**20, 1e-5
    x = jnp.zeros((1, length, 1, 1)).at[:].set(1.0)
    found = jax.jit(lambda x: hrr_memory(x, x, x, rate=jnp.full((1, 1), rate), phase=0.0, is_causal=True))(x)
    expected = -np.expm1(-rate * np.arange(1, length + 1)) / -np.expm1(-rate)
    np.testing.assert_allclose(found[0, :, 0, 0], expected, rtol=2e-3)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("sides", [1, 2])
def test_poles_are_summed(method, sides):
    each = [draw(7, 13, sides, seed) for seed in range(3)]
    inputs, turns = each[0][:3], np.random.default_rng(0).uniform(-3, 3, (3, *each[0][3].shape))
    expected = sum(
        oracle.hrr_memory(*inputs, *one[3:5], np.abs(one[5]), turn, mask=MASK)
        for one, turn in zip(each, turns, strict=True)
    )
    rate, phase, gain = (np.stack([one[i] for one in each], axis=-1) for i in (3, 4, 5))
    gain = np.abs(gain) * np.exp(1j * np.moveaxis(turns, 0, -1))
    arrays = (*cast((*inputs, rate, phase)), jnp.asarray(gain, jnp.complex64))
    assert_near(run(arrays, MASK, implementation=method), expected, 1e-5)
    assert_near(reference.hrr_memory(*arrays, mask=jnp.asarray(MASK)), expected, 1e-5)

    @functools.partial(jax.jit, static_argnums=1)
    def slopes(parts, plain):
        def loss(parts):
            arrays = (*parts[:5], jax.lax.complex(*parts[5:]))
            mask = jnp.asarray(MASK)
            found = (
                reference.hrr_memory(*arrays, mask=mask)
                if plain
                else run(arrays, mask, implementation=method)
            )
            return jnp.sum(jnp.sin(found))

        return jax.grad(loss)(parts)

    parts = (*arrays[:5], arrays[5].real, arrays[5].imag)
    for found, wanted in zip(slopes(parts, False), slopes(parts, True), strict=True):
        assert_near(found, wanted, 3e-5)


# Padding and pieces


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("sides", [1, 2])
def test_padding_changes_nothing(method, sides):
    arrays = cast(draw(6, 11, sides))
    longer = tuple(jnp.pad(x, ((0, 0), (0, 6), (0, 0), (0, 0)), constant_values=1e3) for x in arrays[:3])
    mask = jnp.broadcast_to(jnp.arange(17) < 11, (2, 17))
    found = run((*longer, *arrays[3:]), mask, implementation=method)
    assert_near(found[:, :11], run(arrays, implementation=method), 1e-6)
    assert not np.any(found[:, 11:])
    nothing = run((*longer, *arrays[3:]), jnp.zeros_like(mask), implementation=method)
    assert not np.any(nothing)
    slopes = summed_slopes((*longer, *arrays[3:]), mask, implementation=method)
    assert not any(np.any(x[:, 11:]) for x in slopes[:3])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("cuts", "poles"), [((1,) * 13, None), ((5, 8), 2), ((6, 1, 6), None)])
def test_pieces_equal_the_whole_sequence(method, cuts, poles):
    *inputs, rate, phase, gain = cast(draw(7, 13, sides=1))
    if poles:
        rate, phase, gain = (jnp.stack([x, 0.5 * x], axis=-1) for x in (rate, phase, gain))
    step = jax.jit(
        functools.partial(hrr_memory_step, rate=rate[0], phase=phase[0], gain=gain[0], implementation=method)
    )
    state, outs, start = init_memory_state(2, 3, 7, num_poles=poles), [], 0
    for length in cuts:
        piece = (x[:, start : start + length] for x in inputs)
        out, state = step(*piece, state, mask=jnp.asarray(MASK[:, start : start + length]))
        outs.append(out)
        start += length
    whole = run((*inputs, rate, phase, gain), MASK, implementation=method)
    assert_near(jnp.concatenate(outs, axis=1), whole, 1e-5)


# Layers


def linen_and_nnx(**options):
    """Returns a layer of each API, and the parameters of both, which are equal."""
    options = {"num_poles": 3, "horizon": 20, "cue_scale": 1.0} | options
    nnx_layer = hrrformer.nnx.HRRMemory(3, 12, rngs=nnx.Rngs(0), **options)
    linen_layer = hrrformer.linen.HRRMemory(3, **options)
    return linen_layer, nnx_layer, nnx.to_pure_dict(nnx.state(nnx_layer, nnx.Param))


@pytest.mark.parametrize("gate", [True, False])
def test_both_layers_compute_the_formula(gate):
    linen_layer, nnx_layer, params = linen_and_nnx(gate=gate)
    numbers = jax.tree.map(np.float64, params)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 13, 12)), jnp.float32)
    mask = jnp.asarray(MASK)
    found = nnx_layer(x, mask=mask)
    assert_near(linen_layer.apply({"params": params}, x, mask=mask), found, 1e-6)
    query, key, value = (
        np.einsum("btd,dnh->btnh", np.float64(x), numbers[name]["kernel"])
        for name in ("query", "key", "value")
    )
    rate = np.exp(0.1 * numbers["log_rate"].reshape(2, 3, 3, 3))
    phase = 0.1 * numbers["turn"].reshape(rate.shape) * rate
    weight = numbers["weight"].reshape(*rate.shape, 2) @ [1, 1j]
    gain, delta = np.sqrt(-np.expm1(-2 * rate)) * abs(weight), np.eye(4)[0]
    query, key = query / 2 + delta, key / 2 + delta
    retrieved = sum(
        oracle.hrr_memory(
            query, key, value, *(y[..., m] for y in (rate, phase, gain, np.angle(weight))), mask=MASK
        )
        for m in range(3)
    )
    mixed = np.where(MASK[..., None, None], retrieved + np.reshape(numbers["skip"], (3, 4)) * value, 0.0)
    normalized = mixed / np.sqrt(np.mean(mixed**2, axis=-1, keepdims=True) + 1e-6)
    if gate:
        inner = np.sqrt(2 / np.pi) * (normalized + 0.044715 * normalized**3)
        normalized = normalized / 2 * (1 + np.tanh(inner))
    expected = np.einsum("btnh,nhd->btd", normalized, numbers["out"]["kernel"])
    if gate:
        a, b = np.split(expected, 2, axis=-1)
        expected = a / (1 + np.exp(-b))
    assert_near(found, expected, 1e-5)


def test_initial_parameters():
    layer = hrrformer.nnx.HRRMemory(8, 256, horizon=1000, num_poles=5, rngs=nnx.Rngs(0))
    init = jax.jit(hrrformer.linen.HRRMemory(8, horizon=1000, num_poles=5).init)
    variables = init(jax.random.key(0), jnp.ones((1, 2, 256)))["params"]
    for params in (nnx.to_pure_dict(nnx.state(layer, nnx.Param)), variables):
        assert params["log_rate"].shape == params["turn"].shape == (2 * 8 * 17 * 5,)
        times = np.exp(-0.1 * params["log_rate"]).reshape(-1, 5)
        assert 2 <= times.min() < 2.5
        assert 800 < times.max() <= 1000
        assert 30 < np.median(times) < 65  # log-uniform: √2000 = 45
        assert (times == times[:, :1]).all()  # the poles of a coefficient
        turns = 0.1 / (2 * np.pi) * params["turn"].reshape(-1, 5)
        np.testing.assert_allclose(turns, np.broadcast_to([0, 1, -1, 2, -2], turns.shape), rtol=1e-6)
        assert np.sum(np.square(params["weight"])) == pytest.approx(2 * 8 * 17, rel=0.1)  # 1 per coefficient
        for name, size in (("query", 0.1), ("key", 0.1), ("value", 1.0)):
            assert np.std(params[name]["kernel"]) * 16 == pytest.approx(size, rel=0.05)
    for options, words in (({"horizon": 2}, "horizon .*; got 2"), ({"num_poles": 0}, "num_poles .*; got 0")):
        with pytest.raises(ValueError, match=words):
            hrrformer.nnx.HRRMemory(1, 4, **options, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("api", ["linen", "nnx"])
def test_decoding_equals_one_call(api):
    linen_layer, nnx_layer, params = linen_and_nnx(decode=True)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 13, 12)), jnp.float32)
    whole = nnx_layer(x, decode=False, is_causal=True)
    outs, cuts = [], (0, 1, 2, 13)
    if api == "nnx":
        nnx_layer.init_cache(x.shape)
        decode = nnx.jit(lambda layer, x: layer(x))
        outs = [decode(nnx_layer, x[:, a:b]) for a, b in itertools.pairwise(cuts)]
    else:
        cache = jax.jit(linen_layer.init)(jax.random.key(1), x[:, :1])["cache"]
        decode = jax.jit(functools.partial(linen_layer.apply, mutable="cache"))
        for a, b in itertools.pairwise(cuts):
            out, changed = decode({"params": params, "cache": cache}, x[:, a:b])
            cache = changed["cache"]
            outs.append(out)
    assert_near(jnp.concatenate(outs, axis=1), whole, 1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_tokens_that_receive_nothing_stay_near_zero(method):
    """Rounding errors of an FFT are not raised to the size of values."""
    layer = hrrformer.nnx.HRRMemory(3, 12, implementation=method, rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).normal(size=(1, 13, 12)).astype(np.float32)
    x[:, :4] = 0.0

    @nnx.jit
    def run(layer, x):
        out, pull = jax.vjp(lambda x: layer(x, is_causal=True)[:, :4], x)
        return out, pull(jnp.ones_like(out))[0]

    out, slope = run(layer, x)
    assert np.abs(out).max() < 1e-3
    assert np.isfinite(slope).all()
    assert np.abs(slope).max() < 1e4


def test_padding_on_the_left_of_a_prompt():
    *inputs, rate, phase, gain = cast(draw(6, 9, sides=1))
    padded = [jnp.pad(x, ((0, 0), (4, 0), (0, 0), (0, 0)), constant_values=7.0) for x in inputs]
    found = run((*padded, rate, phase, gain), jnp.broadcast_to(jnp.arange(13) >= 4, (2, 13)))
    assert_near(found[:, 4:], run((*inputs, rate, phase, gain)), 1e-5)


def test_out_has_initializers_of_its_own():
    names = {"kernel_init": (None, "heads", None), "out_kernel_init": ("heads", None, None)}
    initializers = {
        name: nn.with_partitioning(nn.initializers.lecun_normal(), axes) for name, axes in names.items()
    }
    layer = hrrformer.linen.HRRMemory(3, **initializers)
    specs = nn.get_partition_spec(jax.eval_shape(layer.init, jax.random.key(0), jnp.ones((1, 2, 12))))
    assert specs["params"]["query"]["kernel"] == jax.sharding.PartitionSpec(None, "heads", None)
    assert specs["params"]["out"]["kernel"] == jax.sharding.PartitionSpec("heads", None, None)


def test_equal_calls_compile_once(caplog):
    arrays = cast(draw(7, 13, sides=1))
    poles = {"rate": arrays[3][0], "phase": arrays[4][0], "is_causal": True}
    for function in (
        functools.partial(hrr_memory, **poles),
        functools.partial(hrr_attention, is_causal=True),
    ):
        function(*arrays[:3])
        with jax.log_compiles(True), caplog.at_level(logging.WARNING):
            function(*arrays[:3])
        assert "Compiling" not in caplog.text


def test_decoding_needs_a_cache():
    linen_layer, nnx_layer, params = linen_and_nnx(decode=True)
    with pytest.raises(ValueError, match="init_cache must be called before decoding"):
        nnx_layer(jnp.ones((2, 1, 12)))
    with pytest.raises(ValueError, match="decode=True needs the collection 'cache'"):
        linen_layer.apply({"params": params}, jnp.ones((2, 1, 12)), mutable="cache")


def test_bfloat16_layers_and_rows_of_padding():
    layer = hrrformer.nnx.HRRMemory(3, 12, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 13, 12)), jnp.float32)
    mask = jnp.asarray([[True] * 13, [False] * 13])

    @nnx.jit
    def slopes(layer):
        return nnx.grad(lambda layer: jnp.sum(layer(x, mask=mask).astype(jnp.float32)))(layer)

    assert layer(x, mask=mask).dtype == jnp.bfloat16
    assert not np.any(np.float32(layer(x, mask=mask))[1])
    leaves = jax.tree.leaves(slopes(layer))
    assert len(leaves) == 8
    assert all(np.isfinite(leaf).all() and np.any(leaf) for leaf in leaves)


# Cost, transformations, refusals


def test_memory_is_linear_in_length(monkeypatch):
    def temporaries(length):
        x = jax.ShapeDtypeStruct((1, length, 2, 32), jnp.float32)
        poles = jax.ShapeDtypeStruct((2, 2, 17), jnp.float32)

        def loss(q, k, v, rate, phase):
            return jnp.sum(jnp.square(hrr_memory(q, k, v, rate=rate, phase=phase)))

        program = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3, 4))).lower(x, x, x, poles, poles).compile()
        return program.memory_analysis().temp_size_in_bytes / (4 * length * 64)

    monkeypatch.setitem(memory.BLOCKS, "fft", 128)
    single, double = temporaries(2048), temporaries(4096)
    assert double < 1.05 * single
    assert double <= 9


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("sides", [1, 2])
def test_export_with_symbolic_sizes(method, sides, untyped):
    batch, length = jax.export.symbolic_shape("b, t")
    arrays = cast(draw(7, 13, sides))
    x = jax.ShapeDtypeStruct((batch, length, 3, 7), jnp.float32)
    exported = jax.export.export(jax.jit(lambda q, k, v: run((q, k, v, *arrays[3:]), implementation=method)))(
        x, x, x
    )
    assert_near(exported.call(*arrays[:3]), run(arrays, implementation=method), 1e-5)


def test_refusals(untyped):
    x = jnp.ones((2, 5, 3, 8))
    poles = jnp.ones((2, 3, 5))
    with pytest.raises(ValueError, match=r"rate must broadcast to \(3, 5\), .*got shape \(2, 3, 5\)"):
        hrr_memory(x, x, x, rate=poles, phase=0.0, is_causal=True)
    with pytest.raises(ValueError, match=r"phase must broadcast to \(2, 3, 5\), .*got shape \(4,\)"):
        hrr_memory(x, x, x, rate=poles, phase=jnp.ones(4))
    with pytest.raises(ValueError, match=r"one number of poles; got the shapes rate \(2, 3, 5, 2\), phase"):
        hrr_memory(x, x, x, rate=jnp.ones((2, 3, 5, 2)), phase=jnp.ones((2, 3, 5, 4)))
    with pytest.raises(TypeError, match="phase must be real; got dtype complex64"):
        hrr_memory(x, x, x, rate=poles, phase=poles.astype(jnp.complex64))
    with pytest.raises(ValueError, match=r"implementation must be None or one of .*; got .pallas."):
        hrr_memory(x, x, x, rate=poles, phase=poles, implementation="pallas")
    with pytest.raises(ValueError, match=r"state .*must have shape \(2, 3, 5\); got \(3, 5\)"):
        hrr_memory_step(x, x, x, init_memory_state((), 3, 8), rate=1.0, phase=0.0)
    with pytest.raises(TypeError, match=r"state must be complex.*; got dtype float32"):
        hrr_memory_step(x, x, x, jnp.zeros((2, 3, 5)), rate=1.0, phase=0.0)
    with pytest.raises(ValueError, match=r"rate must be positive and finite; got -0\.1"):
        hrr_memory(x, x, x, rate=-0.1, phase=0.0)
    with jax.enable_x64(True), pytest.raises(ValueError, match="state must be complex128"):
        hrr_memory_step(*(x.astype(jnp.float64),) * 3, init_memory_state(2, 3, 8), rate=1.0, phase=0.0)
    with pytest.raises(ValueError, match=r"inputs_q must have 12 features"):
        hrrformer.nnx.HRRMemory(3, 12, rngs=nnx.Rngs(0))(jnp.ones((2, 5, 13)))
    with pytest.raises(ValueError, match="mask must be a key-padding mask"):
        hrr_memory(x, x, x, rate=poles, phase=poles, mask=jnp.ones((2, 4), bool))
