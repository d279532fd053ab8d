"""Options of mixers, and tasks outside the package: parsed, checked before training, named in full."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import arena

from lra_tasks import UsageError, compare, restore, train
from lra_tasks.data.batches import evaluation_batches
from lra_tasks.data.dataset import load, open_dataset
from lra_tasks.model.mixers import MixerSpec, get_mixer
from lra_tasks.tasks import TASKS, get_task
from lra_tasks.training.step import Trainer

MIXERS = """
from typing import Literal
from flax import nnx

class Mine(nnx.Module):
    def __init__(self, spec, *, rngs, state: int = 4, rate: float = 0.1, kind: Literal["sum", "mean"] = "sum",
                 note: str | None = None, plain=1.0):
        if state < 1:
            raise ValueError(f"state must be positive; got {state}.")
        self.inner = nnx.Linear(spec.width, state, rngs=rngs)
        self.outer = nnx.Linear(state, spec.width, rngs=rngs)

    def __call__(self, x, mask, *, deterministic, rngs):
        return self.outer(self.inner(x))
"""
SPEC = MixerSpec(width=8, num_heads=2, qkv_features=8, length=16, dropout_rate=0.0, dtype=jnp.float32)


@pytest.fixture
def user_modules(tmp_path, monkeypatch):
    (tmp_path / "mixers_with_options.py").write_text(MIXERS)
    (tmp_path / "tasks_of_a_user.py").write_text(
        "import dataclasses\n"
        "from lra_tasks.tasks import TASKS\n"
        "TASK = dataclasses.replace(TASKS['listops'], name='mine', presets={})\n"
        "NUMBER = 3\n"
    )
    (tmp_path / "invalid_syntax.py").write_text("TASK =\n")
    (tmp_path / "needs_another_module.py").write_text("TASK = None\nimport another\n")
    monkeypatch.syspath_prepend(tmp_path)


def test_options_reach_the_layer():
    def layer(name):
        attention = get_mixer(name)(SPEC, rngs=nnx.Rngs(0)).attention
        return attention.variant.rescale, attention.temperature, attention.variant.output

    assert layer("hrr:rescale=True,temperature=0.5,output=unbound") == (True, 0.5, "unbound")
    assert layer("hrr") == (False, 1.0, "weighted")


@pytest.mark.usefixtures("user_modules")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "hrr:rescal=True",
            r"'hrr' has no option 'rescal'\. Did you mean 'rescale'\? .*rescale: bool = False",
        ),
        (
            "hrr:rescale=1",
            r"'hrr' needs bool for its option 'rescale'; got 1\. Its options are: rescale: bool",
        ),
        ("hrr:temperature=warm", r"needs float for its option 'temperature'; got 'warm'"),
        ("hrr:output=sum", r"needs Literal\['weighted', 'unbound'\] for its option 'output'; got 'sum'"),
        ("hrr:implementation=fast", r"Literal\['fft', .*\] \| None for its option 'implementation'"),
        (
            "softmax:rescale=True",
            r"'softmax' has no option 'rescale'\. Its options are: rotary: bool = False",
        ),
        ("linear:rescale=True", r"'linear' has no option 'rescale'\. It takes no options"),
        ("none:rescale=True", r"'none' has no options; got rescale"),
        ("mixers_with_options:Mine:state=True", r"'mixers_with_options:Mine' needs int .* got True"),
        ("mixers_with_options:Mine:plain=abc", r"needs float for its option 'plain'; got 'abc'"),
        ("mixers_with_options:Mine:size=3", r"has no option 'size'.*state: int = 4, rate: float = 0.1"),
        ("mixers_with_options:Mine:rngs=3", r"has no option 'rngs'"),
        ("mixers_with_options:Mine:spec=3", r"has no option 'spec'"),
    ],
)
def test_options_that_a_mixer_does_not_accept_are_refused(name, message):
    with pytest.raises(UsageError, match=message):
        get_mixer(name)


@pytest.mark.usefixtures("user_modules")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mixers_with_options:Mine:state=-1", r"rejects the options \{'state': -1\}: state must be positive"),
        (
            "hrr:temperature=-1.0",
            r"rejects the options .*temperature must be positive; got -1\.0.*rescale: bool",
        ),
    ],
)
def test_values_that_a_mixer_rejects_are_reported_before_training(name, message, smoke_data, tmp_path):
    with pytest.raises(UsageError, match=message):
        train(arena.change(mixer=name), tmp_path / "run", data_dir=smoke_data)
    with pytest.raises(UsageError, match=message):
        compare("listops", ["none", name], arena.CONFIG.settings, tmp_path / "race", data_dir=smoke_data)
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "race").exists()


@pytest.mark.usefixtures("user_modules")
def test_a_comparison_of_options(smoke_data, tmp_path):
    names = ["hrr", "hrr:temperature=0.5,rescale=True", "none", "mixers_with_options:Mine:state=64"]
    settings = dataclasses.replace(arena.CONFIG.settings, num_steps=2, eval_every=2)
    report = compare("listops", names, settings, tmp_path, data_dir=smoke_data)
    full = ["hrr", "hrr:rescale=True,temperature=0.5", "none", "mixers_with_options:Mine:state=64"]
    assert [row.mixer for row in report.rows] == full
    folders = {json.loads(path.read_text())["mixer"] for path in tmp_path.glob("*/summary.json")}
    assert folders == set(full)
    for name in full:
        assert name in report.markdown()
    losses = [json.loads(p.read_text())["test_loss"] for p in tmp_path.glob("hrr*/summary.json")]
    assert len(set(losses)) == 2


def test_restore_returns_the_model_of_the_best_validation(smoke_run, smoke_data):
    model, config, task = restore(smoke_run)
    assert (config, task) == (arena.CONFIG, get_task("listops"))
    source = load("listops", "test", smoke_data, variant="smoke")
    settings = config.settings
    correct = 0
    evaluated = nnx.jit(lambda model, tokens, mask: model(tokens, mask, deterministic=True))
    for batch in evaluation_batches(source, length=settings.length, batch_size=64):
        logits = evaluated(model, batch["tokens"], batch["mask"])
        correct += int(np.sum((np.argmax(logits, -1) == batch["label"]) * batch["weight"]))
    assert 100 * correct / len(source) == arena.summary(smoke_run)["test_accuracy"]


def test_restore_without_a_run_is_refused(tmp_path):
    with pytest.raises(UsageError, match=f"There is no run in {tmp_path}"):
        restore(tmp_path)


@pytest.mark.usefixtures("user_modules")
def test_a_task_outside_the_package_runs(smoke_data, tmp_path):
    task = get_task("tasks_of_a_user:TASK")
    assert (task.name, task.key) == ("mine", "tasks_of_a_user:TASK")
    assert TASKS["listops"].key == "listops"
    config = arena.change(task="tasks_of_a_user:TASK", mixer="none", num_steps=2)
    summary = train(config, tmp_path / "run", data_dir=smoke_data)
    assert summary["title"] == "mine/smoke"
    assert restore(tmp_path / "run")[2] == task


def test_an_open_dataset_of_another_task_or_variant_is_refused(smoke_data, tmp_path):
    dataset = open_dataset("listops", "smoke", smoke_data)
    other = arena.change(variant="default")
    with pytest.raises(UsageError, match=r"dataset must be that of listops/default; got listops/smoke"):
        train(other, tmp_path / "run", dataset=dataset)
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("user_modules")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tasks_of_a_user:NUMBER", "must be an instance of lra_tasks.tasks.Task; got 3"),
        ("tasks_of_a_user:TUSK", "cannot be imported: .*TUSK"),
        ("no_such_module:TASK", "No module named 'no_such_module'. .*PYTHONPATH"),
        ("needs_another_module:TASK", r"ModuleNotFoundError: No module named 'another' \(.*, line 2\)"),
        ("invalid_syntax:TASK", r"SyntaxError: .*invalid_syntax.py, line 1\)"),
        (":TASK", "the form is package.module:NAME"),
        ("listop", "Did you mean 'listops'.*package.module:TASK"),
    ],
)
def test_an_invalid_task_is_refused(name, message):
    with pytest.raises(UsageError, match=message):
        get_task(name)


def test_the_mixer_of_a_trainer_has_its_options():
    trainer = Trainer(
        arena.change(mixer="hrr", mixer_options={"learn_temperature": True}), get_task("listops")
    )
    names = {str(path) for path, _ in nnx.to_flat_state(jax.eval_shape(trainer.init).params)}
    assert any("log_temperature" in name for name in names)
