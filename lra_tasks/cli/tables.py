"""Plain tables that fit the terminal."""

from collections.abc import Sequence

GAP = 2  # blanks between columns
WORD = 16  # characters of a longer word, a path for example, may break


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: bool = False) -> None:
    """Prints a plain table that fits the terminal, or 80 columns where the output is piped.

    Names and numbers stay whole if they fit at all, other cells break between words. What is too wide even so
    is printed as several tables, each with the first column and as many of the others as fit, one at least.

    Args:
      header: a title for each column.
      rows: a cell for each column.
      numbers: all columns but the first have numbers, which stand to the right.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False, emoji=False)
    cells = list(zip(header, *rows, strict=True))
    longest = [max(map(len, column)) for column in cells]
    half = console.width // 2
    room = console.width - min(longest[0], half) - GAP
    whole = [longest[0] <= half, *(numbers and width <= room for width in longest[1:])]
    words = [max((len(word) for cell in column for word in cell.split()), default=0) for column in cells]
    least = [longest[n] if whole[n] else min(WORD, words[n]) for n in range(len(cells))]
    least[0] = min(longest[0], half)

    def print_columns(columns: Sequence[int]) -> None:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True)
        for number in columns:
            justify = "right" if numbers and number else "left"
            table.add_column(header[number], justify=justify, overflow="fold", no_wrap=whole[number])
        for row in rows:
            table.add_row(*(row[number] for number in columns))
        console.print(table)

    columns = [0]
    for number in range(1, len(header)):
        wider = [*columns, number]
        if len(columns) > 1 and sum(least[n] for n in wider) + GAP * (len(wider) - 1) > console.width:
            print_columns(columns)
            console.print()
            wider = [0, number]
        columns = wider
    print_columns(columns)


def print_paragraphs(*paragraphs: str) -> None:
    """Prints paragraphs with an empty line before each; lines break between words."""
    from rich.console import Console

    console = Console(highlight=False, emoji=False)
    for paragraph in paragraphs:
        console.print(f"\n{paragraph}", markup=False)
