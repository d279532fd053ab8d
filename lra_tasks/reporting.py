"""From the folders of runs to one table, as text, Markdown, CSV and JSON, and one picture."""

import csv
import dataclasses
import io
import json
import math
import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lra_tasks.errors import UsageError
from lra_tasks.files import replace, write_json
from lra_tasks.metrics import Metrics
from lra_tasks.progress import duration
from lra_tasks.tasks import get_task

COLUMNS = ("mixer", "test accuracy, %", "parameters", "examples/s", "peak memory", "time")
# Validation and training colours for up to eight mixers, told apart by colour-blind readers too.
COLOURS = ("#0072B2", "#D55E00", "#7F7F7F", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


@dataclasses.dataclass(frozen=True)
class Row:
    """One mixer, over its seeds.

    Attributes:
      mixer: its name.
      accuracies: test accuracy of each seed, percent.
      num_parameters: of the whole model.
      examples_per_second: in training, from the median step; the median over the seeds.
      peak_bytes: memory of the compiled training step on one device: arguments, outputs, temporaries.
      seconds: in training steps and validations; the mean over the seeds.
      curves: of each seed, every validation's step, accuracy in percent, and seconds from the start.
    """

    mixer: str
    accuracies: tuple[float, ...]
    num_parameters: int
    examples_per_second: float
    peak_bytes: int
    seconds: float
    curves: tuple[tuple[tuple[int, float, float], ...], ...]

    @property
    def accuracy(self) -> float:
        """The mean over the seeds, percent."""
        return statistics.fmean(self.accuracies)

    def cells(self) -> tuple[str, ...]:
        """The row as text, in the order of `COLUMNS`."""
        accuracy = f"{self.accuracy:.2f}"
        if len(self.accuracies) > 1:
            accuracy += f" ± {statistics.stdev(self.accuracies):.2f}"
        return (
            self.mixer,
            accuracy,
            f"{self.num_parameters:,}",
            f"{self.examples_per_second:,.0f}"
            if self.examples_per_second >= 10
            else f"{self.examples_per_second:.2g}",
            f"{self.peak_bytes / 1e6:,.0f} MB",
            duration(self.seconds),
        )


@dataclasses.dataclass(frozen=True)
class Report:
    """A comparison's results.

    Attributes:
      task: name of the task.
      rows: one a mixer.
      references: measured on the same data: name of the line → test accuracy in percent.
      notes: sentences on what was run and how.
      environment: versions and devices, of the first run.
      data: origin of the dataset, from its manifest.
    """

    task: str
    rows: tuple[Row, ...]
    references: dict[str, float]
    notes: tuple[str, ...]
    environment: dict[str, Any]
    data: dict[str, Any]

    @property
    def published(self) -> dict[str, float]:
        """Accuracies that others printed, in percent: never measured here."""
        return dict(get_task(self.task).published)

    def markdown(self) -> str:
        """The table, the reference lines and the notes as Markdown."""
        lines = [_markdown_row(COLUMNS), _markdown_row(["---", *["---:"] * (len(COLUMNS) - 1)])]
        lines += [_markdown_row(row.cells()) for row in self.rows]
        lines += ["", "Reference lines, measured on the same test split:", ""]
        lines += [f"- {name}: {accuracy:.2f} %" for name, accuracy in self.references.items()]
        lines += ["", "Published, not measured here (Tay et al. 2021 and later papers, full training):", ""]
        lines += ["; ".join(f"{name} {accuracy:g}" for name, accuracy in self.published.items()) + ".", ""]
        return "\n".join(lines + [f"{note}\n" for note in self.notes])

    def csv(self) -> str:
        """The rows as comma-separated values, unrounded, one line a seed."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        fields = ("num_parameters", "examples_per_second", "peak_bytes", "seconds")
        writer.writerow(("mixer", "run", "test_accuracy", *fields))
        for row in self.rows:
            for number, accuracy in enumerate(row.accuracies):
                writer.writerow((row.mixer, number, accuracy, *(getattr(row, name) for name in fields)))
        return text.getvalue()

    def json(self) -> dict[str, Any]:
        """Everything, as JSON can hold it."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Report":
        """Returns the report that `json` gave."""

        rows = tuple(
            Row(
                **{
                    **row,
                    "accuracies": tuple(row["accuracies"]),
                    "curves": tuple(tuple(map(tuple, points)) for points in row["curves"]),
                }
            )
            for row in content["rows"]
        )
        return cls(**{**content, "rows": rows, "notes": tuple(content["notes"])})

    def plot(self, path: Path) -> None:
        """Draws the picture: accuracy against speed with memory as area, and the learning curves."""
        import matplotlib

        matplotlib.use("agg")
        from matplotlib import pyplot as plt

        style: Any = {
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.color": "#E6E6E6",
            "font.size": 11,
            "axes.titlesize": 12,
            "axes.titlelocation": "left",
        }
        with plt.rc_context(style):
            figure, (speed, curves) = plt.subplots(1, 2, figsize=(12, 4.8), layout="constrained")
            _plot_speed(speed, self.rows, self.references)
            _plot_curves(curves, self.rows)
            figure.suptitle(f"{self.task}: {', '.join(row.mixer for row in self.rows)}", x=0.01, ha="left")
            figure.savefig(path, dpi=150, metadata={"Software": None})
            plt.close(figure)


def report(out_dir: str | os.PathLike[str], *, order: Sequence[str] | None = None) -> Report:
    """Collects the finished runs in the subfolders of a folder, and writes the report beside them.

    Writes `report.md`, `report.csv`, `report.json` and `report.png`.

    Args:
      out_dir: folder of a comparison.
      order: names of the runs' folders, in the order of the table; None takes all, by name.

    Raises:
      UsageError: if there is no finished run, or runs differ in more than mixer and seed.
    """
    out_dir = Path(out_dir)
    folders = [out_dir / name for name in order] if order is not None else sorted(out_dir.glob("*/"))
    summaries = [
        (json.loads((folder / "summary.json").read_text()), folder)
        for folder in folders
        if (folder / "summary.json").is_file()
    ]
    if not summaries:
        raise UsageError(f"There is no finished run in the subfolders of {out_dir}.")
    shared = [_shared_settings(folder) for _, folder in summaries]
    for (_, folder), settings in zip(summaries, shared, strict=True):
        changed = [name for name in settings if settings[name] != shared[0][name]]
        if changed:
            raise UsageError(
                f"{folder} differs from {summaries[0][1]} in {', '.join(changed)}: these runs cannot stand in"
                " one table. Report on them apart."
            )
    groups: dict[str, list[tuple[dict[str, Any], Path]]] = {}
    for summary, folder in summaries:
        groups.setdefault(summary["mixer"], []).append((summary, folder))
    rows = tuple(_row(mixer, group) for mixer, group in groups.items())
    references = out_dir / "references.json"
    first = summaries[0][0]
    result = Report(
        task=first["task"],
        rows=rows,
        references=json.loads(references.read_text()) if references.is_file() else {},
        notes=(*_ratios(rows), *_notes(first, [summary["seed"] for summary, _ in groups[first["mixer"]]])),
        environment=first["environment"],
        data=first["data"],
    )
    replace(out_dir / "report.md", result.markdown())
    replace(out_dir / "report.csv", result.csv())
    write_json(out_dir / "report.json", result.json())
    result.plot(out_dir / "report.png")
    return result


def _row(mixer: str, group: list[tuple[dict[str, Any], Path]]) -> Row:
    summaries = [summary for summary, _ in group]
    return Row(
        mixer=mixer,
        accuracies=tuple(summary["test_accuracy"] for summary in summaries),
        num_parameters=summaries[0]["num_parameters"],
        examples_per_second=statistics.median(summary["examples_per_second"] for summary in summaries),
        peak_bytes=summaries[0]["peak_bytes"],
        seconds=statistics.fmean(summary["seconds"] for summary in summaries),
        curves=tuple(_curve(folder) for _, folder in group),
    )


def _curve(folder: Path) -> tuple[tuple[int, float, float], ...]:
    rows = Metrics(folder / "metrics.jsonl").rows()
    return tuple(
        (row["step"], row["accuracy"], row["seconds"]) for row in rows if row["split"] == "validation"
    )


def _shared_settings(folder: Path) -> dict[str, Any]:
    settings = json.loads((folder / "config.json").read_text())
    return {name: value for name, value in settings.items() if name not in ("mixer", "seed")}


def _ratios(rows: Sequence[Row]) -> list[str]:
    """Returns a sentence for every row after the first: the first's speed and memory against its."""
    first, *others = rows
    return [
        f"{first.mixer} trains {first.examples_per_second / other.examples_per_second:.2g} times the examples"
        f" per second of {other.mixer}, in {first.peak_bytes / other.peak_bytes:.2g} times its memory."
        for other in others
    ]


def _notes(summary: dict[str, Any], seeds: list[int]) -> tuple[str, ...]:
    environment = summary["environment"]
    versions = ", ".join(f"{name} {environment['versions'][name]}" for name in ("jax", "flax", "optax"))
    return (
        f"T = {summary['length']:,} tokens, {summary['num_steps']:,} steps of {summary['batch_size']}"
        f" examples, seeds {', '.join(map(str, seeds))}. Accuracy is the mean over the seeds, ± the sample"
        " standard deviation where there are several. Examples/s are those of the median training step."
        " Memory is that of the compiled training step: arguments, outputs and temporaries. Time is that of"
        " training and validation.",
        f"Measured on {environment['devices'][0]} ({len(environment['devices'])} device(s),"
        f" {environment['cpus']} CPUs), Python {environment['python']}, {versions};"
        f" data: {summary['data']['dataset']}, {summary['data'].get('origin', 'unknown origin')}.",
    )


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _plot_speed(axes: Any, rows: Sequence[Row], references: dict[str, float]) -> None:
    speeds = [row.examples_per_second for row in rows]
    low, high = min(speeds) / 3, max(speeds) * 20  # room for the names of the lines
    largest = max(row.peak_bytes for row in rows)
    for name, accuracy in references.items():
        axes.axhline(accuracy, color="#999999", linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        axes.annotate(
            name,
            (high, accuracy),
            (-2, 3),
            textcoords="offset points",
            ha="right",
            fontsize=9,
            color="#666666",
        )
    for row, colour in zip(rows, COLOURS * len(rows), strict=False):
        area = 2200 * row.peak_bytes / largest
        error = statistics.stdev(row.accuracies) if len(row.accuracies) > 1 else None
        if error is not None:
            axes.errorbar(row.examples_per_second, row.accuracy, error, color=colour, capsize=3, zorder=2)
        axes.scatter(row.examples_per_second, row.accuracy, area, color=colour, alpha=0.55, zorder=3)
        axes.annotate(
            f"{row.mixer}\n{row.peak_bytes / 1e6:,.0f} MB",
            (row.examples_per_second, row.accuracy),
            (0, math.sqrt(area / math.pi) + 4),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=10,
            color=colour,
            fontweight="bold",
        )
    axes.set_xscale("log", subs=(2, 5))
    _plain_ticks(axes)
    axes.set_xlim(low, high)
    ceiling = max([row.accuracy for row in rows] + list(references.values()))
    axes.set_ylim(0, ceiling * 1.25)
    axes.set_xlabel("training examples per second")
    axes.set_ylabel("test accuracy, %")
    axes.set_title("Accuracy against speed; area is peak memory")


def _plot_curves(axes: Any, rows: Sequence[Row]) -> None:
    for row, colour in zip(rows, COLOURS * len(rows), strict=False):
        for number, curve in enumerate(row.curves):
            _, accuracies, seconds = zip(*curve, strict=True)
            axes.plot(
                seconds,
                accuracies,
                color=colour,
                linewidth=2,
                marker="o",
                markersize=4,
                alpha=1.0 if len(row.curves) == 1 else 0.6,
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
