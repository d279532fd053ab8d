"""Plain tables that fit the terminal."""

from collections.abc import Sequence


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: bool = False) -> None:
    """Prints a plain table that fits the terminal; with `numbers`, all columns but the first to the right."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for number, title in enumerate(header):
        table.add_column(title, justify="right" if numbers and number else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(table)


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
