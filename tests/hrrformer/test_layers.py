"""The two layers against each other, against Flax's own, and in use: dropout, dtypes, sharding, jit."""

import functools
import inspect

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from flax.errors import InvalidRngError
from helpers import oracle

import hrrformer.linen
import hrrformer.nnx
from hrrformer import attention_fn, hrr_attention

pytestmark = pytest.mark.usefixtures("strict_promotion")

B, T, N, D = 2, 5, 3, 12
MASK = np.arange(T) < np.array([[5], [3]])
VARIANTS = {
    "paper": {},
    "exact": {"inverse": "exact", "implementation": "fft"},
    "rescale": {"rescale": True, "temperature": 0.5},
    "unbound": {"output": "unbound", "implementation": "matmul"},
}


def inputs(seed=0, dtype=jnp.float32, shape=(B, T, D)):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def linen_layer(**options):
    return hrrformer.linen.HRRAttention(num_heads=N, **options)


def nnx_layer(**options):
    return hrrformer.nnx.HRRAttention(N, D, **{"rngs": nnx.Rngs(0), **options})


def flax_nnx_layer(**options):
    return nnx.MultiHeadAttention(N, D, **{"decode": False, "rngs": nnx.Rngs(0), **options})


@functools.partial(jax.jit, static_argnums=0)
def apply(layer, params, *arguments, **keywords):
    """Calls `layer.apply`, compiled once for equal layers and shapes."""
    return layer.apply({"params": params}, *arguments, **keywords)


run = nnx.jit(lambda module, *arguments, **keywords: module(*arguments, **keywords))


def randomise(tree, seed=1):
    """Returns the tree with every leaf, including biases and scales, replaced by normal numbers."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(0.3 * rng.normal(size=x.shape), x.dtype), tree)


def as_dict(module):
    return nnx.to_pure_dict(nnx.state(module, nnx.Param))


@functools.cache
def linen_params(normalize_qk=False, learn_temperature=False):
    layer = linen_layer(normalize_qk=normalize_qk, learn_temperature=learn_temperature)
    return randomise(jax.eval_shape(lambda: layer.init(jax.random.key(0), inputs()))["params"])


def same(x, y, tolerance=1e-6):
    np.testing.assert_allclose(
        np.asarray(x, np.float64), np.asarray(y, np.float64), atol=tolerance, rtol=tolerance
    )


# Equal parameters, equal results.


@pytest.mark.parametrize("use_bias", [False, True])
@pytest.mark.parametrize("normalize_qk", [False, True])
@pytest.mark.parametrize("sizes", [{}, {"qkv_features": 6, "out_features": 4}])
def test_the_parameter_tree_equals_flaxs(use_bias, normalize_qk, sizes):
    options = {"use_bias": use_bias, "normalize_qk": normalize_qk, **sizes}
    shapes = functools.partial(jax.tree.map, jnp.shape)

    def abstract(layer):
        return jax.eval_shape(lambda: layer.init(jax.random.key(0), inputs()))["params"]

    trees = [
        abstract(linen_layer(**options)),
        abstract(nn.MultiHeadDotProductAttention(num_heads=N, **options)),
        as_dict(nnx.eval_shape(lambda: nnx_layer(**options))),
        as_dict(
            nnx.eval_shape(lambda: nnx.MultiHeadAttention(N, D, **options, decode=False, rngs=nnx.Rngs(0)))
        ),
    ]
    assert "kernel" in trees[0]["out"]
    for tree in trees[1:]:
        assert shapes(tree) == shapes(trees[0])


def test_initial_values_equal_flaxs():
    ours = linen_layer().init(jax.random.key(3), inputs())
    chex.assert_trees_all_equal(ours, nn.MultiHeadDotProductAttention(N).init(jax.random.key(3), inputs()))
    ours = nnx_layer(rngs=nnx.Rngs(3))
    chex.assert_trees_all_equal(as_dict(ours), as_dict(flax_nnx_layer(rngs=nnx.Rngs(3))))


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("extra", [{}, {"normalize_qk": True, "learn_temperature": True}])
def test_linen_equals_nnx(name, extra):
    params = linen_params(**extra)
    module = nnx_layer(**VARIANTS[name], **extra)
    assert jax.tree.map(jnp.shape, as_dict(module)) == jax.tree.map(jnp.shape, params)
    nnx.update(module, params)
    first = linen_layer(**VARIANTS[name], **extra).apply({"params": params}, inputs(), mask=jnp.asarray(MASK))
    second = module(inputs(), mask=jnp.asarray(MASK))
    assert np.linalg.norm(first) > 0.1
    same(first, second)


@pytest.mark.parametrize("name", VARIANTS)
def test_attention_fn_inside_flaxs_layers(name):
    params, options, mask = linen_params(), VARIANTS[name], jnp.asarray(MASK)
    function = functools.partial(attention_fn, **options) if options else attention_fn
    ours, state = linen_layer(**options).apply(
        {"params": params}, inputs(), mask=mask, sow_weights=True, mutable=["intermediates"]
    )
    (weights,) = state["intermediates"]["attention_weights"]
    assert weights.shape == (B, N, T)
    theirs = nn.MultiHeadDotProductAttention(N, attention_fn=function)
    out, state = theirs.apply(
        {"params": params}, inputs(), mask=mask[:, None, None, :], sow_weights=True, mutable=["intermediates"]
    )
    same(out, ours)
    same(state["intermediates"]["attention_weights"][0], weights)
    for module in (flax_nnx_layer(attention_fn=function), nnx_layer(**options)):
        nnx.update(module, params)
        out, sown = nnx.capture(module, nnx.Intermediate)(
            inputs(), mask=mask[:, None, None, :], sow_weights=True
        )
        same(out, ours)
        same(sown["attention_weights"][0], weights)


def test_the_layer_equals_projections_around_the_oracle():
    params = linen_params()
    x = np.asarray(inputs(), np.float64)
    tree = jax.tree.map(lambda p: np.asarray(p, np.float64), params)
    q, k, v = (
        np.einsum("btd,dnh->btnh", x, tree[name]["kernel"]) + tree[name]["bias"]
        for name in ("query", "key", "value")
    )
    out, _ = oracle.hrr_attention(q, k, v, mask=MASK)
    expected = np.einsum("btnh,nhd->btd", out, tree["out"]["kernel"]) + tree["out"]["bias"]
    same(linen_layer().apply({"params": params}, inputs(), mask=jnp.asarray(MASK)), expected, 1e-5)


def test_three_inputs():
    params = linen_params()
    q, k, v = (inputs(seed) for seed in range(3))
    call = functools.partial(apply, linen_layer(), params)
    module = nnx_layer()
    nnx.update(module, params)
    three = np.asarray(call(q, k, v))
    same(three, run(module, q, k, v))
    same(call(q, k), call(q, k, k))
    same(run(module, q, k), run(module, q, k, k))
    assert np.abs(three - call(q, k)).max() > 1e-3
    assert np.abs(three - call(k, k, v)).max() > 1e-6
    same(call(*(np.asarray(x)[0] for x in (q, k, v))), three[0])  # no batch


def test_arguments_match_flaxs():
    own = {"inverse", "implementation", "rescale", "temperature", "learn_temperature", "output", "axis_name"}
    offered = {"num_heads", "qkv_features", "out_features", "dtype", "param_dtype", "broadcast_dropout"}
    offered |= {"dropout_rate", "deterministic", "precision", "kernel_init", "out_kernel_init", "bias_init"}
    offered |= {"out_bias_init", "use_bias", "normalize_qk", "decode"}
    nnx_alone = {"in_features", "rngs", "keep_rngs", "kernel_metadata", "out_kernel_metadata"}
    nnx_alone |= {"bias_metadata", "out_bias_metadata"}
    for ours, flaxs, names in (
        (hrrformer.linen.HRRAttention, nn.MultiHeadDotProductAttention, offered | {"parent", "name"}),
        (hrrformer.nnx.HRRAttention, nnx.MultiHeadAttention, offered | nnx_alone),
    ):
        mine, theirs = (inspect.signature(cls.__init__).parameters for cls in (ours, flaxs))
        assert set(mine) - {"self"} == names | own
        assert names <= set(theirs)
        for name in names - {"bias_init", "kernel_metadata"}:
            if name.endswith("_metadata"):
                assert mine[name].default == theirs[name].default == {}
            else:
                assert mine[name].default == theirs[name].default, name


def test_learned_temperature():
    for start in (1.0, 0.25):
        layer = linen_layer(learn_temperature=True, temperature=start)
        params = layer.init(jax.random.key(0), inputs())["params"]
        same(np.exp(params["log_temperature"]), np.full(N, start))
        module = nnx_layer(learn_temperature=True, temperature=start)
        same(module.log_temperature[...], params["log_temperature"])
        nnx.update(module, params)
        without = {name: x for name, x in params.items() if name != "log_temperature"}
        fixed = linen_layer(temperature=start).apply({"params": without}, inputs())
        same(layer.apply({"params": params}, inputs()), fixed)
        same(module(inputs()), fixed)
    slopes = jax.jit(jax.grad(lambda p: jnp.sum(jnp.square(apply(layer, p, inputs())))))(params)
    assert np.all(slopes["log_temperature"] != 0)


# Dropout.


def test_dropout_of_the_function():
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(B, 40, N, 4)), jnp.float32) for _ in range(3))
    kept = jax.jit(hrr_attention)(q, k, v)
    call = jax.jit(
        functools.partial(attention_fn, q, k, v),
        static_argnames=("broadcast_dropout", "dropout_rate", "deterministic"),
    )
    outs = np.asarray(
        jax.lax.map(
            lambda key: call(dropout_rng=key, dropout_rate=0.25, broadcast_dropout=False),
            jax.random.split(jax.random.key(0), 400),
        )
    )
    dropped = np.all(outs == 0, axis=-1)
    assert dropped.mean() == pytest.approx(0.25, abs=0.01)
    ratio = (outs / np.asarray(kept))[~dropped]
    np.testing.assert_allclose(ratio, 1 / 0.75, rtol=1e-5)  # the expectation is preserved
    assert (dropped[:, 0] != dropped[:, 1]).any()
    shared = call(dropout_rng=jax.random.key(1), dropout_rate=0.25)
    dropped = np.all(np.asarray(shared) == 0, axis=-1)
    np.testing.assert_array_equal(dropped[0], dropped[1])
    assert (dropped[..., 0] != dropped[..., 1]).any()
    same(call(dropout_rate=0.25, deterministic=True), kept)
    same(call(dropout_rng=jax.random.key(1), dropout_rate=0.0), kept)


def test_dropped_weights_are_sown():
    layer = linen_layer(dropout_rate=0.5, deterministic=False, out_features=N * 4, qkv_features=N * 4)
    params = jax.tree.map(jnp.zeros_like, linen_params())
    params["value"]["bias"] = params["value"]["bias"] + 1.0
    params["out"]["kernel"] = jnp.eye(12).reshape(N, 4, 12)
    out, state = layer.apply(
        {"params": params},
        inputs(),
        sow_weights=True,
        rngs={"dropout": jax.random.key(0)},
        mutable=["intermediates"],
    )
    (weights,) = state["intermediates"]["attention_weights"]
    assert {round(float(x), 5) for x in np.unique(weights)} == {0.0, 0.4}
    same(out.reshape(B, T, N, 4)[..., 0], jnp.swapaxes(weights, 1, 2))


def test_dropout_of_the_linen_layer():
    params = {"params": linen_params()}
    layer = linen_layer(dropout_rate=0.5)
    plain = linen_layer().apply(params, inputs())
    same(layer.apply(params, inputs(), deterministic=True), plain)
    same(layer.clone(deterministic=True).apply(params, inputs()), plain)
    first, again, other = (
        layer.apply(params, inputs(), deterministic=False, rngs={"dropout": jax.random.key(i)})
        for i in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3
    assert np.abs(first - plain).max() > 1e-3
    given = layer.apply(params, inputs(), deterministic=False, dropout_rng=jax.random.key(7))
    assert np.abs(given - plain).max() > 1e-3
    with pytest.raises(InvalidRngError):
        layer.apply(params, inputs(), deterministic=False)
    with pytest.raises(ValueError, match="deterministic"):
        layer.apply(params, inputs())


def test_dropout_of_the_nnx_layer():
    plain = nnx_layer()(inputs())
    module = nnx_layer(dropout_rate=0.5)
    with pytest.raises(ValueError, match="deterministic must be set"):
        module(inputs())
    module = nnx_layer(dropout_rate=0.5, deterministic=True)
    same(module(inputs()), plain)
    first, second = module(inputs(), deterministic=False), module(inputs(), deterministic=False)
    assert np.abs(first - second).max() > 1e-6  # the call takes precedence, and the stream advances
    module.train()
    assert np.abs(module(inputs()) - plain).max() > 1e-6
    module.eval()
    same(module(inputs()), plain)
    same(
        module(inputs(), deterministic=False, rngs=nnx.Rngs(dropout=5)),
        module(inputs(), deterministic=False, rngs=nnx.Rngs(dropout=5).dropout),
    )
    bare = nnx_layer(dropout_rate=0.5, deterministic=False, keep_rngs=False)
    with pytest.raises(ValueError, match="rngs must be given"):
        bare(inputs())
    same(
        bare(inputs(), rngs=nnx.Rngs(dropout=5)),
        module(inputs(), deterministic=False, rngs=nnx.Rngs(dropout=5)),
    )


# Dtypes, precision, partitioning.


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_computing_in_half_precision_keeps_the_parameters(dtype):
    params = linen_params()
    module = nnx_layer(dtype=dtype)
    nnx.update(module, params)
    exact = linen_layer().apply({"params": params}, inputs())
    for out in (linen_layer(dtype=dtype).apply({"params": params}, inputs()), module(inputs())):
        assert out.dtype == dtype
        assert 0 < np.linalg.norm(np.float32(out) - exact) < 2e-2 * np.linalg.norm(exact)
    fresh = linen_layer(dtype=dtype).init(jax.random.key(0), inputs())
    assert {x.dtype for x in jax.tree.leaves((fresh, as_dict(module)))} == {jnp.dtype("float32")}
    options = {"param_dtype": dtype, "learn_temperature": True}  # Flax's own LayerNorm promotes
    fresh = linen_layer(**options).init(jax.random.key(0), inputs(dtype=dtype))
    narrow = nnx_layer(**options)
    assert {x.dtype for x in jax.tree.leaves((fresh, as_dict(narrow)))} == {jnp.dtype(dtype)}
    assert linen_layer(**options).apply(fresh, inputs(dtype=dtype)).dtype == dtype
    assert narrow(inputs(dtype=dtype)).dtype == dtype


def test_precision_reaches_every_product():
    options = {"precision": "highest", "implementation": "matmul"}
    layer, module = linen_layer(**options), nnx_layer(**options)
    for function in (lambda x: layer.apply({"params": linen_params()}, x), module):
        text = str(jax.make_jaxpr(function)(inputs()))
        products = text.count("dot_general[")
        assert products >= 4 + 2  # the projections; binding and unbinding
        assert text.count("Precision.HIGHEST") == 2 * products


def test_float32_products_are_full_by_default_and_half_ones_are_not():
    def text(dtype):
        x = jnp.ones((1, 3, 1, 4), dtype)
        return str(jax.make_jaxpr(functools.partial(hrr_attention, implementation="matmul"))(x, x, x))

    assert text(jnp.float32).count("Precision.HIGHEST") == 2 * text(jnp.float32).count("dot_general[")
    assert 0 < text(jnp.bfloat16).count("Precision.HIGHEST") < text(jnp.float32).count("Precision.HIGHEST")


def test_partitioning_metadata():
    init = nn.with_partitioning(nn.initializers.lecun_normal(), (None, "model", None))
    layer = linen_layer(
        kernel_init=init, out_kernel_init=nn.with_partitioning(init.__wrapped__, ("model", None, None))
    )
    params = layer.init(jax.random.key(0), inputs())["params"]
    assert params["query"]["kernel"].names == (None, "model", None)
    assert params["out"]["kernel"].names == ("model", None, None)
    metadata = {"out_sharding": (None, "model", None)}
    out_metadata = {"out_sharding": ("model", None, None)}
    with jax.set_mesh(jax.make_mesh((1,), ("model",))):
        module = nnx_layer(kernel_metadata=metadata, out_kernel_metadata=out_metadata)
    for name in ("query", "key", "value"):
        assert getattr(module, name).kernel.get_metadata("out_sharding") == (None, "model", None)
    assert module.out.kernel.get_metadata("out_sharding") == ("model", None, None)


def test_initializers():
    constant = nn.initializers.constant
    options = {
        "kernel_init": constant(1.0),
        "bias_init": constant(2.0),
        "out_kernel_init": constant(3.0),
        "out_bias_init": constant(4.0),
    }
    for tree in (
        linen_layer(**options).init(jax.random.key(0), inputs())["params"],
        as_dict(nnx_layer(**options)),
    ):
        assert [float(tree[n][p].mean()) for n in ("query", "out") for p in ("kernel", "bias")] == [
            1,
            2,
            3,
            4,
        ]
    options = {"kernel_init": constant(1.0), "bias_init": constant(2.0)}
    assert float(nnx_layer(**options).out.bias[...].mean()) == 2.0
    assert (
        float(linen_layer(**options).init(jax.random.key(0), inputs())["params"]["out"]["kernel"].mean())
        == 1.0
    )


# Under transformations.


def test_nnx_transformations():
    module = nnx_layer(dropout_rate=0.1, deterministic=True, normalize_qk=True, learn_temperature=True)
    graphdef, state = nnx.split(module)
    hash(graphdef)
    again = nnx_layer(dropout_rate=0.1, deterministic=True, normalize_qk=True, learn_temperature=True)
    assert nnx.graphdef(again) == graphdef
    assert nnx.graphdef(nnx_layer(dropout_rate=0.1, deterministic=True, inverse="exact")) != graphdef
    expected = module(inputs())
    same(nnx.merge(graphdef, state)(inputs()), expected)
    traces = 0

    @nnx.jit
    def step(module, x):
        nonlocal traces
        traces += 1
        return module(x)

    same(step(module, inputs()), expected)
    same(step(again, inputs(1)), module(inputs(1)))
    step(nnx.clone(module), inputs(2))
    assert traces == 1
    slopes = nnx.jit(nnx.grad(lambda m, x: jnp.sum(jnp.square(m(x)))))(module, inputs())
    leaves = jax.tree.leaves(slopes)
    assert len(leaves) == 11
    assert all(np.isfinite(x).all() for x in leaves)
    assert np.any(slopes["log_temperature"][...])
    assert np.any(slopes["query"]["kernel"][...])


def test_linen_does_not_retrace():
    layer, params = linen_layer(), {"params": linen_params()}
    chex.clear_trace_counter()

    @functools.partial(jax.jit, static_argnums=0)
    @chex.assert_max_traces(n=1)
    def apply(layer, params, x, mask):
        return layer.apply(params, x, mask=mask)

    for seed in range(3):
        apply(linen_layer(), params, inputs(seed), jnp.asarray(MASK))
    assert hash(layer) == hash(linen_layer())


def test_padding_through_the_layers():
    params = linen_params()
    module = nnx_layer()
    nnx.update(module, params)
    x = inputs()
    longer = np.concatenate([x, 100.0 * inputs(9, shape=(B, 8, D))], axis=1)
    mask = np.broadcast_to(np.arange(T + 8) < T, (B, T + 8))
    for call in (functools.partial(apply, linen_layer(), params), functools.partial(run, module)):
        same(np.asarray(call(longer, mask=mask))[:, :T], call(x))


# Refusals: the messages that users see.


def call(api, options, *arguments, **keywords):
    if api == "linen":
        return linen_layer(**options).init(jax.random.key(0), *arguments, **keywords)
    return nnx_layer(**options)(*arguments, **keywords)


@pytest.mark.parametrize("api", ["linen", "nnx"])
def test_refusals(api, untyped):
    x = inputs()
    with pytest.raises(ValueError, match=r"num_heads must divide qkv_features \(8\); got 3"):
        call(api, {"qkv_features": 8}, x)
    with pytest.raises(ValueError, match=r"mask must be a key-padding mask.*got \(2, 1, 5, 5\)"):
        call(api, {}, x, mask=jnp.tile(jnp.tri(T, dtype=bool), (B, 1, 1, 1)))
    with pytest.raises(TypeError, match="mask must be boolean"):
        call(api, {}, x, mask=jnp.ones((B, T)))
    with pytest.raises(ValueError, match=r"key must have the shape of query.*cross-attention"):
        call(api, {}, x, inputs(shape=(B, T + 1, D)))
    with pytest.raises(ValueError, match="inputs_k must be given with inputs_v"):
        call(api, {}, x, None, x)
    with pytest.raises(ValueError, match="inverse must be one of"):
        call(api, {"inverse": "pseudo"}, x)
    for rate in (-0.1, 1.0):
        with pytest.raises(ValueError, match=f"dropout_rate must be .*; got {rate}"):
            call(api, {"dropout_rate": rate, "deterministic": True}, x)
    for options in ({"temperature": 0.0}, {"temperature": -1.0, "learn_temperature": True}):
        with pytest.raises(ValueError, match="temperature must be positive"):
            call(api, options, x)


def test_refusals_of_the_nnx_layer_alone(untyped):
    with pytest.raises(ValueError, match=r"inputs_q must have 12 features.*got shape \(2, 5, 9\)"):
        nnx_layer()(inputs(shape=(B, T, 9)))
    with pytest.raises(ValueError, match="init_cache must be called"):
        nnx_layer()(inputs(), decode=True)


def test_refusals_of_the_function(untyped):
    x = jnp.ones((B, T, N, D // N))
    with pytest.raises(ValueError, match="bias must be None"):
        attention_fn(x, x, x, bias=jnp.zeros((1, 1, 2, 2)))
    with pytest.raises(ValueError, match="dropout_rng must be a random key"):
        attention_fn(x, x, x, dropout_rate=0.5)
    with pytest.raises(TypeError, match="unknown"):
        attention_fn(x, x, x, unknown=1)


@pytest.mark.parametrize("is_causal", [False, True])
def test_export_with_symbolic_sizes(is_causal, untyped):
    layer = nnx_layer()
    batch, length = jax.export.symbolic_shape("b, t")
    given = jax.ShapeDtypeStruct((batch, length, D), jnp.float32)
    exported = jax.export.export(jax.jit(lambda x: layer(x, is_causal=is_causal)))(given)
    for shape in ((B, T, D), (1, 9, D)):
        x = inputs(shape=shape)
        np.testing.assert_allclose(exported.call(x), layer(x, is_causal=is_causal), atol=1e-6)
