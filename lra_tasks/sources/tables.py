"""Lines and fields of text files, also after an editor or a spreadsheet has saved them."""

import codecs
import csv
from collections.abc import Iterable, Iterator

from lra_tasks.errors import UsageError
from lra_tasks.sources.archives import LeaveOut, ignore


def lines(content: Iterable[bytes], name: str, leave_out: LeaveOut = ignore) -> Iterator[tuple[int, bytes]]:
    """Yields number and content of the lines of a text, without a byte order mark and blank lines.

    Args:
      content: The lines of the file.
      name: Name of the file.
      leave_out: Function that is told blank lines.
    """
    for number, line in enumerate(content, 1):
        line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
        if line.strip():
            yield number, line
        else:
            leave_out("blank lines", f"{name}, line {number}")


def fields(line: bytes, place: str) -> list[str]:
    """Returns the fields of a line of a TSV file, without the quotes that spreadsheets put around them.

    Args:
      line: The line.
      place: File and number of the line, for the error.

    Raises:
      UsageError: If the quotes do not match.
    """
    try:
        return next(csv.reader([line.decode(errors="replace")], "excel-tab", strict=True))
    except csv.Error as error:
        raise UsageError(f"{place}: the quotes of the fields do not match: {error}.") from None
