"""Prints tables and paragraphs that fit the terminal, or 80 columns in a pipe."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console, RenderableType
from rich.table import Table

GAP = 2  # blanks between columns
WORD = 16  # characters; a longer word, a path for example, may break


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: bool = False) -> None:
    """Prints a table. Names and numbers stay whole, other cells wrap between words.

    A table that is too wide is printed with rows and columns exchanged, or else row by row.

    Args:
      header: The title of each column.
      rows: One cell per column.
      numbers: Whether all columns but the first contain numbers, which are aligned to the right.
    """
    if _fits(header, rows, numbers):
        _print_columns(header, rows, numbers)
        return
    turned = list(zip(header, *rows, strict=True))
    if len(rows) > 1 and _fits(turned[0], turned[1:], numbers):
        _print_columns(turned[0], turned[1:], numbers)
        return
    for number, row in enumerate(rows):
        if number:
            print()
        pairs = list(zip(header, row, strict=True))
        _print_columns(pairs[0], pairs[1:], numbers and _fits(pairs[0], pairs[1:], numbers))


def _whole(columns: Sequence[Sequence[str]], numbers: bool) -> list[bool]:
    """Whether the cells of each column must not be broken."""
    return [max(map(len, columns[0])) <= Console().width // 2, *(numbers for _ in columns[1:])]


def _fits(header: Sequence[str], rows: Sequence[Sequence[str]], numbers: bool) -> bool:
    columns = list(zip(header, *rows, strict=True))
    least = [
        max(map(len, column))
        if whole
        else min(WORD, max((len(word) for cell in column for word in cell.split()), default=0))
        for whole, column in zip(_whole(columns, numbers), columns, strict=True)
    ]
    return sum(least) + GAP * (len(least) - 1) <= Console().width


def _print_columns(header: Sequence[str], rows: Sequence[Sequence[str]], numbers: bool) -> None:
    columns = list(zip(header, *rows, strict=True))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True)
    for number, (title, whole) in enumerate(zip(header, _whole(columns, numbers), strict=True)):
        justify = "right" if numbers and number else "left"
        table.add_column(title, justify=justify, overflow="fold", no_wrap=whole)
    for row in rows:
        table.add_row(*row)
    print_text(table)


def print_definitions(pairs: Iterable[tuple[str, str]]) -> None:
    """Prints words and their explanations in two indented columns."""
    grid = Table.grid(padding=(0, GAP))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for word, explanation in pairs:
        grid.add_row(f"  {word}", explanation)
    print_text(grid)


def print_paragraphs(*paragraphs: str) -> None:
    """Prints paragraphs with an empty line before each; lines break between words."""
    for paragraph in paragraphs:
        print()
        print_text(paragraph)


def print_text(content: RenderableType) -> None:
    """Prints a text or a table of rich, without the blanks that rich leaves at the ends of lines."""
    console = Console(highlight=False, markup=False, emoji=False)
    with console.capture() as captured:
        console.print(content)
    for line in captured.get().splitlines():
        print(line.rstrip())


def counts(numbers: Iterable[int]) -> str:
    """Returns the numbers of examples of the splits, separated by slashes."""
    return " / ".join(f"{number:,}" for number in numbers)


def print_outcomes(outcomes: Mapping[str, Any]) -> None:
    """Prints a `lra_tasks.Outcome` per task, and the missing files."""

    def state(outcome: Any) -> str:
        if outcome.folder is None:
            return "missing"
        return "exists" if outcome.was_there else "made"

    print_table(
        ("task", "state", "folder"),
        [(name, state(outcome), str(outcome.folder or "")) for name, outcome in outcomes.items()],
    )
    print_paragraphs(*(f"{name}: {outcome.error}" for name, outcome in outcomes.items() if outcome.error))


def print_findings(findings: Sequence[Any]) -> None:
    """Prints `lra_tasks.Finding`s, and the problems and the mending command of each damaged dataset."""
    print_table(
        ("dataset", "state", "train / val. / test", "MB", "% per label"),
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
            for sentence in (*finding.problems, finding.mend):
                print_text(f"- {sentence}")


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.0f}" if size >= 1e7 else f"{size / 1e6:.1f}"


def print_report(result: Any, folder: Path) -> None:
    """Prints a `lra_tasks.Report`: the table, the scores of simple rules and the notes."""
    from lra_tasks.reporting.results import COLUMNS

    print_table(COLUMNS, result.cells(), numbers=True)
    print()
    if result.trials:
        print_table(*result.rate_cells(), numbers=True)
        print()
    print_definitions((f"{accuracy:6.2f} %", name) for name, accuracy in result.baselines.items())
    published = ", ".join(f"{name} {accuracy:g}" for name, accuracy in result.published.items())
    print_paragraphs(
        *([f"Published, not measured here: {published}."] if published else []),
        *result.failure_notes(),
        *result.notes,
    )
    print(f"\nWritten to {folder}: report.md, report.csv, report.json, report.png")


def print_grid(grid: Any, folder: Path) -> None:
    """Prints a `lra_tasks.reporting.grid.Grid`: mixers × tasks, and the notes."""
    print_table(grid.header(), [*grid.cells(), grid.simple_rules()], numbers=True)
    print_paragraphs(*grid.notes())
    print(f"\nWritten to {folder}: report.html, report.md, report.csv, report.tex, report.json, report.png")


def print_runs(runs: Sequence[Any]) -> None:
    """Prints `lra_tasks.PastRun`s, one table per folder, and the problems of unreadable ones."""
    from lra_tasks.progress import duration
    from lra_tasks.reporting.history import percent, steps, title

    folders: dict[tuple[str, str], list[Any]] = {}
    for run in runs:
        kind = title(run) if run.preset is None else f"{title(run)}, preset {run.preset}"
        folders.setdefault((str(run.folder.parent), kind), []).append(run)
    for number, ((folder, kind), inside) in enumerate(folders.items()):
        if number:
            print()
        print(folder if kind == "-" else f"{folder} ({kind})")
        named = all(run.config and run.folder.name == run.config.name for run in inside)
        header = ("run", "state", "steps", "test, %", "val., %", "time", "date", "mixer", "seed")
        rows = [
            (
                run.folder.name,
                run.state,
                steps(run),
                percent(run.test_accuracy),
                percent(run.validation_accuracy),
                "-" if run.seconds is None else duration(run.seconds),
                f"{run.changed:%Y-%m-%d %H:%M}",
                "-" if run.config is None else run.config.mixer,
                "-" if run.config is None else str(run.config.seed),
            )
            for run in inside
        ]
        columns = len(header) - 2 if named else len(header)  # the run's name contains mixer and seed
        print_table(header[:columns], [row[:columns] for row in rows], numbers=True)
    print_paragraphs(*(f"{run.folder}: {run.problem}" for run in runs if run.problem))


def print_compared(folders: Sequence[Path], compared: Mapping[str, Sequence[tuple[str, ...]]]) -> None:
    """Prints the result of `lra_tasks.reporting.history.compared`, one table per group."""
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
