"""Source files of datasets: found in the user's folder or downloaded, and read without unpacking."""

import contextlib
import io
import itertools
import lzma
import os
import stat
import zlib
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from tarfile import (
    EOFHeaderError,  # pyright: ignore[reportAttributeAccessIssue]
    HeaderError,
    ReadError,
    TarError,
    TarFile,
    TarInfo,
)
from typing import IO, Any, BinaryIO, NamedTuple

from lra_tasks.errors import MissingData, UsageError
from lra_tasks.files import describe, is_added, locked

BLOCK = 1 << 16  # bytes read at a time; a broken connection loses at most one block
PATIENCE = 60  # seconds of silence of a server
LEVELS = 3  # of folders below the user's that are searched for a named file
# The arena's release; some programs unpack lra_release.gz to a tar archive without a suffix.
RELEASE = ("lra_release*.gz", "lra_release*.tgz", "lra_release*.tar*", "lra_release")
SYSTEM = "hidden or system files"

LeaveOut = Callable[[str, str], None]  # is told the reason and the name of everything that is not read


def ignore(reason: str, name: str) -> None:
    """Counts nothing."""


class Official(NamedTuple):
    """The published archive of a dataset.

    Attributes:
      url: Address of the archive.
      size: Size in bytes.
      sha256: Checksum.
    """

    url: str
    size: int
    sha256: str

    @property
    def name(self) -> str:
        return PurePosixPath(self.url).name


def in_words(counted: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns the files and lines that were left out, as an `ArenaBuilder` counts them, for a message.

    >>> in_words({"empty": {"count": 4_000, "first": ["a", "b"]}, "repeated": {"count": 1, "first": ["c"]}})
    '4,000 empty (a, b, …), 1 repeated (c)'
    """
    return ", ".join(
        f"{found['count']:,} {reason} ({', '.join(found['first'])}"
        + (", …)" if found["count"] > len(found["first"]) else ")")
        for reason, found in counted.items()
    )


def find(manual_dir: Path | None, *patterns: str) -> Path | None:
    """Returns the folder or archive in `manual_dir` that matches the first possible pattern, or None.

    The folder `manual_dir` itself matches too: a user may name the unpacked folder. Folders precede archives
    of the same pattern.

    Args:
      manual_dir: Folder to search; None finds nothing.
      patterns: Names with shell wildcards, "aclImdb*.tar*".

    Raises:
      UsageError: If several entries match one pattern.
    """
    if manual_dir is None:
        return None
    manual_dir = manual_dir.absolute()
    for pattern in patterns:
        if fnmatchcase(manual_dir.name, pattern):
            return manual_dir
        matches = sorted(manual_dir.glob(pattern))
        matches = [path for path in matches if path.is_dir()] or matches
        if len(matches) > 1:
            names = ", ".join(path.name for path in matches)
            raise UsageError(
                f"{manual_dir} has {names}, expected one of them. Leave only the right one there."
            )
        if matches:
            return matches[0]
    return None


def source(manual_dir: Path, names: Iterable[str], *patterns: str) -> Path | None:
    """Returns `manual_dir` if `named` finds one of the files there; else the archive that `find` finds."""
    return manual_dir if any(nested(manual_dir, name) for name in names) else find(manual_dir, *patterns)


def nested(folder: Path, name: str) -> list[Path]:
    """Returns the files or folders of a name, "a" or "a/b", in a folder and up to three levels below it."""
    found = itertools.chain.from_iterable(folder.glob("*/" * level + name) for level in range(LEVELS + 1))
    return [path for path in found if not any(map(is_added, path.relative_to(folder).parts))]


def files(folder: Path, leave_out: LeaveOut = ignore, root: Path | None = None) -> list[Path]:
    """Lists the regular files below a folder by name, without those that are hidden or that systems add.

    A link to a file is a file. A link to a folder is not followed, except for `folder` itself.

    Args:
      folder: Folder to list.
      leave_out: Function that is told everything else: the reason, and the path relative to `root`.
      root: `folder` or a folder above it; None is `folder`.

    Raises:
      UsageError: If the system refuses to list a folder, or a link leads nowhere.
    """

    def is_kept(path: Path, reason: str, applies: Callable[[Path], bool]) -> bool:
        added = is_added(path.name)
        if added or applies(path):
            leave_out(SYSTEM if added else reason, str(path.relative_to(root or folder)))
            return False
        return True

    found: list[Path] = []
    with reading(folder):
        for parent, folders, names in os.walk(folder, onerror=_raise):
            here = Path(parent)
            folders[:] = [
                name for name in sorted(folders) if is_kept(here / name, "links to folders", Path.is_symlink)
            ]
            found += [
                here / name for name in sorted(names) if is_kept(here / name, "special files", _is_special)
            ]
    return sorted(found)


def _raise(error: OSError) -> None:
    raise error


def _is_special(path: Path) -> bool:
    return not stat.S_ISREG(path.stat().st_mode)


def members(path: Path, leave_out: LeaveOut = ignore) -> Iterator[tuple[str, BinaryIO]]:
    """Yields name and content of every file of a folder or a tar archive, without unpacking it.

    Args:
      path: A folder, listed by `files`; or a tar archive of any compression, read from beginning to end.
      leave_out: Function that is told everything else but folders, as in `files`.

    Yields:
      The name inside the folder or archive, with slashes and without "./"; the open file, which must be read
      before the next step of the iteration.

    Raises:
      UsageError: If the archive is damaged, cut or not a tar archive, which may show only at its end, or in
        a file's `read`; a name in it leads outside; or the system refuses to read a file.
    """
    if path.is_dir():
        for place in files(path, leave_out):
            with opened(place) as file:
                yield place.relative_to(path).as_posix(), file
        return
    # Not the mode "r|*": its decompression checks no checksum and takes a cut for the end.
    with _refusing_damage(path), TarFile.open(path, "r:*", tarinfo=_Header) as archive:
        while (member := archive.next()) is not None:
            # It keeps some 500 bytes of every member, and looks there for the targets of links only.
            archive.members.clear()  # pyright: ignore[reportAttributeAccessIssue]
            name = PurePosixPath(member.name)
            if name.is_absolute() or ".." in name.parts:
                raise UsageError(f"{path} has a file named {member.name!r}, which leads outside of it.")
            content = archive.extractfile(member) if member.isreg() else None
            if any(map(is_added, name.parts)):
                leave_out(SYSTEM, str(name))
            elif content is not None:
                yield str(name), io.BufferedReader(_Content(content, path))
            elif not member.isdir():
                leave_out("links and special files", str(name))
        while archive.fileobj.read(BLOCK):
            pass  # the checksum of a compressed archive comes last


def named(
    path: Path, names: Collection[str], where: str, leave_out: LeaveOut = ignore
) -> Generator[tuple[str, BinaryIO], None, None]:
    """Yields name and content of the files with these names.

    Args:
      path: A folder, searched with three levels below it; or a tar archive.
      names: Names without folders.
      where: Sentence for the error, where to get the files.
      leave_out: Function that is told hidden files and those of systems, in the folders of the files.

    Raises:
      UsageError: If two files have the same name, and as `members`.
      MissingData: If a file is missing, after the last of the others.
    """
    found: dict[str, str] = {}
    for place, file in _of_folder(path, names, leave_out) if path.is_dir() else members(path, leave_out):
        name = PurePosixPath(place).name
        if name not in names:
            continue
        if name in found:
            raise UsageError(
                f"{path} has two files {name}: {found[name]} and {place}. Leave only the right one there."
            )
        found[name] = place
        yield name, file
    missing = [name for name in names if name not in found]
    if missing:
        raise MissingData(f"{', '.join(missing)} is missing in {path}. {where}")


def _of_folder(folder: Path, names: Iterable[str], leave_out: LeaveOut) -> Iterator[tuple[str, BinaryIO]]:
    places = [place for name in names for place in nested(folder, name)]
    for parent in sorted({place.parent for place in places}):
        with reading(parent):
            added = [path for path in sorted(parent.iterdir()) if is_added(path.name)]
        for path in added:
            leave_out(SYSTEM, str(path.relative_to(folder)))
    for place in places:
        with opened(place) as file:
            yield str(place.relative_to(folder)), file


class _Header(TarInfo):
    """A header that raises if it is damaged or missing; `tarfile` would silently end the archive there."""

    @classmethod
    def fromtarfile(cls, tarfile: TarFile) -> "_Header":
        try:
            return super().fromtarfile(tarfile)
        except EOFHeaderError:
            raise
        except HeaderError as error:
            raise ReadError(str(error)) from error


@contextlib.contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Opens a source file; if the system refuses to open or read it, a `UsageError` names it."""
    with reading(path):
        file = path.open("rb", buffering=0)
    with file:
        yield io.BufferedReader(_Content(file, path))


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns a refusal of the system to read a source file into a `UsageError` that names the file."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise  # gzip's, of a damaged file
        raise UsageError(
            f"{error.filename or path} cannot be read: {error.strerror}. The dataset is made from this "
            "file: make it readable, replace it or remove it."
        ) from error


class _Content(io.RawIOBase):
    """A source file, or a file of an archive; errors while reading become `UsageError`s."""

    def __init__(self, file: IO[bytes], path: Path) -> None:
        self._file, self._path = file, path

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview, /) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        with _refusing_damage(self._path):
            block = self._file.read(len(buffer))
        buffer[: len(block)] = block
        return len(block)


@contextlib.contextmanager
def _refusing_damage(path: Path) -> Iterator[None]:
    try:
        with reading(path):
            yield
    except (TarError, EOFError, lzma.LZMAError, zlib.error, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise UsageError(
            f"{path} cannot be read as a tar archive: {reason}. It is another kind of file, or damaged, or "
            "cut: get it again."
        ) from error


def download(url: str, size: int, sha256: str, folder: Path, report: Callable[[int, int], None]) -> Path:
    """Downloads a file unless it exists, verifies it, and returns its path.

    An interrupted download resumes where it stopped. A file with the right name and wrong content is
    replaced. TFDS's own downloader waits forever for a silent server and shows no progress.

    Args:
      url: Address; the file is named after it.
      size: Expected size in bytes.
      sha256: Expected checksum.
      folder: Folder for the file, created if needed.
      report: Function of bytes done and bytes in all.

    Raises:
      MissingData: If the file could not be downloaded, or is another one.
      UsageError: If another process is downloading it.
      OSError: If it cannot be written.
    """
    path = folder / PurePosixPath(url).name
    right = {"size": size, "sha256": sha256}
    by_hand = f"Get {path.name} by hand, and name its folder: --manual-dir FOLDER."
    folder.mkdir(parents=True, exist_ok=True)
    message = f"{path} is being downloaded by process PID; wait for it, or end it."
    with locked(path.with_name(f".{path.name}.lock"), message):
        if path.exists() and describe(path) == right:
            return path
        beside = path.with_name(f"{path.name}.part")
        while (done := _size(beside)) < size:
            broken = _fetch(url, beside, size, report)
            if not broken:
                break
            if _size(beside) <= done:
                raise MissingData(
                    f"{path.name} ({size:,} bytes) could not be downloaded from {url}: {broken}. {by_hand}"
                )
        found = describe(beside)
        if found != right:
            beside.unlink()
            raise MissingData(
                f"{url} gave {found['size']:,} bytes with the SHA-256 {found['sha256']}; expected {size:,} "
                f"bytes with {sha256}. They were deleted. {by_hand}"
            )
        beside.replace(path)
    return path


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _fetch(url: str, path: Path, size: int, report: Callable[[int, int], None]) -> str:
    """Appends missing bytes to the file over one connection; returns the error that broke it, or ""."""
    import requests

    done = _size(path)
    headers = {"Accept-Encoding": "identity", "Range": f"bytes={done}-"}
    try:
        with requests.get(url, headers=headers, stream=True, timeout=PATIENCE) as response:
            response.raise_for_status()
            if response.status_code != requests.codes.partial_content:
                done = 0  # the server sends the whole file
            with path.open("ab" if done else "wb") as file:
                for block in response.iter_content(BLOCK):
                    file.write(block)
                    done += len(block)
                    report(done, size)
                    if done > size:
                        break
    except requests.RequestException as error:
        cause: BaseException = error
        while cause.__context__ is not None:  # the first in the chain has the clearest message
            cause = cause.__context__
        return str(cause)
    return ""
