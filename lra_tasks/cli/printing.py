"""What the commands of `lra` print, but for `lra bench`."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lra_tasks.cli.tables import print_paragraphs, print_table


def counts(numbers: Iterable[int]) -> str:
    """Returns the examples of the splits, one after the other."""
    return " / ".join(f"{number:,}" for number in numbers)


def print_outcomes(outcomes: Mapping[str, Any]) -> None:
    """Prints what became of each task, `lra_tasks.Outcome`s by name, and what is missing."""

    def state(outcome: Any) -> str:
        if outcome.folder is None:
            return "missing"
        return "there already" if outcome.was_there else "made"

    print_table(
        ("task", "is", "in"),
        [(name, state(outcome), str(outcome.folder or "")) for name, outcome in outcomes.items()],
    )
    print_paragraphs(*(f"{name}: {outcome.error}" for name, outcome in outcomes.items() if outcome.error))


def print_findings(findings: Sequence[Any]) -> None:
    """Prints `lra_tasks.Finding`s, and of each that is wrong why, and what mends it."""
    print_table(
        ("dataset", "is", "train / val. / test", "MB", "% a label"),
        [
            (
                finding.dataset,
                "BAD" if finding.problems else "ok",
                counts(finding.num_examples.values()),
                _megabytes(finding.size) if finding.size else "",
                finding.shares(),
            )
            for finding in findings
        ],
        numbers=True,
    )
    for finding in findings:
        if finding.problems:
            print_paragraphs(f"{finding.dataset}:")
            print_list(*finding.problems, finding.mend)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.0f}" if size >= 1e7 else f"{size / 1e6:.1f}"


def print_report(result: Any, out_dir: Path) -> None:
    """Prints a `lra_tasks.Report`: the table, the baseline scores and the notes."""
    from lra_tasks.reporting.results import COLUMNS

    print_table(COLUMNS, result.cells(), numbers=True)
    print()
    for name, accuracy in result.baselines.items():
        print(f"{accuracy:8.2f} %  {name}")
    published = ", ".join(f"{name} {accuracy:g}" for name, accuracy in result.published.items())
    print_paragraphs(*([f"Published, not measured here: {published}."] if published else []), *result.notes)
    print(f"\nWritten to {out_dir}: report.md, report.csv, report.json, report.png")


def print_runs(runs: Sequence[Any]) -> None:
    """Prints `lra_tasks.PastRun`s, a table for each folder they lie in, and why some cannot be read."""
    from lra_tasks.progress import duration
    from lra_tasks.reporting.history import steps, title

    def percent(value: float | None) -> str:
        return "-" if value is None else f"{value:.2f}"

    folders: dict[tuple[str, str], list[Any]] = {}
    for run in runs:
        kind = title(run) if run.preset is None else f"{title(run)}, preset {run.preset}"
        folders.setdefault((str(run.folder.parent), kind), []).append(run)
    for number, ((folder, kind), inside) in enumerate(folders.items()):
        if number:
            print()
        print(folder if kind == "-" else f"{folder} ({kind})")
        told = all(run.config and run.folder.name == run.config.name for run in inside)
        header = ("run", "state", "steps", "test, %", "val., %", "time", "date", "mixer", "seed")
        rows = [
            (
                run.folder.name,
                run.state,
                steps(run),
                percent(run.test_accuracy),
                percent(run.validation_accuracy),
                "-" if run.seconds is None else duration(run.seconds),
                f"{run.changed:%Y-%m-%d}",
                "-" if run.config is None else run.config.mixer,
                "-" if run.config is None else str(run.config.seed),
            )
            for run in inside
        ]
        columns = len(header) - 2 if told else len(header)  # the name tells mixer and seed
        print_table(header[:columns], [row[:columns] for row in rows], numbers=True)
    print_paragraphs(*(f"{run.folder}: {run.problem}" for run in runs if run.problem))


def print_compared(folders: Sequence[Path], compared: Mapping[str, Sequence[tuple[str, ...]]]) -> None:
    """Prints what `lra_tasks.reporting.history.compared` found, each group as a table."""
    paths = [folder.absolute() for folder in folders]
    above = os.path.commonpath([path.parent for path in paths])
    names = [os.path.relpath(path, above) for path in paths]
    for group, lines in compared.items():
        if lines:
            print_table((group, *names), lines)
            print()
    same = [group for group, lines in compared.items() if not lines]
    if same:
        print(f"The same in all: {', '.join(same)}.")


def print_health(lines: Sequence[Any]) -> None:
    """Prints what `lra_tasks.cli.doctor.doctor` found, and what to do where something is wrong."""
    print_table(("what", "found"), [(line.what, line.found) for line in lines])
    wrong = [line for line in lines if line.advice]
    if wrong:
        print_paragraphs("What to do:")
        print_list(*(f"{line.what}: {line.advice}" for line in wrong))
    fatal = [line.what for line in lines if line.fatal]
    print_paragraphs(
        f"Nothing can be trained before this is mended: {', '.join(fatal)}."
        if fatal
        else "Training can begin."
    )


def print_list(*sentences: str) -> None:
    """Prints sentences one below the other, each with a dash; lines break between words."""
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False)
    for sentence in sentences:
        console.print(f"- {sentence}")
