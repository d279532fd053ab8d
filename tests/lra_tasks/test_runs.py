"""Past runs: their list, their state, what differs between them, and the names of their folders."""

import dataclasses
import fcntl
import json
import os
import re
import shutil
import threading
import time

import pytest
from helpers import arena

import lra_tasks
from lra_tasks.config import NAME_LENGTH, to_json
from lra_tasks.errors import UsageError
from lra_tasks.files import locked
from lra_tasks.presets import PRESETS, comparison_name, preset, preset_of
from lra_tasks.reporting.history import compared, runs
from lra_tasks.tasks import TASKS


@pytest.fixture
def resumable(smoke_run, tmp_path):
    """A copy of the finished run as a kill before its end leaves it, with the checkpoint of step 9."""
    folder = tmp_path / "runs" / "mine" / "hrr-seed0"
    shutil.copytree(smoke_run, folder)
    (folder / "summary.json").unlink()
    shutil.rmtree(folder / "checkpoints" / "11")
    return folder


def test_a_finished_run(smoke_run):
    summary = json.loads((smoke_run / "summary.json").read_text())
    (run,) = lra_tasks.runs(smoke_run)
    assert (run.state, run.folder, run.config, run.step) == ("finished", smoke_run, arena.CONFIG, 11)
    assert run.preset is None
    assert run.test_accuracy == summary["test_accuracy"]
    assert run.validation_accuracy == summary["validation_accuracy"]
    assert run.seconds == summary["seconds"]


def test_a_resumed_run(resumable):
    """Three steps are saved at a time: of 11, a kill keeps 9."""
    (run,) = runs(resumable.parent.parent)
    assert (run.state, run.step, run.test_accuracy) == ("resumable", 9, None)
    rows = [json.loads(line) for line in (resumable / "metrics.jsonl").read_text().splitlines()]
    validations = [row for row in rows if row["split"] == "validation" and row["step"] <= 9]
    assert run.validation_accuracy == max(row["accuracy"] for row in validations)
    assert run.seconds == validations[-1]["seconds"]


def test_a_run_under_way(resumable):
    with (resumable / ".lock").open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (run,) = runs(resumable)
        assert (run.state, run.step) == ("running", 11)  # of its rows, saved or not
    (run,) = runs(resumable)
    assert run.state == "resumable"


def test_a_run_before_its_first_checkpoint(tmp_path):
    (tmp_path / "config.json").write_text(to_json(arena.CONFIG))
    (run,) = runs(tmp_path)
    assert (run.state, run.step, run.validation_accuracy, run.seconds) == ("resumable", 0, None, None)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("config.json", "{"),
        ("config.json", '{"task": "listops"}'),
        ("summary.json", "[1"),
        ("summary.json", '{"num_steps": 11}'),
        ("metrics.jsonl", "no JSON\n"),
    ],
)
def test_a_damaged_run_is_listed_with_the_others(resumable, smoke_run, file, text):
    (resumable / file).write_text(text)
    found = {run.folder: run for run in runs(resumable, smoke_run)}
    assert found[smoke_run].state == "finished"
    assert found[resumable].state == "unreadable"
    assert found[resumable].problem


def test_the_latest_comes_first_and_each_once(smoke_race, smoke_run):
    found = runs(smoke_race, smoke_run, smoke_race / "hrr-seed0")
    assert sorted(run.folder.name for run in found if run.folder.parent == smoke_race) == [
        "hrr-seed0",
        "hrr-seed1",
        "none-seed0",
        "none-seed1",
    ]
    assert len(found) == 5
    assert [run.changed for run in found] == sorted((run.changed for run in found), reverse=True)


def test_no_folder(tmp_path):
    with pytest.raises(UsageError, match="does not exist"):
        runs(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="is not the folder of a run"):
        compared([tmp_path, tmp_path])


def test_differences(smoke_race, resumable):
    found = compared([smoke_race / "hrr-seed0", smoke_race / "none-seed1"])
    assert found["settings"] == [("mixer", "hrr", "none"), ("seed", "0", "1")]
    assert found["data"] == found["versions and machine"] == []
    results = {name: cells for name, *cells in found["results"]}
    summaries = [
        json.loads((smoke_race / name / "summary.json").read_text()) for name in ("hrr-seed0", "none-seed1")
    ]
    assert results["test accuracy, %"] == [f"{summary['test_accuracy']:.2f}" for summary in summaries]
    assert results["parameters"] == [f"{summary['num_parameters']:,}" for summary in summaries]

    environment = json.loads((resumable / "env.json").read_text())
    environment["versions"]["jax"], environment["devices"] = "0.1", ["other"]
    environment["jax_settings"]["jax_enable_x64"] = True
    (resumable / "env.json").write_text(json.dumps(environment))
    (resumable / "data.json").write_text(json.dumps({"dataset": "lra_other", "identity": "f" * 64}))
    found = compared([smoke_race / "hrr-seed0", resumable])
    changed = {name: cells for name, *cells in found["versions and machine"]}
    assert changed["jax"][1] == "0.1"
    assert changed["devices"][1] == "other"
    assert changed["jax_enable_x64"] == ["False", "True"]
    assert next((n, c[1]) for n, *c in found["data"] if n == "identity") == ("identity", "f" * 12)
    results = {name: cells for name, *cells in found["results"]}
    assert results["steps"] == ["12", "9/11"]
    assert results["test accuracy, %"][1] == "-"


@pytest.mark.parametrize(("file", "text"), [("env.json", "{"), ("data.json", "[]"), ("summary.json", "[]")])
def test_differences_of_a_damaged_run(smoke_run, resumable, file, text):
    (resumable / file).write_text(text)
    with pytest.raises(UsageError, match=file):
        compared([smoke_run, resumable])


def test_a_look_at_a_run_does_not_keep_it_from_training(resumable):
    looking = threading.Event()

    def look():
        with (resumable / ".lock").open("a+") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH)
            looking.set()
            time.sleep(0.02)

    thread = threading.Thread(target=look)
    thread.start()
    looking.wait()
    with locked(resumable / ".lock", "taken"):
        thread.join()


@pytest.mark.parametrize("width", [60, 80])
def test_command(smoke_race, resumable, width):
    env = {"COLUMNS": str(width)}
    listed = arena.lra("runs", cwd=resumable.parent.parent.parent, env=env)
    assert listed.returncode == 0, listed.stderr
    assert listed.stdout.startswith("runs/mine (listops/smoke)\nrun")
    assert re.search(r"hrr-seed0\s.*resumable", listed.stdout, re.DOTALL)
    assert "mixer" not in listed.stdout  # the name tells
    if width == 80:
        assert listed.stdout.count("hrr-seed0") == 1
    assert "resumable" in listed.stdout
    assert "9/11" in listed.stdout
    both = arena.lra("runs", "hrr-seed0", "none-seed1", cwd=smoke_race, env=env)
    assert both.returncode == 0, both.stderr
    assert [line.split() for line in both.stdout.splitlines() if line.startswith("mixer")] == [
        ["mixer", "hrr", "none"]
    ]
    assert re.search(r"\d{4}-\d\d-\d\d \d\d:\d\d", listed.stdout)
    for out in (listed.stdout, both.stdout):
        assert max(map(len, out.splitlines())) <= width
        assert "\x1b" not in out


def test_command_names_what_a_folder_does_not(smoke_race, tmp_path):
    shutil.copytree(smoke_race / "none-seed1", tmp_path / "runs" / "mine")
    (tmp_path / "runs" / "other").mkdir()
    (tmp_path / "runs" / "other" / "config.json").write_text("{")
    result = arena.lra("runs", cwd=tmp_path, env={"COLUMNS": "80"})
    assert result.returncode == 0, result.stderr
    assert re.search(r"^mine +finished .* none +1$", result.stdout, re.MULTILINE)
    assert re.search(r"^other +unreadable ", result.stdout, re.MULTILINE)
    assert "runs/other: " in result.stdout


def test_runs_named_from_here_and_from_the_root(smoke_race):
    result = arena.lra("runs", "hrr-seed0", smoke_race / "none-seed1", cwd=smoke_race)
    assert result.returncode == 0, result.stderr
    assert re.search(r"^mixer +hrr +none *$", result.stdout, re.MULTILINE)


def test_command_without_runs(tmp_path):
    result = arena.lra("runs", cwd=tmp_path)
    assert result.returncode == 2
    assert "The folder runs does not exist. `lra train`" in result.stderr
    (tmp_path / "runs").mkdir()
    result = arena.lra("runs", cwd=tmp_path)
    assert result.returncode == 2
    assert "No run was found in runs. `lra train`" in result.stderr


# Names


@pytest.mark.parametrize("task", TASKS)
def test_presets_are_known_again(task):
    for name in PRESETS:
        settings = preset(task, name)
        assert preset_of(task, settings) == name
        assert preset_of(task, dataclasses.replace(settings, save_every=settings.save_every + 1)) is None
        assert comparison_name(task, name, settings) == f"{task}-{name}"


def test_a_task_that_cannot_be_imported_has_no_presets():
    assert preset_of("parity:TASK", preset("listops", "quick")) is None


def test_other_settings_have_other_folders():
    settings = preset("listops", "smoke")
    wider = dataclasses.replace(
        settings, num_steps=30, model=dataclasses.replace(settings.model, width=32, qkv_features=None)
    )
    assert comparison_name("listops", "smoke", wider) == "listops-smoke-model.width=32-num_steps=30"
    odd = dataclasses.replace(settings, variant="a/b")
    assert comparison_name("listops", "smoke", odd) == "listops-smoke-variant=a_b"


def test_long_names_are_cut_and_differ():
    settings = [dataclasses.replace(preset("text", "arena"), variant="x" * 200 + end) for end in "ab"]
    names = {comparison_name("text", "arena", each) for each in settings}
    assert len(names) == 2
    assert all(NAME_LENGTH < len(os.fsencode(name)) < 200 for name in names)
