"""Attention over eight devices: they equal one device, and their communication does not grow with T."""

import contextlib
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from test_attention import IMPLEMENTATIONS, draw, error

from hrrformer import attention_fn, hrr_attention, hrr_memory, memory, passes

pytestmark = pytest.mark.usefixtures("strict_promotion")

P = PartitionSpec
DEVICES = 8
B, T, N, H = 8, 48, 8, 6
# Axes of (B, T, N, H) that a mesh of two axes shards.
SPECS = {
    "data": P(("x", "y")),
    "sequence": P(None, ("x", "y")),
    "heads": P(None, None, ("x", "y")),
    "data and sequence": P("x", "y"),
    "sequence and heads": P(None, "x", "y"),
}
VARIANTS = {
    "paper": {},
    "exact unbound": {"inverse": "exact", "output": "unbound"},
    "temperature rescale": {"rescale": True, "temperature": np.linspace(0.2, 2.0, N)},
}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Uses several blocks per segment, so that the compiled program contains the loop over blocks."""
    monkeypatch.setitem(passes.BLOCK_SIZES, "cpu", (B * N * H * 2 // DEVICES, B * N * H * 2 // DEVICES))


def mesh(shape=(2, 4), axis_types=(AxisType.Auto,) * 2):
    return jax.make_mesh(shape, ("x", "y"), axis_types=axis_types, devices=jax.devices()[:DEVICES])


def inputs(length=T):
    mask = np.arange(length) < np.random.default_rng(0).integers(1, length + 1, size=(B, 1))
    arrays = [jnp.asarray(x, jnp.float32) for x in draw((B, length, N, H), seed=20)]
    return arrays[:4], jnp.asarray(mask)


def step(query, key, value, cotangent, mask, temperature, **options):
    """Returns output, weights, and the gradients of ⟨output, cotangent⟩, also in the temperature."""

    def attend(query, key, value, temperature):
        if temperature is not None:
            options["temperature"] = temperature
        return hrr_attention(query, key, value, mask=mask, return_weights=True, **options)

    (out, weights), pull = jax.vjp(attend, query, key, value, temperature)
    slopes = pull((cotangent, jnp.zeros_like(weights)))
    return (out, weights, *slopes)


def arguments(variant, length=T):
    options = dict(VARIANTS[variant])
    temperature = options.pop("temperature", None)
    temperature = None if temperature is None else jnp.asarray(temperature, jnp.float32)
    arrays, mask = inputs(length)
    return (*arrays, mask, temperature), options


@functools.cache
def on_one_device(variant, implementation, length=T):
    given, options = arguments(variant, length)
    device = jax.devices()[0]
    function = jax.jit(functools.partial(step, implementation=implementation, **options))
    return function(*jax.device_put(given, device))


def assert_same(found, expected):
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        # The exact inverse of short vectors is ill-conditioned, and the order of an all-reduce varies.
        assert error(x, y) < 5e-4


def compiled(variant, implementation, spec, length=T):
    """Returns the compiled step over a mesh, and its sharded arguments."""
    given, options = arguments(variant, length)
    over = mesh()
    whole = NamedSharding(over, spec)
    of_mask = NamedSharding(over, P(*spec[:2]))
    shardings = (whole,) * 4 + (of_mask, None if given[-1] is None else NamedSharding(over, P()))
    given = tuple(x if s is None else jax.device_put(x, s) for x, s in zip(given, shardings, strict=True))
    function = jax.jit(functools.partial(step, implementation=implementation, **options))
    return function.lower(*given).compile(), given


def sent(text):
    """Returns a program's collectives other than all-reduce, and the size of its all-reduces."""
    others = re.findall(r" (all-gather|all-to-all|collective-permute|reduce-scatter)[-\w]*\(", text)
    reduced = re.findall(r"= (.*?) all-reduce(?:-start)?\(", text)
    sizes = [
        int(np.prod([int(n) for n in shape.split(",") if n]))
        for result in reduced
        for shape in re.findall(r"\w\d+\[([\d,]*)\]", result)
    ]
    return set(others), sum(sizes)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("spec", SPECS)
def test_eight_devices_equal_one(spec, implementation):
    variant = list(VARIANTS)[list(SPECS).index(spec) % len(VARIANTS)]
    program, given = compiled(variant, implementation, SPECS[spec])
    found = program(*given)
    assert_same(found, on_one_device(variant, implementation))
    others, numbers = sent(program.as_text())
    assert not others
    assert (numbers > 0) == ("sequence" in spec or (spec == "data" and "temperature" in variant))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_reductions_do_not_grow_with_length(implementation):
    counts = [
        sent(compiled("paper", implementation, SPECS["sequence"], length)[0].as_text()) for length in (48, 96)
    ]
    assert counts[0] == counts[1] == (set(), counts[0][1])
    # Per sequence and head: the memory, its cotangent, two sums of the softmax and two of its backward pass.
    assert 0 < counts[0][1] <= B * N * (2 * H + 4)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    ("variant", "check_vma"), [*((variant, True) for variant in VARIANTS), ("temperature rescale", False)]
)
def test_shard_map(variant, implementation, check_vma):
    """The named axis shares sequences; the batch is on another axis, which needs no name."""
    given, options = arguments(variant)
    over = mesh()
    whole, mask, weights = P("x", "y"), P("x", "y"), P("x", None, "y")
    temperature = None if given[-1] is None else P()
    options.update(implementation=implementation, axis_name="y")

    def local(query, key, value, mask, temperature):
        if temperature is not None:
            options["temperature"] = temperature
        return hrr_attention(query, key, value, mask=mask, return_weights=True, **options)

    attend = jax.shard_map(
        local,
        mesh=over,
        in_specs=(whole, whole, whole, mask, temperature),
        out_specs=(whole, weights),
        check_vma=check_vma,
    )

    @jax.jit
    def function(query, key, value, cotangent, mask, temperature):
        results, pull = jax.vjp(
            lambda q, k, v, tau: attend(q, k, v, mask, tau), query, key, value, temperature
        )
        return (*results, *pull((cotangent, jnp.zeros_like(results[1]))))

    shardings = [NamedSharding(over, s) for s in (whole,) * 4 + (mask,)]
    shared = [jax.device_put(x, s) for x, s in zip(given[:5], shardings, strict=True)]
    program = function.lower(*shared, given[-1]).compile()
    found = program(*shared, given[-1])
    assert_same(found, on_one_device(variant, implementation))
    others, numbers = sent(program.as_text())
    assert not others
    of_temperature = 0 if temperature is None else 2 * N + B * N
    assert 0 < numbers <= (B // 2) * N * (2 * H + 4) + of_temperature


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    ("spec", "length", "set_mesh"),
    [
        ("data", T, False),
        ("data", T, True),
        ("sequence", T, False),
        ("sequence", T // 2, True),  # fewer tokens on a device than features
        ("heads", T, False),
    ],
)
def test_explicit_sharding(spec, length, set_mesh, implementation):
    given, options = arguments("paper", length)
    over = mesh(axis_types=(AxisType.Explicit,) * 2)
    whole, mask = NamedSharding(over, SPECS[spec]), NamedSharding(over, P(*SPECS[spec][:2]))
    with jax.set_mesh(over) if set_mesh else contextlib.nullcontext():
        shared = [jax.device_put(x, whole) for x in given[:4]] + [jax.device_put(given[4], mask)]
        function = jax.jit(
            functools.partial(step, implementation=implementation, temperature=None, **options)
        )
        found = function(*shared)
        assert found[0].sharding.is_equivalent_to(whole, 4)
    assert_same(found, on_one_device("paper", implementation, length))


@pytest.mark.parametrize(
    ("spec", "is_causal", "axis"), [(P(None, "x"), True, -3), (P(None, None, None, "x"), False, -1)]
)
def test_axes_that_an_explicit_mesh_must_not_shard(spec, is_causal, axis):
    over = mesh(axis_types=(AxisType.Explicit,) * 2)
    x = jax.device_put(inputs()[0][0], NamedSharding(over, spec))
    attend = functools.partial(hrr_attention, is_causal=is_causal)
    with pytest.raises(
        ValueError, match=rf"query must have .* axis {axis}, whole on every device"
    ) as refused:
        jax.jit(lambda x: attend(x, x, x))(x)
    assert "PartitionSpec(None, None, None, None)" in str(refused.value)
    with jax.set_mesh(over):  # the way out that the message names
        x = jax.sharding.reshard(x, P(None, None, None, None))
        assert jax.jit(lambda x: attend(x, x, x))(x).shape == x.shape


def test_a_segment_has_as_many_tokens_as_a_head_has_features():
    lengths = (4096, 512, 448, 128, 63, 12)
    assert [passes.num_segments(jnp.zeros((length, 1, 64))) for length in lengths] == [8, 8, 4, 2, 1, 1]


CAUSAL = P("x", None, "y")  # batch and heads: the past of a token is on the same device


def causal_step(query, key, value, cotangent, mask):
    def attend(*inputs):
        return hrr_attention(*inputs, mask=mask, is_causal=True)

    out, pull = jax.vjp(attend, query, key, value)
    return (out, *pull(cotangent))


@pytest.mark.parametrize("how", ["jit", "explicit", "shard_map"])
def test_causal_attention(how):
    arrays, mask = inputs()
    expected = jax.jit(causal_step)(*jax.device_put((*arrays, mask), jax.devices()[0]))
    over = mesh(axis_types=(AxisType.Explicit if how == "explicit" else AxisType.Auto,) * 2)
    shared = [jax.device_put(x, NamedSharding(over, CAUSAL)) for x in arrays]
    shared.append(jax.device_put(mask, NamedSharding(over, P("x"))))
    function = causal_step
    if how == "shard_map":
        function = jax.shard_map(causal_step, mesh=over, in_specs=(CAUSAL,) * 4 + (P("x"),), out_specs=CAUSAL)
    with jax.set_mesh(over) if how == "explicit" else contextlib.nullcontext():
        program = jax.jit(function).lower(*shared).compile()
        found = program(*shared)
    assert_same(found, expected)
    others, numbers = sent(program.as_text())
    assert not others
    assert numbers == 0


MEMORY_SPECS = {"auto": "sequence", "explicit": "data and sequence", "shard_map": "data and sequence"}


def memory_step(query, key, value, cotangent, mask, rate, phase, **options):
    """Returns v̂ and the gradients of ⟨v̂, cotangent⟩."""

    def remember(query, key, value, rate, phase):
        return hrr_memory(query, key, value, rate=rate, phase=phase, mask=mask, **options)

    out, pull = jax.vjp(remember, query, key, value, rate, phase)
    return (out, *pull(cotangent))


@pytest.mark.parametrize(
    ("how", "method", "is_causal", "num_poles", "block"),
    [
        ("auto", "fft", False, 2, 5),
        ("auto", "matmul", False, 1, 128),
        ("explicit", "matmul", False, 2, 5),
        ("explicit", "fft", True, 1, 5),
        ("shard_map", "fft", False, 2, 5),
        ("shard_map", "fft", False, 1, 128),
    ],
)
def test_memory(how, method, is_causal, num_poles, block, monkeypatch):
    """Devices exchange states, not tokens; each has several blocks, or one."""
    monkeypatch.setitem(memory.BLOCKS, method, block)
    arrays, mask = inputs()
    rng = np.random.default_rng(3)
    shape = (() if is_causal else (2,)) + (N, H // 2 + 1) + ((num_poles,) if num_poles > 1 else ())
    poles = jnp.asarray(np.exp(rng.normal(size=shape) - 1), jnp.float32), jnp.ones(shape)
    options = {"is_causal": is_causal, "implementation": method}
    alone = jax.device_put((*arrays, mask, *poles), jax.devices()[0])
    expected = jax.jit(functools.partial(memory_step, **options))(*alone)
    over = mesh(axis_types=(AxisType.Explicit if how == "explicit" else AxisType.Auto,) * 2)
    spec = SPECS[MEMORY_SPECS[how]]
    of_mask = P(*spec[:2])
    shared = [jax.device_put(x, NamedSharding(over, spec)) for x in arrays]
    shared += [
        jax.device_put(x, NamedSharding(over, s))
        for x, s in zip((mask, *poles), (of_mask, P(), P()), strict=True)
    ]
    function = functools.partial(memory_step, **options)
    if how == "shard_map":
        attend = jax.shard_map(
            lambda q, k, v, mask, rate, phase: hrr_memory(
                q, k, v, rate=rate, phase=phase, mask=mask, axis_name="y", **options
            ),
            mesh=over,
            in_specs=(spec,) * 3 + (of_mask, P(), P()),
            out_specs=spec,
        )

        def function(query, key, value, cotangent, mask, rate, phase):
            out, pull = jax.vjp(lambda *x: attend(*x[:3], mask, *x[3:]), query, key, value, rate, phase)
            return (out, *pull(cotangent))

    program = jax.jit(function).lower(*shared).compile()
    found = program(*shared)
    assert_same(found, expected)
    assert found[0].sharding.is_equivalent_to(NamedSharding(over, spec), 4)
    largest = max(
        int(np.prod([int(n) for n in dims.split(",") if n]))
        for dims in re.findall(
            r"= \(?\w+\[([\d,]*)\][^=]* (?:all-gather|all-to-all|collective-permute)", program.as_text()
        )
    )
    states = DEVICES * B * N * (H // 2 + 1) * num_poles
    assert largest <= 2 * states
    assert 2 * states < B * T * N * H  # else it would not show that activations stay


def test_memory_under_a_named_vmap():
    """The axis of a `jax.vmap` shares the sequence as that of `jax.shard_map` does."""
    (query, key, value, _), _ = inputs()
    poles = {"rate": jnp.full((2, N, H // 2 + 1), 0.1), "phase": jnp.full((2, N, H // 2 + 1), 0.3)}
    parts = [jnp.stack(jnp.split(x, 2, axis=1)) for x in (query, key, value)]
    found = jax.vmap(functools.partial(hrr_memory, **poles, axis_name="p"), axis_name="p")(*parts)
    assert error(jnp.concatenate(list(found), axis=1), hrr_memory(query, key, value, **poles)) < 1e-5


@pytest.mark.parametrize("same", ["query", "key", "value"])
def test_inputs_that_are_equal_on_all_devices(same):
    """In `shard_map`, an input that is equal on all devices receives the sum of their cotangents."""
    (query, key, value, cotangent), _ = inputs()
    given = {"query": query, "key": key, "value": value}
    given[same] = jnp.broadcast_to(given[same][:1], query.shape)
    over = mesh()

    def loss(query, key, value, cotangent):
        return jnp.sum(hrr_attention(query, key, value) * cotangent)

    slope = jax.grad(loss, argnums=list(given).index(same))
    expected = jnp.sum(slope(*given.values(), cotangent), axis=0, keepdims=True)
    given[same] = given[same][:1]
    specs = [P() if name == same else P(("x", "y")) for name in given]
    found = jax.jit(jax.shard_map(slope, mesh=over, in_specs=(*specs, P(("x", "y"))), out_specs=P()))(
        *given.values(), cotangent
    )
    assert error(found, expected) < 1e-5


@pytest.mark.parametrize("varying", ["key and value", "mask"])
def test_causal_inputs_of_which_some_vary_over_devices(varying):
    (query, key, value, _), mask = inputs()
    query, by_batch = query[:1], P(("x", "y"))
    if varying == "mask":
        key, value = key[:1], value[:1]
    whole = [jnp.broadcast_to(x, (B, *x.shape[1:])) for x in (query, key, value)]
    expected = hrr_attention(*whole, mask=mask, is_causal=True)
    specs = [by_batch if len(x) == B else P() for x in (query, key, value)]
    attend = jax.shard_map(
        lambda q, k, v, mask: hrr_attention(q, k, v, mask=mask, is_causal=True),
        mesh=mesh(),
        in_specs=(*specs, by_batch),
        out_specs=by_batch,
    )
    assert error(jax.jit(attend)(query, key, value, mask), expected) < 1e-5


def test_dropout_differs_from_device_to_device():
    over = mesh((1, 8))
    x = inputs()[0][0]
    drop = functools.partial(attention_fn, dropout_rate=0.5, dropout_rng=jax.random.key(0), axis_name="y")
    spec = P(None, "y")
    out = jax.jit(jax.shard_map(lambda x: drop(x, x, x), mesh=over, in_specs=spec, out_specs=spec))(x)
    kept = np.asarray(jnp.any(out != 0, axis=-1)).reshape(B, 8, T // 8, N)
    assert not all(np.array_equal(kept[:, 0], kept[:, i]) for i in range(1, 8))
    assert 0.3 < kept.mean() < 0.7
