"""Comparisons on several tasks: their tables, runs that cannot finish, and one command per run."""

import csv
import dataclasses
import io
import json
import shlex
import shutil
from pathlib import Path

import pytest
from helpers import arena

from experiments import grid as experiment
from lra_tasks import UsageError, compare, compare_tasks, preset, report_grid, train
from lra_tasks.cli.main import main
from lra_tasks.comparison import commands
from lra_tasks.errors import OutOfMemory, TooSlow
from lra_tasks.reporting.grid import Grid
from lra_tasks.reporting.history import runs
from lra_tasks.reporting.plots import draw_grid
from lra_tasks.reporting.report import common_folder, is_comparison
from lra_tasks.reporting.results import Failure, Report, Row, Run
from lra_tasks.training import preflight

NONE = dataclasses.replace(arena.CONFIG, mixer="none")
ORDER = preset("order", "smoke")
SAME = ("test_accuracy", "test_loss", "best_step", "validation_accuracy")


@pytest.fixture(scope="session")
def smoke_data(smoke_data, tmp_path_factory):
    """A copy, to which the task order is added."""
    return shutil.copytree(smoke_data, tmp_path_factory.mktemp("data") / "data")


def row(mixer, *accuracies, speed=10.0):
    made = [Run(seed, value, speed, 1.0, ((1, value, 1.0),), 1) for seed, value in enumerate(accuracies)]
    return Row(mixer, tuple(made), num_parameters=100, peak_bytes=int(1e6 * speed))


def column(title, *rows, failures=(), baselines=None):
    rules = {"chance": 10.0} if baselines is None else baselines
    task = title.partition("/")[0]
    order = tuple(dict.fromkeys([*(each.mixer for each in rows), *(each.mixer for each in failures)]))
    return Report(task, title, rows, rules, 100, (), {}, {}, failures=failures, num_steps=1, order=order)


SLOW = Failure("softmax", 0, "too slow", "A step takes 10 s.")
LOST = Failure("none", 2, "diverged", "The loss of step 9 is nan.")
GRID = Grid(
    (
        column("listops", row("none", 30.0, 32.0), row("hrr_1", 40.0, speed=5.0), failures=(SLOW,)),
        column("image", row("none", 20.0), row("softmax", 44.0, speed=2.0), baselines={}),
        column("pathx", row("none", 50.0)),
        column("recall", row("none", 12.0), row("hrr_1", 13.0, speed=20.0)),
    ),
    {"text": "Text is not prepared."},
)


def test_a_cell_has_mean_deviation_and_seeds_or_the_reason():
    cells = {name: cells for name, *cells in GRID.cells()}
    assert GRID.header()[:5] == ("mixer", "listops", "image", "pathx", "recall")
    assert [*cells] == ["none", "hrr_1", "softmax"]
    assert cells["none"][:4] == ["31.00 ± 1.41 (2)", "20.00", "50.00", "12.00"]
    assert cells["hrr_1"][:4] == ["40.00", "-", "-", "13.00"]
    assert cells["softmax"][:4] == ["too slow", "44.00", "-", "-"]
    assert GRID.simple_rules()[:5] == ("best simple rule", "10.00", "-", "10.00", "10.00")


def test_a_mixer_with_a_failed_seed_says_so_and_is_not_the_best():
    report = column("listops", row("none", 90.0), row("hrr_1", 40.0), failures=(LOST,))
    grid = Grid((report,))
    assert grid.accuracy("none", report) == "90.00 (1 of 2; diverged)"
    assert grid.best(report) == "hrr_1"
    assert report.cells()[0][:3] == ("none", "1", "90.00; diverged")
    assert "none, seed 2: The loss of step 9 is nan." in report.markdown()


def test_means_are_over_the_tasks_of_the_arena_that_a_mixer_finished():
    assert GRID.header()[5:7] == ("mean", "mean with pathx")
    assert GRID.mean("none", pathx=False) == (31.0 + 20.0) / 2  # without recall
    assert GRID.mean("none", pathx=True) == pytest.approx((31.0 + 20.0 + 50.0) / 3)
    assert GRID.mean("hrr_1", pathx=False) is None
    assert Grid(GRID.reports[:1]).header() == ("mixer", "listops", "speed ×", "memory ×")


def test_speed_is_relative_to_softmax_or_else_to_the_first_mixer():
    def rate(each):
        return each.examples_per_second

    assert (GRID.base, GRID.relative("none", rate), GRID.relative("hrr_1", rate)) == ("softmax", [5.0], [])
    others = Grid((*GRID.reports[:1], *GRID.reports[2:]))
    assert (others.base, others.relative("none", rate)) == ("none", [1.0, 1.0, 1.0])
    assert others.relative("hrr_1", rate) == [0.5, 2.0]
    assert others.cells()[0][-2:] == ("1.0", "1.0")


def test_published_rows_have_a_mean_where_every_task_is_published():
    rows = {name: cells for name, *cells in GRID.published()}
    assert rows["S5"][:6] == ["62.15", "88.00", "98.58", "-", "75.08", f"{(62.15 + 88 + 98.58) / 3:.2f}"]
    assert rows["Transformer"][:6] == ["36.37", "42.44", "-", "-", f"{(36.37 + 42.44) / 2:.2f}", "-"]
    assert Grid(GRID.reports[3:]).published() == []


def test_every_format_has_every_run():
    lines = [*csv.DictReader(io.StringIO(GRID.csv()))]
    assert len(lines) == 8
    assert [line["task"] for line in lines[:3]] == ["listops"] * 3
    assert float(lines[1]["test_accuracy"]) == 32.0
    text = GRID.markdown()
    assert "| none | 31.00 ± 1.41 (2) | 20.00 | 50.00 | 12.00 |" in text
    assert "listops, softmax, seed 0: A step takes 10 s." in text
    assert "text was not run. Text is not prepared." in text
    assert Grid.from_json(json.loads(json.dumps(GRID.json()))) == GRID


def test_latex_is_escaped_and_the_best_is_bold():
    text = GRID.latex()
    assert r"hrr\_1 & \textbf{40.00} & - & - & \textbf{13.00}" in text
    assert r"none & 31.00 $\pm$ 1.41 (2) & 20.00 & \textbf{50.00} & 12.00" in text
    assert text.count("&") == 8 * 5  # nine columns: head, three mixers, simple rules


def test_a_run_over_its_time_limit_stops_and_resumes_without_it(smoke_data, tmp_path):
    with pytest.raises(TooSlow, match=r"would train for .*; the limit is 0\.0 s\. It stopped at step 5"):
        train(NONE, tmp_path / "run", data_dir=smoke_data, time_limit=1e-9)
    (found,) = runs(tmp_path)
    assert (found.state, found.problem.startswith("The run in")) == ("failed", True)
    assert found.step == 5  # saved
    resumed = train(NONE, tmp_path / "run", data_dir=smoke_data, time_limit=1e9)
    plain = train(NONE, tmp_path / "plain", data_dir=smoke_data)
    assert {name: resumed[name] for name in SAME} == {name: plain[name] for name in SAME}
    assert not (tmp_path / "run" / "failure.json").exists()


def test_runs_that_cannot_finish_are_cells(smoke_data, tmp_path, monkeypatch):
    settings = arena.change(num_steps=2, eval_every=2).settings
    whole = preflight._check_memory

    def scarce(compiled, config):
        if config.mixer == "hrr":
            raise OutOfMemory("It needs 9 GB.")
        whole(compiled, config)

    with monkeypatch.context() as patched:
        patched.setattr(preflight, "_check_memory", scarce)
        result = compare("listops", ["hrr", "none"], settings, tmp_path, data_dir=smoke_data)
    assert [each.mixer for each in result.rows] == ["none"]
    assert result.failures == (Failure("hrr", 0, "out of memory", "It needs 9 GB."),)
    assert result.cells()[0][:3] == ("hrr", "0", "out of memory")
    assert "| hrr | 0 | out of memory |" in (tmp_path / "report.md").read_text()
    again = compare("listops", ["hrr", "none"], settings, tmp_path, data_dir=smoke_data)
    assert ([each.mixer for each in again.rows], again.failures) == (["hrr", "none"], ())


def test_a_picture_says_what_its_bars_are(tmp_path):
    """Deviations over seeds and errors of single seeds are not the same."""
    single = Grid((column("image", row("none", 20.0)),))
    several = Grid((column("image", row("none", 20.0, 22.0)),))
    shown = {}
    for name, grid in {"single": single, "several": several, "both": GRID}.items():
        draw_grid(grid, tmp_path / f"{name}.svg")
        words = (tmp_path / f"{name}.svg").read_text()
        shown[name] = ("deviation over" in words, "one standard" in words)
    assert shown == {"single": (False, True), "several": (True, False), "both": (True, True)}


@pytest.fixture
def two_tasks(smoke_race, smoke_data, tmp_path):
    """A grid with ListOps, copied, and one trained run of the task order."""
    shutil.copytree(smoke_race, tmp_path / "grid" / "listops_smoke")
    settings = dataclasses.replace(ORDER, num_steps=2)
    compare("order", ["none"], settings, tmp_path / "grid" / "order_smoke", data_dir=smoke_data)
    return tmp_path / "grid"


def test_a_grid_resumes_and_has_one_column_per_task(two_tasks, smoke_data):
    tasks = [
        ("order", dataclasses.replace(ORDER, num_steps=2)),
        ("listops", dataclasses.replace(arena.SMOKE, save_every=2)),
    ]
    before = {path: path.stat().st_mtime_ns for path in two_tasks.rglob("summary.json")}
    grid = compare_tasks(tasks, ["none"], two_tasks, data_dir=smoke_data)
    assert grid.titles == ("listops/smoke", "order/smoke")
    assert {path: path.stat().st_mtime_ns for path in two_tasks.rglob("summary.json")} == before
    assert [len(each.rows[0].runs) for each in grid.reports] == [2, 1]
    for name in ("report.md", "report.csv", "report.tex", "report.json", "report.png", "report.html"):
        assert (two_tasks / name).is_file()
    with pytest.raises(UsageError, match="tasks must name every task once; got order/smoke twice"):
        compare_tasks([tasks[0], tasks[0]], ["none"], two_tasks, data_dir=smoke_data)


def test_a_task_without_data_is_refused_or_left_out(smoke_data, tmp_path):
    tasks = [("text", preset("text", "smoke"))]
    with pytest.raises(UsageError, match="aclImdb"):
        compare_tasks(tasks, ["none"], tmp_path / "runs", data_dir=tmp_path / "empty")
    with pytest.raises(UsageError, match=r"No task has its data\. .*aclImdb"):
        compare_tasks(tasks, ["none"], tmp_path / "runs", data_dir=tmp_path / "empty", skip_missing=True)
    assert not (tmp_path / "runs").exists()


def test_runs_of_several_machines_become_one_table(two_tasks, smoke_data, tmp_path):
    other = tmp_path / "other" / "listops_smoke"
    other.mkdir(parents=True)
    shutil.move(two_tasks / "listops_smoke" / "hrr-seed1", other)
    grid = report_grid([two_tasks, tmp_path / "other"], output=tmp_path / "all", data_dir=smoke_data)
    assert [(each.mixer, len(each.runs)) for each in grid.reports[0].rows] == [("hrr", 2), ("none", 2)]
    assert (tmp_path / "all" / "report.md").is_file()
    lost = two_tasks / "listops_smoke" / "hrr-seed1"
    lost.mkdir()
    shutil.copyfile(other / "hrr-seed1" / "config.json", lost / "config.json")
    (lost / "failure.json").write_text('{"reason": "out of memory", "message": "It needs 9 GB."}')
    again = report_grid(
        [two_tasks, two_tasks / "listops_smoke", tmp_path / "other"],
        output=tmp_path / "all",
        data_dir=smoke_data,
    )
    assert again == grid  # a finished run counts, and not its failure on another machine
    shutil.rmtree(lost)
    shutil.copytree(other / "hrr-seed1", two_tasks / "listops_smoke" / "hrr-seed1")
    with pytest.raises(UsageError, match=r"are the same run: hrr, seed 1\. Move one"):
        report_grid([two_tasks, tmp_path / "other"], data_dir=smoke_data)


def test_a_home_folder_is_found(two_tasks, monkeypatch):
    monkeypatch.setenv("HOME", str(two_tasks.parent))
    assert (is_comparison("~/grid/order_smoke"), is_comparison("~/grid")) == (True, False)
    assert common_folder(["~/grid/order_smoke", "~/grid/listops_smoke"]) == two_tasks


def test_a_report_made_again_keeps_the_tasks_without_data(two_tasks, smoke_data):
    missing = {"text": "Text is not prepared.", "order/smoke": "It is by now."}
    report_grid([two_tasks], missing=missing, data_dir=smoke_data)
    assert report_grid([two_tasks], data_dir=smoke_data).missing == {"text": "Text is not prepared."}


def test_recorded_runs_make_the_same_table_without_checkpoints(two_tasks, smoke_data, tmp_path):
    whole = report_grid([two_tasks], data_dir=smoke_data)
    experiment.record(two_tasks, tmp_path / "recorded")
    assert not [*(tmp_path / "recorded").rglob("checkpoints")]
    assert report_grid([tmp_path / "recorded"], data_dir=tmp_path / "empty") == whole


def test_the_experiment_passes_its_flags_on(monkeypatch):
    calls = []
    monkeypatch.setattr(experiment.lra, "main", calls.append)
    monkeypatch.setattr(experiment, "record", lambda *places: calls.append(places))
    experiment.main(["order", "--preset=quick", "--mixers", "none", "--record"])
    experiment.main(["order,listops", "--seeds", "1"])
    quick, cpu = (
        ["--preset", "quick", "--run-dir", "runs/quick/order"],
        ["--preset", "cpu", "--run-dir", "runs/cpu"],
    )
    assert calls == [
        ["compare", "order", "--mixers", "none", *quick],
        (Path("runs/quick"), experiment.RESULTS / "quick"),
        ["compare", "order,listops", "--seeds", "1", *cpu],
    ]


def test_each_unfinished_run_is_a_command(smoke_race, smoke_data, tmp_path, monkeypatch):
    settings = dataclasses.replace(arena.SMOKE, save_every=2)
    shutil.copytree(smoke_race, tmp_path / "race")
    options = ["--data-dir", str(smoke_data)]
    lines = commands("listops", ["hrr", "none"], settings, tmp_path / "race", seeds=[1, 2], options=options)
    places = [str(tmp_path / "race" / f"{mixer}-seed2") for mixer in ("hrr", "none")]
    assert [shlex.split(line) for line in lines] == [
        ["lra", "train", "--from", place, "--run-dir", place, *options] for place in places
    ]
    trained = []
    monkeypatch.setattr("lra_tasks.training.loop.train", lambda config, run_dir, **_: trained.append(config))
    with pytest.raises(TypeError):  # the summary that this stand-in lacks
        main(shlex.split(lines[1])[1:])
    assert (trained[0].mixer, trained[0].seed, trained[0].settings) == ("none", 2, settings)


def test_the_command_line_gives_each_task_its_own_settings(monkeypatch, capsys, tmp_path):
    asked = []
    monkeypatch.setattr(
        "lra_tasks.comparison.compare_tasks",
        lambda tasks, *rest, **options: asked.append((tasks, rest, options)),
    )
    monkeypatch.setattr("lra_tasks.cli.compare.print_grid", lambda *_: None)
    main(["compare", "listops,image", "--num-steps", "7", "--mixers", "none", "all", "--time-limit", "60"])
    ((tasks, (mixers, folder), options),) = asked
    assert [(name, each.length, each.num_steps) for name, each in tasks] == [
        ("listops", 2000, 7),
        ("image", 1024, 7),
    ]
    assert (mixers[0], "softmax" in mixers, folder.name) == ("none", True, "listops+image-quick-num_steps=7")
    assert (options["time_limit"], options["skip_missing"]) == (60.0, False)
    for wrong in (",", "order,order", "all,order"):
        with pytest.raises(SystemExit):
            main(["compare", wrong])
        assert (
            f"names of different tasks, separated by commas, or all; got '{wrong}'" in capsys.readouterr().err
        )
    main(["compare", "--mixers", "all", "--preset", "smoke", "all"])
    tasks, (_, folder), options = asked[1]
    assert ([name for name, _ in tasks][::5], folder.name) == (["listops", "pathx"], "all-smoke")
    assert options["skip_missing"] is True
