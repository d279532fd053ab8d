"""One run over two processes of two devices each: the results of one process, kills, requests, refusals."""

import dataclasses
import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest
from helpers import arena

from lra_tasks import Interrupted, UsageError, compare, evaluate, train
from lra_tasks.config import to_json
from lra_tasks.data.batches import evaluation_batches, training_batches
from lra_tasks.files import locked
from lra_tasks.progress import Silent
from lra_tasks.training import processes

CONFIG = arena.CONFIG
FLAGS = ("--preset", "smoke", "--num-steps", 11, "--eval-every", 5, "--save-every", 3, "--log-every", 4)
FLAGS += ("--eval-examples", 16)
QUICK = dataclasses.replace(CONFIG, mixer="none")  # to compile


def assert_close_run(first, second):
    """Asserts equal rows and parameters up to the rounding of sums."""
    ours, theirs = arena.checkpoint(first), arena.checkpoint(second)
    assert ours.keys() == theirs.keys()
    for name, array in theirs.items():
        if "params" in name:
            np.testing.assert_allclose(ours[name], array, atol=2e-4, rtol=1e-3, err_msg=name)
    for our, their in zip(arena.rows(first), arena.rows(second), strict=True):
        assert (our["step"], our["split"]) == (their["step"], their["split"])
        assert our["loss"] == pytest.approx(their["loss"], abs=1e-4)
    assert arena.summary(first)["test_loss"] == pytest.approx(arena.summary(second)["test_loss"], abs=1e-4)


# The command


def test_the_command_gives_the_result_of_one_process(smoke_data, smoke_run, tmp_path):
    def command(coordinator, number):
        flags = ("--distributed", "--coordinator", coordinator, "--num-processes", 2, "--process-id", number)
        return arena.command(
            "train", "listops", *FLAGS, "--run-dir", tmp_path, "--data-dir", smoke_data, *flags
        )

    (code, out, errors), other = arena.wait_together(arena.start_together(command))
    assert code == 0, errors
    assert re.fullmatch(rf"{tmp_path}: test accuracy .*\n", out)
    assert "validation accuracy" in errors
    assert other == (0, "", "")  # only process 0 prints
    assert_close_run(tmp_path, smoke_run)
    for name in ("config.json", "data.json"):
        assert (tmp_path / name).read_bytes() == (smoke_run / name).read_bytes()
    environment = json.loads((tmp_path / "env.json").read_text())
    assert (environment["processes"], len(environment["devices"])) == (2, 4)


@pytest.mark.parametrize(
    ("flags", "words"), [(("--process-id", 1), "require --distributed"), (("--distributed",), "no cluster")]
)
def test_wrong_flags_are_refused(flags, words, tmp_path):
    result = arena.lra_apart("train", "listops", *flags, cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert words in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((None, 2, 0), "go together: give all three, or none .* got None, 2 and 0"),
        (("host:1234", None, 0), "go together"),
        (("host", 2, 0), "--coordinator must be HOST:PORT, PORT between 1 and 65535; got host"),
        (("host:0", 2, 0), "--coordinator must be HOST:PORT, PORT between 1 and 65535; got host:0"),
        (("host:65536", 2, 0), "--coordinator must be HOST:PORT, PORT between 1 and 65535; got host:65536"),
        (("host:1234", 0, 0), "--num-processes must be at least 1; got 0"),
        (("host:1234", 2, 2), "--process-id must be between 0 and 1; got 2"),
    ],
)
def test_wrong_arguments_are_refused(arguments, words):
    with pytest.raises(UsageError, match=words):
        processes.initialize(*arguments)


def test_a_port_in_use_is_refused():
    with socket.create_server(("", 0)) as taken:
        place = f"localhost:{taken.getsockname()[1]}"
        with pytest.raises(UsageError, match=f"a port that is free .*; got {place}: Address"):
            processes.initialize(place, 2, 0)


@pytest.mark.parametrize(
    ("place", "error", "words"),
    [
        (("host:1234", 2, 1), RuntimeError("why"), r"cannot join .* at --coordinator host:1234: why"),
        (("host:1234", 2, 1), ValueError("why"), r"cannot join .* at --coordinator host:1234: why"),
        ((None, None, None), RuntimeError("why"), r"cannot join the processes of --distributed: why"),
        ((None, None, None), ValueError("Why."), r"finds no cluster .*: Why\. Give --coordinator"),
    ],
)
def test_jaxs_reason_for_not_joining_is_reported(place, error, words, monkeypatch):
    def refuse(*arguments, **options):
        raise error

    monkeypatch.setattr("jax.distributed.initialize", refuse)
    with pytest.raises(UsageError, match=words):
        processes.initialize(*place)


# JAX_PLATFORMS names a backend that JAX does not have: starting it would be a RuntimeError.
ALONE = """
import sys
from lra_tasks import UsageError, compare, evaluate, preset, train
from lra_tasks.config import Config
from lra_tasks.training import processes

assert processes.is_first() and processes.count() == 1
assert processes.gather("a") == ["a"] and processes.from_first("a") == "a"
assert not processes.anywhere([])()
with processes.together():
    pass
folder, settings = sys.argv[1], preset("listops", "smoke")
for refused in (
    lambda: train(Config(settings=settings, task="listops", mixer="none"), folder),
    lambda: train(
        Config(settings=preset("text", "smoke"), task="text", mixer="none"), "new", data_dir=folder
    ),
    lambda: compare("bytes", ["none"], preset("listops", "smoke"), "new", data_dir=folder),
    lambda: evaluate(folder),
):
    try:
        refused()
    except UsageError as error:
        print(error)
"""


def test_one_process_is_refused_before_a_backend_starts(tmp_path):
    (tmp_path / "something").touch()
    environment = arena.environment() | {"JAX_PLATFORMS": "nonesuch"}
    command = [sys.executable, "-c", ALONE, tmp_path]
    done = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 4, done.stdout
    assert not (tmp_path / "new").exists()


# From Python: a process joins the other one and calls `lra_tasks.train` for several runs in turn. Before a
# step of each it may send itself a signal. It prints the result of each call, then its rows of a batch.
SCRIPT = """
import json, os, signal, sys
import jax
from lra_tasks import Interrupted, UsageError
from lra_tasks.config import from_json
from lra_tasks.data import batches
from lra_tasks.training import loop, processes

coordinator, number, data_dir, runs = sys.argv[1:]
steps, sizes = 0, set()

def anywhere(asked, anywhere=processes.anywhere):
    global steps
    steps += 1
    if steps == moment:
        os.kill(os.getpid(), getattr(signal, name))
    return anywhere(asked)

def collate(examples, length, collate=batches._collate):
    sizes.add(len(examples))
    return collate(examples, length)

processes.anywhere, batches._collate = anywhere, collate
jax.distributed.initialize(coordinator, 2, int(number))
for run_dir, config, name, moment in json.loads(runs):
    steps = 0
    try:
        print(loop.train(from_json(config), run_dir, data_dir=data_dir)["test_loss"], flush=True)
    except (Interrupted, UsageError) as error:
        print(type(error).__name__, error)
print(*sizes)
"""


def train_by_two(data_dir, *runs):
    """Trains several runs in turn on two processes.

    Args:
      runs: Folder, configuration, name of a signal, and the step, counted from 1, before which the signal
        comes (0 for none). A pair in place of one value gives each process its own.

    Returns:
      Exit code, lines of output and errors of each process.
    """

    def command(coordinator, number):
        own = [[each[number] if isinstance(each, tuple) else each for each in run] for run in runs]
        texts = [(str(folder), to_json(config), *sent) for folder, config, *sent in own]
        return (sys.executable, "-W", "error", "-c", SCRIPT, coordinator, number, data_dir, json.dumps(texts))

    results = arena.wait_together(arena.start_together(command))
    return [(code, out.splitlines(), errors) for code, out, errors in results]


@pytest.fixture(scope="module")
def alone(tmp_path_factory, smoke_data):
    """Returns the folder of a finished run of `QUICK` on one process."""
    folder = tmp_path_factory.mktemp("alone")
    train(QUICK, folder, data_dir=smoke_data)
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory, smoke_data):
    """Returns a folder with runs of `QUICK` on two processes, and their output for each run."""
    root = tmp_path_factory.mktemp("runs")

    def ask(message, done):
        if message.endswith("training") and done == 6:
            signal.raise_signal(signal.SIGTERM)

    for code, _, errors in train_by_two(smoke_data, (root / "killed", QUICK, "SIGKILL", 8)):
        assert code == -signal.SIGKILL, errors
    assert (root / "killed" / "checkpoints" / "6").is_dir()
    asking = Silent()
    asking.show = lambda message, done=0, total=0, note="": ask(message, done)
    with pytest.raises(Interrupted, match="Stopped at step 7"):
        train(QUICK, root / "begun alone", data_dir=smoke_data, progress=asking)
    results = train_by_two(
        smoke_data,
        (root / "undisturbed", QUICK, "", 0),
        (root / "killed", QUICK, "", 0),
        (root / "begun alone", QUICK, "", 0),
        (root / "first asked", QUICK, "SIGTERM", (4, 0)),
        (root / "second asked", QUICK, "SIGINT", (0, 4)),
        (root / "second asked", QUICK, "SIGTERM", (0, 14)),  # in the test, when 7 more steps are done
    )
    for code, _, errors in results:
        assert code == 0, errors
    return root, [out for _, out, _ in results]


def test_two_processes_give_the_result_of_one(runs, alone):
    root, outs = runs
    assert_close_run(root / "undisturbed", alone)
    for out in outs:
        assert float(out[0]) == arena.summary(root / "undisturbed")["test_loss"]  # one's summary is both's
        assert out[-1] == "4"  # of the 8 examples of a batch


def test_killed_processes_resume_to_the_same_result(runs):
    root, _ = runs
    arena.assert_same_run(root / "killed", root / "undisturbed")


def test_two_processes_resume_the_checkpoint_of_one(runs, alone):
    root, _ = runs
    assert_close_run(root / "begun alone", alone)


@pytest.mark.parametrize(("which", "last"), [("first asked", 4), ("second asked", 11)])
def test_a_signal_to_one_process_stops_both(which, last, runs, alone, smoke_data, tmp_path):
    root, outs = runs
    for out in outs:
        assert out[3] == f"Interrupted Stopped at step 4 and saved in {root / 'first asked'}." + RESUMES
        assert out[4] == f"Interrupted Stopped at step 4 and saved in {root / 'second asked'}." + RESUMES
        assert out[5] == f"Interrupted Stopped at step 11 and saved in {root / 'second asked'}." + RESUMES
    assert (root / which / "checkpoints" / str(last)).is_dir()
    assert not (root / which / "summary.json").exists()
    shutil.copytree(root / which, tmp_path / "run")
    train(QUICK, tmp_path / "run", data_dir=smoke_data)  # one process resumes the checkpoint of two
    assert_close_run(tmp_path / "run", alone)


RESUMES = " Repeat the same command to resume."


def test_both_processes_refuse_a_fault_of_one(alone, smoke_data, tmp_path):
    """After a refusal, the processes can train the next run."""
    fresh, taken = tmp_path / "fresh", tmp_path / "taken"
    shutil.copytree(alone, taken)
    (taken / "summary.json").unlink()
    odd, other = arena.change(QUICK, batch_size=6), arena.change(QUICK, seed=1)
    rates = {"learning_rate": 1e30, "warmup_steps": 0, "clip_norm": None}
    wild = arena.change(QUICK, optimizer=rates, save_every=1)
    with locked(taken / ".lock", "free"):
        results = train_by_two(
            smoke_data,
            (fresh, odd, "", 0),
            (fresh, (QUICK, other), "", 0),
            (taken, other, "", 0),
            ((tmp_path / "here", tmp_path / "there"), QUICK, "", 0),
            (fresh, wild, "", 0),
            (taken, QUICK, "", 0),
        )
    for number, (code, out, errors) in enumerate(results):
        assert code == 0, errors
        theirs = "" if number == 0 else "Process 0 failed: "  # only that one looks at the folder
        expected = (
            r"batch_size must be a multiple of the 4 devices that share it; got 6\.",
            r"Process 1 has another configuration .*: seed: 0, 1\. Give every process the same",
            f"{theirs}{taken} contains a run with another configuration",
            f"{'Process 1 failed: ' if number == 0 else ''}run_dir must be one folder that all"
            f" processes share; got {tmp_path / 'there'}, which",
            r"The loss of step 2 is .*training examples (\d+, ){7}\d+\.",
            f"{theirs}Process {os.getpid()} is training the run in {taken}",
        )
        for line, words in zip(out[:-1], expected, strict=True):
            assert re.match(f"(UsageError|Diverged) {words}", line)
    assert (fresh / "checkpoints" / "1").is_dir()
    assert not (tmp_path / "there").exists()
    for folder in (fresh, tmp_path / "here"):
        assert not list(folder.glob(".shared*"))


def test_a_comparison_and_an_evaluation_are_for_one_process(smoke_data, tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "count", lambda: 2)
    with pytest.raises(UsageError, match="A comparison is for one process"):
        compare("listops", ["none"], arena.SMOKE, tmp_path, data_dir=smoke_data)
    with pytest.raises(UsageError, match="An evaluation is for one process"):
        evaluate(tmp_path, data_dir=smoke_data)


def test_devices_of_processes_that_are_not_joined_are_refused(smoke_data, tmp_path, monkeypatch):
    monkeypatch.setattr("jax.process_count", lambda: 2)
    with pytest.raises(UsageError, match="belong to 2 processes, which are not joined"):
        train(QUICK, tmp_path / "run", data_dir=smoke_data)
    assert not (tmp_path / "run").exists()


# The data of a process


class Told(list):
    """Examples of 1, 2, 3, … tokens that record which of them are read."""

    def __init__(self, count):
        super().__init__({"tokens": np.arange(i + 1), "label": i, "index": i} for i in range(count))
        self.read = set()

    def __getitems__(self, indices):
        self.read |= set(indices)
        return [self[index] for index in indices]


def training(source, rows, buckets):
    """Returns batches of two epochs; one batch contains the end of one and the beginning of the other."""
    batches = training_batches(source, length=5, batch_size=4, seed=0, rows=rows, buckets=buckets, prefetch=1)
    return itertools.islice(batches, 5)


def evaluation(source, rows, buckets):
    """Returns batches with copies in the last one."""
    return evaluation_batches(source, length=5, batch_size=4, limit=10, rows=rows, buckets=buckets)


@pytest.mark.parametrize("buckets", [1, 2])
@pytest.mark.parametrize("make", [training, evaluation])
@pytest.mark.parametrize("rows", [[0, 1], [2, 3], [1, 3]])
def test_a_share_contains_rows_of_the_whole_batch(make, rows, buckets):
    wholes, shares = make(Told(11), slice(None), buckets), make(Told(11), np.array(rows), buckets)
    for whole, share in zip(wholes, shares, strict=True):
        assert share.keys() == whole.keys()
        np.testing.assert_array_equal(share.pop("index"), whole["index"])
        for name, array in share.items():
            np.testing.assert_array_equal(array, whole[name][rows])


def test_a_process_reads_only_its_share():
    source = Told(10)
    list(evaluation_batches(source, length=5, batch_size=5, rows=np.array([3, 4])))
    assert source.read == {3, 4, 8, 9}
