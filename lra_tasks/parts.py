"""Examples drawn in parts: files that workers make on any machine, and that outlive a kill.

A part is a pure function of its arguments, so it may be made anywhere and again. It is kept as an `.npz` of
"tokens", uint8 (n, T), or (sum of sizes,) with "sizes" (n,) beside it, and "label" (n,).
"""

import os
import socket
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lra_tasks.workers import spread


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
    try:
        arrays = _load(path)
    except (zipfile.BadZipFile, ValueError, KeyError, EOFError):  # a flipped byte, or a file cut short
        _make(path, part.function, part.arguments)
        arrays = _load(path)
    tokens = arrays["tokens"]
    if "sizes" in arrays:
        tokens = np.split(tokens, np.cumsum(arrays["sizes"])[:-1])
    for row, label in zip(tokens, arrays["label"], strict=True):
        yield row, int(label)


def _path(folder: Path, part: Part) -> Path:
    return folder / f"{part.name}.npz"


def _load(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as arrays:
        return dict(arrays)


def _make(path: Path, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    result = function(*arguments)
    arrays: dict[str, Any] = result if isinstance(result, dict) else _columns(result)
    beside = path.with_name(f"{path.name}.{socket.gethostname()}.{os.getpid()}")
    try:
        with beside.open("wb") as file:
            np.savez_compressed(file, **arrays)
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
