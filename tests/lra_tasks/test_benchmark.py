"""`lra bench data`: what it measures and says; never how fast this machine happens to be."""

import dataclasses
import json
import re
import shutil

import pytest
from helpers import arena

from lra_tasks.bench import data
from lra_tasks.bench.data import bench_data, data_rates, generation_rates, pipeline_rates
from lra_tasks.cli.bench import print_rates
from lra_tasks.errors import UsageError
from lra_tasks.presets import preset
from lra_tasks.tasks import get_task


@pytest.fixture(scope="module", autouse=True)
def short():
    """Measures no longer than it must."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "WINDOW_SECONDS", 0.0)
        patch.setattr(data, "WINDOWS", 1)
        yield


@pytest.fixture(scope="module")
def result(smoke_data):
    with pytest.MonkeyPatch.context() as patch:
        rates = {"listops": 2000.0, "pathfinder": 1.0, "pathx": 1.0}
        patch.setattr(data, "generation_rates", lambda: rates)
        return bench_data(["listops", "text"], preset_name="smoke", steps=3, data_dir=smoke_data)


def test_everything_is_in_the_json(result, smoke_data):
    assert json.loads(json.dumps(result)) == result
    assert (result["preset"], result["mixer"]) == ("smoke", "hrr")
    (rate,) = result["tasks"]
    assert rate["task"] == "listops/smoke"
    assert rate["dataset"] == "lra_listops/smoke/1.0.0"
    assert (rate["length"], rate["batch_size"], rate["steps"], rate["note"]) == (256, 8, 3, "")
    assert min(rate["data"], rate["cold"], rate["step"]) > 0
    assert 0 <= rate["waiting"] <= 100
    assert set(result["not_prepared"]) == {"text"}
    assert "`lra prepare text" in result["not_prepared"]["text"]
    assert str(smoke_data) in result["not_prepared"]["text"]
    assert set(result["generation"]) == {"listops", "pathfinder", "pathx"}
    assert {"devices", "versions", "cpus"} <= result["environment"].keys()


@pytest.mark.parametrize("width", [60, 80])
def test_what_is_printed(result, monkeypatch, capsys, width):
    monkeypatch.setenv("COLUMNS", str(width))
    slow = dict(
        result["tasks"][0], task="pathx", step=None, waiting=None, steps=0, note="not measured: [slow]"
    )
    print_rates(result | {"tasks": [*result["tasks"], slow]})
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= width
    assert "\x1b" not in out
    for words in ("listops/smoke", "pathx: not measured: [slow]", "text: not prepared", "2,000"):
        assert words in re.sub(r"\s+", " ", out)


def test_where_a_preset_s_dataset_is_not_prepared(smoke_data, monkeypatch):
    """The smoke data stand in for the whole, under their own name."""
    settings = dataclasses.replace(preset("listops", "smoke"), variant="default")
    monkeypatch.setattr(data, "preset", lambda task, name: settings)
    (rate,), missing = data_rates(["listops"], steps=2, seconds=0.0, data_dir=smoke_data)
    assert not missing
    assert (rate.task, rate.steps) == ("listops/smoke", 2)
    assert rate.note == "after 1 steps of 9 that use up what is read ahead"


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("LONGEST_STEP", 0.0, "the first step took"),
        ("free_bytes", lambda: 1000, "GB of memory, 0.0 are free"),
    ],
)
def test_a_step_that_is_too_much(smoke_data, monkeypatch, name, value, words):
    monkeypatch.setattr(data, name, value)
    (rate,), _ = data_rates(["listops"], preset_name="smoke", steps=2, data_dir=smoke_data)
    assert (rate.step, rate.waiting, rate.steps) == (None, None, 0)
    assert words in rate.note
    assert rate.data > 0


def test_the_config_is_the_wanted_or_the_largest(monkeypatch, tmp_path):
    home = tmp_path / "lra_listops"
    sizes = {"smoke": 256, "release": 5, "default": 9}

    def manifest(place, verify):
        return {"num_examples": {"train": sizes[place.variant]}}

    monkeypatch.setattr("lra_tasks.data.location.checked_manifest", manifest)
    task = get_task("listops")
    assert data.prepared_variant(task, "default", 2000, tmp_path) is None
    for name in ("smoke", "release", "default"):
        (home / name / "1.0.0").mkdir(parents=True)
    (home / ".parts-release-1.0.0").mkdir()
    assert data.prepared_variant(task, "default", 2000, tmp_path) == "default"
    shutil.rmtree(home / "default")
    assert data.prepared_variant(task, "default", 2000, tmp_path) == "smoke"


def test_folders_that_cannot_be_measured_are_passed_over(smoke_data, tmp_path):
    """Of another version's config, and a dataset that is not whole; the one wanted is not passed over."""
    shutil.copytree(smoke_data, tmp_path, dirs_exist_ok=True)
    task = get_task("listops")
    for name in ("old-config", "release"):
        (tmp_path / "lra_listops" / name / "1.0.0").mkdir(parents=True)
    assert data.prepared_variant(task, "default", 2000, tmp_path) == "smoke"
    assert data.prepared_variant(task, "release", 2000, tmp_path) == "release"
    (tmp_path / "lra_listops" / "default" / "1.0.0").mkdir(parents=True)
    with pytest.raises(UsageError, match=r"lra_listops/default/1\.0\.0 has no manifest.json"):
        data_rates(["listops"], steps=2, data_dir=tmp_path)


def test_pictures_of_another_size_do_not_stand_in(monkeypatch, tmp_path):
    for name in ("smoke-32", "smoke-128"):
        (tmp_path / "lra_pathfinder" / name / "1.0.0").mkdir(parents=True)

    def manifest(place, verify):
        pixels = {"smoke-32": 1024, "smoke-128": 16384}[place.variant]
        return {
            "num_examples": {"train": 256},
            "contents": {"splits": {"train": {"lengths": [pixels, pixels]}}},
        }

    monkeypatch.setattr("lra_tasks.data.location.checked_manifest", manifest)
    for name, length, config in (("pathfinder", 1024, "smoke-32"), ("pathx", 16384, "smoke-128")):
        task = get_task(name)
        assert data.prepared_variant(task, task.variant, length, tmp_path) == config


def test_rates_are_examples_over_time(monkeypatch):
    """By a clock that each batch moves on: one second a batch at first, then a quarter."""
    now, taken = [0.0], [0]

    def batches():
        while True:
            taken[0] += 1
            now[0] += 1.0 if taken[0] <= 9 else 0.25
            yield {}

    monkeypatch.setattr(data.time, "perf_counter", lambda: now[0])
    assert pipeline_rates(batches(), 32, windows=3, seconds=10.0) == (32.0, 128.0)
    assert taken[0] == 9 + 3 * 40


def test_generators_are_measured_apart(monkeypatch):
    now, asked = [0.0], []

    def images(size, contour_length, seed, start, stop):
        asked.append((size, contour_length, start, stop))
        now[0] += (stop - start) * size / 1024  # 32 pictures a second of 32 pixels, 8 of 128

    def expressions(seed, start, stop):
        now[0] += (stop - start) / 2048

    monkeypatch.setattr("lra_tasks.tasks.pathfinder.drawing.images", images)
    monkeypatch.setattr("lra_tasks.tasks.listops.grammar.expressions", expressions)
    monkeypatch.setattr(data.time, "perf_counter", lambda: now[0])
    assert generation_rates(seconds=3.0) == {"listops": 2048.0, "pathfinder": 32.0, "pathx": 8.0}
    assert asked[:3] == [(32, 14, 0, 2), (32, 14, 0, 64), (32, 14, 64, 128)]  # the first compiles


def test_too_few_steps(smoke_data):
    with pytest.raises(UsageError, match="--steps must be at least 2; got 1"):
        data_rates(["listops"], steps=1, data_dir=smoke_data)


def test_the_command_refuses(smoke_data):
    result = arena.lra("bench", "data", "listop", "--data-dir", smoke_data)
    assert result.returncode == 2
    assert "'listops'" in result.stderr
    result = arena.lra("bench", "dta")
    assert result.returncode == 2
