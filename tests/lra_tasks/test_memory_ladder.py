"""The rungs of `experiments.memory_ladder`: their definition in float64, padding, gradients, and sizes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments import memory_ladder
from experiments.memory_ladder import LADDER
from hrrformer import memory
from lra_tasks import ModelConfig, UsageError
from lra_tasks.model.encoder import Classifier, num_parameters
from lra_tasks.model.mixers import MixerSpec, get_mixer

RUNG = LADDER["memory"]
B, T, D, N = 3, 13, 6, 2
SPEC = MixerSpec(width=D, num_heads=N, qkv_features=12, length=T, dropout_rate=0.0, dtype=jnp.float32)
MASK = np.arange(T) < np.array([[T], [7], [0]])
OPTIONS = {  # options, each of which is in one at least → head size
    "decay=none,position=False,gate=input,poles=1,implementation=matmul": 5,
    "decay=none,norm=cues,poles=2,implementation=matmul": 5,
    "decay=head,poles=2,taps=3,gate=none,skip=False,gelu=True": 6,
    "bind=False,taps=5,poles=1,norm=none": 8,
    "poles=3,implementation=matmul,gelu=False": 5,
}


@pytest.fixture(autouse=True)
def short_blocks(monkeypatch):
    """Uses blocks of 5 tokens, so that states pass between blocks."""
    for method in ("fft", "matmul"):
        monkeypatch.setitem(memory.BLOCKS, method, 5)


@functools.cache
def build(options):
    """Returns a rung with noise on its parameters, since some begin as ones or alike."""
    rung = get_mixer(f"{RUNG}:{options}")(SPEC, rngs=nnx.Rngs(0))
    noise = np.random.default_rng(1)
    for leaf in jax.tree.leaves(nnx.state(rung, nnx.Param), is_leaf=lambda x: isinstance(x, nnx.Variable)):
        leaf[...] += 0.3 * noise.standard_normal(leaf.shape, np.float32)
    return rung


@nnx.jit
def mixed(mixer, x, mask):
    return mixer(x, mask, deterministic=True, rngs=None)


@nnx.jit
def mixed_and_slopes(mixer, x, mask):
    def loss(mixer, x):
        out = mixer(x, mask, deterministic=True, rngs=None)
        return jnp.sum(out**3), out

    (_, out), slopes = nnx.value_and_grad(loss, argnums=(0, 1), has_aux=True)(mixer, x)
    return out, slopes


def inputs(seed=0):
    return np.random.default_rng(seed).standard_normal((B, T, D)).astype(np.float32)


def assert_near(found, expected, tolerance=2e-5):
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def parameters(rung):
    flat = nnx.to_flat_state(nnx.state(rung, nnx.Param))
    return {str(path[0]): np.asarray(leaf[...], np.float64) for path, leaf in flat}


def around(x, kernel):
    """Σ_i κ_i x_{t + i - taps // 2} of x (B, T, N, H), with zeros around the sequence."""
    taps = kernel.reshape(-1, *x.shape[2:])
    x = np.pad(x, [(0, 0), (len(taps) // 2,) * 2, (0, 0), (0, 0)])
    return sum(tap * x[:, i : i + T] for i, tap in enumerate(taps))


def retrieved(query, key, value, rate, phase, gain):
    """One memory, by its weights for every lag: poles (2, N, K), past first."""
    lag = np.subtract.outer(np.arange(T), np.arange(T))[..., None, None]
    past, future = (g * np.exp((1j * p - r) * abs(lag)) for r, p, g in zip(rate, phase, gain, strict=True))
    memory = np.einsum(
        "tsnk,bsnk->btnk", np.where(lag >= 0, past, future), np.fft.rfft(key) * np.fft.rfft(value)
    )
    return np.fft.irfft(np.conj(np.fft.rfft(query)) * memory, n=query.shape[-1])


def defined(options, p, x, mask):
    """The formula of `Rung` in float64, from its parameters and the text of its options."""
    size, poles = p["value"].shape[-1], int(options.get("poles", 8))
    gate, real = options.get("gate", "output"), mask[..., None, None]

    # Projections
    parts = {
        name: np.einsum("btd,dnh->btnh", x, p[name])
        for name in ("query", "key", "value", "gate_in")
        if name in p
    }
    gate_in = parts.pop("gate_in", None)
    if "kernel" in p:
        kernels = np.split(p["kernel"], len(parts), axis=1)
        parts = {
            name: around(np.where(real, part, 0), kernel)
            for (name, part), kernel in zip(parts.items(), kernels, strict=True)
        }
    value = np.where(real, parts["value"], 0)
    query, key = (np.eye(1, size) + parts.get(name, 0 * value) / np.sqrt(size) for name in ("query", "key"))
    if options.get("norm") == "cues":
        query, key = (np.fft.ifft(f / abs(f)).real for f in np.fft.fft([query, key]))

    # Poles
    shape = (2, N, size // 2 + 1, poles)
    turn = 0.1 * p["turn"].reshape(shape) if "turn" in p else np.zeros(shape)
    if "log_rate" in p:
        rate = np.broadcast_to(np.exp(0.1 * p["log_rate"].reshape(2, N, -1, poles)), shape)
        phase, gain = turn * rate, np.sqrt(1 - np.exp(-2 * rate))
    else:
        rate, phase, gain = np.zeros(shape), turn, np.full(shape, T**-0.5)
    gain = gain * (p["weight"].reshape(*shape, 2) @ [1, 1j])

    # Memories and functions of their sum
    found = sum(retrieved(query, key, value, *(y[..., m] for y in (rate, phase, gain))) for m in range(poles))
    found = found + (p["skip"].reshape(N, size) * value if "skip" in p else 0)
    if options.get("norm") != "none":
        found = found / np.sqrt(np.mean(found**2, axis=-1, keepdims=True) + 1e-6)
    if options.get("gelu", str(gate == "output")) == "True":
        found = found / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (found + 0.044715 * found**3)))
    if gate_in is not None:
        found = found * gate_in / (1 + np.exp(-gate_in))
    out = np.einsum("btnh,nhd->btd", found, p["out"])
    if gate != "output":
        return out
    a, b = np.split(out, 2, axis=-1)
    return a / (1 + np.exp(-b))


@pytest.mark.parametrize("options", OPTIONS)
def test_a_rung_is_its_definition_and_ignores_padding(options):
    rung, x = build(options), inputs()
    assert rung.heads == (N, OPTIONS[options])
    out, (of_parameters, of_input) = mixed_and_slopes(rung, x, MASK)
    out = np.asarray(out)
    chosen = dict(option.split("=") for option in options.split(","))
    assert_near(out[MASK], defined(chosen, parameters(rung), x.astype(np.float64), MASK)[MASK])

    # Gradients: finite, also of a row of padding alone, and no parameter is without effect.
    for path, leaf in nnx.to_flat_state(of_parameters):
        assert np.isfinite(leaf[...]).all(), path
        assert np.any(leaf[...]), path
    assert np.isfinite(of_input).all()

    # Padding: neither its content nor its amount matters.
    filled = np.where(MASK[..., None], x, 5.0 + inputs(1))
    np.testing.assert_array_equal(np.asarray(mixed_and_slopes(rung, filled, MASK)[0])[MASK], out[MASK])
    assert_near(mixed(rung, x[1:2, :7], MASK[1:2, :7])[0], out[1, :7], 5e-6)
    assert np.isfinite(out).all()


def test_without_options_it_is_the_layer():
    """The same parameters from the same seed, and the same result to the last bit."""
    layer, rung = (get_mixer(name)(SPEC, rngs=nnx.Rngs(3)) for name in ("holographic", RUNG))
    assert parameters(rung).keys() == parameters(layer.memory).keys()
    for name, value in parameters(layer.memory).items():
        np.testing.assert_array_equal(parameters(rung)[name], value)
    np.testing.assert_array_equal(mixed(rung, inputs(), MASK), mixed(layer, inputs(), MASK))


def test_starts():
    """A horizon bounds the times; cues of size 0 are δ; without decay the poles turn as fading ones do."""
    short, still = (get_mixer(f"{RUNG}:{o}")(SPEC, rngs=nnx.Rngs(0)) for o in ("horizon=4", "decay=none"))
    times = np.exp(-0.1 * np.asarray(short.log_rate[...]))
    assert times.min() >= 2
    assert times.max() <= 4.001
    fading = get_mixer(RUNG)(SPEC, rngs=nnx.Rngs(0))
    expected = fading.turn[...] * np.exp(0.1 * fading.log_rate[...])
    np.testing.assert_allclose(still.turn[...], expected, rtol=1e-6)
    none = get_mixer(f"{RUNG}:cue_scale=0")(SPEC, rngs=nnx.Rngs(0))
    assert not none.query.kernel[...].any()
    assert not none.key.kernel[...].any()


@functools.cache
def size(mixer):
    """Returns the number of parameters of a small encoder of width 64, with 4 heads and 2 layers."""
    config = ModelConfig(width=64, num_heads=4, num_layers=2, mlp_features=128, positions="none")
    sizes = {"length": 1024, "vocab_size": 20, "num_classes": 10}
    model = nnx.eval_shape(lambda: Classifier(config, mixer, **sizes, rngs=nnx.Rngs(0)))
    return num_parameters(nnx.state(model, nnx.Param))


@pytest.mark.parametrize("name", LADDER)
def test_a_rung_has_at_most_ten_percent_more_parameters_than_softmax(name):
    assert size(LADDER[name]) <= 1.1 * size("softmax")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("poles=0", "poles must be at least 1; got 0"),
        ("taps=4", "taps must be odd and positive, so that it has a center; got 4"),
        ("horizon=2", "horizon must be more than 2 tokens; got 2"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        get_mixer(f"{RUNG}:{options}")(SPEC, rngs=nnx.Rngs(0))


def test_the_command_compares_the_mixers_of_the_rungs(monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(memory_ladder.lra, "main", calls.append)
    command = ["memory_ladder", "order", "--rungs", "none", "gate-in", "--preset", "smoke"]
    monkeypatch.setattr("sys.argv", command)
    memory_ladder.main()
    assert calls == [["compare", "order", "--mixers", "none", f"{RUNG}:gate=input", "--preset", "smoke"]]
    monkeypatch.setattr("sys.argv", ["memory_ladder", "order", "--rungs", "gate-inn"])
    with pytest.raises(SystemExit):
        memory_ladder.main()
    assert "There is no rung 'gate-inn'. Did you mean 'gate-in'?" in capsys.readouterr().err
