"""A comparison: the same table however often it is killed, its files, and what it refuses."""

import csv
import dataclasses
import itertools
import json
import random
import re
import shutil
import signal
import statistics
import subprocess
import time

import numpy as np
import pytest
from helpers import arena
from matplotlib.figure import Figure
from matplotlib.text import Text

from lra_tasks import Report, UsageError, compare, preset, report
from lra_tasks.config import from_json, to_json
from lra_tasks.data.dataset import load
from lra_tasks.reporting import plots
from lra_tasks.tasks import get_task
from lra_tasks.tasks.listops import task as listops

FILES = ("report.md", "report.csv", "report.json", "report.png")


def table(folder):
    """What of a report is the same on every run: all but times."""
    result = json.loads((folder / "report.json").read_text())
    for run in (run for row in result["rows"] for run in row["runs"]):
        del run["examples_per_second"], run["seconds"]
        run["curve"] = [point[:2] for point in run["curve"]]
    return {name: result[name] for name in ("task", "rows", "references", "data")}


def num_rows(folder):
    return sum(path.read_text().count("\n") for path in folder.glob("*/metrics.jsonl"))


def test_killed_three_times_it_gives_the_same_table(smoke_race, smoke_data, tmp_path):
    """At a seeded row of the metrics, and a seeded while after."""
    folder = tmp_path / "race"
    arguments = ("compare", "listops", *arena.RACE, "--run-dir", folder, "--data-dir", smoke_data)
    draw = random.Random(0)
    for least in sorted(draw.sample(range(1, num_rows(smoke_race) - 2), 3)):
        process = subprocess.Popen(
            arena.command(*arguments),
            env=arena.environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            deadline = time.monotonic() + 100
            while num_rows(folder) < least and process.poll() is None:
                assert time.monotonic() < deadline
                time.sleep(0.002)
            time.sleep(draw.uniform(0, 0.2))
        finally:
            process.kill()
            process.wait()
        assert process.returncode == -signal.SIGKILL
        assert not (folder / "report.json").exists()
    finished = arena.lra(*arguments)
    assert finished.returncode == 0, finished.stderr
    assert table(folder) == table(smoke_race)
    for run in sorted(smoke_race.glob("*-seed*")):
        arena.assert_same_run(folder / run.name, run)


def test_a_finished_comparison_trains_nothing(smoke_race, smoke_data, tmp_path, monkeypatch):
    shutil.copytree(smoke_race, tmp_path / "race")
    monkeypatch.setattr("lra_tasks.training.preflight.Trainer", None)
    settings = dataclasses.replace(arena.SMOKE, save_every=2)
    result = compare(
        "listops", ["none", "hrr"], settings, tmp_path / "race", seeds=[1, 0], data_dir=smoke_data
    )
    assert [row.mixer for row in result.rows] == ["none", "hrr"]
    assert {(row.mixer, run.seed): run.test_accuracy for row in result.rows for run in row.runs} == {
        (row["mixer"], run["seed"]): run["test_accuracy"]
        for row in table(smoke_race)["rows"]
        for run in row["runs"]
    }


def test_report_is_of_the_runs(smoke_race):
    result = Report.from_json(json.loads((smoke_race / "report.json").read_text()))
    assert result.json() == Report.from_json(result.json()).json()
    assert [row.mixer for row in result.rows] == ["hrr", "none"]
    for row in result.rows:
        runs = [
            json.loads((smoke_race / f"{row.mixer}-seed{seed}" / "summary.json").read_text())
            for seed in (0, 1)
        ]
        accuracies = [run["test_accuracy"] for run in runs]
        assert [(run.seed, run.test_accuracy) for run in row.runs] == list(enumerate(accuracies))
        assert {run["num_parameters"] for run in runs} == {row.num_parameters}
        assert {run["peak_bytes"] for run in runs} == {row.peak_bytes}
        cell = f"{sum(accuracies) / 2:.2f} ± {statistics.stdev(accuracies):.2f}"
        assert row.cells()[2] == cell
        for text in ((smoke_race / "report.md").read_text(), (smoke_race / "stdout").read_text()):
            assert re.search(rf"{row.mixer}[ |]+2[ |]+{re.escape(cell)}[ |]+{row.num_parameters:,}", text)
        for run in row.runs:
            rows = arena.rows(smoke_race / f"{row.mixer}-seed{run.seed}")
            assert [point[:2] for point in run.curve] == [
                (r["step"], r["accuracy"]) for r in rows if r["split"] == "validation"
            ]


def test_one_seed_has_no_deviation(smoke_race, tmp_path):
    shutil.copytree(smoke_race / "hrr-seed0", tmp_path / "hrr-seed0")
    (row,) = report(tmp_path).rows
    assert row.deviation is None
    assert row.cells()[1:3] == ("1", f"{row.accuracy:.2f}")


def test_csv_is_unrounded(smoke_race):
    with (smoke_race / "report.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4
    for row, name in zip(rows, ("hrr-seed0", "hrr-seed1", "none-seed0", "none-seed1"), strict=True):
        summary = json.loads((smoke_race / name / "summary.json").read_text())
        assert (row["mixer"], row["seed"]) == (summary["mixer"], str(summary["seed"]))
        assert float(row["test_accuracy"]) == summary["test_accuracy"]
        assert int(row["num_parameters"]) == summary["num_parameters"]
        assert int(row["peak_bytes"]) == summary["peak_bytes"]


def test_markdown_is_a_table(smoke_race):
    lines = (smoke_race / "report.md").read_text().splitlines()
    cells = [line.strip("|").split("|") for line in lines if line.startswith("|")]
    assert len(cells) == 4
    assert {len(row) for row in cells} == {7}
    assert set("".join(cells[1])) <= set(" -:")


def test_picture_is_a_picture(smoke_race):
    from matplotlib.image import imread

    pixels = imread(smoke_race / "report.png")
    assert min(pixels.shape[:2]) > 500
    assert len(np.unique(pixels[..., :3].reshape(-1, 3), axis=0)) > 50
    halves = pixels[:, : pixels.shape[1] // 2], pixels[:, pixels.shape[1] // 2 :]
    assert all((half[..., :3].min(axis=-1) < 0.9).mean() > 0.005 for half in halves)


def test_names_of_five_mixers_do_not_touch(smoke_race):
    """As near each other as may be, and some far from the rest."""
    (row, _) = Report.from_json(json.loads((smoke_race / "report.json").read_text())).rows

    def mixer(name, speed, accuracy, peak_bytes):
        (run, _) = row.runs
        run = dataclasses.replace(run, examples_per_second=speed, test_accuracy=accuracy)
        return dataclasses.replace(row, mixer=name, runs=(run,), peak_bytes=peak_bytes)

    rows = [
        mixer("hrr", 1000.0, 40.0, 10**9),
        mixer("none", 1020.0, 40.1, 10**9),
        mixer("my_mixers:LocalConvolution", 900.0, 39.0, 10**8),
        mixer("softmax", 100.0, 41.0, 10**10),
        mixer("my_mixers:Fourier", 1100.0, 12.0, 10**9),
    ]
    figure = Figure(figsize=(12, 4.8), layout="constrained")
    speed, _ = figure.subplots(1, 2)
    plots._plot_speed(speed, rows, {"chance": 10.0})
    figure.draw_without_rendering()
    texts = [text for text in speed.texts if "MB" in text.get_text()]
    assert {text.get_text().split("\n")[0] for text in texts} == {
        "hrr", "none", "LocalConvolution", "softmax", "Fourier"
    }  # fmt: skip
    boxes = [Text.get_window_extent(text) for text in texts]  # without the lines that lead to the disks
    assert not [pair for pair in itertools.combinations(boxes, 2) if pair[0].overlaps(pair[1])]


def test_names_of_six_mixers_alike_stay_in_the_picture(smoke_race):
    (row, _) = Report.from_json(json.loads((smoke_race / "report.json").read_text())).rows
    rows = [dataclasses.replace(row, mixer=f"{letter}:Mean") for letter in "abcdef"]
    figure = Figure(figsize=(12, 4.8), layout="constrained")
    speed, curves = figure.subplots(1, 2)
    plots._plot_speed(speed, rows, {"chance": 10.0})
    figure.draw_without_rendering()
    boxes = [Text.get_window_extent(text) for text in speed.texts if "MB" in text.get_text()]
    assert len({text.get_text() for text in speed.texts if "MB" in text.get_text()}) == 6
    assert not [pair for pair in itertools.combinations(boxes, 2) if pair[0].overlaps(pair[1])]
    assert max(box.y1 for box in boxes) <= speed.bbox.y1 + 1
    assert speed.bbox.height == pytest.approx(curves.bbox.height)
    assert speed.bbox.height > 0.7 * figure.bbox.height


def test_reference_lines(smoke_race, smoke_data):
    references = json.loads((smoke_race / "references.json").read_text())["lines"]
    assert table(smoke_race)["references"] == references
    train, test = (load("listops", split, smoke_data, variant="smoke") for split in ("train", "test"))
    labels = np.array([example["label"] for example in test])
    majority = np.bincount([example["label"] for example in train]).argmax()
    assert any(value == pytest.approx(100 * np.mean(labels == majority)) for value in references.values())
    assert any(value == pytest.approx(10.0) for value in references.values())
    assert references == get_task("listops").references(train, test)
    assert len(references) >= 3
    text = (smoke_race / "stdout").read_text()
    assert all(f"{value:.2f} %  {name}" in text for name, value in references.items())


def test_published_numbers_stand_beside_the_arenas_own_data(smoke_race):
    """A few smoke examples are another task: "listops/smoke"."""
    other = Report.from_json(json.loads((smoke_race / "report.json").read_text()))
    assert (other.title, other.published) == ("listops/smoke", {})
    assert "not measured here" not in other.markdown() + (smoke_race / "stdout").read_text()
    whole = dataclasses.replace(other, title="listops")
    assert whole.published == listops.TASK.published
    assert "Published, not measured here" in whole.markdown()
    assert "Hrrformer, multi-layer 39.98" in whole.markdown()


def test_what_a_report_says_of_its_data_protocol_and_parameters(smoke_race, tmp_path):
    shutil.copytree(smoke_race, tmp_path / "race", ignore=shutil.ignore_patterns("report.*"))
    for path in (tmp_path / "race").glob("*/summary.json"):
        summary = json.loads(path.read_text())
        summary["protocol"] = "paper"
        summary["data"]["unofficial"] = "a box of tapes"
        summary["reads_padding"] = summary["mixer"] == "hrr"
        if summary["mixer"] == "none":
            summary["mixer"] = "softmax"
        else:
            summary["num_parameters"] = round(1.2 * summary["num_parameters"])
        path.write_text(json.dumps(summary))
    text = report(tmp_path / "race").markdown()
    assert "Unofficial source of data: a box of tapes." in text
    assert "the step chosen on the test split" in text
    assert "changes what hrr makes of the real tokens" in text
    summaries = [json.loads(path.read_text()) for path in sorted((tmp_path / "race").glob("*0/summary.json"))]
    share = 100 * (summaries[0]["num_parameters"] / summaries[1]["num_parameters"] - 1)
    assert f"of which the arena allows 10 % more: hrr {share:+.1f} %." in text
    plain = (smoke_race / "report.md").read_text()
    assert "nofficial" not in plain
    assert "the step chosen" not in plain
    assert "padding" not in plain
    assert "allows" not in plain


def test_a_report_on_the_preset_smoke_says_that_it_is_no_race(smoke_race, tmp_path):
    shutil.copytree(smoke_race, tmp_path / "race", ignore=shutil.ignore_patterns("report.*"))
    warning = "Its few steps teach a model nothing."
    assert warning not in report(tmp_path / "race").markdown()  # its budget is a test's, not the preset's
    for path in (tmp_path / "race").glob("*/config.json"):
        config = from_json(path.read_text())
        path.write_text(to_json(dataclasses.replace(config, settings=preset("listops", "smoke"))))
    assert warning in report(tmp_path / "race").markdown()


def test_own_reports_are_written_anew(smoke_race, tmp_path):
    shutil.copytree(smoke_race, tmp_path / "race", ignore=shutil.ignore_patterns("report.*"))
    result = arena.lra("report", tmp_path / "race")
    assert result.returncode == 0, result.stderr
    assert table(tmp_path / "race") == table(smoke_race)
    assert all((tmp_path / "race" / name).is_file() for name in FILES)


def test_runs_of_other_settings_are_refused(smoke_race, tmp_path):
    folder = tmp_path / "race"
    shutil.copytree(smoke_race, folder, ignore=shutil.ignore_patterns("report.*"))
    path = folder / "none-seed1" / "config.json"
    path.write_text(path.read_text().replace('"width": 16', '"width": 32'))
    with pytest.raises(UsageError, match=r"none-seed1 differs from .*hrr-seed0 in model"):
        report(folder)
    assert not (folder / "report.md").exists()


def test_runs_on_other_data_are_refused(smoke_race, tmp_path):
    folder = tmp_path / "race"
    shutil.copytree(smoke_race, folder, ignore=shutil.ignore_patterns("report.*"))
    path = folder / "none-seed1" / "summary.json"
    summary = json.loads(path.read_text())
    summary["data"]["identity"] = "0" * 64
    path.write_text(json.dumps(summary))
    with pytest.raises(UsageError, match=r"none-seed1 and .*hrr-seed0 were trained on different examples"):
        report(folder)
    assert not (folder / "report.md").exists()


def test_reference_lines_of_other_data_are_measured_again(smoke_race, smoke_data, tmp_path):
    folder = tmp_path / "race"
    shutil.copytree(smoke_race, folder)
    path = folder / "references.json"
    written = json.loads(path.read_text())
    path.write_text(json.dumps({"data": "0" * 64, "lines": {"chance": 99.0}}))
    assert report(folder).references == {}
    settings = dataclasses.replace(arena.SMOKE, save_every=2)
    compare("listops", ["hrr", "none"], settings, folder, seeds=[0, 1], data_dir=smoke_data)
    assert json.loads(path.read_text()) == written


def test_a_folder_without_a_finished_run(smoke_run, tmp_path):
    with pytest.raises(UsageError, match=f"There is no finished run in the subfolders of {tmp_path}"):
        report(tmp_path)
    with pytest.raises(UsageError, match=f"There is no folder {tmp_path / 'nowhere'}"):
        report(tmp_path / "nowhere")
    shutil.copytree(smoke_run, tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()
    with pytest.raises(UsageError, match=r"no finished run"):
        report(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("mixers", [["hrr", "nome"], ["hrr", "no.such:Mixer"], []])
def test_a_wrong_last_mixer_is_refused_before_anything_trains(mixers, smoke_data, tmp_path):
    with pytest.raises(UsageError, match=r"'nome'. Did you mean 'none'|'no.such:Mixer'|at least one mixer"):
        compare("listops", mixers, arena.SMOKE, tmp_path / "race", data_dir=smoke_data)
    assert not (tmp_path / "race").exists()
