"""One run over two processes of two devices each: the results of one process, stops, kills, refusals."""

import dataclasses
import itertools
import json
import os
import re
import shutil
import signal
import sys

import arena
import numpy as np
import pytest

from lra_tasks import Interrupted, UsageError, data, processes, train
from lra_tasks.config import to_json
from lra_tasks.files import locked
from lra_tasks.progress import Silent

CONFIG = arena.CONFIG
FLAGS = ("--preset", "smoke", "--num-steps", 11, "--eval-every", 5, "--save-every", 3, "--log-every", 4)
FLAGS += ("--eval-examples", 16)


@pytest.fixture(scope="session")
def two(tmp_path_factory, smoke_data):
    """The folder of a finished `lra train` by two processes; not to be changed."""

    def make(folder):
        def command(coordinator, number):
            flags = (
                "--distributed",
                "--coordinator",
                coordinator,
                "--num-processes",
                2,
                "--process-id",
                number,
            )
            places = ("--run-dir", folder / "run", "--data-dir", smoke_data)
            return arena.command("train", "listops", *FLAGS, *places, *flags)

        results = arena.wait_together(arena.start_together(command))
        (folder / "results").write_text(json.dumps(results))

    return arena.shared(tmp_path_factory, "two", make)


# What a user's own script does, but for a signal before a step and for what is told of the batches.
SCRIPT = """
import json, os, signal, sys
import jax
from lra_tasks import data, training
from lra_tasks.cli import exit_codes
from lra_tasks.config import from_json

coordinator, number, data_dir, runs, name, moment = sys.argv[1:]
steps, sizes = 0, set()

def anywhere(asked, anywhere=training.processes.anywhere):
    global steps
    steps += 1
    if steps == int(moment):
        os.kill(os.getpid(), getattr(signal, name))
    return anywhere(asked)

def collate(examples, length, collate=data._collate):
    sizes.add(len(examples))
    return collate(examples, length)

training.processes.anywhere, data._collate = anywhere, collate
jax.distributed.initialize(coordinator, 2, int(number))
*refused, (run_dir, config) = json.loads(runs)
for folder, wrong in refused:
    try:
        training.train(from_json(wrong), folder, data_dir=data_dir)
    except ValueError as error:
        print(error)
with exit_codes():
    summary = training.train(from_json(config), run_dir, data_dir=data_dir)
    print(summary["test_loss"], *sizes)
"""


def train_by_two(data_dir, *runs, signals=("SIGTERM", 0, 0)):
    """Trains by two processes that call `lra_tasks.train`; all but the last of the runs are to be refused.

    Args:
      runs: folder and configuration of each, or the configurations of both processes.
      signals: a signal, and the steps, counted from 1, before which each process sends it itself; 0: never.
    """
    name, *moments = signals

    def command(coordinator, number):
        own = [(str(folder), to_json(configs[number % len(configs)])) for folder, *configs in runs]
        arguments = (coordinator, number, data_dir, json.dumps(own), name, moments[number])
        return (sys.executable, "-W", "error", "-c", SCRIPT, *arguments)

    return arena.wait_together(arena.start_together(command))


def assert_close_run(first, second):
    """The same rows and parameters but for the rounding of sums."""
    ours, theirs = arena.checkpoint(first), arena.checkpoint(second)
    assert ours.keys() == theirs.keys()
    for name, array in theirs.items():
        if "params" in name:
            np.testing.assert_allclose(ours[name], array, atol=2e-4, rtol=1e-3, err_msg=name)
    for our, their in zip(arena.rows(first), arena.rows(second), strict=True):
        assert (our["step"], our["split"]) == (their["step"], their["split"])
        assert our["loss"] == pytest.approx(their["loss"], abs=1e-4)
    assert arena.summary(first)["test_loss"] == pytest.approx(arena.summary(second)["test_loss"], abs=1e-4)


# The results are those of one process


def test_two_processes_give_what_one_gives(two, smoke_run):
    (code, out, errors), other = json.loads((two / "results").read_text())
    assert code == 0, errors
    assert f"{two / 'run'}: test accuracy" in out
    assert "validation accuracy" in errors
    assert other == [0, "", ""]
    assert_close_run(two / "run", smoke_run)
    for name in ("config.json", "data.json"):
        assert (two / "run" / name).read_bytes() == (smoke_run / name).read_bytes()
    environment = json.loads((two / "run" / "env.json").read_text())
    assert (environment["processes"], len(environment["devices"])) == (2, 4)


def test_killed_they_end_the_same(two, smoke_data, tmp_path):
    for code, _, errors in train_by_two(smoke_data, (tmp_path, CONFIG), signals=("SIGKILL", 8, 8)):
        assert code == -signal.SIGKILL, errors
    assert (tmp_path / "checkpoints" / "6").is_dir()
    for code, out, errors in train_by_two(smoke_data, (tmp_path, CONFIG)):
        assert code == 0, errors
        loss, *sizes = out.split()
        assert float(loss) == arena.summary(tmp_path)["test_loss"]  # the summary is that of the first
        assert sizes == ["4"]  # rows read of the 8 of every batch
    arena.assert_same_run(tmp_path, two / "run")


@pytest.mark.parametrize("asked", [0, 1])
def test_asked_on_one_process_both_save_and_stop(asked, smoke_data, smoke_run, tmp_path):
    moments = (4, 0) if asked == 0 else (0, 4)
    for code, _, errors in train_by_two(smoke_data, (tmp_path, CONFIG), signals=("SIGTERM", *moments)):
        assert code == 0, errors
        assert re.findall(r"Stopped at step (\d+), saved", errors) == ["4"]
    assert (tmp_path / "checkpoints" / "4").is_dir()
    assert not (tmp_path / "summary.json").exists()
    train(CONFIG, tmp_path, data_dir=smoke_data)  # one process goes on with what two have saved
    assert_close_run(tmp_path, smoke_run)


def test_two_go_on_with_what_one_has_saved(smoke_data, smoke_run, tmp_path):
    class Asking(Silent):
        def show(self, message, done=0, total=0, note=""):
            if message.endswith("training") and done == 6:
                signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Interrupted, match="Stopped at step 7"):
        train(CONFIG, tmp_path, data_dir=smoke_data, progress=Asking())
    for code, _, errors in train_by_two(smoke_data, (tmp_path, CONFIG)):
        assert code == 0, errors
    assert_close_run(tmp_path, smoke_run)


# What goes wrong, goes wrong everywhere


def test_what_is_refused_is_refused_by_both(smoke_data, two, tmp_path):
    """One pair of processes tries everything: a refusal leaves them fit for the next run."""
    fresh, taken = tmp_path / "fresh", tmp_path / "taken"
    shutil.copytree(two / "run", taken)
    (taken / "summary.json").unlink()
    odd, other = dataclasses.replace(CONFIG, batch_size=6), dataclasses.replace(CONFIG, seed=1)
    rates = dataclasses.replace(CONFIG.optimizer, learning_rate=1e30, warmup_steps=0, clip_norm=None)
    wild = dataclasses.replace(CONFIG, mixer="none", optimizer=rates, save_every=1)
    runs = ((fresh, odd), (fresh, CONFIG, other), (taken, other), (fresh, wild), (taken, CONFIG))
    with locked(taken / ".lock", "free"):
        results = train_by_two(smoke_data, *runs)
    for number, (code, out, errors) in enumerate(results):
        assert code == 2
        of_folder = "" if number == 0 else "Process 0 cannot go on: "  # only that one looks at it
        for text, expected in zip(
            (*out.splitlines(), errors),
            (
                "--batch-size must be a multiple of the 4 devices; got 6.",
                "Process 1 was given another configuration .*: seed: 0, 1. Give every process the same.",
                f"{of_folder}{taken} holds a run of another configuration",
                r"The loss of step 2 is .*training examples (\d+, ){7}\d+\.",
                f"lra: {of_folder}{taken} is being trained by process {os.getpid()};",
            ),
            strict=True,
        ):
            assert re.match(expected, text)
    assert (fresh / "checkpoints" / "1").is_dir()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((None, 2, 0), "go together: all three, or none .* got None, 2 and 0"),
        (("host:1234", None, 0), "go together"),
        (("host", 2, 0), "--coordinator must be HOST:PORT; got host"),
        (("host:1234", 0, 0), "--num-processes must be at least 1; got 0"),
        (("host:1234", 2, 2), "--process-id must be between 0 and 1; got 2"),
    ],
)
def test_wrong_places_in_a_run(arguments, words):
    with pytest.raises(UsageError, match=words):
        processes.initialize(*arguments)


@pytest.mark.parametrize(
    ("flags", "words"), [(("--process-id", 1), "are for --distributed"), (("--distributed",), "no cluster")]
)
def test_wrong_flags(flags, words, tmp_path):
    result = arena.lra("train", "listops", *flags, cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert words in result.stderr
    assert list(tmp_path.iterdir()) == []


# The data of one process


class Told(list):
    """Examples of 1, 2, 3, … tokens that tell which of them are read."""

    def __init__(self, count):
        super().__init__({"tokens": np.arange(i + 1), "label": i, "index": i} for i in range(count))
        self.read = set()

    def __getitems__(self, indices):
        self.read |= set(indices)
        return [self[index] for index in indices]


def test_shares_are_the_rows_of_the_whole():
    """Of every batch, the last one of an evaluation and one over two epochs among them."""
    for make in (
        lambda source, rows: data.evaluation_batches(source, length=5, batch_size=4, limit=10, rows=rows),
        lambda source, rows: itertools.islice(
            data.training_batches(source, length=5, batch_size=4, seed=0, rows=rows, prefetch=1), 5
        ),
    ):
        for rows in (np.array([0, 1]), np.array([2, 3]), np.array([1, 3])):
            source = Told(11)
            for whole, share in zip(make(Told(11), slice(None)), make(source, rows), strict=True):
                assert share.keys() == whole.keys()
                for name, array in share.items():
                    np.testing.assert_array_equal(
                        array, whole[name] if name == "index" else whole[name][rows]
                    )
    evaluated = Told(10)
    list(data.evaluation_batches(evaluated, length=5, batch_size=5, rows=np.array([3, 4])))
    assert evaluated.read == {3, 4, 8, 9}
