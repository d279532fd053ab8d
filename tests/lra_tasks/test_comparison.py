"""A comparison: the same table after any number of kills, its files, and its errors."""

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

from experiments import race
from lra_tasks import Report, UsageError, compare, preset, report
from lra_tasks.config import from_json, to_json
from lra_tasks.data.dataset import load
from lra_tasks.errors import Diverged
from lra_tasks.model.mixers import MIXERS
from lra_tasks.progress import duration
from lra_tasks.reporting import plots
from lra_tasks.reporting.style import colors
from lra_tasks.tasks import get_task
from lra_tasks.tasks.listops import task as listops
from lra_tasks.training.run_folder import record_failure

FILES = ("report.md", "report.csv", "report.json", "report.png")


def table(folder):
    """Returns the parts of a report that are the same on every run: all but times."""
    result = json.loads((folder / "report.json").read_text())
    for run in (run for row in result["rows"] for run in row["runs"]):
        del run["examples_per_second"], run["seconds"]
        run["curve"] = [point[:2] for point in run["curve"]]
    return {name: result[name] for name in ("task", "rows", "baselines", "num_test", "data")}


def num_rows(folder):
    return sum(path.read_text().count("\n") for path in folder.glob("*/metrics.jsonl"))


def test_killed_twice_it_gives_the_same_table(smoke_race, smoke_data, tmp_path):
    """At a seeded row of the metrics, and a seeded while after."""
    folder = tmp_path / "race"
    arguments = ("compare", "listops", *arena.RACE, "--run-dir", folder, "--data-dir", smoke_data)
    draw = random.Random(0)
    for least in sorted(draw.sample(range(1, num_rows(smoke_race) - 2), 2)):
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
    finished = arena.lra_apart(*arguments)
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
        assert row.cells(row)[2] == cell
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
    assert row.cells(row)[1:3] == ("1", f"{row.accuracy:.2f}")
    assert row.error(None) is None
    assert row.error(2000) == pytest.approx((row.accuracy * (100 - row.accuracy) / 2000) ** 0.5)


def test_speed_and_memory_are_relative_to_softmax_or_the_first_mixer(smoke_race):
    result = Report.from_json(json.loads((smoke_race / "report.json").read_text()))
    first, second = result.rows

    def fixed(row, mixer, rates, peak_bytes):
        runs = [
            dataclasses.replace(run, examples_per_second=r) for run, r in zip(row.runs, rates, strict=True)
        ]
        return dataclasses.replace(row, mixer=mixer, runs=tuple(runs), peak_bytes=peak_bytes)

    rows = (fixed(first, "hrr", (98.0, 98.0), 10**6), fixed(second, "none", (99.0, 101.0), 10**7))
    assert [cells[4:8] for cells in dataclasses.replace(result, rows=rows).cells()] == [
        ("98 ± 0.0", "1.0", "1 MB", "1.0"),
        ("100 ± 1.4", "1.0", "10 MB", "10"),
    ]
    rows = (rows[0], dataclasses.replace(rows[1], mixer="softmax"))
    assert [cells[5::2] for cells in dataclasses.replace(result, rows=rows).cells()] == [
        ("0.98", "0.10"),
        ("1.0", "1.0"),
    ]
    assert "Speed × and memory × are relative to hrr." in result.notes


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
    assert {len(row) for row in cells} == {9}
    assert set("".join(cells[1])) <= set(" -:")


def test_picture_is_a_picture(smoke_race):
    from matplotlib.image import imread

    pixels = imread(smoke_race / "report.png")
    assert min(pixels.shape[:2]) > 500
    assert len(np.unique(pixels[..., :3].reshape(-1, 3), axis=0)) > 50
    halves = pixels[:, : pixels.shape[1] // 2], pixels[:, pixels.shape[1] // 2 :]
    assert all((half[..., :3].min(axis=-1) < 0.9).mean() > 0.005 for half in halves)


MANY = ("hrr", "hrr:rescale=True,temperature=0.5", "softmax", "none", "my_mixers:LocalConvolutionWithGates")


def test_every_mixer_has_a_color_of_its_own():
    names = [*MIXERS, "my_mixers:Mean", "softmax:rotary=True"]
    color = colors(names)
    assert len(set(color.values())) == len(names)
    assert all(colors([name, "none"])[name] == color[name] for name in MIXERS)


CASES = [(MANY, 2), (MANY[:3], 1), (("a:Mean", "b:Mean"), 1), (tuple(MIXERS), 1)]


@pytest.mark.parametrize(("mixers", "seeds"), CASES)
def test_texts_of_the_picture_do_not_touch(smoke_race, tmp_path, monkeypatch, mixers, seeds):
    """With mixers as near each other as can be, and one far from the rest."""
    result = Report.from_json(json.loads((smoke_race / "report.json").read_text()))
    row = result.rows[0]
    rows = [
        dataclasses.replace(row, mixer=mixer, runs=row.runs[:seeds], peak_bytes=10 ** (6 + number))
        for number, mixer in enumerate(mixers)
    ]
    figures = []

    def saved(figure, path, **options):
        figures.append(figure)
        save(figure, path, **options)

    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", saved)
    plots.draw(dataclasses.replace(result, rows=tuple(rows)), tmp_path / "report.png")
    (figure,) = figures
    figure.draw_without_rendering()
    both = [axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)]
    shown = {tick for axis in both if axis.axes.axison for tick in axis._update_ticks()}
    ticks = {tick for axis in both for tick in axis.get_major_ticks()}
    hidden = {label for tick in ticks - shown for label in (tick.label1, tick.label2)}
    texts = [text for text in figure.findobj(Text) if text.get_text() and text.get_visible()]
    boxes = {text: Text.get_window_extent(text) for text in texts if text not in hidden}
    touching = [
        (one.get_text(), other.get_text())
        for one, other in itertools.combinations(boxes, 2)
        if boxes[one].overlaps(boxes[other])
    ]
    assert not touching
    cut = [text.get_text() for text, box in boxes.items() if box.x0 < 0 or box.x1 > figure.bbox.x1]
    assert not cut
    names = {text.get_text().replace(",\n", ",") for text in boxes}
    assert {plots.label(mixer) for mixer in mixers} <= names or set(mixers) <= names
    assert any("chance" in name for name in names)


def test_baseline_scores(smoke_race, smoke_data):
    content = json.loads((smoke_race / "baselines.json").read_text())
    references = content["scores"]
    assert table(smoke_race)["baselines"] == references
    train, test = (load("listops", split, smoke_data, variant="smoke") for split in ("train", "test"))
    labels = np.array([example["label"] for example in test])
    majority = np.bincount([example["label"] for example in train]).argmax()
    assert any(value == pytest.approx(100 * np.mean(labels == majority)) for value in references.values())
    assert any(value == pytest.approx(10.0) for value in references.values())
    assert references == get_task("listops").references(train, test)
    assert content["num_test"] == table(smoke_race)["num_test"] == len(test)
    assert len(references) >= 3
    text = (smoke_race / "stdout").read_text()
    assert all(f"{value:.2f} %  {name}" in text for name, value in references.items())


def test_published_numbers_are_listed_for_the_arenas_own_data(smoke_race):
    """A few smoke examples are another task: "listops/smoke"."""
    other = Report.from_json(json.loads((smoke_race / "report.json").read_text()))
    assert (other.title, other.published) == ("listops/smoke", {})
    assert "not measured here" not in other.markdown() + (smoke_race / "stdout").read_text()
    whole = dataclasses.replace(other, title="listops")
    assert whole.published == listops.TASK.published
    assert "Published, not measured here" in whole.markdown()
    assert "Hrrformer, multi-layer 39.98" in whole.markdown()


def test_notes_on_data_protocol_and_parameters(smoke_race, tmp_path):
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
    assert "the best step is chosen on the test split" in text
    assert "Padding changes the outputs of hrr for real tokens" in text
    summaries = [json.loads(path.read_text()) for path in sorted((tmp_path / "race").glob("*0/summary.json"))]
    share = 100 * (summaries[0]["num_parameters"] / summaries[1]["num_parameters"] - 1)
    assert f"(LRA allows up to +10 %): hrr {share:+.1f} %." in text
    plain = (smoke_race / "report.md").read_text()
    assert "nofficial" not in plain
    assert "the best step" not in plain
    assert "Padding" not in plain
    assert "allows" not in plain


def test_a_report_on_the_preset_smoke_has_a_warning(smoke_race, tmp_path):
    shutil.copytree(smoke_race, tmp_path / "race", ignore=shutil.ignore_patterns("report.*"))
    warning = "Its few steps teach a model nothing."
    assert warning not in report(tmp_path / "race").markdown()  # its budget is a test's, not the preset's
    for path in (tmp_path / "race").glob("*/config.json"):
        config = from_json(path.read_text())
        path.write_text(to_json(dataclasses.replace(config, settings=preset("listops", "smoke"))))
    assert warning in report(tmp_path / "race").markdown()


def test_own_reports_are_written_again(smoke_race, smoke_data, tmp_path):
    """Of runs made one by one, too: the report measures the baseline scores itself."""
    ignored = shutil.ignore_patterns("report.*", "baselines.json")
    shutil.copytree(smoke_race, tmp_path / "race", ignore=ignored)
    result = arena.lra("report", tmp_path / "race", "--data-dir", smoke_data)
    assert result.returncode == 0, result.stderr
    assert table(tmp_path / "race") == table(smoke_race)
    assert all((tmp_path / "race" / name).is_file() for name in FILES)


def test_without_the_data_the_report_says_why_baseline_scores_are_missing(smoke_race, tmp_path):
    shutil.copytree(smoke_race, tmp_path / "race", ignore=shutil.ignore_patterns("baselines.json"))
    result = report(tmp_path / "race", data_dir=tmp_path)
    assert (result.baselines, result.num_test) == ({}, None)
    assert result.notes[0].startswith("Baseline scores are not measured. listops is not prepared in")
    assert "Baseline scores, measured" not in result.markdown()
    assert not (tmp_path / "race" / "baselines.json").exists()


def test_the_same_run_twice_is_refused(smoke_race, tmp_path):
    for name in ("a", "b"):
        shutil.copytree(smoke_race / "hrr-seed0", tmp_path / name)
    with pytest.raises(UsageError, match=r"/a and .*/b are the same run: hrr, seed 0\. Move one"):
        report(tmp_path)
    assert not (tmp_path / "report.md").exists()


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


def test_baseline_scores_of_other_data_are_measured_again(smoke_race, smoke_data, tmp_path):
    folder = tmp_path / "race"
    shutil.copytree(smoke_race, folder)
    path = folder / "baselines.json"
    written = json.loads(path.read_text())
    path.write_text(json.dumps({"data": "0" * 64, "num_test": 1, "scores": {"chance": 99.0}}))
    assert report(folder, data_dir=tmp_path).baselines == {}
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


RATES = (0.1, 0.01, 1e30)
ACCURACIES = {("none", 0.1): 20.0, ("none", 0.01): 30.0, ("hrr", 0.1): 40.0, ("hrr", 0.01): 40.0}


@pytest.fixture
def compare_rates(smoke_race, smoke_data, monkeypatch):
    """`compare` with runs that are copies of others; the last rate diverges, and each run is noted."""

    def run(config, run_dir, **options):
        rate = config.settings.optimizer.learning_rate
        trained.append((config.mixer, rate, config.seed))
        if rate == RATES[2]:
            error = Diverged("The loss of step 1 is nan.")
            record_failure(run_dir, config, error)
            raise error
        source = smoke_race / f"{config.mixer}-seed{config.seed}"
        shutil.copytree(source, run_dir, dirs_exist_ok=True, ignore=shutil.ignore_patterns("checkpoints"))
        (run_dir / "config.json").write_text(to_json(config))
        accuracy = {"validation_accuracy": ACCURACIES[config.mixer, rate], "seconds": 100.0}
        summary = json.loads((run_dir / "summary.json").read_text()) | accuracy
        (run_dir / "summary.json").write_text(json.dumps(summary))
        return summary

    def compared(folder, rates=RATES):
        trained.clear()
        settings = dataclasses.replace(arena.SMOKE, save_every=2)
        options = {"seeds": [1, 0], "rates": rates, "data_dir": smoke_data}
        return compare("listops", ["none", "hrr"], settings, folder, **options), trained.copy()

    trained = []
    monkeypatch.setattr("lra_tasks.comparison.train", run)
    return compared


def test_the_best_rate_on_validation_is_the_rate_of_all_seeds(compare_rates, tmp_path):
    result, trained = compare_rates(tmp_path / "race")
    tried = [(mixer, rate, 1) for mixer in ("none", "hrr") for rate in RATES]
    chosen = [("none", 0.01, 1), ("hrr", 0.1, 1), ("none", 0.01, 0), ("hrr", 0.1, 0)]  # the first of equals
    assert trained == [*tried, *chosen]
    assert [(row.mixer, [run.seed for run in row.runs]) for row in result.rows] == [
        ("none", [1, 0]),
        ("hrr", [1, 0]),
    ]
    assert (tmp_path / "race" / "rates" / "0.01" / "none-seed0" / "summary.json").is_file()
    text = (tmp_path / "race" / "report.md").read_text()
    assert "| validation, % | rate 0.1 | rate 0.01 | rate 1e+30 | chosen | time |" in text
    assert f"| none | 20.00 | 30.00 | diverged | 0.01 | {duration(200)} |" in text
    assert f"| hrr | 40.00 | 40.00 | diverged | 0.1 | {duration(200)} |" in text
    assert "with seed 1; the best validation accuracy chose its rate" in text
    content = json.loads((tmp_path / "race" / "report.json").read_text())
    assert Report.from_json(content) == result
    assert [(trial["mixer"], trial["rate"], trial["seed"]) for trial in content["trials"]] == tried
    again, trained = compare_rates(tmp_path / "race")  # finished runs return at once, but not diverged ones
    assert again == result
    assert trained == [*(run for run in tried if run[1] != RATES[2]), *chosen]


def test_comparisons_with_and_without_rates_do_not_share_a_folder(compare_rates, smoke_race, tmp_path):
    compare_rates(tmp_path)
    for folder, rates in ((tmp_path, ()), (smoke_race, RATES)):
        before = sorted(folder.rglob("*"))
        with pytest.raises(UsageError, match=rf"run_dir must not contain runs of .*; got {folder}, which"):
            compare_rates(folder, rates)
        assert sorted(folder.rglob("*")) == before


def test_a_mixer_that_diverges_at_every_rate_is_reported(smoke_data, tmp_path):
    settings = arena.change(num_steps=3, optimizer={"warmup_steps": 0, "clip_norm": None}).settings
    message = r"No run could finish\. .*rates/1e\+30/none-seed0: The loss of step 2 is nan"
    with pytest.raises(UsageError, match=message):
        compare("listops", ["none"], settings, tmp_path / "race", rates=[1e30], data_dir=smoke_data)


def test_an_experiment_prints_and_records_its_race(smoke_data, tmp_path, monkeypatch, capsys):
    settings = dataclasses.replace(arena.CONFIG.settings, num_steps=2)
    races = {"tiny": race.Race(settings, mixers=("hrr", "none"), lengths=(64, 128))}
    monkeypatch.setattr(race, "RESULTS", tmp_path)
    folders = ("--data-dir", str(smoke_data), "--out-dir", str(tmp_path / "run"))
    monkeypatch.setattr("sys.argv", ["listops_race", "tiny", *folders, "--record"])
    race.main("listops", races)
    printed = capsys.readouterr().out
    assert "Temporary memory" in printed
    assert "Recorded in" in printed
    recorded = json.loads((tmp_path / "listops_race-tiny.json").read_text())
    assert [row["mixer"] for row in recorded["report"]["rows"]] == ["hrr", "none"]
    assert recorded["temp_bytes"]["hrr"]["64"] < recorded["temp_bytes"]["hrr"]["128"]
    assert (tmp_path / "listops_race-tiny.png").exists()
