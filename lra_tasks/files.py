"""Paths of the user, atomic writes, file locks, and the files that systems add to folders."""

import contextlib
import errno
import hashlib
import json
import os
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lra_tasks.errors import UsageError

try:
    import fcntl
except ModuleNotFoundError as error:
    raise ImportError(
        "lra_tasks runs on Linux and macOS; this system has no file locks (fcntl). On Windows, install it in"
        " the Windows Subsystem for Linux (WSL). The library hrrformer works without it."
    ) from error

# The system's answers where a file system lacks an operation; Lustre without "-o flock" has no locks.
UNSUPPORTED = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)

# Of macOS, Windows, Synology and Linux, beside the hidden ones such as .DS_Store and ._NAME.
ADDED = {"__macosx", "icon\r", "desktop.ini", "thumbs.db", "$recycle.bin", "@eadir", "lost+found"}


def local_path(path: str | os.PathLike[str], name: str, *, flag: bool = True) -> Path:
    """Returns a path that the user gave, with the home folder in place of `~`.

    Args:
      path: The path.
      name: Name of the argument.
      flag: Whether the argument is a flag of the command line.

    Raises:
      UsageError: If it is a URL, or begins with the name of an unknown user.
    """
    text = os.fspath(path)
    try:
        if not re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", text):  # one slash: `Path` has removed the other
            return Path(text).expanduser()
        mend = "That is a URL: mount the storage, and give the path below its mount point."
    except RuntimeError:
        mend = "There is no user of the name after ~: give the whole path."
    raise UsageError(
        f"{name} must be a path of this machine; got {text}. {mend}", argument=name if flag else None
    )


def is_added(name: str) -> bool:
    """Whether a file or folder of this name is hidden, or one that systems add to any folder.

    >>> [is_added(name) for name in (".DS_Store", "__MACOSX", "desktop.ini", "train.tsv")]
    [True, True, True, False]
    """
    return name.startswith(".") or name.lower() in ADDED


@contextlib.contextmanager
def locked(path: Path, message: str) -> Iterator[str]:
    """Holds a lock, which the kernel releases however this process ends.

    Args:
      path: Lock file, created if it is missing; it contains the id of the process that holds the lock.
      message: Message of the error; "PID" in it is replaced by that id.

    Yields:
      An empty text; or the system's reason, if the file system has no locks: the block runs without one.

    Raises:
      UsageError: If another process holds the lock.
    """
    reason = ""
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
            except OSError as error:
                if error.errno not in UNSUPPORTED:
                    raise
                reason = error.strerror or str(error)
                break
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield reason


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock; one on another machine may be invisible."""
    if not path.is_file():
        return False
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # freed where the file is closed, at once
        except BlockingIOError:
            return True
        except OSError:  # a file system without locks
            return False
    return False


def folder_problem(folder: Path) -> str:
    """Returns the reason why files in a folder cannot be written or locked; an empty text if they can.

    A folder that does not exist yet is judged by the nearest one above it.
    """
    try:
        folder = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        with tempfile.NamedTemporaryFile(dir=folder) as file, locked(Path(file.name), "") as reason:
            return reason and f"without file locks ({reason})"
    except OSError as error:
        return f"not writable ({error.strerror})"


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
