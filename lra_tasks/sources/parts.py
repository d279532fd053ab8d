"""Examples drawn in parts: files that workers make on any machine, and that outlive a kill.

A part is a pure function of its arguments, so it may be made anywhere and again. It is kept as an `.npz` of
"tokens", uint8 (n, T), or (sum of sizes,) with "sizes" (n,) beside it, and "label" (n,). The SHA-256 of these
bytes stands behind them: the checksums of the format itself leave out the names of its arrays.
"""

import hashlib
import io
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lra_tasks.sources.workers import spread

DIGEST = hashlib.sha256().digest_size


class Part(NamedTuple):
    """A share of a drawn dataset.

    Attributes:
      name: of its file, the same for the same examples.
      size: its number of examples.
      function: of a module, called with `arguments` in a worker. Returns a dict of the arrays above, or
        a list of examples (tokens, one a byte; label).
      arguments: what can be pickled.
    """

    name: str
    size: int
    function: Callable[..., Any]
    arguments: tuple[Any, ...]


def make(
    parts: Sequence[Part], folder: Path, *, num_workers: int | None, report: Callable[[int], None]
) -> None:
    """Makes the files of the parts that have none, in several processes.

    Args:
      parts: what to make.
      folder: where; other machines may be writing other parts of the same there.
      num_workers: processes; None takes one for each processor.
      report: is told the number of examples there are.

    Raises:
      OSError: a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    missing = [part for part in parts if not _path(folder, part).exists()]
    done = sum(part.size for part in parts) - sum(part.size for part in missing)
    report(done)
    calls = [(_make, (_path(folder, part), part.function, part.arguments)) for part in missing]
    with closing(spread(calls, num_workers)) as made:
        for part, _ in zip(missing, made, strict=True):
            done += part.size
            report(done)


def examples(part: Part, folder: Path) -> Iterator[tuple[np.ndarray, int]]:
    """Yields the part's examples, tokens uint8 (T,) and label; a damaged file is made again."""
    path = _path(folder, part)
    content = _undamaged(path)
    if content is None:
        _make(path, part.function, part.arguments)
        content = path.read_bytes()[:-DIGEST]
    with np.load(io.BytesIO(content)) as arrays:
        yield from _rows(dict(arrays))


def draw(part: Part) -> Iterator[tuple[np.ndarray, int]]:
    """Yields the part's examples, drawn in this process and kept nowhere."""
    return _rows(_drawn(part.function, part.arguments))


def _rows(arrays: dict[str, np.ndarray]) -> Iterator[tuple[np.ndarray, int]]:
    tokens = arrays["tokens"]
    if "sizes" in arrays:
        tokens = np.split(tokens, np.cumsum(arrays["sizes"])[:-1])
    for row, label in zip(tokens, arrays["label"], strict=True):
        yield row, int(label)


def _path(folder: Path, part: Part) -> Path:
    return folder / f"{part.name}.npz"


def _undamaged(path: Path) -> bytes | None:
    """The file without its digest; None where a byte is flipped or the file was cut."""
    content = path.read_bytes()
    content, digest = content[:-DIGEST], content[-DIGEST:]
    return content if hashlib.sha256(content).digest() == digest else None


def _drawn(function: Callable[..., Any], arguments: tuple[Any, ...]) -> dict[str, np.ndarray]:
    result = function(*arguments)
    return result if isinstance(result, dict) else _columns(result)


def _make(path: Path, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    content = io.BytesIO()
    arrays: dict[str, Any] = _drawn(function, arguments)
    np.savez_compressed(content, **arrays)
    beside = path.with_name(f"{path.name}.{socket.gethostname()}.{os.getpid()}")
    try:
        with beside.open("wb") as file:
            file.write(content.getvalue())
            file.write(hashlib.sha256(content.getbuffer()).digest())
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def _columns(rows: list[tuple[bytes, int]]) -> dict[str, np.ndarray]:
    return {
        "tokens": np.frombuffer(b"".join(tokens for tokens, _ in rows), np.uint8),
        "sizes": np.array([len(tokens) for tokens, _ in rows], np.int64),
        "label": np.array([label for _, label in rows], np.int64),
    }
