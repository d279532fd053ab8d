"""Rows of the arena's own ListOps files."""

from collections.abc import Iterable, Iterator

from lra_tasks.errors import UsageError
from lra_tasks.sources.tables import fields
from lra_tasks.tasks.listops.grammar import evaluate, parse


def read_rows(name: str, rows: Iterable[tuple[int, bytes]]) -> Iterator[tuple[bytes, int]]:
    """Yields token ids and label of the release's rows, "expression<tab>label", and verifies each label.

    Args:
      name: File name, for messages.
      rows: Number in the file and content of every row but the header.

    Raises:
      UsageError: If a row cannot be read, or its label is not the value of its expression; the message names
        file and line.
    """
    for number, line in rows:
        place = f"{name}, line {number}"
        row = fields(line, place)
        try:
            source, target = row
            tokens, label = parse(source), int(target)
            value = evaluate(tokens)
        except UsageError as error:
            raise UsageError(f"{place}: {error}") from None
        except ValueError:
            raise UsageError(f"{place}: expected an expression, a tab and a digit.") from None
        if label != value:
            raise UsageError(f"{place}: the label is {label}, the expression is {value}.")
        yield tokens, label
