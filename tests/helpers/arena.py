"""Helpers for tests of the arena: a small run, processes that receive signals, and the files of a run."""

import contextlib
import dataclasses
import fcntl
import functools
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from lra_tasks import Config, preset, train
from lra_tasks.cli.main import main
from lra_tasks.config import from_json, to_json
from lra_tasks.data.prepare import prepare
from lra_tasks.model.padding import reads_padding
from lra_tasks.progress import Silent
from lra_tasks.training import preflight
from lra_tasks.training.step import Trainer

# Validations, saves and rows fall on different steps; dropout reveals a key that is not restored.
SMOKE = preset("listops", "smoke")
CONFIG = Config(
    settings=dataclasses.replace(
        SMOKE, num_steps=11, eval_every=5, save_every=3, log_every=4, eval_examples=16
    ),
    task="listops",
)
TIMES = {"step_seconds", "seconds", "examples_per_second"}


def change(config=CONFIG, *, model=None, optimizer=None, **options):
    """Returns a configuration with some fields replaced, including those of its settings."""
    own = {name: options.pop(name) for name in ("task", "mixer", "mixer_options", "seed") if name in options}
    settings = dataclasses.replace(
        config.settings,
        model=dataclasses.replace(config.settings.model, **model or {}),
        optimizer=dataclasses.replace(config.settings.optimizer, **optimizer or {}),
        **options,
    )
    return dataclasses.replace(config, settings=settings, **own)


def shared(tmp_path_factory, name, make):
    """Returns a folder that `make(folder)` fills once for all workers of pytest-xdist."""
    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
    folder, done = root / name, root / f"{name}.done"
    with (root / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            folder.mkdir()
            make(folder)
            done.touch()
    return folder


class Hook(Silent):
    """Calls a function with message, done and total at every report of progress."""

    def __init__(self, hook):
        super().__init__()
        self._hook = hook

    def show(self, message, done=0, total=0, note=""):
        self._hook(message, done, total)


class SharedTrainer(Trainer):
    """A trainer that compiles its training step and its initialization once."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self._compiled, self._started = {}, None

    def init(self):
        if self._started is None:
            self._started = jax.device_get(super().init())
        return jax.device_put(self._started, self._replicated)

    def compile_training(self, state, length=None):
        if length not in self._compiled:
            self._compiled[length] = super().compile_training(state, length)
        return self._compiled[length]


@contextlib.contextmanager
def sharing_trainers():
    """Lets `lra_tasks.train` take one trainer for all runs of a configuration, in this process."""
    trainers = {}

    def shared_trainer(config, task, mesh=None):
        same = to_json(change(config, eval_every=1, eval_examples=1, save_every=1, log_every=1))
        key = same, task.key, task.num_classes, str(mesh)
        if key not in trainers:
            trainers[key] = SharedTrainer(config, task, mesh)
        return trainers[key]

    padding = functools.cache(lambda text: reads_padding(from_json(text)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preflight, "Trainer", shared_trainer)
        patch.setattr(preflight, "reads_padding", lambda config: padding(to_json(config)))
        yield


def make_data(folder):
    prepare("listops", folder, variant="smoke")


def make_run(folder, data_dir):
    train(CONFIG, folder, data_dir=data_dir)


def make_race(folder, data_dir):
    finished = lra("compare", "listops", *RACE, "--run-dir", folder, "--data-dir", data_dir)
    assert finished.returncode == 0, finished.stderr
    (folder / "stdout").write_text(finished.stdout)
    (folder / "stderr").write_text(finished.stderr)


RACE = ("--preset", "smoke", "--mixers", "hrr", "none", "--seeds", "0", "1", "--save-every", "2")


def command(*arguments):
    return [sys.executable, "-W", "error", "-m", "lra_tasks", *map(str, arguments)]


def lra(*arguments, env=None, cwd=None):
    """Runs the `lra` command here, as in a pipe; a process of its own would spend its time on imports."""
    out, err = io.StringIO(), io.StringIO()
    handler, search = signal.getsignal(signal.SIGTERM), sys.path[:]
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        for name, value in ({"COLUMNS": "100"} | (env or {})).items():
            patch.setenv(name, value)
        if cwd is not None:
            patch.chdir(cwd)
        try:
            main(list(map(str, arguments)))
            code = 0
        except SystemExit as end:
            code = end.code or 0
        finally:
            signal.signal(signal.SIGTERM, handler)
            sys.path[:] = search
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


def lra_apart(*arguments, env=None, cwd=None, timeout=120):
    """Runs the `lra` command in a process of its own."""
    return subprocess.run(
        command(*arguments),
        env=environment() | (env or {}),
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def environment(devices=4):
    """Returns the environment of a process that imports the same packages as this one."""
    paths = os.pathsep.join(str(Path(path).absolute()) for path in sys.path if path)
    flags = re.sub(r"(device_count)=\d+", rf"\1={devices}", os.environ["XLA_FLAGS"])
    return os.environ | {"PYTHONPATH": paths, "XLA_FLAGS": flags, "COLUMNS": "100"}


SABOTEUR = """
import json, os, signal, sys
from pathlib import Path
from lra_tasks import training
from lra_tasks.cli.exit_codes import exit_codes
from lra_tasks.training import loop, preflight
from lra_tasks.config import from_json

config, run_dir, data_dir, name, moment = sys.argv[1:]
calls, here = 0, (str(Path(training.__file__).parent), "orbax")

def count(frame, event, argument):
    global calls
    if event == "call" and any(part in frame.f_code.co_filename for part in here):
        calls += 1
        if calls == int(moment):
            os.kill(os.getpid(), getattr(signal, name))

claim = preflight.claim
def claim_and_count(*arguments):
    claim(*arguments)
    sys.setprofile(count)

preflight.claim = claim_and_count
with exit_codes():
    loop.train(from_json(config), run_dir, data_dir=data_dir, tensorboard=True)
sys.setprofile(None)
print(calls)
"""


def train_apart(config, run_dir, data_dir, signal="SIGKILL", moment=0, devices=4):
    """Trains in a process that sends itself a signal at its `moment`-th call of our or Orbax's code.

    Calls count from the claim of the folder to the summary; 0 means no signal. Moments occur everywhere: in a
    step, between a row and its checkpoint, in the middle of a checkpoint. A run without a signal prints their
    number. The run also writes curves for TensorBoard.
    """
    arguments = (to_json(config), run_dir, data_dir, signal, moment)
    return subprocess.run(
        list(map(str, (sys.executable, "-W", "error", "-c", SABOTEUR, *arguments))),
        env=environment(devices),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def start_together(command, count=2, devices=2):
    """Starts the processes of one run; process `number` executes `command(coordinator, number)`."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        coordinator = f"localhost:{free.getsockname()[1]}"
    own = environment(devices) | {"JAX_PLATFORMS": "cpu"}
    own["XLA_FLAGS"] += " --xla_backend_optimization_level=0"  # all processes but one compile every time
    return [
        subprocess.Popen(
            list(map(str, command(coordinator, number))),
            env=own,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(count)
    ]


def wait_together(processes, timeout=90):
    """Returns exit code, output and errors of each process, without Gloo's lines; kills them if they hang."""
    ends = time.monotonic() + timeout
    try:
        outputs = [process.communicate(timeout=ends - time.monotonic()) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    # Gloo's threads interrupt each other's lines.
    gloo = re.compile(r"^(.*(\[Gloo\]|peer ranks).*)?\n", flags=re.MULTILINE)
    spoken = [[gloo.sub("", text) for text in both] for both in outputs]
    return [(process.returncode, *both) for process, both in zip(processes, spoken, strict=True)]


def checkpoint(run_dir):
    """Returns the arrays of a run's latest checkpoint, path → NumPy array."""
    last = max(Path(run_dir, "checkpoints").iterdir(), key=lambda folder: int(folder.name)) / "state"
    with ocp.PyTreeCheckpointer() as checkpointer:
        as_numpy = jax.tree.map(
            lambda _: ocp.RestoreArgs(restore_type=np.ndarray), checkpointer.metadata(last).item_metadata.tree
        )
        tree = checkpointer.restore(last, args=ocp.args.PyTreeRestore(restore_args=as_numpy))
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree.leaves_with_path(tree)}


def assert_same_run(first, second):
    """Asserts equal arrays bit for bit, and equal rows and summary except for times."""
    ours, theirs = checkpoint(first), checkpoint(second)
    assert ours.keys() == theirs.keys()
    assert len(ours) > 30
    for name, array in ours.items():
        assert array.tobytes() == theirs[name].tobytes(), name
    assert rows(first) == rows(second)
    assert summary(first) == summary(second)


def rows(run_dir):
    """Returns the rows of metrics.jsonl without times."""
    lines = Path(run_dir, "metrics.jsonl").read_text().splitlines()
    return [_timeless(json.loads(line)) for line in lines]


def summary(run_dir):
    """Returns the summary without times."""
    return _timeless(json.loads(Path(run_dir, "summary.json").read_text()))


def _timeless(fields):
    return {name: value for name, value in fields.items() if name not in TIMES}


def snapshot(folder):
    """Returns everything below a folder: path → content."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(Path(folder).rglob("*"))
    }
