"""Results of several tasks: the table of mixers × tasks, as text, Markdown, CSV and LaTeX."""

import csv
import dataclasses
import io
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from lra_tasks.reporting.results import Report, Row, markdown_table, rounded
from lra_tasks.tasks import ARENA
from lra_tasks.tasks.published import PUBLISHED, TASKS

LATEX = {"\\": r"\textbackslash{}", "±": r"$\pm$", "×": r"$\times$"} | {
    character: f"\\{character}" for character in "&%$#_{}"
}


@dataclasses.dataclass(frozen=True)
class Grid:
    """Results of a grid of tasks, mixers and seeds.

    Attributes:
      reports: Report of every task, in the order of the columns.
      missing: Tasks that were not run, and the reason why: "text" → "Text is not prepared: …".
    """

    reports: tuple[Report, ...]
    missing: dict[str, str] = dataclasses.field(default_factory=dict[str, str])

    @property
    def titles(self) -> tuple[str, ...]:
        """The names of the columns: tasks, with their variants where these are other tasks."""
        return tuple(report.title for report in self.reports)

    @property
    def mixers(self) -> tuple[str, ...]:
        """The names of the rows, in the order of their first appearance."""
        return tuple(dict.fromkeys(mixer for report in self.reports for mixer in report.mixers))

    def row(self, mixer: str, report: Report) -> Row | None:
        """Returns the results of a mixer on a task; None if no run of it is finished."""
        return next((row for row in report.rows if row.mixer == mixer), None)

    def accuracy(self, mixer: str, report: Report) -> str:
        """Returns the accuracy of a mixer on a task as text: mean ± deviation (seeds), a reason, or "-"."""
        row, reasons = self.row(mixer, report), report.reasons(mixer)
        if row is None:
            return reasons or "-"
        spread = "" if row.deviation is None else f" ± {row.deviation:.2f}"
        return f"{row.accuracy:.2f}{spread}{report.seeds(row)}"

    def best(self, report: Report) -> str | None:
        """Returns the mixer with the highest mean accuracy on a task, among those whose runs all finished."""
        whole = [row for row in report.rows if not report.reasons(row.mixer)]
        return max(whole, key=lambda row: row.accuracy).mixer if whole else None

    def rule(self, report: Report) -> str | None:
        """Returns the simple rule with the highest accuracy on a task, the first of equal ones."""
        return max(report.baselines, key=report.baselines.__getitem__, default=None)

    def mean(self, mixer: str, *, pathx: bool) -> float | None:
        """Returns the mean accuracy of a mixer over the arena's tasks of the grid, in percent.

        Diagnostic tasks, variants and tasks of the user's own do not count. None if the mixer has no result
        on one of the tasks.

        Args:
          mixer: Name of the mixer.
          pathx: Whether Path-X counts, if it is in the grid.
        """
        names = {task.name for task in ARENA} - (set() if pathx else {"pathx"})
        rows = [self.row(mixer, report) for report in self.reports if report.title in names]
        finished = [row.accuracy for row in rows if row is not None]
        return statistics.fmean(finished) if finished and len(finished) == len(rows) else None

    @property
    def _means(self) -> dict[str, bool]:
        """The columns of means, and whether Path-X counts."""
        arena = {task.name for task in ARENA} & set(self.titles)
        if len(arena - {"pathx"}) < 2:
            return {}
        return {"mean": False} | ({"mean with pathx": True} if "pathx" in arena else {})

    @property
    def base(self) -> str:
        """The mixer that speed and memory are relative to: softmax, or else the first with a finished run."""
        finished = [row.mixer for report in self.reports for row in report.rows]
        return "softmax" if "softmax" in finished else finished[0] if finished else ""

    def relative(self, mixer: str, value: Callable[[Row], float]) -> list[float]:
        """Returns a measure of a mixer relative to `base`, for each task that both have finished.

        Args:
          mixer: Name of the mixer.
          value: Measure of a row, for example its training rate.
        """
        pairs = [(self.row(mixer, report), self.row(self.base, report)) for report in self.reports]
        return [value(row) / value(base) for row, base in pairs if row is not None and base is not None]

    def header(self) -> tuple[str, ...]:
        """Returns the names of the columns of `cells`."""
        return ("mixer", *self.titles, *self._means, "speed ×", "memory ×")

    def cells(self) -> list[tuple[str, ...]]:
        """Returns one row of text per mixer, in the order of `header`."""
        return [
            (
                mixer,
                *(self.accuracy(mixer, report) for report in self.reports),
                *(_percent(self.mean(mixer, pathx=pathx)) for pathx in self._means.values()),
                quartiles(self.relative(mixer, lambda row: row.examples_per_second)),
                quartiles(self.relative(mixer, lambda row: row.peak_bytes)),
            )
            for mixer in self.mixers
        ]

    def simple_rules(self) -> tuple[str, ...]:
        """Returns a row with the best of the simple rules of every task, measured on the same test split."""
        best = (max(report.baselines.values(), default=None) for report in self.reports)
        return ("best simple rule", *map(_percent, best), *[""] * len(self._means), "", "")

    def published(self) -> list[tuple[str, ...]]:
        """Returns rows of published accuracies, for the columns that are tasks of the arena."""
        columns = [TASKS.index(title) if title in TASKS else None for title in self.titles]
        if not any(column is not None for column in columns):
            return []
        rows: list[tuple[str, ...]] = []
        for model, scores in PUBLISHED.items():
            values = [None if column is None else scores[column] for column in columns]
            means = [self._published_mean(scores, pathx=pathx) for pathx in self._means.values()]
            rows.append((model, *map(_percent, values), *map(_percent, means), "", ""))
        return rows

    def _published_mean(self, scores: Sequence[float | None], *, pathx: bool) -> float | None:
        names = set(self.titles) - (set() if pathx else {"pathx"})
        counted = [score for name, score in zip(TASKS, scores, strict=True) if name in names]
        known = [score for score in counted if score is not None]
        return statistics.fmean(known) if known and len(known) == len(counted) else None

    def notes(self) -> list[str]:
        """Returns sentences on the whole table, and the messages of all failures."""
        return self.remarks() + [
            f"{report.title}, {failure.mixer}, seed {failure.seed}: {failure.message}"
            for report in self.reports
            for failure in report.failures
        ]

    def remarks(self) -> list[str]:
        """Returns sentences on the whole table: `notes` without the failures."""
        notes = [
            "Test accuracy in percent, at the step with the best validation; several seeds give mean ± sample"
            " standard deviation (number of seeds).",
            f"Speed × (training examples/s) and memory × (compiled training step) are relative to"
            f" {self.base}: the median over the tasks that both have finished, and the quartiles in"
            " brackets.",
        ]
        if self._means:
            notes.append(
                "The mean is over the arena's tasks of this table"
                + (" without Path-X." if "pathx" in self.titles else ".")
            )
        for report in self.reports:
            if report.unfinished:
                notes.append(f"{report.title}: not finished yet: {', '.join(report.unfinished)}.")
        return notes + [f"{task} was not run. {reason}" for task, reason in self.missing.items()]

    def table(self) -> str:
        """Returns the measured rows as a Markdown table."""
        return markdown_table(self.header(), [*self.cells(), self.simple_rules()])

    def markdown(self) -> str:
        """Returns the table, its notes, the published rows, and the report of every task as Markdown."""
        lines = [self.table(), *(f"{note}\n" for note in self.notes())]
        if published := self.published():
            lines += ["Published, not measured here (Tay et al. 2021 and later papers, full training):\n"]
            lines += [markdown_table(self.header()[:-2], [row[:-2] for row in published])]
        for report in self.reports:
            lines += [f"## {report.title}\n", report.markdown()]
        return "\n".join(lines)

    def csv(self) -> str:
        """Returns the runs as comma-separated values, unrounded, one run per line."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        for number, report in enumerate(self.reports):
            head, *lines = csv.reader(io.StringIO(report.csv()))
            writer.writerows(
                ([("task", *head)] if number == 0 else []) + [(report.title, *line) for line in lines]
            )
        return text.getvalue()

    def latex(self) -> str:
        """Returns the measured rows as a LaTeX table for the package booktabs, the best of a task in bold."""
        head = " & ".join(map(_latex, self.header()))
        lines = [
            rf"\begin{{tabular}}{{l{'r' * (len(self.header()) - 1)}}}",
            r"\toprule",
            rf"{head} \\",
            r"\midrule",
        ]
        best = [self.best(report) for report in self.reports]
        for mixer, *cells in self.cells():
            shown = [_latex(cell) for cell in cells]
            for column, winner in enumerate(best):
                if winner == mixer:
                    shown[column] = rf"\textbf{{{shown[column]}}}"
            lines.append(rf"{_latex(mixer)} & {' & '.join(shown)} \\")
        rules = " & ".join(map(_latex, self.simple_rules()))
        lines += [r"\midrule", rf"{rules} \\", r"\bottomrule", r"\end{tabular}"]
        return "\n".join(lines) + "\n"

    def json(self) -> dict[str, Any]:
        """Returns everything as a dictionary that JSON can hold."""
        return {"reports": [report.json() for report in self.reports], "missing": self.missing}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Grid":
        """Returns the grid from the result of `json`."""
        return cls(tuple(map(Report.from_json, content["reports"])), dict(content["missing"]))


def quartiles(values: Sequence[float]) -> str:
    """Returns the median, and the quartiles of four values or more.

    >>> quartiles([]), quartiles([1.5, 2.5]), quartiles([1.0, 2.0, 3.0, 4.0, 5.0])
    ('-', '2.0', '3.0 [1.5, 4.5]')
    """
    if not values:
        return "-"
    middle = rounded(statistics.median(values))
    if len(values) < 4:
        return middle
    low, _, high = statistics.quantiles(values)
    return f"{middle} [{rounded(low)}, {rounded(high)}]"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _latex(text: str) -> str:
    return "".join(LATEX.get(character, character) for character in text)
