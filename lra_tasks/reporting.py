"""From the folders of runs to one table, as text, Markdown, CSV and JSON, and one picture."""

import csv
import dataclasses
import io
import json
import math
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lra_tasks.config import read_config
from lra_tasks.errors import UsageError
from lra_tasks.files import replace, write_json, writing
from lra_tasks.metrics import Metrics
from lra_tasks.mixers import ABOUT
from lra_tasks.plotting import STYLE, colours, spread
from lra_tasks.presets import preset_of
from lra_tasks.progress import duration
from lra_tasks.tasks import get_task

COLUMNS = ("mixer", "seeds", "accuracy, %", "parameters", "examples/s", "memory", "time")
ORDER = "comparison.json"  # the names of the runs' folders, in the order of the table
REFERENCES = "references.json"  # the reference lines, and the identity of the data they were measured on
LETTER, NAME_HEIGHT = 7, 28  # points that a letter takes, and a mixer's name above its memory


@dataclasses.dataclass(frozen=True)
class Run:
    """One finished run.

    Attributes:
      seed: its seed.
      test_accuracy: percent, at the step with the best validation.
      examples_per_second: in training, from the median step.
      seconds: in training steps and validations.
      curve: of every validation the step, the accuracy in percent, and the seconds until then.
    """

    seed: int
    test_accuracy: float
    examples_per_second: float
    seconds: float
    curve: tuple[tuple[int, float, float], ...]


@dataclasses.dataclass(frozen=True)
class Row:
    """One mixer, over its seeds.

    Attributes:
      mixer: its name.
      runs: one a seed.
      num_parameters: of the whole model.
      peak_bytes: memory of the compiled training step on one device: arguments, outputs, temporaries.
    """

    mixer: str
    runs: tuple[Run, ...]
    num_parameters: int
    peak_bytes: int

    @property
    def accuracy(self) -> float:
        """The mean test accuracy, percent."""
        return statistics.fmean(run.test_accuracy for run in self.runs)

    @property
    def deviation(self) -> float | None:
        """The sample standard deviation of the test accuracy; None for a single seed."""
        return statistics.stdev(run.test_accuracy for run in self.runs) if len(self.runs) > 1 else None

    @property
    def examples_per_second(self) -> float:
        """The median training rate."""
        return statistics.median(run.examples_per_second for run in self.runs)

    def cells(self) -> tuple[str, ...]:
        """The row as text, in the order of `COLUMNS`."""
        return (
            self.mixer,
            str(len(self.runs)),
            f"{self.accuracy:.2f}" + ("" if self.deviation is None else f" ± {self.deviation:.2f}"),
            f"{self.num_parameters:,}",
            _rounded(self.examples_per_second),
            f"{self.peak_bytes / 1e6:,.0f} MB",
            duration(statistics.fmean(run.seconds for run in self.runs)),
        )


@dataclasses.dataclass(frozen=True)
class Report:
    """A comparison's results.

    Attributes:
      task: name of the task.
      title: what the results go by: the task's name, or with the dataset's where that is another task.
      rows: one a mixer.
      references: measured on the same data: name of the line → test accuracy in percent.
      notes: sentences on what was run and how.
      environment: versions and devices, of the first run.
      data: origin of the dataset, from its manifest.
    """

    task: str
    title: str
    rows: tuple[Row, ...]
    references: dict[str, float]
    notes: tuple[str, ...]
    environment: dict[str, Any]
    data: dict[str, Any]

    @property
    def published(self) -> dict[str, float]:
        """Accuracies that others printed for the arena's task, in percent: never measured here."""
        return dict(get_task(self.task).published) if self.title == self.task else {}

    def table(self) -> str:
        """The rows as a Markdown table."""
        lines = [COLUMNS, ["---", *["---:"] * (len(COLUMNS) - 1)], *(row.cells() for row in self.rows)]
        return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)

    def markdown(self) -> str:
        """The table, the reference lines and the notes as Markdown."""
        lines = [self.table(), "Reference lines, measured on the same test split:", ""]
        lines += [f"- {name}: {accuracy:.2f} %" for name, accuracy in self.references.items()]
        if self.published:
            lines += [
                "",
                "Published, not measured here (Tay et al. 2021 and later papers, full training):",
                "",
            ]
            lines += ["; ".join(f"{name} {accuracy:g}" for name, accuracy in self.published.items()) + "."]
        return "\n".join([*lines, "", *(f"{note}\n" for note in self.notes)])

    def csv(self) -> str:
        """The runs as comma-separated values, unrounded, one line each."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        fields = ("seed", "test_accuracy", "examples_per_second", "seconds")
        writer.writerow(("mixer", *fields, "num_parameters", "peak_bytes"))
        for row in self.rows:
            for run in row.runs:
                values = (getattr(run, name) for name in fields)
                writer.writerow((row.mixer, *values, row.num_parameters, row.peak_bytes))
        return text.getvalue()

    def json(self) -> dict[str, Any]:
        """Everything, as JSON can hold it."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Report":
        """Returns the report that `json` gave."""

        def run(fields: dict[str, Any]) -> Run:
            curve: Any = tuple(tuple(point) for point in fields["curve"])
            return Run(**fields | {"curve": curve})

        def row(fields: dict[str, Any]) -> Row:
            runs: Any = tuple(map(run, fields["runs"]))
            return Row(**fields | {"runs": runs})

        changed: dict[str, Any] = {
            "rows": tuple(map(row, content["rows"])),
            "notes": tuple(content["notes"]),
        }
        return cls(**content | changed)

    def plot(self, path: Path) -> None:
        """Draws the picture: accuracy against speed with memory as area, and the learning curves."""
        import matplotlib
        from matplotlib.figure import Figure  # without pyplot: a notebook keeps its own backend

        with matplotlib.rc_context(STYLE):
            figure = Figure(figsize=(12, 4.8), layout="constrained")
            speed, curves = figure.subplots(1, 2)
            _plot_speed(speed, self.rows, self.references)
            _plot_curves(curves, self.rows)
            unofficial = ", from an unofficial source" if "unofficial" in self.data else ""
            mixers = ", ".join(row.mixer for row in self.rows)
            figure.suptitle(f"{self.title}{unofficial}: {mixers}", x=0.01, ha="left")
            figure.savefig(path, dpi=150, metadata={"Software": None})


def report(out_dir: str | os.PathLike[str]) -> Report:
    """Collects the finished runs in the subfolders of a folder, and writes the report beside them.

    Writes `report.md`, `report.csv`, `report.json` and `report.png`. Runs that `compare` made stand in the
    order given to it, others after them by name.

    Args:
      out_dir: folder of a comparison.

    Raises:
      UsageError: if there is no finished run, or runs differ in more than mixer and seed, or in their data.
    """
    out_dir = Path(out_dir)
    if not out_dir.is_dir():
        raise UsageError(f"There is no folder {out_dir}.")
    order = json.loads((out_dir / ORDER).read_text()) if (out_dir / ORDER).is_file() else []
    names = dict.fromkeys([*order, *sorted(path.name for path in out_dir.glob("*/"))])
    folders = [out_dir / name for name in names if (out_dir / name / "summary.json").is_file()]
    if not folders:
        raise UsageError(
            f"There is no finished run in the subfolders of {out_dir}. Name the folder that holds the runs."
        )
    shared = [_shared_settings(folder) for folder in folders]
    for folder, settings in zip(folders, shared, strict=True):
        changed = [name for name in settings if settings[name] != shared[0][name]]
        if changed:
            raise UsageError(
                f"{folder} differs from {folders[0]} in {', '.join(changed)}: these runs cannot stand in one"
                " table. Report on them apart."
            )
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in folders]
    for summary, folder in zip(summaries, folders, strict=True):
        if summary["data"]["identity"] != summaries[0]["data"]["identity"]:
            raise UsageError(
                f"{folder} and {folders[0]} were trained on different examples: these runs cannot stand in"
                " one table. Report on them apart."
            )
    groups: dict[str, list[tuple[dict[str, Any], Run]]] = {}
    for summary, folder in zip(summaries, folders, strict=True):
        groups.setdefault(summary["mixer"], []).append((summary, _run(summary, folder)))
    rows = tuple(
        Row(mixer, tuple(run for _, run in group), group[0][0]["num_parameters"], group[0][0]["peak_bytes"])
        for mixer, group in groups.items()
    )
    result = Report(
        task=summaries[0]["task"],
        title=summaries[0]["title"],
        rows=rows,
        references=_references(out_dir, summaries[0]["data"]["identity"]),
        notes=(*_ratios(rows), *_parameter_rule(rows), *_notes(rows, summaries), *_smoke_rule(folders[0])),
        environment=summaries[0]["environment"],
        data=summaries[0]["data"],
    )
    replace(out_dir / "report.md", result.markdown())
    replace(out_dir / "report.csv", result.csv())
    write_json(out_dir / "report.json", result.json())
    with writing(out_dir / "report.png"):
        result.plot(out_dir / "report.png")
    return result


def _references(out_dir: Path, identity: str) -> dict[str, float]:
    """Returns the lines measured on these data, if there are any."""
    path = out_dir / REFERENCES
    content = json.loads(path.read_text()) if path.is_file() else {}
    return content["lines"] if content.get("data") == identity else {}


def _run(summary: dict[str, Any], folder: Path) -> Run:
    validations = [row for row in Metrics(folder / "metrics.jsonl").rows() if row["split"] == "validation"]
    return Run(
        curve=tuple((row["step"], row["accuracy"], row["seconds"]) for row in validations),
        **{name: summary[name] for name in ("seed", "test_accuracy", "examples_per_second", "seconds")},
    )


def _shared_settings(folder: Path) -> dict[str, Any]:
    settings = json.loads((folder / "config.json").read_text())
    return {name: value for name, value in settings.items() if name not in ("mixer", "seed")}


def _rounded(number: float) -> str:
    """Two digits, or a whole number."""
    return f"{number:,.0f}" if number >= 10 else f"{number:.2g}"


def _ratios(rows: Sequence[Row]) -> list[str]:
    """Returns a sentence for every row after the first: the first's speed and memory against its."""
    first, *others = rows
    return [
        f"{first.mixer} trains {_rounded(first.examples_per_second / other.examples_per_second)} times the"
        f" examples per second of {other.mixer}, in {_rounded(first.peak_bytes / other.peak_bytes)} times its"
        " memory."
        for other in others
    ]


def _parameter_rule(rows: Sequence[Row]) -> list[str]:
    """Returns a sentence on the arena's rule, where its base Transformer's mixer is among the rows."""
    numbers = {row.mixer: row.num_parameters for row in rows}
    base = numbers.pop("softmax", None)
    if base is None or not numbers:
        return []
    shares = ", ".join(f"{mixer} {100 * (number / base - 1):+.1f} %" for mixer, number in numbers.items())
    return [f"Parameters against softmax, of which the arena allows 10 % more: {shares}."]


def _smoke_rule(folder: Path) -> list[str]:
    """Returns a warning where a run, and so all, has the settings of the preset that is no race."""
    if preset_of(read_config(folder)) != "smoke":
        return []
    return ["Preset smoke: a proof that everything runs. Its few steps teach a model nothing."]


def _notes(rows: Sequence[Row], summaries: Sequence[dict[str, Any]]) -> list[str]:
    summary, environment = summaries[0], summaries[0]["environment"]
    versions = ", ".join(f"{name} {environment['versions'][name]}" for name in ("jax", "flax", "optax"))
    seeds = {row.mixer: ", ".join(str(run.seed) for run in row.runs) for row in rows}
    same = len(set(seeds.values())) == 1
    notes = [
        f"T = {summary['length']:,} tokens, {summary['num_steps']:,} steps of {summary['batch_size']}"
        " examples, pooling "
        + summary["pooling"]
        + ", seeds "
        + (seeds[rows[0].mixer] if same else "; ".join(f"{mixer} {seeds[mixer]}" for mixer in seeds))
        + ". Accuracy is that of the test split, the mean over the seeds, ± the sample standard deviation"
        " where there are several. Examples/s are those of the median training step. Memory is that of the"
        " compiled training step: arguments, outputs and temporaries. Time is that of training and"
        " validation.",
        "; ".join(f"{row.mixer} is {ABOUT.get(row.mixer, 'a mixer of your own')}" for row in rows) + ".",
        f"Measured on {environment['devices'][0]} ({len(environment['devices'])} device(s),"
        f" {environment['cpus']} CPUs), Python {environment['python']}, {versions};"
        f" data: {summary['data']['dataset']}, {summary['data'].get('origin', 'unknown origin')}.",
    ]
    if "unofficial" in summary["data"]:
        notes.append(f"Unofficial source of data: {summary['data']['unofficial']}.")
    if summary["protocol"] == "paper":
        notes.append(
            "Protocol paper: trained on the validation examples too, and the step chosen on the test split."
        )
    readers = dict.fromkeys(other["mixer"] for other in summaries if other.get("reads_padding"))
    if readers:
        notes.append(
            f"What stands in padding changes what {', '.join(readers)} makes of the real tokens: its results"
            " depend on the length that inputs are padded to."
        )
    if any(other["environment"] != environment for other in summaries):
        notes.append("Some runs were made with other versions or on another machine: see their env.json.")
    return notes


def _plot_speed(axes: Any, rows: Sequence[Row], references: dict[str, float]) -> None:
    speeds = [row.examples_per_second for row in rows]
    low, high = min(speeds) / 3, max(speeds) * 20  # room for the names of the lines
    largest = max(row.peak_bytes for row in rows)
    ceiling = 1.25 * max([row.accuracy for row in rows] + list(references.values()))
    for names, accuracy in _apart(references, 0.04 * ceiling):
        axes.annotate(
            names,
            (high, accuracy),
            (-2, 3),
            textcoords="offset points",
            ha="right",
            fontsize=9,
            color="#666666",
        )
    for accuracy in references.values():
        axes.axhline(accuracy, color="#999999", linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    colour = colours(row.mixer for row in rows)
    areas = [2200 * row.peak_bytes / largest for row in rows]
    for row, area in zip(rows, areas, strict=True):
        point, own = (row.examples_per_second, row.accuracy), colour[row.mixer]
        if row.deviation is not None:
            axes.errorbar(*point, row.deviation, color=own, capsize=3, zorder=2)
        axes.scatter(*point, area, color=own, alpha=0.55, zorder=3)
    axes.set_xscale("log", subs=(2, 5))
    _plain_ticks(axes)
    axes.set_xlim(low, high)
    axes.set_ylim(0, ceiling)
    axes.set_xlabel("training examples per second")
    axes.set_ylabel("test accuracy, %")
    axes.set_title("Accuracy against speed; area is peak memory")
    _name_mixers(axes, rows, [math.sqrt(area / math.pi) for area in areas], colour)


def _name_mixers(axes: Any, rows: Sequence[Row], radii: Sequence[float], colour: Mapping[str, str]) -> None:
    """Writes each name above its disk; of disks that are near, one name stands above the other."""
    axes.figure.draw_without_rendering()  # the layout decides how far apart values are
    scale = 72 / axes.figure.dpi
    points = [scale * axes.transData.transform((row.examples_per_second, row.accuracy)) for row in rows]
    top = scale * axes.bbox.y1
    short = [row.mixer.rpartition(":")[2] for row in rows]
    names = short if len(set(short)) == len(rows) else [row.mixer for row in rows]
    texts = [f"{name}\n{row.peak_bytes / 1e6:,.0f} MB" for name, row in zip(names, rows, strict=True)]
    half = [LETTER / 2 * (1 + max(map(len, text.split("\n")))) for text in texts]
    above = [up + radius + NAME_HEIGHT / 2 + 2 for (_, up), radius in zip(points, radii, strict=True)]
    columns: list[list[int]] = []  # of names that would touch if they had one height
    for number in sorted(range(len(rows)), key=lambda number: points[number][0] - half[number]):
        left = points[number][0] - half[number]
        if columns and left < max(points[other][0] + half[other] for other in columns[-1]):
            columns[-1].append(number)
        else:
            columns.append([number])
    for column in columns:
        column.sort(key=above.__getitem__)
        places = spread([above[number] for number in column], NAME_HEIGHT)
        lift = max(0.0, above[column[0]] - places[0])  # up, since below a name is its disk, if there is room
        lift -= max(0.0, places[-1] + lift + NAME_HEIGHT / 2 - top)
        for number, place in zip(column, places, strict=True):
            row, own = rows[number], colour[rows[number].mixer]
            moved = place + lift - above[number] > 1
            axes.annotate(
                texts[number],
                (row.examples_per_second, row.accuracy),
                (0, place + lift - points[number][1]),
                textcoords="offset points",
                ha="center",
                va="center",
                fontsize=10,
                color=own,
                fontweight="bold",
                arrowprops={"arrowstyle": "-", "color": own, "linewidth": 0.8} if moved else None,
            ).set_in_layout(False)  # or the axes would make room


def _apart(lines: dict[str, float], distance: float) -> list[tuple[str, float]]:
    """Returns the names of the lines and their heights, names of lines closer than `distance` in one."""
    groups: list[tuple[str, float]] = []
    for name, height in sorted(lines.items(), key=lambda line: line[1]):
        if groups and height - groups[-1][1] < distance:
            groups[-1] = (f"{groups[-1][0]}; {name}", height)
        else:
            groups.append((name, height))
    return groups


def _plot_curves(axes: Any, rows: Sequence[Row]) -> None:
    colour = colours(row.mixer for row in rows)
    for row in rows:
        for number, run in enumerate(row.runs):
            _, accuracies, seconds = zip(*run.curve, strict=True)
            axes.plot(
                seconds,
                accuracies,
                color=colour[row.mixer],
                linewidth=2,
                marker="o",
                markersize=4,
                alpha=1.0 if len(row.runs) == 1 else 0.6,
                label=row.mixer if number == 0 else None,
            )
    axes.set_xscale("log", subs=(2, 5))
    _plain_ticks(axes)
    axes.set_xlabel("seconds of training and validation")
    axes.set_ylabel("validation accuracy, %")
    axes.set_ylim(bottom=0)
    axes.set_title("Learning curves, one a seed, all of the same steps")
    axes.legend(frameon=False, loc="lower right")


def _plain_ticks(axes: Any) -> None:
    """Writes 20 and 500 on a logarithmic axis, where matplotlib would write powers of ten."""
    for which in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        which(lambda value, _: f"{value:g}")
