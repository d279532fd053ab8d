"""Atomic writes, which leave the old file or the new one; file locks; files that systems add to folders."""

import contextlib
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lra_tasks.errors import UsageError

# Of macOS, Windows, Synology and Linux, beside the hidden ones such as .DS_Store and ._NAME.
ADDED = {"__macosx", "icon\r", "desktop.ini", "thumbs.db", "$recycle.bin", "@eadir", "lost+found"}


def is_added(name: str) -> bool:
    """Whether a file or folder of this name is hidden, or one that systems add to any folder.

    >>> [is_added(name) for name in (".DS_Store", "__MACOSX", "desktop.ini", "train.tsv")]
    [True, True, True, False]
    """
    return name.startswith(".") or name.lower() in ADDED


@contextlib.contextmanager
def locked(path: Path, message: str) -> Iterator[None]:
    """Holds a lock, which the kernel releases however this process ends.

    Args:
      path: Lock file, created if it is missing; it contains the id of the process that holds the lock.
      message: Message of the error; "PID" in it is replaced by that id.

    Raises:
      UsageError: If another process holds the lock.
    """
    with path.open("a+") as file:
        for wait in (0.05, 0.05, None):  # a check whether it is held (`lra runs`) holds it for a moment
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if wait is None:
                    file.seek(0)
                    raise UsageError(message.replace("PID", file.read() or "?")) from None
                time.sleep(wait)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Converts an `OSError` on writing `path`, for example on a full disk, into a `UsageError`."""
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"{path} cannot be written: {error.strerror or error}. Free disk space or fix the folder, and"
            " repeat the command."
        ) from error


def replace(path: Path, text: str) -> None:
    """Writes a text file under a temporary name and renames it: a kill leaves the old file or the new one.

    Raises:
      UsageError: If the file cannot be written; the old file is unchanged.
    """
    beside = path.with_name(path.name + ".new")
    with writing(path):
        beside.write_text(text)
        beside.replace(path)


def write_json(path: Path, content: Any) -> None:
    """Writes indented JSON in the same way as `replace`."""
    replace(path, json.dumps(content, indent=2) + "\n")


def describe(path: Path) -> dict[str, Any]:
    """Returns size and SHA-256 of a file."""
    with open(path, "rb") as file:
        return {"size": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
