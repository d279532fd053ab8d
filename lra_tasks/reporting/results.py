"""Results of a comparison: runs, rows and the table."""

import csv
import dataclasses
import io
import math
import statistics
from collections.abc import Sequence
from typing import Any

from lra_tasks.progress import duration
from lra_tasks.tasks import get_task

COLUMNS = (
    "mixer",
    "seeds",
    "accuracy, %",
    "parameters",
    "examples/s",
    "speed ×",
    "memory",
    "memory ×",
    "time",
)


@dataclasses.dataclass(frozen=True)
class Run:
    """One finished run.

    Attributes:
      seed: Seed of the run.
      test_accuracy: Accuracy in percent, at the step with the best validation.
      examples_per_second: Training rate, from the median step.
      seconds: Time of training steps and validations.
      curve: Step, accuracy in percent, and seconds so far, of every validation.
      best_step: Step of the best validation; None in reports of before it was recorded.
    """

    seed: int
    test_accuracy: float
    examples_per_second: float
    seconds: float
    curve: tuple[tuple[int, float, float], ...]
    best_step: int | None = None


@dataclasses.dataclass(frozen=True)
class Failure:
    """One run that could not finish.

    Attributes:
      mixer: Name of the mixer.
      seed: Seed of the run.
      reason: Reason for the table: "diverged", "out of memory" or "too slow".
      message: The whole message.
    """

    mixer: str
    seed: int
    reason: str
    message: str


@dataclasses.dataclass(frozen=True)
class Row:
    """One mixer, over its seeds.

    Attributes:
      mixer: Name of the mixer.
      runs: One run per seed.
      num_parameters: Number of parameters of the whole model.
      peak_bytes: Memory of the compiled training step on one device: arguments, outputs, temporaries.
    """

    mixer: str
    runs: tuple[Run, ...]
    num_parameters: int
    peak_bytes: int

    @property
    def accuracy(self) -> float:
        """The mean test accuracy in percent."""
        return statistics.fmean(run.test_accuracy for run in self.runs)

    @property
    def deviation(self) -> float | None:
        """The sample standard deviation of the test accuracy; None for a single seed."""
        return _deviation([run.test_accuracy for run in self.runs])

    @property
    def examples_per_second(self) -> float:
        """The mean training rate."""
        return statistics.fmean(run.examples_per_second for run in self.runs)

    def error(self, num_test: int | None) -> float | None:
        """Returns the uncertainty of the accuracy in percent; None if it is unknown.

        That is the deviation over the seeds, or for a single seed the binomial standard error.

        Args:
          num_test: Number of test examples.
        """
        if self.deviation is not None or num_test is None:
            return self.deviation
        return math.sqrt(self.accuracy * (100 - self.accuracy) / num_test)

    def rate(self) -> str:
        """Returns the training rate, with its deviation over several seeds."""
        return rounded(self.examples_per_second) + _spread(
            _deviation([run.examples_per_second for run in self.runs]), rounded
        )

    def cells(self, base: "Row") -> tuple[str, ...]:
        """Returns the row as text, in the order of `COLUMNS`.

        Args:
          base: Row that speed and memory are relative to.
        """
        return (
            self.mixer,
            str(len(self.runs)),
            f"{self.accuracy:.2f}" + _spread(self.deviation, "{:.2f}".format),
            f"{self.num_parameters:,}",
            self.rate(),
            rounded(self.examples_per_second / base.examples_per_second),
            f"{self.peak_bytes / 1e6:,.0f} MB",
            rounded(self.peak_bytes / base.peak_bytes),
            duration(statistics.fmean(run.seconds for run in self.runs)),
        )


@dataclasses.dataclass(frozen=True)
class Trial:
    """One learning rate that was tried for a mixer.

    Attributes:
      mixer: Name of the mixer.
      rate: Learning rate.
      seed: Seed of the run.
      validation_accuracy: Best validation accuracy in percent; None if the run could not finish.
      seconds: Time of training steps and validations; None without an accuracy.
      reason: Reason why the run could not finish: "diverged" for example.
    """

    mixer: str
    rate: float
    seed: int
    validation_accuracy: float | None
    seconds: float | None
    reason: str = "diverged"


def best(trials: Sequence[Trial]) -> Trial | None:
    """Returns the trial with the best validation accuracy, the first of equal ones; None if none finished."""
    finished = [trial for trial in trials if trial.validation_accuracy is not None]
    return max(finished, key=lambda trial: trial.validation_accuracy or 0.0, default=None)


def _deviation(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def _spread(deviation: float | None, written: Any) -> str:
    return "" if deviation is None else f" ± {written(deviation)}"


def base_of(rows: Sequence[Row]) -> Row:
    """Returns the row that speed and memory are relative to: softmax, or else the first."""
    return next((row for row in rows if row.mixer == "softmax"), rows[0])


@dataclasses.dataclass(frozen=True)
class Report:
    """Results of a comparison.

    Attributes:
      task: Name of the task.
      title: Name of the task, with the dataset's variant where that is another task.
      rows: One row per mixer.
      baselines: Test accuracy in percent of simple rules on the same data, by name.
      num_test: Number of test examples; None if unknown.
      notes: Sentences on the runs.
      environment: Versions and devices of the first run.
      data: Origin of the dataset, from its manifest.
      trials: Learning rates that `compare` tried, mixer by mixer; empty if it chose none.
      failures: Runs that could not finish.
      num_steps: Number of training steps of a run; None in reports of before it was recorded.
      unfinished: Runs that have begun or are planned: "hrr seed 1".
      order: Names of the mixers, in the order of the table; empty in reports of before it was recorded.
    """

    task: str
    title: str
    rows: tuple[Row, ...]
    baselines: dict[str, float]
    num_test: int | None
    notes: tuple[str, ...]
    environment: dict[str, Any]
    data: dict[str, Any]
    trials: tuple[Trial, ...] = ()
    failures: tuple[Failure, ...] = ()
    num_steps: int | None = None
    unfinished: tuple[str, ...] = ()
    order: tuple[str, ...] = ()

    @property
    def mixers(self) -> tuple[str, ...]:
        """The mixers of the table, with those of which no run could finish."""
        ended = dict.fromkeys([row.mixer for row in self.rows] + [run.mixer for run in self.failures])
        return tuple(dict.fromkeys([*(mixer for mixer in self.order if mixer in ended), *ended]))

    def reasons(self, mixer: str) -> str:
        """Returns the reasons why runs of a mixer could not finish: "out of memory"; empty if all did."""
        return ", ".join(dict.fromkeys(run.reason for run in self.failures if run.mixer == mixer))

    def seeds(self, row: Row) -> str:
        """Returns the number of seeds behind an accuracy: " (3)", or " (1 of 3; diverged)"; empty for one."""
        failed = sum(run.mixer == row.mixer for run in self.failures)
        if failed:
            return f" ({len(row.runs)} of {len(row.runs) + failed}; {self.reasons(row.mixer)})"
        return f" ({len(row.runs)})" if len(row.runs) > 1 else ""

    def failure_notes(self) -> list[str]:
        """Returns a sentence per run that could not finish, and one on runs that are not finished yet."""
        notes = [f"{run.mixer}, seed {run.seed}: {run.message}" for run in self.failures]
        return notes + ([f"Not finished yet: {', '.join(self.unfinished)}."] if self.unfinished else [])

    @property
    def published(self) -> dict[str, float]:
        """Accuracies in percent that papers report for this task, not measured here."""
        return dict(get_task(self.task).published) if self.title == get_task(self.task).name else {}

    def cells(self) -> list[tuple[str, ...]]:
        """Returns the table's rows as text, in the order of `COLUMNS`."""
        finished = {row.mixer: row.cells(base_of(self.rows)) for row in self.rows}
        for mixer in finished:
            if reasons := self.reasons(mixer):
                name, seeds, accuracy, *others = finished[mixer]
                finished[mixer] = (name, seeds, f"{accuracy}; {reasons}", *others)
        blank = ("-",) * (len(COLUMNS) - 3)
        return [finished.get(mixer, (mixer, "0", self.reasons(mixer), *blank)) for mixer in self.mixers]

    def rate_cells(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Returns header and rows of a table of validation accuracies per mixer and learning rate."""
        rates = dict.fromkeys(trial.rate for trial in self.trials)
        rows: list[tuple[str, ...]] = []
        for row in self.rows:
            tried = {trial.rate: trial for trial in self.trials if trial.mixer == row.mixer}
            chosen = best(list(tried.values()))
            seconds = sum(trial.seconds or 0.0 for trial in tried.values())
            accuracies = (_accuracy(tried.get(rate)) for rate in rates)
            rows.append((row.mixer, *accuracies, str(chosen.rate) if chosen else "-", duration(seconds)))
        return ("validation, %", *(f"rate {rate}" for rate in rates), "chosen", "time"), rows

    def table(self) -> str:
        """Returns the rows as a Markdown table."""
        return markdown_table(COLUMNS, self.cells())

    def markdown(self) -> str:
        """Returns the table, the baseline scores and the notes as Markdown."""
        lines = [self.table(), *([markdown_table(*self.rate_cells())] if self.trials else [])]
        if self.baselines:
            lines += ["Baseline scores, measured on the same test split:", ""]
            lines += [f"- {name}: {accuracy:.2f} %" for name, accuracy in self.baselines.items()] + [""]
        if self.published:
            lines += ["Published, not measured here (Tay et al. 2021 and later papers, full training):", ""]
            lines += [
                "; ".join(f"{name} {accuracy:g}" for name, accuracy in self.published.items()) + ".",
                "",
            ]
        return "\n".join([*lines, *(f"{note}\n" for note in (*self.failure_notes(), *self.notes))])

    def csv(self) -> str:
        """Returns the runs as comma-separated values, unrounded, one run per line."""
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
        """Returns everything as a dictionary that JSON can hold."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Report":
        """Returns the report from the result of `json`."""

        def run(fields: dict[str, Any]) -> Run:
            curve: Any = tuple(tuple(point) for point in fields["curve"])
            return Run(**fields | {"curve": curve})

        def row(fields: dict[str, Any]) -> Row:
            runs: Any = tuple(map(run, fields["runs"]))
            return Row(**fields | {"runs": runs})

        changed: dict[str, Any] = {
            "rows": tuple(map(row, content["rows"])),
            "notes": tuple(content["notes"]),
            "trials": tuple(Trial(**fields) for fields in content.get("trials", ())),
            "failures": tuple(Failure(**fields) for fields in content.get("failures", ())),
            "unfinished": tuple(content.get("unfinished", ())),
            "order": tuple(content.get("order", ())),
        }
        return cls(**content | changed)


def _accuracy(trial: Trial | None) -> str:
    if trial is None:
        return "-"
    return trial.reason if trial.validation_accuracy is None else f"{trial.validation_accuracy:.2f}"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a Markdown table; all columns but the first are aligned to the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def rounded(number: float) -> str:
    """Returns two digits, or a whole number.

    >>> rounded(0.98), rounded(0.0984), rounded(1.0), rounded(16.2), rounded(9.98)
    ('0.98', '0.098', '1.0', '16', '10')
    """
    return f"{number:,.0f}" if number >= 9.95 else f"{number:.1f}" if number >= 0.995 else f"{number:#.2g}"
