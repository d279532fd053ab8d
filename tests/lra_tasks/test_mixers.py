"""Every mixer of the arena: padding, rows, dtypes, parameters, and its formula in float64 NumPy.

The first part tests all names of `MIXERS` alike. In the second, a mixer is its definition: a few lines that
take its parameters as arrays.
"""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from lra_tasks import UsageError, preset
from lra_tasks.model.encoder import Classifier, num_parameters
from lra_tasks.model.mixers import MIXERS, MixerSpec, get_mixer, mixer_class
from lra_tasks.model.mixers.fnet import chirp_z
from lra_tasks.model.mixers.nystrom import pseudo_inverse
from lra_tasks.model.mixers.performer import orthogonal_directions
from lra_tasks.model.mixers.softmax import chunked_attention
from lra_tasks.tasks import TASKS
from lra_tasks.training.optimizer import make_optimizer

NAMES = [name for name in MIXERS if name != "none"]
PARALLEL = [name for name in NAMES if getattr(mixer_class(name), "sequence_parallel", False)]
LINEAR = [*(name for name in NAMES if MIXERS[name].cost != "T²"), "softmax:implementation=chunked"]
B, T, D, N, H = 4, 20, 8, 2, 6
SPEC = MixerSpec(width=D, num_heads=N, qkv_features=N * H, length=32, dropout_rate=0.0, dtype=jnp.float32)


@functools.cache
def build(name, dtype=jnp.float32):
    """Returns a mixer with noise on its parameters, since some begin as zeros or ones."""
    mixer = get_mixer(name)(dataclasses.replace(SPEC, dtype=dtype), rngs=nnx.Rngs(0))
    noise = nnx.Rngs(1)
    for leaf in jax.tree.leaves(nnx.state(mixer, nnx.Param), is_leaf=lambda x: isinstance(x, nnx.Variable)):
        leaf[...] += 0.1 * jax.random.normal(noise(), leaf.shape)
    return mixer


@nnx.jit
def mixed(mixer, x, mask):
    return mixer(x, mask, deterministic=True, rngs=None)


def inputs(length=T, seed=0):
    """Returns x (B, T, D) and the mask of rows with 20, 7, 1 and 0 tokens."""
    x = np.random.default_rng(seed).standard_normal((B, length, D)).astype(np.float32)
    return x, np.arange(length) < np.array([[20], [7], [1], [0]])


def close(found, expected, tolerance=1e-5):
    expected = np.asarray(expected, np.float64)
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.abs(expected).max())


# All mixers alike


@pytest.mark.parametrize("name", NAMES)
def test_padding_and_other_rows_change_nothing(name):
    x, mask = inputs()
    expected = np.asarray(mixed(build(name), x, mask))
    assert np.isfinite(expected).all()
    filled = np.where(mask[..., None], x, 5.0 + inputs(seed=1)[0])
    np.testing.assert_array_equal(mixed(build(name), filled, mask)[mask], expected[mask])
    longer = np.pad(filled[1:2], ((0, 0), (0, 11), (0, 0)), constant_values=-3.0)
    found = mixed(build(name), longer, np.pad(mask[1:2], ((0, 0), (0, 11))))
    close(found[0, :7], expected[1, :7], 2e-6)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_finite_with_a_row_of_padding(name):
    x, mask = inputs()

    @nnx.jit
    def loss(mixer, x):
        return jnp.sum(mixed(mixer, x, mask) ** 2)

    of_parameters, of_input = nnx.grad(loss, argnums=(0, 1))(build(name), x)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(of_parameters))
    assert np.isfinite(of_input).all()
    assert (np.abs(of_input[0]).max(axis=-1) > 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_is_close_to_float32(name):
    x, mask = inputs()
    half = build(name, jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(half, nnx.Param))} <= {jnp.dtype("float32")}
    found = mixed(half, x.astype(jnp.bfloat16), mask)
    assert found.dtype == jnp.bfloat16
    close(found[mask].astype(jnp.float32), mixed(build(name), x, mask)[mask], 0.03)


@functools.cache
def base_model(name, task):
    """Returns the number of parameters of a preset's model with softmax, the layers and the mixer's sizes."""
    settings, task = preset(task, name), TASKS[task]
    model = settings.model
    sizes = {"length": settings.length, "vocab_size": task.vocab_size, "num_classes": task.num_classes}
    built = nnx.eval_shape(
        lambda: Classifier(model, "softmax", **sizes, num_inputs=task.num_inputs, rngs=nnx.Rngs(0))
    )
    features = model.qkv_features or model.width
    spec = MixerSpec(model.width, model.num_heads, features, settings.length, 0.0, jnp.dtype(model.dtype))
    return num_parameters(nnx.state(built, nnx.Param)), model.num_layers, spec


@functools.cache
def own_parameters(name, spec):
    built = nnx.eval_shape(lambda: get_mixer(name)(spec, rngs=nnx.Rngs(0)))
    return num_parameters(nnx.state(built, nnx.Param))


# Presets in which the original form of a mixer breaks the rule, by name.
ABOVE = {
    "linformer": {"quick listops": "+17.0%", "cpu listops": "+10.4%", "arena pathfinder": "+15.4%"},
    "mega": {"arena pathfinder": "+29.8%"},
}


@pytest.mark.parametrize("name", NAMES)
def test_models_have_at_most_ten_percent_more_parameters_than_softmax(name):
    above = {}
    for chosen in ("quick", "cpu", "arena"):
        for task in ("listops", "text", "retrieval", "image", "pathfinder", "pathx"):
            total, layers, spec = base_model(chosen, task)
            more = layers * (own_parameters(name, spec) - own_parameters("softmax", spec)) / total
            if more > 0.1:
                above[f"{chosen} {task}"] = f"{more:+.1%}"
    assert above == ABOVE.get(name, {})


@pytest.mark.parametrize("name", LINEAR)
def test_memory_is_linear_in_the_length(name):
    """No array of the computation grows with T², not even in the gradient."""

    def largest(length):
        spec = dataclasses.replace(SPEC, length=length)
        mixer = nnx.eval_shape(lambda: get_mixer(name)(spec, rngs=nnx.Rngs(0)))
        graph, params = nnx.split(mixer)

        def loss(params, x, mask):
            return nnx.merge(graph, params)(x, mask, deterministic=True, rngs=None).sum()

        shapes = (
            params,
            jax.ShapeDtypeStruct((1, length, D), jnp.float32),
            jax.ShapeDtypeStruct((1, length), bool),
        )
        text = str(jax.make_jaxpr(jax.grad(loss, argnums=1))(*shapes))
        return max(
            np.prod([int(size) for size in shape.split(",")]) for shape in re.findall(r"\[(\d[\d,]*)\]", text)
        )

    assert largest(4096) <= 2.2 * largest(2048)


@pytest.mark.parametrize("name", NAMES)
def test_a_mixer_keeps_parameters_only(name):
    assert not jax.tree.leaves(nnx.split(build(name), nnx.Param, ...)[2])


@pytest.mark.parametrize("name", PARALLEL)
def test_devices_that_share_a_sequence_gather_no_tokens(name):
    mesh = jax.make_mesh((2, 2), ("data", "sequence"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    by_token = NamedSharding(mesh, PartitionSpec("data", "sequence"))
    x, mask = inputs()
    graph, params = nnx.split(build(name))

    def apply(params, x, mask):
        return nnx.merge(graph, params)(x, mask, deterministic=True, rngs=None)

    shared = jax.jit(apply, in_shardings=(None, by_token, by_token), out_shardings=by_token)
    compiled = shared.lower(params, x, mask).compile()
    gathered = re.findall(r"\[([\d,]+)\]\S* all-gather", compiled.as_text())
    assert not [shape for shape in gathered if str(T) in shape.split(",")]
    close(np.asarray(compiled(params, x, mask))[mask], mixed(build(name), x, mask)[mask], 2e-6)


# Definitions


def softmax(scores):
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def turned(x, theta=10000.0):
    """Rotates the pairs (i, i + H/2) of x (T, H), as complex numbers."""
    half = x.shape[1] // 2
    angles = np.outer(np.arange(len(x)), theta ** (-np.arange(half) / half))
    pairs = (x[:, :half] + 1j * x[:, half:]) * np.exp(1j * angles)
    return np.concatenate([pairs.real, pairs.imag], axis=1)


def attention(head):
    """Returns the definition of a mixer with four projections, from that of one head: q, k, v → (n, H)."""

    def definition(p, x):
        query, key, value = (
            np.einsum("td,dnh->nth", x, p[f"{name}/kernel"]) for name in ("query", "key", "value")
        )
        heads = [head(*each) for each in zip(query, key, value, strict=True)]
        return np.einsum("nth,nhd->td", np.stack(heads), p["out/kernel"])

    return definition


def by_softmax(query, key, value):
    return softmax(query @ key.T / np.sqrt(H)) @ value


def by_rotated_softmax(query, key, value):
    return by_softmax(turned(query), turned(key), value)


def by_linear_features(query, key, value):
    query, key = (np.where(x > 0, x + 1, np.exp(np.minimum(x, 0))) for x in (query, key))
    weights = query @ key.T
    return weights / weights.sum(axis=1, keepdims=True) @ value


def by_window(query, key, value, size=3):
    scores = query @ key.T / np.sqrt(H)
    t, s = np.indices(scores.shape)
    return softmax(np.where(abs(t - s) <= size, scores, -np.inf)) @ value


def by_rotated_window(query, key, value):
    return by_window(turned(query), turned(key), value)


def by_projected_keys(p, x):
    rows = p["projection"][: len(x)].T
    return attention(lambda query, key, value: by_softmax(query, rows @ key, rows @ value))(p, x)


def by_random_features(p, x, number=11):
    seed = jax.random.key(int(p["seed"][0]))
    directions = np.asarray(orthogonal_directions(seed, number, H), np.float64)

    def head(query, key, value):
        query, key = (x / H**0.25 for x in (query, key))
        query, key = (np.exp(x @ directions.T - (x**2).sum(axis=1, keepdims=True) / 2) for x in (query, key))
        weights = query @ key.T
        return weights / weights.sum(axis=1, keepdims=True) @ value

    return attention(head)(p, x)


def convolved(x, kernel):
    """Correlates each column of x (n, D) with that of the kernel (K, D)."""
    columns = [np.correlate(np.pad(u, len(taps) // 2), taps) for u, taps in zip(x.T, kernel.T, strict=True)]
    return np.array(columns).T


def convolution(p, x):
    inner = x @ p["value/kernel"] / (1 + np.exp(-x @ p["gate/kernel"]))
    return convolved(inner, p["kernel"]) @ p["out/kernel"]


def fourier(p, x):
    return np.fft.fft2(x).real / np.sqrt(x.size)


def nested_attention(p, x):
    heads = np.arange(N)
    query, context = (np.einsum("td,dnh->nth", x, p[f"{name}/kernel"]) for name in ("query", "context"))
    packed = np.stack([by_softmax(p["memory"][:, n], context[n], context[n]) for n in heads])
    packed = np.einsum("npg,ngmh->mph", packed, p["unpack/kernel"])
    mixed = np.stack([by_softmax(query[n], packed[n], packed[n]) for n in heads])
    return np.einsum("nth,nhd->td", mixed, p["out/kernel"])


def by_landmarks(p, x, number=4):
    number, taps = min(number, len(x)), iter(p["kernel"].T)
    segment = np.arange(len(x)) * number // len(x)
    means = np.stack([(segment == m) / np.sum(segment == m) for m in range(number)])

    def head(query, key, value):
        between = by_softmax(means @ query, means @ key, np.eye(number))
        inverse = between.T / (between.sum(axis=0).max() * between.sum(axis=1).max())
        for _ in range(6):
            product = between @ inverse
            powers = 13 * np.eye(number) - 15 * product + 7 * product @ product - product @ product @ product
            inverse = inverse @ powers / 4
        read = by_softmax(means @ query, key, value)
        around = convolved(value, np.repeat(next(taps)[:, None], H, axis=1))
        return by_softmax(query, means @ key, inverse @ read) + around

    return attention(head)(p, x)


DEFINITIONS = {  # function of the parameters and of the n real tokens (n, D)
    "softmax": attention(by_softmax),
    "softmax:rotary=True": attention(by_rotated_softmax),
    "softmax:implementation=chunked": attention(by_softmax),
    "linear": attention(by_linear_features),
    "conv": convolution,
    "conv:kernel=23": convolution,  # longer than the sequence
    "local": attention(by_softmax),  # the window is longer than the sequence
    "local:window=3": attention(by_window),
    "local:window=3,rotary=True": attention(by_rotated_window),
    "fnet": fourier,
    "linformer": by_projected_keys,
    "performer": by_random_features,
    "luna": nested_attention,
    "nystrom:landmarks=4": by_landmarks,  # rows of 20 and 7 tokens, and one of 1 token
}


def parameters(name):
    flat = nnx.to_flat_state(nnx.state(build(name), nnx.Param))
    return {"/".join(map(str, path)): np.asarray(leaf[...], np.float64) for path, leaf in flat}


@pytest.mark.parametrize("name", DEFINITIONS)
def test_a_mixer_is_its_definition(name):
    x, mask = inputs()
    found = mixed(build(name), x, mask)
    for row, size in enumerate(mask.sum(axis=1)[:3]):
        expected = DEFINITIONS[name](parameters(name), x[row, :size].astype(np.float64))
        close(found[row, :size], expected, 1e-4 if name == "performer" else 1e-5)  # which adds 1e-6


# Options and parts of single mixers


def test_chunks_of_queries_are_exact():
    """Value and gradients over several blocks; the last one is not full."""
    _, mask = inputs()
    query, key, value = jnp.asarray(np.random.default_rng(0).standard_normal((3, B, T, N, H)), jnp.float32)

    def both(attend):
        def loss(*arrays):
            return jnp.sum(jnp.where(mask[..., None, None], jnp.sin(attend(*arrays)), 0.0))

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))(query, key, value)

    ours = both(lambda *arrays: chunked_attention(*arrays, mask, block=8))
    plain = functools.partial(jax.nn.dot_product_attention, mask=mask[:, None, None], implementation="xla")
    for found, expected in zip(jax.tree.leaves(ours), jax.tree.leaves(both(plain)), strict=True):
        close(found, expected, 2e-6)


def test_random_features_estimate_softmax():
    """The error falls with the root of their number, and the directions are orthogonal normal vectors."""
    x, mask = inputs()
    x = 0.3 * x  # the variance grows exponentially with the size of queries and keys
    errors = []
    for name in ("performer:features=24", "performer:features=2400"):
        exact = DEFINITIONS["softmax"](parameters(name), x[0].astype(np.float64))
        errors.append(np.abs(mixed(build(name), x, mask)[0] - exact).mean() / np.abs(exact).mean())
    assert errors[1] < 0.2 * errors[0]
    assert errors[1] < 0.02
    directions = np.asarray(orthogonal_directions(jax.random.key(0), 3000, H))
    blocks = directions.reshape(-1, H, H)
    gram = blocks @ blocks.swapaxes(1, 2)
    np.testing.assert_allclose(gram, gram * np.eye(H), atol=1e-5)
    np.testing.assert_allclose(directions.T @ directions / 3000, np.eye(H), atol=0.1)
    lengths = np.sum(directions**2, axis=1)  # chi-square: mean H, variance 2H
    assert (lengths.mean(), lengths.var()) == (pytest.approx(H, rel=0.05), pytest.approx(2 * H, rel=0.15))


def test_the_pseudo_inverse_of_weights():
    rows = softmax(3 * np.random.default_rng(0).standard_normal((2, 5, 5)) + 6 * np.eye(5))
    close(pseudo_inverse(jnp.asarray(rows, jnp.float32)), np.linalg.pinv(rows), 1e-3)


def test_layers_and_seeds_draw_their_own_random_features():
    """And training keeps them."""
    streams = nnx.Rngs(0), nnx.Rngs(1)
    draws = [
        get_mixer("performer")(SPEC, rngs=each).seed[...] for each in (streams[0], streams[0], streams[1])
    ]
    assert len({float(draw[0]) for draw in draws}) == 3
    optimizer = make_optimizer(preset("text", "arena").optimizer, 10)  # with weight decay
    update, _ = optimizer.update([jnp.zeros(1)], optimizer.init(draws[:1]), draws[:1])
    assert not update[0].any()


def test_the_transform_of_a_long_sequence_is_exact():
    """The phases π t² / n need t² mod 2n, which is larger than 32 bits."""
    length, number = 100_000, 99_991
    x = np.random.default_rng(0).standard_normal(number)
    padded = jnp.zeros((1, length, 1), jnp.complex64).at[0, :number, 0].set(x)
    found = jax.jit(chirp_z)(padded, jnp.array([number]))[0, :number, 0]
    close(np.stack([found.real, found.imag]), np.stack([np.fft.fft(x).real, np.fft.fft(x).imag]))


@pytest.mark.parametrize(
    ("device", "spec", "message"),
    [
        ("cpu", {}, r"'cudnn' needs a GPU of NVIDIA; got the device 'cpu'\. Use 'chunked'"),
        ("NVIDIA H100", {}, r"'cudnn' needs model\.dtype bfloat16; got float32"),
        ("NVIDIA H100", {"dtype": jnp.bfloat16}, r"multiple of 8 up to 128; got 6"),
    ],
)
def test_cudnn_is_refused_where_it_cannot_run(monkeypatch, device, spec, message):
    devices = [type("Device", (), {"device_kind": device})]
    monkeypatch.setattr(jax, "devices", lambda: devices)
    with pytest.raises(UsageError, match=message):
        get_mixer("softmax:implementation=cudnn")(dataclasses.replace(SPEC, **spec), rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("softmax:rotary=True", "rotary needs an even head size, qkv_features / num_heads; got 3"),
        ("local:rotary=True", "rotary needs an even head size, qkv_features / num_heads; got 3"),
        ("local:window=0", "window must be at least 1; got 0"),
        ("conv:kernel=4", "kernel must be odd and positive, so that it has a center; got 4"),
        ("linformer:rank=0", "rank must be at least 1; got 0"),
        ("performer:features=0", "features must be at least 1; got 0"),
        ("nystrom:landmarks=0", "landmarks must be at least 1; got 0"),
        ("luna:memory=0", "memory must be at least 1; got 0"),
    ],
)
def test_options_that_do_not_fit_are_refused(name, message):
    spec = dataclasses.replace(SPEC, qkv_features=6)
    with pytest.raises(UsageError, match=message):
        get_mixer(name)(spec, rngs=nnx.Rngs(0))
