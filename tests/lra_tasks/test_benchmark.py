"""`lra bench data`: measurements and output; never the speed of this machine."""

import json
import os
import re

import pytest
from helpers import arena

from lra_tasks.bench import data
from lra_tasks.bench.data import bench_data, pipeline_rate
from lra_tasks.bench.settings import DataSettings
from lra_tasks.cli.bench import print_rates
from lra_tasks.errors import UsageError
from lra_tasks.training.metrics import environment


@pytest.fixture(scope="module", autouse=True)
def short():
    """Keeps the measurements short."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "WINDOW_SECONDS", 0.0)
        patch.setattr(data, "WINDOWS", 1)
        yield


def bench(data_dir, *tasks, **settings):
    settings = {"preset": "smoke", "steps": 2} | settings
    return bench_data(DataSettings(tasks=tasks, data_dir=data_dir, **settings))


@pytest.fixture(scope="module")
def result(smoke_data):
    return bench(smoke_data, "listops", "text", steps=3)


def test_everything_is_in_the_json(result, smoke_data):
    assert json.loads(json.dumps(result)) == result
    assert (result["preset"], result["mixer"]) == ("smoke", "hrr")
    (rate,) = result["tasks"]
    assert rate["task"] == "listops/smoke"
    assert rate["dataset"] == "lra_listops/smoke/1.0.0"
    assert (rate["length"], rate["batch_size"], rate["steps"], rate["note"]) == (256, 8, 3, "")
    assert min(rate["data"], rate["step"]) > 0
    assert 0 <= rate["waiting"] <= 100
    assert set(result["not_prepared"]) == {"text"}
    assert "`lra prepare text" in result["not_prepared"]["text"]
    assert str(smoke_data) in result["not_prepared"]["text"]
    assert {"devices", "versions", "cpus"} <= result["environment"].keys()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="macOS cannot restrict a process to cores")
def test_the_cpus_are_those_that_the_process_may_use():
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert environment()["cpus"] == 1
    finally:
        os.sched_setaffinity(0, allowed)


@pytest.mark.parametrize("width", [60, 80])
def test_output(result, monkeypatch, capsys, width):
    monkeypatch.setenv("COLUMNS", str(width))
    slow = dict(
        result["tasks"][0], task="pathx", step=None, waiting=None, steps=0, note="not measured: [slow]"
    )
    print_rates(result | {"tasks": [*result["tasks"], slow]})
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= width
    assert "\x1b" not in out
    for words in ("listops/smoke", "pathx: not measured: [slow]", "text: not prepared"):
        assert words in re.sub(r"\s+", " ", out)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("LONGEST_STEP", 0.0, "the first step took"),
        ("free_bytes", lambda: 1000, "GB of memory, 0.0 are free"),
    ],
)
def test_a_step_that_is_too_much(smoke_data, monkeypatch, name, value, words):
    monkeypatch.setattr(data, name, value)
    (rate,) = bench(smoke_data, "listops")["tasks"]
    assert (rate["step"], rate["waiting"], rate["steps"]) == (None, None, 0)
    assert words in rate["note"]
    assert rate["data"] > 0


def test_too_little_time_for_batches_that_were_read_ahead(smoke_data):
    (rate,) = bench(smoke_data, "listops", seconds=0.0)["tasks"]
    assert rate["steps"] == 2
    assert rate["note"] == "some of its batches were read ahead: only 1 steps were left out"


def test_a_dataset_that_is_not_whole_is_refused(tmp_path):
    (tmp_path / "lra_listops" / "smoke" / "1.0.0").mkdir(parents=True)
    with pytest.raises(UsageError, match=r"lra_listops/smoke/1\.0\.0 has no manifest.json"):
        bench(tmp_path, "listops")


def test_rates_are_examples_over_time(monkeypatch):
    """By a clock that each batch moves on: one second per batch at first, then a quarter."""
    now, taken = [0.0], [0]

    def batches():
        while True:
            taken[0] += 1
            now[0] += 1.0 if taken[0] <= 9 else 0.25
            yield {}

    monkeypatch.setattr(data.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(data, "WINDOW_SECONDS", 10.0)
    monkeypatch.setattr(data, "WINDOWS", 3)
    assert pipeline_rate(batches(), 32) == 128.0
    assert taken[0] == 9 + 3 * 40


def test_too_few_steps(smoke_data):
    with pytest.raises(UsageError, match="steps must be at least 2; got 1"):
        bench(smoke_data, "listops", steps=1)


def test_the_command_refuses(smoke_data):
    result = arena.lra("bench", "data", "listop", "--data-dir", smoke_data)
    assert result.returncode == 2
    assert "'listops'" in result.stderr
    result = arena.lra("bench", "dta")
    assert result.returncode == 2
