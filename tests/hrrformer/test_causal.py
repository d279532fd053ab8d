"""Causal attention against the oracle, and sequences read in pieces against whole sequences."""

import functools

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest
from flax import nnx
from helpers import oracle
from test_attention import (
    BOTH,
    IMPLEMENTATIONS,
    TOLERANCE,
    VARIANTS,
    assert_near,
    draw,
    error,
    pull_back,
    shape_for,
)

import hrrformer.linen
import hrrformer.nnx
from hrrformer import attention_fn, causal, hrr_attention, hrr_attention_step, init_causal_state

pytestmark = pytest.mark.usefixtures("strict_promotion")

RIGHT = np.arange(13) < np.array([[13], [8]])  # padding on the right of the second sequence
LEFT = RIGHT[:, ::-1]
HOLES = np.random.default_rng(0).random((2, 13)) < 0.6
MASKS = {"none": None, "right": RIGHT, "left": LEFT, "holes": HOLES}
CUTS = ((13,), (1,) * 13, (5, 8), (1, 7, 2, 3))


@pytest.fixture(autouse=True)
def short_blocks(monkeypatch):
    """Uses blocks of 4 tokens, so that 13 tokens are three blocks and a quarter."""
    monkeypatch.setattr(causal, "BLOCK", 4)


STATIC = ("inverse", "implementation", "rescale", "output", "is_causal")
jitted = jax.jit(pull_back, static_argnames=STATIC)
stepped = jax.jit(hrr_attention_step, static_argnames=STATIC[:-1])


def as_arguments(variant, dtype=np.float32):
    static = {name: x for name, x in variant.items() if name != "temperature"}
    traced = {"temperature": dtype(variant["temperature"])} if "temperature" in variant else {}
    return static, traced


def run(arrays, mask, dtype="float32", **variant):
    wide = "float64" if dtype == "float64" else "float32"
    static, traced = as_arguments(variant, np.dtype(wide).type if wide == "float64" else np.float32)
    traced = {name: jnp.asarray(x, wide) for name, x in traced.items()}
    inputs = [jnp.asarray(x, dtype) for x in arrays[:3]]
    cotangents = [jnp.asarray(x, wide) for x in arrays[3:]]
    mask = None if mask is None else jnp.asarray(mask)
    return jitted(inputs, *cotangents, mask, traced, is_causal=True, **static)


@functools.cache
def expected(name, shape, mask):
    arrays = draw(shape, seed=1, dtype="float32")
    options = {**VARIANTS[name], "mask": MASKS[mask], "is_causal": True}
    return (*oracle.hrr_attention(*arrays[:3], **options), *oracle.gradients(*arrays, **options))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    ("name", "mask"),
    [("paper", mask) for mask in MASKS]
    + [("exact unbound rescale", "left"), ("temperature a head", "holes"), ("unbound", "right")],
)
def test_value_and_gradient_equal_the_oracles(name, mask, implementation):
    shape = shape_for(name, implementation)
    found = run(
        draw(shape, seed=1, dtype="float32"), MASKS[mask], implementation=implementation, **VARIANTS[name]
    )
    assert_near(found, expected(name, shape, mask), 2e-5)


@pytest.mark.parametrize(("name", "implementation"), [("paper", "fft"), ("exact unbound rescale", "matmul")])
def test_float64(name, implementation, x64):
    shape = shape_for(name, implementation)
    arrays = draw(shape, seed=1, dtype="float32")
    found = run(arrays, LEFT, "float64", implementation=implementation, **VARIANTS[name])
    assert {x.dtype for x in found} == {jnp.dtype("float64")}
    assert_near(found, expected(name, shape, "left"), TOLERANCE["float64"])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision(dtype):
    shape = shape_for("paper", "fft")
    arrays = draw(shape, seed=1, dtype=dtype)
    found = run(arrays, LEFT, dtype, implementation="fft")
    reference = oracle.hrr_attention(*arrays[:3], mask=LEFT, is_causal=True)
    assert [x.dtype for x in found[:2]] == [jnp.dtype(dtype), jnp.dtype("float32")]
    assert error(found[0], reference[0]) < TOLERANCE[dtype]
    assert error(found[1], reference[1]) < 1e-5


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", BOTH)
def test_no_output_depends_on_a_later_token(name, implementation):
    """The gradient of output and weight of token t, in every input, is exactly zero after t, not before."""
    arrays = draw(shape_for(name, implementation), seed=2)
    for t in (0, 3, 4, 11):
        arrays[3][:, np.arange(13) != t] = 0.0
        arrays[4][..., np.arange(13) != t] = 0.0
        slopes = run(arrays, None, implementation=implementation, **VARIANTS[name])[2:]
        for slope in slopes:
            np.testing.assert_array_equal(slope[:, t + 1 :], 0.0)
        if t:
            assert all(np.abs(slope[:, :t]).max() > 1e-6 for slope in slopes[1:])
        arrays[3:] = draw(shape_for(name, implementation), seed=2)[3:]


@pytest.mark.parametrize("cuts", CUTS, ids=str)
@pytest.mark.parametrize(("name", "mask"), [("paper", "none"), ("exact unbound rescale", "left")])
def test_pieces_equal_the_whole_sequence(cuts, name, mask):
    implementation = IMPLEMENTATIONS[len(cuts) % 2]
    shape = shape_for(name, implementation)
    arrays = draw(shape, seed=1, dtype="float32")
    inputs = [jnp.asarray(x, jnp.float32) for x in arrays[:3]]
    static, traced = as_arguments(VARIANTS[name])
    state = init_causal_state((2,), *shape[-2:])
    valid = np.ones((2, 13), bool) if MASKS[mask] is None else MASKS[mask]
    outs, all_weights, start = [], [], 0
    for size in cuts:
        piece = (x[:, start : start + size] for x in inputs)
        now = jnp.asarray(valid[:, start : start + size])
        out, weights, state = stepped(
            *piece, state, mask=now, implementation=implementation, **static, **traced
        )
        outs.append(out)
        all_weights.append(weights)
        start += size
    reference = expected(name, shape, mask)
    assert error(np.concatenate(outs, axis=1), reference[0]) < 1e-5
    assert error(np.concatenate(all_weights, axis=-1), reference[1]) < 1e-5
    np.testing.assert_array_equal(state.num_tokens, valid.sum(-1))
    bound = np.where(valid[..., None, None], oracle.bind(arrays[1], arrays[2]), 0.0).sum(1)
    assert error(state.memory, bound) < 1e-5


def test_gradients_equal_finite_differences(x64):
    """Gradients in the temperature, too, and second derivatives, in forward and reverse mode."""
    q, k, v = (jnp.asarray(x) for x in draw((2, 6, 3, 5), seed=16)[:3])
    tau = jnp.asarray([0.5, 1.0, 2.0])
    mask = jnp.asarray(LEFT[:, 4:10])
    function = jax.jit(
        lambda q, k, v, tau: hrr_attention(
            q, k, v, mask=mask, temperature=tau, is_causal=True, rescale=True, return_weights=True
        )
    )
    jax.test_util.check_grads(function, (q, k, v, tau), order=2, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("temperature", [1e-15, 1e-6, 1e-2, 1e6])
def test_the_gradient_of_any_temperature_is_finite(temperature):
    q, k, v = (jnp.asarray(x, jnp.float32) for x in draw(seed=6)[:3])
    slope = jax.jit(
        jax.grad(
            lambda tau: jnp.sum(
                jnp.square(hrr_attention(q, k, v, mask=jnp.asarray(LEFT), temperature=tau, is_causal=True))
            )
        )
    )(jnp.float32(temperature))
    assert np.isfinite(slope)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_extreme_values_of_a_later_token_change_nothing(bad):
    inputs = [jnp.asarray(x, jnp.float32) for x in draw(seed=2)[:3]]
    attend = jax.jit(lambda q, k, v: hrr_attention(q, k, v, is_causal=True, return_weights=True))
    reference = attend(*inputs)
    out, weights = attend(*(x.at[:, 9].set(bad) for x in inputs))
    np.testing.assert_array_equal(out[:, :9], reference[0][:, :9])
    np.testing.assert_array_equal(weights[..., :9], reference[1][..., :9])


def test_gradients_reach_through_the_state():
    arrays = draw((2, 6, 3, 8), seed=4)
    inputs = [jnp.asarray(x, jnp.float32) for x in arrays[:3]]

    def in_pieces(q, k, v):
        first, _, state = hrr_attention_step(q[:, :4], k[:, :4], v[:, :4], init_causal_state((2,), 3, 8))
        return jnp.concatenate([first, hrr_attention_step(q[:, 4:], k[:, 4:], v[:, 4:], state)[0]], axis=1)

    def at_once(q, k, v):
        return hrr_attention(q, k, v, is_causal=True)

    cotangent = jnp.asarray(arrays[3], jnp.float32)
    both = [
        jax.jit(lambda x, f=function: jax.vjp(f, *x)[1](cotangent))(inputs)
        for function in (in_pieces, at_once)
    ]
    for x, y in zip(*both, strict=True):
        assert error(x, y) < 1e-5


@pytest.mark.parametrize("temperature", [1e-15, 1e-6, 1e6])
def test_extreme_temperatures_with_masked_garbage(temperature):
    arrays = draw(seed=6)
    for x in arrays[:3]:
        x[~LEFT] *= 1e4
    out, weights, *slopes = run(arrays, LEFT, temperature=temperature, implementation="matmul")
    assert all(np.isfinite(x).all() for x in (out, *slopes))
    first = LEFT.argmax(-1)
    assert all(np.allclose(weights[i, :, t], 1.0) for i, t in enumerate(first))  # no earlier token
    for x in (np.moveaxis(weights, -1, 1), out, *slopes):
        np.testing.assert_array_equal(x[~LEFT], 0.0)


def test_scale_and_zero_vectors():
    reference = run(draw(seed=7), None, implementation="matmul")[1]
    for scales in ((1e-16,) * 3, (1e16,) * 3, (1e-30, 1, 1), (1, 1, 1e-30), (1e30, 1, 1)):
        arrays = [x * scale for x, scale in zip(draw(seed=7), (*scales, 1, 1), strict=True)]
        _, weights, *slopes = run(arrays, None, implementation="matmul")
        assert error(weights, reference) < 1e-4
        assert all(np.isfinite(x).all() for x in slopes)
    arrays = draw(seed=7)
    arrays[2][:, 4] = 1e-14 * arrays[2][:, 4]
    assert all(np.isfinite(x).all() for x in run(arrays, None, implementation="matmul"))
    arrays = draw(seed=8)
    for x in arrays[:3]:
        x[:, :2] = 0.0
    assert all(np.isfinite(x).all() for x in run(arrays, None, implementation="matmul"))


def test_memory_is_linear_in_length(monkeypatch):
    monkeypatch.setattr(causal, "BLOCK", 128)

    def needed(length):
        x = jax.ShapeDtypeStruct((1, length, 2, 8), jnp.float32)

        def loss(q, k, v):
            return jnp.sum(jnp.square(hrr_attention(q, k, v, is_causal=True, implementation="matmul")))

        compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(x, x, x).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    # One memory per token, in spectra of 10 numbers for vectors of 8, would need 20 arrays or more.
    assert 1.5 < needed(4096) / needed(2048) < 2.2
    assert needed(4096) < 12 * 4096 * 2 * 8 * 4


# The layers.

N, D = 3, 12


@pytest.mark.parametrize(
    "options", [{}, {"rescale": True, "normalize_qk": True, "output": "unbound", "learn_temperature": True}]
)
@pytest.mark.parametrize("mask", ["none", "left"])
def test_decoding_equals_one_call(options, mask):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 13, D)), jnp.float32)
    valid = jnp.ones((2, 13), bool) if MASKS[mask] is None else jnp.asarray(MASKS[mask])
    module = hrrformer.nnx.HRRAttention(N, D, rngs=nnx.Rngs(0), **options)
    whole = module(x, mask=valid, is_causal=True)
    decoding = nnx.view(module, decode=True, batch_size=2)
    layer = hrrformer.linen.HRRAttention(N, decode=True, **options)
    params = nnx.to_pure_dict(nnx.state(module, nnx.Param))
    cache = layer.init(jax.random.key(0), x)["cache"]  # init reads no token, so the cache is empty
    np.testing.assert_array_equal(cache["cached_num_tokens"], 0)
    assert (
        error(
            hrrformer.linen.HRRAttention(N, **options).apply(
                {"params": params}, x, mask=valid, is_causal=True
            ),
            whole,
        )
        < 1e-6
    )
    outs = {"nnx": [], "linen": []}
    decode = nnx.jit(lambda module, x, mask: module(x, mask=mask))
    for start, stop in ((0, 1), (1, 2), (2, 9), (9, 13)):
        now = {"mask": valid[:, start:stop]}
        outs["nnx"].append(decode(decoding, x[:, start:stop], now["mask"]))
        out, changed = layer.apply(
            {"params": params, "cache": cache}, x[:, start:stop], mutable=["cache"], **now
        )
        cache = changed["cache"]
        outs["linen"].append(out)
    for pieces in outs.values():
        assert error(np.concatenate(pieces, axis=1), whole) < 1e-5
    np.testing.assert_array_equal(decoding.cached_num_tokens[...], valid.sum(-1))
    assert decoding.cached_memory.shape == cache["cached_memory"].shape == (2, N, D // N)
    assert module.cached_memory is None  # the view has its own cache
    decoding.init_cache(x.shape)
    assert error(decoding(x, mask=valid), whole) < 1e-5


def test_a_model_of_scanned_layers_decodes():
    @nnx.vmap(in_axes=0, out_axes=0)
    def layers(rngs):
        return hrrformer.nnx.HRRAttention(N, D, rngs=rngs)

    @nnx.scan(in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
    def run(layer, x):
        return x + layer(x, is_causal=True)

    class Model(nnx.Module):
        def __init__(self, rngs):
            self.layers = layers(rngs.split(4))

        def __call__(self, x):
            return run(self.layers, x)

    model = Model(nnx.Rngs(0))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 13, D)), jnp.float32)
    whole = model(x)
    decoding = nnx.view(model, decode=True, batch_size=2)
    assert decoding.layers.cached_memory.shape == (4, 2, N, D // N)
    for _ in range(2):  # the second time after a new, empty cache
        pieces = [decoding(x[:, start:stop]) for start, stop in ((0, 1), (1, 9), (9, 13))]
        assert error(np.concatenate(pieces, axis=1), whole) < 1e-5
        np.testing.assert_array_equal(decoding.layers.cached_num_tokens[...], np.full((4, 2), 13))
        decoding.layers.init_cache(x.shape)


def test_a_state_of_zeros_is_the_initial_state():
    """Programs often make caches from `jax.eval_shape` and zeros."""
    for x in jax.tree.leaves(init_causal_state(2, 3, 8)):
        np.testing.assert_array_equal(x, 0)


@pytest.mark.parametrize("implementation", ["fft", "matmul"])
def test_masked_tokens_leave_every_bit_of_a_state(implementation):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 7, 3, 10)), jnp.float32)
    step = functools.partial(hrr_attention_step, implementation=implementation, temperature=0.3)
    _, _, started = step(x, x, x, init_causal_state(2, 3, 10))
    for state in (init_causal_state(2, 3, 10), started):

        def one(state, _):
            return step(x, x, x, state, mask=jnp.zeros((2, 7), bool))[2], None

        after, _ = jax.lax.scan(one, state, length=1000)
        jax.tree.map(np.testing.assert_array_equal, after, state)


def test_numpy_arrays_of_float64_are_float32_while_jax_has_no_float64(untyped):
    x = np.random.default_rng(0).normal(size=(2, 4, 3, 8))
    found = hrr_attention_step(x, x, x, jax.tree.map(np.asarray, init_causal_state(2, 3, 8)))
    expected = hrr_attention_step(*(jnp.float32(x),) * 3, init_causal_state(2, 3, 8))
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_a_state_keeps_its_dtype():
    x = jnp.ones((2, 4, 3, 8), jnp.bfloat16)
    state = init_causal_state(2, 3, 8)

    def one(state, x):
        out, _, state = hrr_attention_step(x[:, None], x[:, None], x[:, None], state)
        return state, out[:, 0]

    _, outs = jax.lax.scan(one, state, jnp.moveaxis(x, 1, 0))
    np.testing.assert_allclose(
        *(np.float32(y) for y in (jnp.moveaxis(outs, 0, 1), hrr_attention(x, x, x, is_causal=True))),
        atol=1e-2,
    )


def test_learned_temperatures_learn():
    layer = hrrformer.nnx.HRRAttention(N, D, learn_temperature=True, rngs=nnx.Rngs(0))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 13, D)), jnp.float32)
    slopes = nnx.grad(lambda layer: jnp.sum(jnp.square(layer(x, is_causal=True))))(layer)
    assert all(np.isfinite(s).all() and np.any(s) for s in jax.tree.leaves(slopes) if s.shape != (N, D // N))


def test_attention_fn_is_causal_where_flaxs_layer_asks_for_it():
    layer = nnx.MultiHeadAttention(N, D, attention_fn=attention_fn, decode=False, rngs=nnx.Rngs(0))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 13, D)), jnp.float32)
    both = [layer(y, is_causal=True)[:, :6] for y in (x, x.at[:, 6:].add(1.0))]
    np.testing.assert_allclose(*both, atol=1e-6)
    assert error(layer(x)[:, :6], both[0]) > 1e-2


def test_refusals(untyped):
    x = jnp.ones((2, 5, 3, 8))
    with pytest.raises(ValueError, match="axis_name must be None with is_causal=True"):
        hrr_attention(x, x, x, is_causal=True, axis_name="devices")
    for implementation in ("pallas", "cuda"):
        with pytest.raises(ValueError, match=f"implementation must be .*'fft'.*got '{implementation}'"):
            hrr_attention(x, x, x, is_causal=True, implementation=implementation)
    state = init_causal_state(2, 3, 8)
    with pytest.raises(ValueError, match=r"state.memory .*must have shape \(2, 3, 8\); got \(3, 8\)"):
        hrr_attention_step(x, x, x, init_causal_state((), 3, 8))
    with pytest.raises(ValueError, match=r"state.log_normalizer .*must have shape \(2, 3\); got \(2,\)"):
        hrr_attention_step(x, x, x, state._replace(log_normalizer=jnp.zeros(2)))
    with jax.enable_x64(True), pytest.raises(ValueError, match=r"state\.memory must be float64"):
        hrr_attention_step(*(jnp.ones((2, 5, 3, 8), jnp.float64),) * 3, state)
    params = hrrformer.linen.HRRAttention(N).init(jax.random.key(0), jnp.ones((2, 1, D)))
    layer = hrrformer.linen.HRRAttention(N, decode=True)
    with pytest.raises(ValueError, match="decode=True needs the collection 'cache'"):
        layer.apply(params, jnp.ones((2, 1, D)), mutable=["cache"])
    module = hrrformer.nnx.HRRAttention(N, D, axis_name="devices", decode=True, rngs=nnx.Rngs(0))
    module.init_cache((2, 1, D))
    with pytest.raises(ValueError, match="axis_name must be None while decoding"):
        module(jnp.ones((2, 1, D)))
