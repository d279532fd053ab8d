"""Results of a comparison: runs, rows and the table."""

import csv
import dataclasses
import io
import statistics
from pathlib import Path
from typing import Any

from lra_tasks.progress import duration
from lra_tasks.reporting.style import STYLE
from lra_tasks.tasks import get_task

COLUMNS = ("mixer", "seeds", "accuracy, %", "parameters", "examples/s", "memory", "time")


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
            rounded(self.examples_per_second),
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

        from lra_tasks.reporting.plots import plot_curves, plot_speed

        with matplotlib.rc_context(STYLE):
            figure = Figure(figsize=(12, 4.8), layout="constrained")
            speed, curves = figure.subplots(1, 2)
            plot_speed(speed, self.rows, self.references)
            plot_curves(curves, self.rows)
            unofficial = ", from an unofficial source" if "unofficial" in self.data else ""
            mixers = ", ".join(row.mixer for row in self.rows)
            figure.suptitle(f"{self.title}{unofficial}: {mixers}", x=0.01, ha="left")
            figure.savefig(path, dpi=150, metadata={"Software": None})


def rounded(number: float) -> str:
    """Two digits, or a whole number."""
    return f"{number:,.0f}" if number >= 10 else f"{number:.2g}"
