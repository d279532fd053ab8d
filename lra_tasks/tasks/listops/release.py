"""Rows of the arena's own ListOps files."""

from collections.abc import Iterator, Sequence

from lra_tasks.errors import UsageError
from lra_tasks.tasks.listops.grammar import evaluate, parse


def read_rows(name: str, first_line: int, lines: Sequence[str]) -> Iterator[tuple[bytes, int]]:
    """Yields token ids and label of the release's rows, "expression<tab>label", and verifies each label.

    Args:
      name: File name, for messages.
      first_line: Number of the first of these lines in the file.
      lines: The rows, without the header.

    Raises:
      UsageError: If a row cannot be read, or its label is not the value of its expression; the message names
        file and line.
    """
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
        yield tokens, label
