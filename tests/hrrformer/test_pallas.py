"""`implementation="pallas"`: interpreted against the oracle, and lowered for GPU and TPU without a device."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, PartitionSpec
from test_attention import (
    BOTH,
    EVEN,
    MASK,
    SHAPE,
    STATIC,
    TOLERANCE,
    VARIANTS,
    assert_near,
    draw,
    error,
    expected,
    jitted_once,
    pull_back,
    run,
)

from hrrformer import hrr_attention
from hrrformer.attention import IMPLEMENTATIONS
from hrrformer.experimental import pallas
from hrrformer.nnx import HRRAttention
from hrrformer.spectral import resolve_implementation, to_spectrum

pytestmark = pytest.mark.usefixtures("strict_promotion")

# Blocks of GPU or TPU; those of a GPU in one chunk of blocks per sequence, or in several chunks.
BLOCKS = ("gpu", "gpu chunks", "tpu")


@pytest.fixture
def blocks(monkeypatch):
    """Sets the blocks of the interpreted kernels, so small that sequences of 13 tokens have several."""

    def choose(name):
        monkeypatch.setattr(pallas, "INTERPRETED", name.split()[0])
        monkeypatch.setattr(pallas, "GPU_BLOCK", {"default": 4})
        monkeypatch.setattr(pallas, "TPU_BLOCK_SIZE", 1)
        if name == "gpu chunks":  # 24 blocks in all, with 3 heads and 2 sequences: two per chunk
            monkeypatch.setattr(pallas, "GPU_PROGRAMS", 12)
            monkeypatch.setattr(pallas, "GPU_CHUNK", 0)

    return choose


def fused(arrays, mask=None, dtype="float32", **variant):
    """Calls `run` through a new function, since the compiled program depends on the blocks too."""
    fresh = jax.jit(
        lambda *arguments, **static: pull_back(*arguments, **static),
        static_argnames=STATIC,
        compiler_options={"xla_backend_optimization_level": 0},
    )
    return run(arrays, mask, dtype, fresh, implementation="pallas", **variant)


# The oracle.


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("layout", BLOCKS[1:])
def test_value_and_gradient_equal_the_oracles(name, layout, blocks):
    blocks(layout)
    odd = (list(VARIANTS).index(name) + BLOCKS.index(layout)) % 2
    arrays, mask, reference = expected(name, SHAPE if odd else EVEN, dtype="float32")
    assert_near(fused(arrays, mask, **VARIANTS[name]), reference, TOLERANCE["float32"])


@pytest.mark.parametrize("layout", BLOCKS)
def test_without_a_mask(layout, blocks):
    blocks(layout)
    name = BOTH[layout == "gpu chunks"]
    arrays, _, reference = expected(name, SHAPE, masked=False, dtype="float32")
    assert_near(fused(arrays, **VARIANTS[name]), reference, TOLERANCE["float32"])


@pytest.mark.parametrize(
    ("name", "dtype", "layout"),
    [
        ("paper", "bfloat16", "gpu"),
        ("paper", "bfloat16", "tpu"),
        ("paper", "float16", "gpu chunks"),
        ("exact unbound rescale", "bfloat16", "gpu chunks"),
        ("exact unbound rescale", "bfloat16", "tpu"),
    ],
)
def test_half_precision_is_rounded_once(name, dtype, layout, blocks):
    blocks(layout)
    arrays, mask, reference = expected(name, SHAPE, dtype=dtype)
    found = fused(arrays, mask, dtype, **VARIANTS[name])
    assert [x.dtype for x in found] == [jnp.dtype(d) for d in (dtype, "float32", dtype, dtype, dtype)]
    assert_near(found, reference, TOLERANCE[dtype])
    assert error(found[1], reference[1]) <= 1e-5


def test_double_precision(blocks, x64):
    blocks("gpu chunks")
    arrays, mask, reference = expected("paper", SHAPE, dtype="float32")
    assert_near(fused(arrays, mask, "float64"), reference, TOLERANCE["float64"])


# The other implementations.


@pytest.mark.parametrize(
    ("shape", "name", "layout"),
    [
        ((1, 150, 2, 64), "paper", "tpu"),  # two blocks of two heads
        ((1, 150, 2, 64), "unbound", "gpu chunks"),
        ((1, 20, 2, 20), "paper", "gpu"),  # padded H
        ((5, 1, 2), "unbound", "gpu"),  # one head, no batch
        ((2, 1, 3, 2, 17), "paper", "gpu chunks"),  # two axes of batch
        ((2, 1, 3, 4, 96), "unbound", "tpu"),
    ],
    ids=str,
)
def test_equal_to_matmul(shape, name, layout, blocks):
    blocks(layout)
    arrays = draw(shape, seed=21)
    length = shape[-3]
    mask = np.broadcast_to(np.arange(length) != length // 2, shape[:-2])
    reference = run(arrays, mask, jitted=jitted_once, implementation="matmul", **VARIANTS[name])
    assert_near(fused(arrays, mask, **VARIANTS[name]), reference, 1e-5)


@pytest.mark.parametrize(("name", "layout"), [("paper", "tpu"), ("exact unbound rescale", "gpu chunks")])
def test_nothing_valid_and_zero_vectors(name, layout, blocks):
    blocks(layout)
    arrays = draw(EVEN, seed=5)
    for x in arrays[:3]:
        x[1, 3:5] = 0.0
    mask = np.array([[False] * 13, [True] * 13])
    found = fused(arrays, mask, **VARIANTS[name])
    reference = run(arrays, mask, implementation="matmul", **VARIANTS[name])
    for x, y in zip(found, reference, strict=True):
        np.testing.assert_array_equal(x[0], 0.0)
        assert np.isfinite(x).all()
        np.testing.assert_array_equal(np.asarray(x) == 0.0, np.asarray(y) == 0.0)


def test_vmap(blocks):
    blocks("gpu chunks")
    q, k, v = (jnp.asarray(x, jnp.float32) for x in draw((3, *SHAPE), seed=22)[:3])
    mask = jnp.asarray(MASK)

    def slope(implementation, q, k, v):
        def loss(*x):
            return jnp.sum(jnp.square(hrr_attention(*x, mask=mask, implementation=implementation)))

        return jax.grad(loss, argnums=(0, 1, 2))(q, k, v)

    together = jax.jit(jax.vmap(functools.partial(slope, "pallas"), in_axes=(0, None, 0)))(q, k[0], v)
    for i in range(3):
        alone = jax.jit(functools.partial(slope, "matmul"))(q[i], k[0], v[i])
        for x, y in zip(together, alone, strict=True):
            assert error(x[i], y) < 1e-5


def test_the_layer_runs_the_kernels():
    from flax import nnx

    layer = HRRAttention(num_heads=2, in_features=8, implementation="pallas", rngs=nnx.Rngs(0))
    reference = HRRAttention(num_heads=2, in_features=8, implementation="matmul", rngs=nnx.Rngs(0))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 8)), jnp.float32)
    assert error(nnx.jit(layer)(x), nnx.jit(reference)(x)) < 1e-5


# Several devices.


def step(axis_name, q, k, v, mask, temperature):
    def loss(*x):
        out, weights = hrr_attention(
            *x,
            mask=mask,
            temperature=temperature,
            rescale=True,
            return_weights=True,
            implementation="pallas",
            axis_name=axis_name,
        )
        return jnp.sum(jnp.square(out)), (out, weights)

    slopes, results = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(q, k, v)
    return *results, *slopes


def sharded_step(mesh, **options):
    tokens = PartitionSpec(None, "length")
    return jax.shard_map(
        functools.partial(step, "length"),
        mesh=mesh,
        in_specs=(tokens, tokens, tokens, tokens, PartitionSpec()),
        out_specs=(tokens, PartitionSpec(None, None, "length"), tokens, tokens, tokens),
        **options,
    )


@pytest.mark.parametrize("layout", ["gpu chunks", "tpu"])
def test_four_devices_in_shard_map_equal_one(layout, blocks):
    blocks(layout)
    q, k, v = (jnp.asarray(x, jnp.float32) for x in draw((2, 24, 3, 8), seed=23)[:3])
    mask = jnp.asarray(np.arange(24) < np.array([[24], [11]]))
    arguments = (q, k, v, mask, jnp.float32(0.5))
    one = jax.jit(functools.partial(step, None))(*arguments)
    # JAX's kernel interpreter fails with `check_vma=True`.
    mesh = jax.make_mesh((4,), ("length",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])
    four = jax.jit(sharded_step(mesh, check_vma=False))(*arguments)
    assert_near(four, one, 1e-5)


# Lowering for absent devices.


@pytest.fixture(params=["cuda", "tpu"])
def platform(request, monkeypatch):
    """Traces for this platform, as on a machine that has it."""
    name = {"cuda": "gpu", "tpu": "tpu"}[request.param]
    monkeypatch.setattr(jax, "default_backend", lambda: name)
    return request.param


def mesh_of(platform, devices):
    """Returns a mesh of absent devices; JAX 0.12 lowers a kernel only for a GPU that it knows."""
    device = AbstractDevice("NVIDIA H100", None, platform="gpu") if platform == "cuda" else None
    return AbstractMesh((devices,), ("length",), axis_types=(AxisType.Auto,), abstract_device=device)


def lowered_kernels(platform, mesh, function, *arguments):
    """Returns the number of kernels in the program for this platform."""
    with warnings.catch_warnings(), jax.sharding.use_abstract_mesh(mesh):
        warnings.filterwarnings("ignore", "The Pallas Triton backend", DeprecationWarning)
        trace = jax.jit(lambda *x: function(*x)).trace(*arguments)
        text = trace.lower(lowering_platforms=(platform,)).as_text()
    return text.count({"cuda": "__gpu$xla.gpu.triton", "tpu": "tpu_custom_call"}[platform])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [(2, 4096, 8, 64), (2, 300, 3, 128), (1, 1000, 3, 48)], ids=str)
def test_kernels_lower_for_every_platform(shape, dtype, platform):
    x = jax.ShapeDtypeStruct(shape, dtype)
    mask = jax.ShapeDtypeStruct(shape[:2], jnp.bool_)
    mesh = mesh_of(platform, 1)
    for variant in ({}, {"inverse": "exact", "output": "unbound"}):

        def forward(q, k, v, mask, variant=variant):
            return jnp.sum(hrr_attention(q, k, v, mask=mask, implementation="pallas", **variant))

        for function, kernels in ((forward, 2), (jax.grad(forward, argnums=(0, 1, 2)), 4)):
            assert lowered_kernels(platform, mesh, function, x, x, x, mask) == kernels


def test_shard_map_lowers_with_its_checks(platform):
    x = jax.ShapeDtypeStruct((2, 512, 4, 64), jnp.float32)
    mask, tau = jax.ShapeDtypeStruct((2, 512), jnp.bool_), jax.ShapeDtypeStruct((), jnp.float32)
    mesh = mesh_of(platform, 4)
    assert lowered_kernels(platform, mesh, sharded_step(mesh), x, x, x, mask, tau) == 4


# Refusals.


def trace(shape, dtype="float32", **options):
    x = jax.ShapeDtypeStruct(shape, dtype)
    jax.eval_shape(lambda x: hrr_attention(x, x, x, implementation="pallas", **options), x)


def test_sizes_that_a_platform_refuses(monkeypatch, x64):
    trace((2, 5, 3, 300))
    for platform, shape, dtype, message in (
        ("gpu", (2, 5, 3, 129), "float32", r"H up to 128 on GPU; got H = 129"),
        ("gpu", (2, 5, 3, 8), "float64", r"float64 on GPU"),
        ("tpu", (2, 5, 8, 80), "float32", r"got H = 80 and N = 8, 8 heads of 640 numbers"),
        ("tpu", (2, 5, 3, 8), "float64", r"float64 on TPU"),
        ("tpu", (2, 5, 3, 8), "float16", r"float16 on TPU"),
    ):
        monkeypatch.setattr(jax, "default_backend", lambda platform=platform: platform)
        with pytest.raises(ValueError, match=rf"implementation='pallas' .*{message}"):
            trace(shape, dtype)


def test_only_an_explicit_choice_runs_the_kernels(monkeypatch, untyped):
    assert IMPLEMENTATIONS == ("fft", "matmul", "pallas")
    for platform in ("cpu", "gpu", "tpu"):
        monkeypatch.setattr(jax, "default_backend", lambda platform=platform: platform)
        for size in (8, 64, 128, 512):
            assert resolve_implementation(None, size, IMPLEMENTATIONS) != "pallas"
    with pytest.raises(
        ValueError, match="implementation must be None or one of 'fft', 'matmul'; got 'pallas'"
    ):
        to_spectrum(jnp.ones(8), "pallas")


def test_second_derivatives_are_refused():
    x = jax.ShapeDtypeStruct((4, 2, 8), jnp.float32)

    def slope(q, k):
        return jax.grad(lambda q: jnp.sum(hrr_attention(q, k, k, implementation="pallas")))(q)

    for twice in (jax.jacfwd(slope), jax.jacrev(slope)):
        with pytest.raises(NotImplementedError, match="implementation='pallas' has first derivatives only"):
            jax.eval_shape(twice, x, x)
