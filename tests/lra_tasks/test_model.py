"""The encoder and its mixers: padding, pooling, positions, dtypes, and the number of parameters."""

import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lra_tasks import Config, ModelConfig, Settings, UsageError
from lra_tasks.model.encoder import Classifier, num_parameters, sinusoidal_positions
from lra_tasks.model.mixers import get_mixer
from lra_tasks.model.padding import reads_padding
from lra_tasks.tasks import get_task
from lra_tasks.training.step import Trainer

MIXERS = ("hrr", "softmax", "none")
POOLINGS = ("mean", "first", "cls")
V, C, L = 17, 7, 24


def make_config(**model):
    length = model.pop("length", L)
    mixer = model.pop("mixer", "hrr")
    sizes = {"width": 12, "num_heads": 2, "num_layers": 2, "mlp_features": 10, "dropout_rate": 0.0}
    settings = Settings(length=length, batch_size=8, model=ModelConfig(**sizes | model))
    return Config(settings=settings, task="listops", mixer=mixer)


def classifier(config, rngs, **options):
    settings = config.settings
    return Classifier(
        settings.model,
        config.mixer_name,
        length=settings.length,
        vocab_size=V,
        num_classes=C,
        rngs=rngs,
        **options,
    )


def build(seed=0, **options):
    return classifier(make_config(**options), nnx.Rngs(seed))


@nnx.jit
def classify(model, tokens, mask):
    return model(tokens, mask, deterministic=True)


def batch(sizes, length, seed=0):
    tokens = np.random.default_rng(seed).integers(1, V, (len(sizes), length)).astype(np.int32)
    return jnp.asarray(tokens), jnp.asarray(np.arange(length) < np.array(sizes)[:, None])


@pytest.mark.parametrize("positions", ["learned", "sinusoidal"])
@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("mixer", MIXERS)
def test_padding_changes_nothing(mixer, pooling, positions):
    model = build(mixer=mixer, pooling=pooling, positions=positions)
    tokens, mask = batch([5, 11, 1], 11)
    expected = classify(model, tokens, mask)
    longer = jnp.pad(tokens, ((0, 0), (0, 9)), constant_values=3)
    np.testing.assert_allclose(classify(model, longer, jnp.pad(mask, ((0, 0), (0, 9)))), expected, atol=2e-6)
    np.testing.assert_array_equal(classify(model, jnp.where(mask, tokens, 3), mask), expected)
    other_token = tokens.at[:, 0].set(tokens[:, 0] % (V - 1) + 1)
    moved = jnp.abs(classify(model, other_token, mask) - expected).max(axis=-1)
    if mixer == "none" and pooling == "cls":
        assert (moved == 0).all()
    else:
        assert (moved > (1e-6 if mixer == "hrr" and pooling == "cls" else 1e-4)).all()


@pytest.mark.parametrize("mixer", MIXERS)
def test_token_order_matters_and_rows_are_independent(mixer):
    model = build(mixer=mixer, positions="sinusoidal")
    tokens, mask = batch([9, 9], 9)
    both = classify(model, tokens, mask)
    np.testing.assert_allclose(both[1:], classify(model, tokens[1:], mask[1:]), atol=2e-6)
    assert jnp.abs(classify(model, tokens[:, ::-1], mask) - both).max() > 1e-4


def last_states(model, tokens, mask):
    """Returns the output of the blocks, before pooling."""
    x = model.embedding(tokens) + jnp.asarray(sinusoidal_positions(tokens.shape[1], 12))
    for block in model.blocks:
        x = block(x, mask, deterministic=True, rngs=None)
    return np.asarray(x)


def test_pooling_by_hand():
    tokens, mask = batch([4, 9, 1], 9)
    model = build(pooling="mean", positions="sinusoidal")
    states = last_states(model, tokens, mask)
    expected = np.stack([states[row, :size].mean(axis=0) for row, size in enumerate((4, 9, 1))])
    np.testing.assert_allclose(model.encode(tokens, mask, deterministic=True), expected, atol=1e-6)
    model = build(pooling="first", positions="sinusoidal")
    expected = last_states(model, tokens, mask)[:, 0]
    np.testing.assert_allclose(model.encode(tokens, mask, deterministic=True), expected, atol=1e-6)


def test_cls_is_a_token_before_the_sequence():
    tokens, mask = batch([4, 9, 1], 9)
    model = build(mixer="softmax", pooling="cls", positions="sinusoidal")
    x = model.embedding(tokens) + jnp.asarray(sinusoidal_positions(9, 12))
    x = jnp.concatenate([jnp.broadcast_to(model.cls[...], (3, 1, 12)), x], axis=1)
    seen = jnp.concatenate([jnp.ones((3, 1), bool), mask], axis=1)
    for block in model.blocks:
        x = block(x, seen, deterministic=True, rngs=None)
    np.testing.assert_allclose(model.encode(tokens, mask, deterministic=True), x[:, 0], atol=1e-6)
    full = jnp.ones((1, L), jnp.int32)  # the extra token takes no position
    assert model(full, full > 0, deterministic=True).shape == (1, C)


@pytest.mark.parametrize("width", [1, 6, 7])
def test_sinusoidal_positions(width):
    table = sinusoidal_positions(50, width)
    half = -(-width // 2)
    for t in (0, 1, 13, 49):
        for d in range(width):
            angle = t / 10000 ** (2 * (d % half) / width)
            expected = np.sin(angle) if d < half else np.cos(angle)
            assert table[t, d] == pytest.approx(expected, abs=2e-6)
    assert table.shape == (50, width)
    assert table.dtype == np.float32


def count(config):
    model = nnx.eval_shape(lambda: classifier(config, nnx.Rngs(0)))
    return num_parameters(nnx.state(model, nnx.Param))


def expected_count(mixer, *, learned, cls, qkv=20):
    d, f, layers = 12, 10, 2
    attention = 0 if mixer == "none" else 2 * d + 3 * d * qkv + qkv * d
    block = attention + 2 * d + (d * f + f) + (f * d + d)
    head = 2 * d + (d * f + f) + (f * C + C)
    return V * d + learned * L * d + cls * d + layers * block + head


@pytest.mark.parametrize("positions", ["learned", "sinusoidal"])
@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("mixer", MIXERS)
def test_number_of_parameters(mixer, pooling, positions):
    config = make_config(mixer=mixer, pooling=pooling, positions=positions, qkv_features=20)
    assert count(config) == expected_count(mixer, learned=positions == "learned", cls=pooling == "cls")


def test_mixers_differ_in_their_branch_alone():
    trees = {
        mixer: nnx.to_flat_state(nnx.state(nnx.eval_shape(lambda m=mixer: build(mixer=m)), nnx.Param))
        for mixer in MIXERS
    }
    paths = {mixer: {path for path, _ in tree if "mixer" not in str(path)} for mixer, tree in trees.items()}
    assert paths["hrr"] == paths["softmax"] == paths["none"]
    assert {path for path, _ in trees["none"]} == paths["none"]
    assert (
        count(make_config(mixer="hrr"))
        == count(make_config(mixer="softmax"))
        > count(make_config(mixer="none"))
    )


@pytest.mark.parametrize("mixer", MIXERS)
def test_bfloat16_is_close_to_float32(mixer):
    config = make_config(mixer=mixer)
    half = make_config(mixer=mixer, dtype="bfloat16")
    tokens, mask = batch([5, 9], 9)
    logits = {}
    for name, chosen in {"float32": config, "bfloat16": half}.items():
        model = classifier(chosen, nnx.Rngs(0))
        dtypes = {leaf.dtype for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))}
        assert dtypes == {jnp.dtype("float32")}
        logits[name] = classify(model, tokens, mask)
        assert logits[name].dtype == jnp.float32
    difference = jnp.abs(logits["float32"] - logits["bfloat16"]).max()
    assert 0 < difference < 0.05 * jnp.abs(logits["float32"]).max()


def test_a_sequence_that_is_too_long_is_refused():
    tokens, mask = batch([L + 1], L + 1)
    for positions in ("learned", "sinusoidal"):
        with pytest.raises(UsageError, match=f"at most {L} positions, the model's; got {L + 1}"):
            build(positions=positions)(tokens, mask, deterministic=True)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("mixer", MIXERS)
def test_gradients_are_finite_with_a_row_of_padding(mixer, pooling):
    model = build(mixer=mixer, pooling=pooling)
    tokens, mask = batch([6, 0], 8)

    def loss(model):
        return jnp.sum(model(tokens, mask, deterministic=True) ** 2)

    gradients = jax.tree.leaves(nnx.jit(nnx.grad(loss))(model))
    assert all(jnp.isfinite(leaf).all() for leaf in gradients)
    assert any((leaf != 0).any() for leaf in gradients)


@pytest.mark.parametrize("mixer", MIXERS)
def test_dropout_follows_its_key(mixer):
    model = build(mixer=mixer, dropout_rate=0.3)
    tokens, mask = batch([6, 8], 8)

    @nnx.jit
    def dropped(model, key):
        return model(tokens, mask, deterministic=False, rngs=nnx.Rngs(dropout=key))

    def logits(seed):
        return dropped(model, jax.random.key(seed))

    assert (logits(0) == logits(0)).all()
    assert (logits(0) != logits(1)).any()
    assert (logits(0) != classify(model, tokens, mask)).any()


@pytest.mark.parametrize(("inside", "expected"), [(None, 0.3), (0.1, 0.1), (0.0, 0.0)])
def test_dropout_inside_the_mixer_has_its_own_rate(inside, expected):
    block = build(dropout_rate=0.3, mixer_dropout_rate=inside).blocks[0]
    assert (block.mixer.attention.dropout_rate, block.dropout.rate) == (expected, 0.3)


# Mixers of the user

MIXERS_OF_A_USER = """
    import functools
    import jax.numpy as jnp
    from flax import nnx

    class Mean(nnx.Module):
        def __init__(self, spec, *, rngs):
            self.out = nnx.Linear(spec.width, spec.width, dtype=spec.dtype, rngs=rngs)

        def __call__(self, x, mask, *, deterministic, rngs):
            weights = mask / mask.sum(axis=1, keepdims=True)
            return jnp.broadcast_to(self.out(jnp.einsum("bt,btd->bd", weights, x))[:, None], x.shape)

    class Pooled(Mean):
        def __call__(self, x, mask, *, deterministic, rngs):
            return x.mean(axis=1)

    class Pair(Mean):
        def __call__(self, x, mask, *, deterministic, rngs):
            return x, mask

    class Counting(Mean):
        def __init__(self, spec, *, rngs):
            super().__init__(spec, rngs=rngs)
            self.calls = nnx.Variable(jnp.zeros(()))

    class Dropping(Mean):
        def __init__(self, spec, *, rngs):
            super().__init__(spec, rngs=rngs)
            self.dropout = nnx.Dropout(0.1, rngs=rngs)

    class Careless(Mean):
        def __call__(self, x, mask, *, deterministic, rngs):
            return super().__call__(x, jnp.ones_like(mask), deterministic=deterministic, rngs=rngs)

    class Silent(Careless):
        def __init__(self, spec, *, rngs):
            zeros = nnx.initializers.zeros
            self.out = nnx.Linear(spec.width, spec.width, dtype=spec.dtype, kernel_init=zeros, rngs=rngs)

    class Faint(nnx.Module):
        def __init__(self, spec, *, rngs):
            pass

        def __call__(self, x, mask, *, deterministic, rngs):
            return x + x.mean(axis=1, keepdims=True)

    class Wrapped(Mean):
        def mix(self, x, mask, extra, *, deterministic, rngs):
            return super().__call__(x, mask, deterministic=deterministic, rngs=rngs)

        __call__ = functools.partialmethod(mix, extra=1)

    class Unsaid(nnx.Module):
        pass

    class Greedy(Mean):
        def __init__(self, spec, width, *, rngs):
            super().__init__(spec, rngs=rngs)

    class Maskless(Mean):
        def __call__(self, x, *, deterministic, rngs):
            return x

    def function(x):
        return x
"""


@pytest.fixture
def user_module(tmp_path, monkeypatch):
    (tmp_path / "mixers_of_a_user.py").write_text(textwrap.dedent(MIXERS_OF_A_USER))
    monkeypatch.syspath_prepend(tmp_path)


def compile_step(mixer):
    trainer = Trainer(make_config(mixer=mixer), get_task("listops"))
    return trainer.compile_training(trainer.init())


def test_the_first_token_costs_no_more_than_the_mean():
    """With x[:, 0] a step reads and writes a seventh more, and takes twice the time of `none`."""

    def moved(pooling):
        sizes = {"length": 2000, "width": 32, "mlp_features": 64, "num_layers": 1}
        trainer = Trainer(make_config(mixer="none", pooling=pooling, **sizes), get_task("listops"))
        return trainer.compile_training(trainer.init()).cost_analysis()["bytes accessed"]

    assert moved("first") <= 1.03 * moved("mean")


@pytest.mark.usefixtures("user_module")
def test_a_mixer_of_the_user_runs():
    name = "mixers_of_a_user:Mean"
    tokens, mask = batch([5, 9], 9)
    model = build(mixer=name)
    assert model(tokens, mask, deterministic=True).shape == (2, C)
    assert count(make_config(mixer=name)) - count(make_config(mixer="none")) == 2 * (24 + 12 * 12 + 12)
    compile_step(name)


@pytest.mark.usefixtures("user_module")
@pytest.mark.parametrize(("name", "got"), [("Pooled", r"\(8, 12\)"), ("Pair", "tuple")])
def test_a_mixer_with_a_wrong_output_is_refused(name, got):
    with pytest.raises(UsageError, match=rf"'mixers_of_a_user:{name}' must .*\(8, 24, 12\).* got {got}"):
        compile_step(f"mixers_of_a_user:{name}")


@pytest.mark.usefixtures("user_module")
@pytest.mark.parametrize("model", [{}, {"pooling": "cls"}, {"dtype": "bfloat16"}], ids=str)
def test_a_mixer_that_reads_padding_is_detected(model):
    assert reads_padding(make_config(mixer="mixers_of_a_user:Careless", **model))
    assert reads_padding(make_config(mixer="mixers_of_a_user:Silent", **model))  # its output begins as zeros
    assert reads_padding(make_config(mixer="mixers_of_a_user:Faint", **model | {"length": 4096}))
    for mixer in ("mixers_of_a_user:Mean", "hrr", "softmax", "none"):
        assert not reads_padding(make_config(mixer=mixer, **model))


@pytest.mark.usefixtures("user_module")
@pytest.mark.parametrize(("name", "state"), [("Counting", "calls"), ("Dropping", "dropout/rngs")])
def test_a_mixer_that_keeps_state_is_refused(name, state):
    with pytest.raises(
        UsageError,
        match=rf"'mixers_of_a_user:{name}' keeps state .*blocks/0/mixer/{state}.*`rngs` of the call",
    ):
        compile_step(f"mixers_of_a_user:{name}")


@pytest.mark.usefixtures("user_module")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module:Mean", "No module named 'no_such_module'"),
        ("mixers_of_a_user:Maen", "has no attribute 'Maen'"),
        ("mixers_of_a_user:", "must be"),
        (":Mean", "must be"),
        ("mixers_of_a_user:function", "must be a class"),
        ("mixers_of_a_user:Unsaid", r"must have a method __init__\(self, spec, \*, rngs\); got none"),
        ("mixers_of_a_user:Greedy", r"got __init__\(self, spec, width, \*, rngs\): missing .*'width'"),
        ("mixers_of_a_user:Maskless", r"__call__\(self, x, mask, \*, deterministic, rngs\); got __call__"),
    ],
)
def test_an_invalid_mixer_is_refused(name, message):
    with pytest.raises(
        UsageError, match=rf"mixer .*'{name}'.*{message}|'{name}' .*{message}|{message}.*'{name}'"
    ):
        get_mixer(name)


@pytest.mark.usefixtures("user_module")
def test_a_mixer_with_a_wrapped_call_is_accepted():
    assert get_mixer("mixers_of_a_user:Wrapped") is not None


def test_a_misspelled_mixer_gets_a_suggestion():
    with pytest.raises(
        UsageError, match=r"There is no mixer 'hr'. Did you mean 'hrr'\?.*package.module:Class"
    ):
        get_mixer("hr")
    with pytest.raises(UsageError, match=r"There is no mixer 'mixers_of_a_user.Mean'"):
        get_mixer("mixers_of_a_user.Mean")
