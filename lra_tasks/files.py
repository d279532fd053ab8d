"""Files that are there whole or not at all, and locks on them."""

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


@contextlib.contextmanager
def locked(path: Path, message: str) -> Iterator[None]:
    """Holds a lock that the kernel frees when this process ends in whatever way.

    Args:
      path: the lock's file, made if need be; it holds the number of the process.
      message: of the error; "PID" in it becomes the holder's number.

    Raises:
      UsageError: if another process holds the lock.
    """
    with path.open("a+") as file:
        for wait in (0.05, 0.05, None):  # who looks whether it is held, as `lra runs`, holds it for a moment
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
    """Turns what the system says against writing `path`, a full disk for example, into a `UsageError`."""
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"{path} cannot be written: {error.strerror or error}. Make room or mend the folder, and run the"
            " same command again."
        ) from error


def replace(path: Path, text: str) -> None:
    """Writes a text file beside its place and renames it: a kill leaves the old one or the new one.

    Raises:
      UsageError: if the file cannot be written; the old one is as it was.
    """
    beside = path.with_name(path.name + ".new")
    with writing(path):
        beside.write_text(text)
        beside.replace(path)


def write_json(path: Path, content: Any) -> None:
    """Writes indented JSON in the same way."""
    replace(path, json.dumps(content, indent=2) + "\n")


def describe(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        return {"size": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
