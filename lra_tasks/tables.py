"""Plain tables that fit the terminal."""

from collections.abc import Sequence


def print_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: bool = False, split: bool = False
) -> None:
    """Prints a plain table that fits the terminal.

    Args:
      header: a title for each column.
      rows: a cell for each column.
      numbers: all columns but the first to the right.
      split: a table too wide is printed as several, each with the first column and as many of the others as
        fit, one at least; otherwise cells break.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    def table(columns: Sequence[int]) -> Table:
        result = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
        for number in columns:
            justify = "right" if numbers and number else "left"
            result.add_column(header[number], justify=justify, overflow="fold")
        for row in rows:
            result.add_row(*(row[number] for number in columns))
        return result

    console, unlimited = Console(highlight=False), Console(width=10_000)
    columns = [0]
    for number in range(1, len(header)):
        wider = [*columns, number]
        if split and len(columns) > 1 and unlimited.measure(table(wider)).maximum > console.width:
            console.print(table(columns))
            console.print()
            wider = [0, number]
        columns = wider
    console.print(table(columns))


def print_paragraphs(*paragraphs: str) -> None:
    """Prints paragraphs with an empty line before each; lines break between words."""
    from rich.console import Console

    console = Console(highlight=False)
    for paragraph in paragraphs:
        console.print(f"\n{paragraph}", markup=False)


def short(length: int) -> str:
    """Returns a length as a table's head or an axis has it.

    >>> short(4096), short(1048576), short(1000)
    ('4K', '1M', '1,000')
    """
    for unit, letter in ((1 << 20, "M"), (1 << 10, "K")):
        if length % unit == 0:
            return f"{length // unit}{letter}"
    return f"{length:,}"
