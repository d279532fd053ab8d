"""Training: schedules, one step, any number of devices, interruptions at any moment, and faults."""

import contextlib
import ctypes
import ctypes.util
import dataclasses
import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from helpers import arena
from test_tensorboard import assert_curves_are_the_rows

from lra_tasks import Interrupted, OptimizerConfig, UsageError, evaluate, train
from lra_tasks.config import to_json
from lra_tasks.data.batches import training_batches
from lra_tasks.data.dataset import load
from lra_tasks.files import locked, write_json
from lra_tasks.progress import Silent
from lra_tasks.tasks import get_task
from lra_tasks.training import loop
from lra_tasks.training.checkpoint import Checkpoints
from lra_tasks.training.memory import memory_bytes
from lra_tasks.training.metrics import Metrics
from lra_tasks.training.optimizer import make_optimizer
from lra_tasks.training.run_folder import check_folder
from lra_tasks.training.step import Trainer

CONFIG = arena.CONFIG
change = arena.change
TASK = get_task("listops")


@pytest.fixture
def batches(smoke_data):
    source = load(TASK, "train", smoke_data, variant="smoke")
    return training_batches(
        source, length=CONFIG.settings.length, batch_size=CONFIG.settings.batch_size, seed=CONFIG.seed
    )


class Hook(Silent):
    """Calls a function at every report of progress."""

    def __init__(self, hook):
        super().__init__()
        self._hook = hook

    def show(self, message, done=0, total=0, note=""):
        self._hook(message, done)


def at_step(step, act):
    """Returns a progress that acts once, before the given step (counted from 0)."""
    waiting = [act]

    def hook(message, done):
        if message.endswith("training") and done == step and waiting:
            waiting.pop()()

    return Hook(hook)


# The mixer


def test_a_mixer_that_reads_padding_is_reported(smoke_data, tmp_path, monkeypatch):
    (tmp_path / "careless.py").write_text(
        "from flax import nnx\n"
        "class Sum(nnx.Module):\n"
        "    def __init__(self, spec, *, rngs): pass\n"
        "    def __call__(self, x, mask, *, deterministic, rngs): return x - x.sum(1, keepdims=True)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    said = []
    progress = Silent()
    progress.say = said.append
    config = change(mixer="careless:Sum", num_steps=1)
    summary = train(config, tmp_path / "run", data_dir=smoke_data, progress=progress)
    assert summary["reads_padding"]
    assert [message for message in said if "the content of padding changes" in message]


def test_a_mixer_that_ignores_padding_is_not_reported(smoke_run):
    assert json.loads((smoke_run / "summary.json").read_text())["reads_padding"] is False


# The optimizer


def rates(config, num_steps):
    """Returns the learning rates, measured on a parameter with gradient 1."""
    optimizer = make_optimizer(dataclasses.replace(config, clip_norm=None, weight_decay=0.0), num_steps)
    gradient = {"w": jnp.ones((1,))}

    def step(moments, _):
        updates, moments = optimizer.update(gradient, moments, gradient)
        return moments, -updates["w"][0]  # Adam's ratio is 1 for a constant gradient

    return np.asarray(jax.lax.scan(step, optimizer.init(gradient), length=num_steps)[1])


@pytest.mark.parametrize("warmup", [0, 1, 7])
def test_schedules_follow_their_formulas(warmup):
    rate, steps = 0.05, 60

    def config(schedule):
        return OptimizerConfig(
            learning_rate=rate,
            schedule=schedule.removeprefix("smooth "),
            staircase="smooth" not in schedule,
            warmup_steps=warmup,
            decay_rate=0.5,
            decay_steps=10,
            final_learning_rate=0.01,
        )

    s = np.arange(1, steps + 1)
    after = s - 1 - warmup  # steps since the warm-up
    expected = {
        "rsqrt": rate * np.minimum(1, s / max(warmup, 1)) / np.sqrt(np.maximum(s, warmup)),
        "constant": np.full(steps, rate),
        "cosine": rate * 0.5 * (1 + np.cos(np.pi * after / (steps - warmup))),
        "exponential": np.maximum(rate * 0.5 ** (np.maximum(after, 0) // 10), 0.01),
        "smooth exponential": np.maximum(rate * 0.5 ** (after / 10), 0.01),
    }
    for schedule, values in expected.items():
        if schedule != "rsqrt":
            values = np.where(s <= warmup, rate * s / max(warmup, 1), values)
        np.testing.assert_allclose(rates(config(schedule), steps), values, rtol=2e-4, atol=1e-7)
    assert expected["exponential"][-1] == 0.01  # the lowest rate is reached


def test_weight_decay_spares_vectors_and_clipping_limits_the_norm():
    config = OptimizerConfig(learning_rate=0.1, schedule="constant", weight_decay=0.5)
    params = {"kernel": jnp.full((2, 2), 3.0), "bias": jnp.full((2,), 3.0), "heads": jnp.full((2, 1, 2), 3.0)}
    optimizer = make_optimizer(config, 10)
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zero, optimizer.init(params), params)
    np.testing.assert_allclose(updates["kernel"], -0.1 * 0.5 * 3.0, rtol=1e-6)
    np.testing.assert_allclose(updates["heads"], -0.1 * 0.5 * 3.0, rtol=1e-6)
    np.testing.assert_array_equal(updates["bias"], 0.0)

    huge = jax.tree.map(lambda p: jnp.full_like(p, 1e3), params)
    for clip_norm, norm in ((1.0, 1.0), (None, 1e3 * math.sqrt(10))):
        optimizer = make_optimizer(dataclasses.replace(config, clip_norm=clip_norm), 10)
        _, moments = optimizer.update(huge, optimizer.init(params), params)
        first = next(leaf.mu for leaf in jax.tree.leaves(moments, is_leaf=_is_adam) if _is_adam(leaf))
        np.testing.assert_allclose(optax.tree.norm(first), 0.1 * norm, rtol=1e-5)


def _is_adam(leaf):
    return isinstance(leaf, optax.ScaleByAdamState)


# One step


@pytest.fixture(scope="module")
def compiled_trainer():
    """Returns the trainer of `CONFIG`, and its compiled step."""
    trainer = Trainer(CONFIG, TASK)
    return trainer, trainer.compile_training(trainer.init())


def test_a_step_follows_the_formula(compiled_trainer, batches):
    """Compares one step with its formula: label-smoothed mean cross-entropy, clipping, Adam."""
    trainer, compiled = compiled_trainer
    batch = trainer.shard(next(batches))
    before = jax.device_get(trainer.init().params)
    state, (loss, correct, norm) = compiled(trainer.init(), batch)
    graph = nnx.graphdef(trainer.model())
    key = jax.random.fold_in(jax.random.split(jax.random.key(CONFIG.seed))[1], 0)

    @jax.jit
    @jax.value_and_grad
    def value_and_gradient(params):
        logits = nnx.merge(graph, params)(
            batch["tokens"], batch["mask"], deterministic=False, rngs=nnx.Rngs(dropout=key)
        )
        return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(8), batch["label"]])

    expected, gradients = value_and_gradient(before)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(norm, optax.tree.norm(gradients), rtol=1e-4)
    assert 0 <= correct <= 8
    assert int(state.step) == 1
    first_rate = CONFIG.settings.optimizer.learning_rate / CONFIG.settings.optimizer.warmup_steps
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(state.params), strict=True):
        assert np.abs(np.asarray(new) - old).max() <= first_rate * 1.001


def test_a_model_overfits_a_batch(batches):
    trainer = Trainer(change(optimizer={"warmup_steps": 0, "learning_rate": 1e-2}, num_steps=200), TASK)
    state = trainer.init()
    compiled = trainer.compile_training(state)
    batch, losses = trainer.shard(next(batches)), []
    for _ in range(60):
        state, (loss, _, _) = compiled(state, batch)
        losses.append(float(loss))
    assert losses[-1] < 0.5 * losses[0]


def test_dropout_differs_from_step_to_step(batches):
    trainer = Trainer(change(optimizer={"learning_rate": 1e-30}), TASK)
    state = trainer.init()
    compiled = trainer.compile_training(state)
    batch, losses = trainer.shard(next(batches)), []
    for _ in range(4):
        state, (loss, _, _) = compiled(state, batch)
        losses.append(float(loss))
    assert len(set(losses)) == 4


def test_state_is_donated_and_nothing_is_gathered(compiled_trainer):
    trainer, compiled = compiled_trainer
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(trainer.init()))
    memory = compiled.memory_analysis()
    assert memory.alias_size_in_bytes >= held
    assert memory_bytes(compiled)[0] >= held + memory.temp_size_in_bytes
    text = compiled.as_text()
    assert jax.device_count() > 1
    assert "all-reduce" in text  # of the gradients
    for operation in ("all-gather", "all-to-all", "collective-permute"):
        assert operation not in text


@pytest.mark.usefixtures("own_trainers")
def test_everything_compiles_once(smoke_data, tmp_path, monkeypatch):
    traced = []
    for name in ("_train_step", "_eval_step"):
        function = getattr(Trainer, name)

        def count(self, *arguments, name=name, function=function):
            traced.append(name)
            return function(self, *arguments)

        monkeypatch.setattr(Trainer, name, count)
    train(CONFIG, tmp_path / "run", data_dir=smoke_data)
    assert sorted(traced) == ["_eval_step", "_train_step"]


def test_one_device_gives_the_parameters_of_four(smoke_run, smoke_data, tmp_path):
    assert arena.train_apart(CONFIG, tmp_path / "run", smoke_data, devices=1).returncode == 0
    four, one = arena.checkpoint(smoke_run), arena.checkpoint(tmp_path / "run")
    assert four.keys() == one.keys()
    for name, array in four.items():
        if "best_params" in name or "params" in name:
            np.testing.assert_allclose(one[name], array, atol=2e-4, rtol=1e-3, err_msg=name)
    for ours, theirs in zip(arena.rows(smoke_run), arena.rows(tmp_path / "run"), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-4)


def test_a_checkpoint_of_four_devices_opens_on_one(smoke_run, smoke_data):
    code = """
        import sys, json, jax
        from lra_tasks import evaluate
        assert jax.device_count() == 1
        print(json.dumps(evaluate(sys.argv[1], data_dir=sys.argv[2])))
    """
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code), str(smoke_run), str(smoke_data)],
        env=arena.environment(devices=1),
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    ours, summary = json.loads(result.stdout), arena.summary(smoke_run)
    assert ours["accuracy"] == pytest.approx(summary["test_accuracy"], abs=0.5)
    assert ours["loss"] == pytest.approx(summary["test_loss"], abs=1e-4)


# A whole run


def test_a_run_writes_its_files(smoke_run):
    assert {path.name for path in smoke_run.iterdir()} - {".lock"} == {
        "checkpoints", "config.json", "data.json", "env.json", "metrics.jsonl", "summary.json"
    }  # fmt: skip
    assert (smoke_run / "config.json").read_text() == to_json(CONFIG)
    rows = arena.rows(smoke_run)
    assert [(row["step"], row["split"]) for row in rows] == [
        (4, "train"), (5, "validation"), (8, "train"), (10, "validation"), (11, "train"), (11, "validation")
    ]  # fmt: skip
    summary = json.loads((smoke_run / "summary.json").read_text())
    best = max(
        (row for row in rows if row["split"] == "validation"), key=lambda r: (r["accuracy"], -r["loss"])
    )
    assert summary["best_step"] == best["step"]
    assert summary["validation_accuracy"] == best["accuracy"]
    assert summary["num_parameters"] == sum(
        array.size for name, array in arena.checkpoint(smoke_run).items() if "best_params" in name
    )
    assert summary["examples_per_second"] > 0
    assert summary["seconds"] > 0
    assert summary["peak_bytes"] > 4 * 4 * summary["num_parameters"]
    assert summary["data"] == json.loads((smoke_run / "data.json").read_text())
    assert summary["environment"] == json.loads((smoke_run / "env.json").read_text())
    assert len(summary["environment"]["devices"]) == 4


def test_evaluate_reproduces_the_summary(smoke_run, smoke_data):
    before = arena.snapshot(smoke_run)
    result, summary = evaluate(smoke_run, data_dir=smoke_data), arena.summary(smoke_run)
    assert (result["accuracy"], result["loss"], result["step"], result["num_examples"]) == (
        summary["test_accuracy"], summary["test_loss"], summary["best_step"], 256
    )  # fmt: skip
    assert arena.snapshot(smoke_run) == before
    with pytest.raises(UsageError, match=r"at most 256 positions, .*; got 300"):
        evaluate(smoke_run, length=300, data_dir=smoke_data)


def test_a_finished_run_is_not_repeated(smoke_run, smoke_data, monkeypatch):
    before = arena.snapshot(smoke_run)
    monkeypatch.setattr("lra_tasks.training.preflight.Trainer", None)
    assert train(CONFIG, smoke_run, data_dir=smoke_data) == json.loads(before["summary.json"])
    assert arena.snapshot(smoke_run) == before


def test_the_test_split_is_used_once_at_the_best_validation_step(smoke_data, tmp_path, monkeypatch):
    scores = iter([(20.0, 2.0), (30.0, 2.1), (30.0, 2.0), (30.0, 2.0), (25.0, 1.0), (77.0, 0.5)])
    seen = []

    def scripted(trainer, params, source, *arguments, limit=None, **options):
        seen.append((source.split, limit, [np.array(leaf) for leaf in jax.tree.leaves(params)]))
        return next(scores)

    monkeypatch.setattr(loop, "evaluate_params", scripted)
    summary = train(change(num_steps=10, eval_every=2), tmp_path, data_dir=smoke_data)
    assert [(split, limit) for split, limit, _ in seen] == [("validation", 16)] * 5 + [("test", None)]
    # The third of five: the lower loss decides a tie in accuracy, the earlier step a tie in both.
    assert (summary["best_step"], summary["validation_accuracy"], summary["test_accuracy"]) == (6, 30.0, 77.0)
    for best, tested, last in zip(seen[2][2], seen[5][2], seen[4][2], strict=True):
        np.testing.assert_array_equal(best, tested)
        assert (last != tested).any()


def test_an_interruption_keeps_the_best_parameters(smoke_data, tmp_path, monkeypatch):
    scores, seen = iter([(40.0, 2.0), (30.0, 1.0), (20.0, 1.0), (77.0, 0.5)]), []

    def scripted(trainer, params, *arguments, **options):
        seen.append([np.array(leaf) for leaf in jax.tree.leaves(params)])
        return next(scores)

    monkeypatch.setattr(loop, "evaluate_params", scripted)
    config = change(num_steps=6, eval_every=2)
    with pytest.raises(Interrupted):
        train(config, tmp_path, data_dir=smoke_data, progress=at_step(2, ask))
    summary = train(config, tmp_path, data_dir=smoke_data)
    assert (summary["best_step"], summary["validation_accuracy"], summary["test_accuracy"]) == (2, 40.0, 77.0)
    assert len(seen) == 4
    for best, tested in zip(seen[0], seen[3], strict=True):
        np.testing.assert_array_equal(best, tested)


# Interruptions


def ask():
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture(scope="session")
def moments(tmp_path_factory, smoke_data):
    """Returns a run in a separate process, and the number of its moments for a signal."""

    def make(folder):
        result = arena.train_apart(CONFIG, folder / "run", smoke_data)
        assert result.returncode == 0, result.stderr
        (folder / "moments").write_text(result.stdout.split()[-1])

    folder = arena.shared(tmp_path_factory, "moments", make)
    return folder / "run", int((folder / "moments").read_text())


def test_a_run_depends_on_its_configuration_alone(smoke_run, moments):
    arena.assert_same_run(smoke_run, moments[0])


def test_a_run_killed_at_random_moments_reaches_the_same_result(smoke_data, moments, tmp_path):
    undisturbed, count = moments
    draw, killed = random.Random(0), 0
    for _ in range(3):
        result = arena.train_apart(
            CONFIG, tmp_path / "run", smoke_data, "SIGKILL", draw.randrange(1, int(0.7 * count))
        )
        assert result.returncode in (0, -signal.SIGKILL), result.stderr
        killed += result.returncode != 0
    assert killed
    train(CONFIG, tmp_path / "run", data_dir=smoke_data, tensorboard=True)
    arena.assert_same_run(tmp_path / "run", undisturbed)
    assert_curves_are_the_rows(tmp_path / "run")


def test_a_run_saves_on_a_signal_and_resumes_identically(smoke_data, moments, tmp_path):
    undisturbed, count = moments
    run_dir = tmp_path / "run"
    result = arena.train_apart(CONFIG, run_dir, smoke_data, "SIGINT", int(0.4 * count))
    assert result.returncode == 0
    (step,) = re.findall(
        rf"^lra: Stopped at step (\d+) and saved in {run_dir}\. Repeat the same", result.stderr
    )
    assert "Traceback" not in result.stderr
    assert 0 < int(step) < CONFIG.settings.num_steps
    assert (run_dir / "checkpoints" / step).is_dir()
    assert not (run_dir / "summary.json").exists()
    train(CONFIG, run_dir, data_dir=smoke_data)
    arena.assert_same_run(run_dir, undisturbed)


@pytest.mark.parametrize("step", [0, 2, 3, 4, 7])
def test_a_run_can_stop_at_every_kind_of_step(step, smoke_data, smoke_run, tmp_path):
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted, match=f"Stopped at step {step + 1} and saved"):
        train(CONFIG, tmp_path, data_dir=smoke_data, progress=at_step(step, ask))
    assert signal.getsignal(signal.SIGTERM) is handler
    if step < 4:
        with pytest.raises(UsageError, match=f"{tmp_path} has no validated step yet"):
            evaluate(tmp_path, data_dir=smoke_data)
    else:
        assert evaluate(tmp_path, data_dir=smoke_data)["step"] == 5
    train(CONFIG, tmp_path, data_dir=smoke_data)
    arena.assert_same_run(tmp_path, smoke_run)


def test_a_run_in_buckets_resumes_identically_and_is_evaluated_as_without(smoke_data, tmp_path):
    """Of the examples, a seventh has at most 600 tokens; the others are padded to 800."""
    config = change(mixer="none", length=800, buckets=4, num_steps=6, eval_every=3, save_every=2)
    whole = train(config, tmp_path / "whole", data_dir=smoke_data)
    with pytest.raises(Interrupted):
        train(config, tmp_path / "halves", data_dir=smoke_data, progress=at_step(3, ask))
    train(config, tmp_path / "halves", data_dir=smoke_data)
    arena.assert_same_run(tmp_path / "halves", tmp_path / "whole")
    plain = change(config, buckets=1)
    (tmp_path / "whole" / "config.json").write_text(to_json(plain))
    result = evaluate(tmp_path / "whole", data_dir=smoke_data)
    assert result["accuracy"] == whole["test_accuracy"]
    assert result["loss"] == pytest.approx(whole["test_loss"], rel=1e-5)
    source = load(TASK, "train", smoke_data, variant="smoke")
    batches = training_batches(source, length=800, batch_size=8, seed=config.seed, buckets=4)
    assert {next(batches)["tokens"].shape[1] for _ in range(6)} == {600, 800}


def test_a_run_can_stop_during_the_final_test(smoke_data, smoke_run, tmp_path):
    """Otherwise a comparison would continue with the next mixer."""

    def hook(message, done):
        if message.endswith("testing") and done == 0:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted, match=f"saved in {tmp_path}"):
        train(CONFIG, tmp_path, data_dir=smoke_data, progress=Hook(hook))
    train(CONFIG, tmp_path, data_dir=smoke_data)
    arena.assert_same_run(tmp_path, smoke_run)


def test_a_second_signal_acts_at_once(smoke_data, tmp_path):
    def ask_twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(CONFIG, tmp_path, data_dir=smoke_data, progress=at_step(1, ask_twice))


def test_rows_of_lost_steps_and_torn_lines_are_removed(tmp_path):
    path = tmp_path / "metrics.jsonl"
    metrics = Metrics(path)
    metrics.drop_after(0)
    assert list(metrics.rows()) == []
    for step in (3, 6, 9):
        metrics.write({"step": step, "split": "train", "step_seconds": float(step)})
    with path.open("a") as file:
        file.write('{"step": 4, "sp')
    assert [row["step"] for row in metrics.rows()] == [3, 6, 9]
    metrics.drop_after(6)
    assert path.read_text().count("\n") == 2
    metrics.write({"step": 7, "split": "validation"})
    assert [row["step"] for row in metrics.rows()] == [3, 6, 7]
    assert metrics.median_step_seconds() == 4.5


# Bad input


def test_a_batch_that_the_devices_cannot_share_is_refused(smoke_data, tmp_path):
    with pytest.raises(UsageError, match=r"batch_size must be a multiple of .*4.*; got 6\."):
        train(change(batch_size=6), tmp_path / "run", data_dir=smoke_data)
    assert not (tmp_path / "run").exists()


def test_a_folder_of_another_configuration_is_refused(smoke_run, smoke_data):
    before = arena.snapshot(smoke_run)
    with pytest.raises(UsageError) as caught:
        train(change(seed=5, model={"width": 32}), smoke_run, data_dir=smoke_data)
    resume = f"`lra train --from {smoke_run} --run-dir {smoke_run}` resumes that run."
    for part in (str(smoke_run), "seed: 0, 5", "model.width: 16, 32", "nothing was changed", resume):
        assert part in str(caught.value)
    assert arena.snapshot(smoke_run) == before


def test_a_run_from_before_a_setting_existed_resumes_as_it_began(smoke_run, smoke_data, tmp_path):
    run_dir = shutil.copytree(smoke_run, tmp_path / "run")
    fields = json.loads((run_dir / "config.json").read_text())
    for name in ("mixer_dropout_rate", "pixels", "tie_dropout"):
        del fields["settings"]["model"][name]
    del fields["settings"]["optimizer"]["staircase"], fields["settings"]["buckets"]
    write_json(run_dir / "config.json", fields)
    (run_dir / "summary.json").unlink()
    shutil.rmtree(max((run_dir / "checkpoints").iterdir(), key=lambda folder: int(folder.name)))
    train(CONFIG, run_dir, data_dir=smoke_data)
    arena.assert_same_run(run_dir, smoke_run)


def test_a_folder_of_other_files_is_refused(smoke_data, tmp_path):
    (tmp_path / ".DS_Store").touch()
    check_folder(tmp_path, CONFIG)  # a folder that the file manager has shown is an empty one
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match=f"{tmp_path} contains files that are not part of a run"):
        train(CONFIG, tmp_path, data_dir=smoke_data)
    with pytest.raises(UsageError, match=r"thesis\.tex"):
        train(CONFIG, tmp_path / "thesis.tex", data_dir=smoke_data)
    with pytest.raises(UsageError, match=r"thesis\.tex"):
        train(CONFIG, tmp_path / "thesis.tex" / "run", data_dir=smoke_data)
    assert arena.snapshot(tmp_path) == {".DS_Store": b"", "thesis.tex": b"years of work"}


def test_missing_data_are_reported(tmp_path):
    with pytest.raises(UsageError, match="lra prepare text --variant smoke"):
        train(change(task="text"), tmp_path / "run", data_dir=tmp_path / "data")
    assert not (tmp_path / "run").exists()


def test_evaluation_on_other_data_is_refused(smoke_run, smoke_data, tmp_path):
    shutil.copytree(smoke_run, tmp_path / "run")
    origin = json.loads((tmp_path / "run" / "data.json").read_text())
    write_json(tmp_path / "run" / "data.json", origin | {"identity": "0" * 64})
    with pytest.raises(UsageError, match=r"began on other examples than .*listops/smoke"):
        evaluate(tmp_path / "run", data_dir=smoke_data)


def test_evaluation_on_devices_that_do_not_divide_the_batch(smoke_run, smoke_data, tmp_path):
    """A run may be trained on another number of devices."""
    shutil.copytree(smoke_run, tmp_path / "run")
    odd = change(batch_size=2 * jax.device_count() - 1)
    (tmp_path / "run" / "config.json").write_text(to_json(odd))
    result, expected = evaluate(tmp_path / "run", data_dir=smoke_data), arena.summary(smoke_run)
    assert result["accuracy"] == expected["test_accuracy"]
    assert result["loss"] == pytest.approx(expected["test_loss"], rel=1e-6)


def test_a_folder_that_another_run_takes_meanwhile_is_refused(smoke_data, tmp_path):
    """Of two commands with one folder, the one that compiles longer changes nothing in it."""
    run_dir = tmp_path / "run"
    other = change(mixer="none")

    def take(message, done):
        if message.endswith("compiling"):
            run_dir.mkdir()
            (run_dir / "config.json").write_text(to_json(other))

    with pytest.raises(UsageError, match=r"contains a run with another configuration.*mixer"):
        train(CONFIG, run_dir, data_dir=smoke_data, progress=Hook(take))
    assert (run_dir / "config.json").read_text() == to_json(other)
    assert not (run_dir / "data.json").exists()
    shutil.rmtree(run_dir)
    with contextlib.ExitStack() as held:

        def lock(message, done):
            if message.endswith("compiling"):
                run_dir.mkdir()
                held.enter_context(locked(run_dir / ".lock", "free"))

        with pytest.raises(UsageError, match=r"Process \d+ is training the run in"):
            train(CONFIG, run_dir, data_dir=smoke_data, progress=Hook(lock))
        assert [path.name for path in run_dir.iterdir()] == [".lock"]
    assert train(change(num_steps=1), run_dir, data_dir=smoke_data)  # left so by a kill


def test_evaluation_without_a_checkpoint_is_refused(smoke_run, smoke_data, tmp_path):
    shutil.copy(smoke_run / "config.json", tmp_path)
    with pytest.raises(UsageError, match=f"The run in {tmp_path} has no checkpoint yet"):
        evaluate(tmp_path, data_dir=smoke_data)


def largest(folder):
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def cut(folder):
    os.truncate(largest(folder / "state"), 10)


def remove_arrays(folder):
    shutil.rmtree(folder / "state" / "d")


def empty_record(folder):
    (folder / "record" / "metadata").write_text("")


def remove_state(folder):
    shutil.rmtree(folder / "state")


@pytest.mark.parametrize("damage", [cut, remove_arrays, empty_record, remove_state])
def test_a_damaged_checkpoint_is_reported(damage, smoke_data, smoke_run, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(smoke_run, run_dir)
    (run_dir / "summary.json").unlink()
    last = run_dir / "checkpoints" / "11"
    damage(last)
    # In a separate process: such a file makes Orbax's threads fail with output.
    result = arena.lra_apart("evaluate", run_dir, "--data-dir", smoke_data)
    assert result.returncode == 2
    (error,) = re.findall(r"lra: (The checkpoint .*)", result.stderr)
    assert re.search(rf"step 11 in .*damaged: delete {last} to", error)
    shutil.rmtree(last)  # as it says
    train(CONFIG, run_dir, data_dir=smoke_data)
    arena.assert_same_run(run_dir, smoke_run)


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        PermissionError(13, "Permission denied"),
        ValueError("DATA_LOSS: No space left on device"),
    ],
)
def test_an_unwritable_checkpoint_is_reported(error, smoke_data, smoke_run, tmp_path, monkeypatch):
    manager_save = Checkpoints.save.__globals__["ocp"].CheckpointManager.save

    def save(self, step, *arguments, **options):
        if step == 6:
            raise error
        return manager_save(self, step, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr("orbax.checkpoint.CheckpointManager.save", save)
        with pytest.raises(
            UsageError, match=f"step 6 cannot be written to {tmp_path}/checkpoints: .*untouched"
        ):
            train(CONFIG, tmp_path, data_dir=smoke_data)
    train(CONFIG, tmp_path, data_dir=smoke_data)
    arena.assert_same_run(tmp_path, smoke_run)


@pytest.fixture
def small_disk(tmp_path):
    """Mounts a file system of 3 MB, which requires permission to mount."""
    folder = tmp_path / "disk"
    folder.mkdir()
    libc = ctypes.CDLL(ctypes.util.find_library("c"), use_errno=True)
    if libc.mount(b"none", str(folder).encode(), b"tmpfs", 0, b"size=3m"):
        pytest.skip("no file system can be mounted here")
    yield folder
    libc.umount2(str(folder).encode(), 2)


def fill(disk):
    with (disk / "ballast").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


def test_rows_and_files_report_a_full_disk(small_disk):
    metrics, path = Metrics(small_disk / "metrics.jsonl"), small_disk / "summary.json"
    metrics.write({"step": 1})
    write_json(path, {"old": True})
    fill(small_disk)
    with pytest.raises(UsageError, match=r"metrics.jsonl cannot be written: No space left on device\."):
        metrics.write({"step": 2, "long": "x" * 10_000})
    with pytest.raises(UsageError, match=r"summary.json cannot be written: No space left on device\."):
        write_json(path, {"new": "x" * 10_000})
    assert [row["step"] for row in metrics.rows()] == [1]
    assert json.loads(path.read_text()) == {"old": True}


@pytest.mark.parametrize("step", [3, 5, 11])
def test_a_run_stops_on_a_full_disk_and_resumes(step, small_disk, smoke_data, smoke_run):
    """The disk is full before a checkpoint and a row, before a validation's row, or before the last write."""
    run_dir = small_disk / "run"
    with pytest.raises(
        UsageError, match=rf"cannot be written to {run_dir}/checkpoints: .*No space left"
    ) as caught:
        train(CONFIG, run_dir, data_dir=smoke_data, progress=at_step(step - 1, lambda: fill(small_disk)))
    assert len(str(caught.value)) < 2000
    (small_disk / "ballast").unlink()
    train(CONFIG, run_dir, data_dir=smoke_data)
    arena.assert_same_run(run_dir, smoke_run)


@pytest.mark.parametrize("debug", [False, True])
def test_a_loss_that_is_not_finite_stops_the_run(smoke_data, tmp_path, batches, debug):
    """Also where JAX looks for NaNs too: its error names neither step nor examples."""
    config = change(optimizer={"learning_rate": 1e30, "warmup_steps": 0, "clip_norm": None}, save_every=1)
    for _ in range(2):  # the same command ends in the same place
        with pytest.raises(UsageError) as caught, jax.debug_nans(debug), jax.debug_infs(debug):
            train(config, tmp_path, data_dir=smoke_data)
        (step, saved) = re.fullmatch(
            r"The loss of step (\d+) is .*The checkpoint of step (\d+) is kept\..*", str(caught.value)
        ).groups()
        assert int(saved) == int(step) - 1
    indices = next(batch["index"] for number, batch in enumerate(batches, 1) if number == int(step))
    assert f"the training examples {', '.join(map(str, indices))}." in str(caught.value)
    assert (tmp_path / "checkpoints" / saved).is_dir()
    assert int(arena.checkpoint(tmp_path)["['state']['step']"]) == int(saved)
    assert not (tmp_path / "summary.json").exists()


def test_a_loss_that_is_not_finite_is_found_one_step_later(smoke_data, tmp_path, batches):
    """Between two checkpoints the host does not wait for a step; the message still names the step."""
    config = change(optimizer={"learning_rate": 1e30, "warmup_steps": 0, "clip_norm": None}, save_every=10)
    config = change(config, eval_every=10, log_every=10)
    with pytest.raises(UsageError, match=r"There is no checkpoint yet") as caught:
        train(config, tmp_path, data_dir=smoke_data)
    step = int(re.match(r"The loss of step (\d+) is", str(caught.value))[1])
    indices = next(batch["index"] for number, batch in enumerate(batches, 1) if number == step)
    assert f"the training examples {', '.join(map(str, indices))}." in str(caught.value)
    assert not list((tmp_path / "checkpoints").iterdir())


@pytest.mark.usefixtures("own_trainers")
def test_devices_compute_while_the_host_loads_and_fetches(smoke_data, tmp_path, monkeypatch):
    events = []

    def noted(name, function):
        def call(*arguments, **options):
            events.append(name)
            return function(*arguments, **options)

        return call

    compile_training = Trainer.compile_training

    class Step:
        def __init__(self, compiled):
            self.call, self.memory_analysis = noted("step", compiled), compiled.memory_analysis

        def __call__(self, *arguments):
            return self.call(*arguments)

    monkeypatch.setattr(Trainer, "compile_training", lambda *given: Step(compile_training(*given)))
    monkeypatch.setattr(Trainer, "shard", noted("load", Trainer.shard))
    monkeypatch.setattr(jax, "device_get", noted("fetch", jax.device_get))
    monkeypatch.setattr(loop, "evaluate_params", lambda *arguments, **options: (50.0, 1.0))
    train(change(num_steps=4, eval_every=4, save_every=4, log_every=4), tmp_path, data_dir=smoke_data)
    assert events == [
        "load",
        "step",
        "load",
        "step",
        "load",
        "fetch",
        "step",
        "load",
        "fetch",
        "step",
        "fetch",
        "fetch",
    ]


def test_a_validation_loss_that_is_not_finite_stops_the_run(smoke_data, tmp_path):
    config = change(
        optimizer={"learning_rate": 1e30, "warmup_steps": 0, "clip_norm": None}, eval_every=1, save_every=1
    )
    with pytest.raises(UsageError, match=r"validation loss of step 1 is (nan|inf).* no checkpoint"):
        train(config, tmp_path, data_dir=smoke_data)
