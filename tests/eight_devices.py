"""Attention over eight devices: they compute what one does, and what they send does not grow with T."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from test_attention import IMPLEMENTATIONS, draw, error

from hrrformer import hrr_attention, passes

pytestmark = pytest.mark.usefixtures("strict_promotion")

P = PartitionSpec
DEVICES = 8
B, T, N, H = 8, 48, 8, 6
# Axes of (B, T, N, H) that a mesh of two axes shares out.
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
    """Several blocks to a segment, so that the loop over them is part of what is compiled."""
    monkeypatch.setitem(passes.BLOCK_SIZES, "cpu", (B * N * H * 2 // DEVICES, B * N * H * 2 // DEVICES))


def mesh(shape=(2, 4), axis_types=(AxisType.Auto,) * 2):
    return jax.make_mesh(shape, ("x", "y"), axis_types=axis_types, devices=jax.devices()[:DEVICES])


def inputs(length=T):
    mask = np.arange(length) < np.random.default_rng(0).integers(1, length + 1, size=(B, 1))
    arrays = [jnp.asarray(x, jnp.float32) for x in draw((B, length, N, H), seed=20)]
    return arrays[:4], jnp.asarray(mask)


def step(query, key, value, cotangent, mask, temperature, **options):
    """Output, weights, and the gradients of ⟨output, cotangent⟩ and of the temperature."""

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
def on_one_device(variant, implementation):
    given, options = arguments(variant)
    device = jax.devices()[0]
    function = jax.jit(functools.partial(step, implementation=implementation, **options))
    return function(*jax.device_put(given, device))


def assert_same(found, expected):
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert error(x, y) < 5e-5  # the exact inverse of short vectors is ill-conditioned


def compiled(variant, implementation, spec, length=T):
    """The step over a mesh, compiled, and its arguments, shared out."""
    given, options = arguments(variant, length)
    over = mesh()
    whole = NamedSharding(over, spec)
    of_mask = NamedSharding(over, P(*spec[:2]))
    shardings = (whole,) * 4 + (of_mask, None if given[-1] is None else NamedSharding(over, P()))
    given = tuple(x if s is None else jax.device_put(x, s) for x, s in zip(given, shardings, strict=True))
    function = jax.jit(functools.partial(step, implementation=implementation, **options))
    return function.lower(*given).compile(), given


def sent(text):
    """Collectives of a compiled program other than all-reduce, and the numbers that those reduce."""
    others = re.findall(r" (all-gather|all-to-all|collective-permute|reduce-scatter)[-\w]*\(", text)
    reduced = re.findall(r"= (.*?) all-reduce(?:-start)?\(", text)
    sizes = [
        int(np.prod([int(n) for n in shape.split(",") if n]))
        for result in reduced
        for shape in re.findall(r"\w\d+\[([\d,]*)\]", result)
    ]
    return set(others), sum(sizes)


def old_fft(implementation):
    """Before 0.11, XLA gathers what devices share of a batch at every FFT that the partitioner sees."""
    return implementation == "fft" and jax.__version_info__ < (0, 11)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("spec", SPECS)
def test_eight_devices_equal_one(spec, implementation):
    variant = list(VARIANTS)[list(SPECS).index(spec) % len(VARIANTS)]
    program, given = compiled(variant, implementation, SPECS[spec])
    found = program(*given)
    for x, y in zip(
        jax.tree.leaves(found), jax.tree.leaves(on_one_device(variant, implementation)), strict=True
    ):
        assert error(x, y) < 5e-5  # the exact inverse of short vectors is ill-conditioned
    if not old_fft(implementation):
        others, numbers = sent(program.as_text())
        assert not others
        assert (numbers > 0) == ("sequence" in spec or (spec == "data" and "temperature" in variant))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_what_is_reduced_does_not_grow_with_length(implementation):
    if old_fft(implementation):
        pytest.skip("XLA of this jax gathers a batch at every FFT; see test_shard_map")
    counts = [
        sent(compiled("paper", implementation, SPECS["sequence"], length)[0].as_text()) for length in (48, 96)
    ]
    assert counts[0] == counts[1] == (set(), counts[0][1])
    # Of every sequence and head: the memory, its cotangent, and two sums of the softmax and its backward.
    assert 0 < counts[0][1] <= B * N * (2 * H + 4)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("variant", VARIANTS)
def test_shard_map(variant, implementation, check_vma):
    """Sequences over one axis, which is named, and the batch over another, which need not be."""
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
    for x, y in zip(
        jax.tree.leaves(found), jax.tree.leaves(on_one_device(variant, implementation)), strict=True
    ):
        assert error(x, y) < 5e-5
    others, numbers = sent(program.as_text())
    assert not others
    of_temperature = 0 if temperature is None else 2 * N + B * N
    assert 0 < numbers <= (B // 2) * N * (2 * H + 4) + of_temperature


@pytest.mark.parametrize("spec", ["data", "sequence", "heads"])
def test_explicit_sharding(spec):
    given, options = arguments("paper")
    over = mesh(axis_types=(AxisType.Explicit,) * 2)
    whole, mask = NamedSharding(over, SPECS[spec]), NamedSharding(over, P(*SPECS[spec][:2]))
    with jax.set_mesh(over):
        shared = [jax.device_put(x, whole) for x in given[:4]] + [jax.device_put(given[4], mask)]
        function = jax.jit(functools.partial(step, implementation="matmul", temperature=None, **options))
        found = function(*shared)
        assert found[0].sharding.is_equivalent_to(whole, 4)
    assert_same(found, on_one_device("paper", "matmul"))
