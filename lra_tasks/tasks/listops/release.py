"""Rows of the arena's own ListOps files."""

from collections.abc import Sequence

from lra_tasks.errors import UsageError
from lra_tasks.tasks.listops.grammar import evaluate, parse


def read_rows(name: str, first_line: int, lines: Sequence[str]) -> list[tuple[bytes, int]]:
    """Reads rows of the arena's release, "expression<tab>label", and works every label out again.

    Args:
      name: File name, for messages.
      first_line: Number of the first of these lines in the file.
      lines: The rows, without the header.

    Returns:
      Token ids and label of every row.

    Raises:
      UsageError: A row cannot be read, or its label is not the value of its expression; the message names
        file and line.
    """
    rows = []
    for number, line in enumerate(lines, first_line):
        try:
            source, target = line.rstrip("\r\n").split("\t")
            tokens, label = parse(source), int(target)
            value = evaluate(tokens)
        except UsageError as error:
            raise UsageError(f"{name}, line {number}: {error}") from None
        except ValueError:
            raise UsageError(f"{name}, line {number}: expected an expression, a tab and a digit.") from None
        if label != value:
            raise UsageError(f"{name}, line {number}: the label is {label}, the expression is {value}.")
        rows.append((tokens, label))
    return rows
