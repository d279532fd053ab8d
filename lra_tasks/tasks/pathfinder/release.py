"""The Pathfinder pictures of the arena's release, and their metadata."""

import io
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from lra_tasks.errors import MissingData, UsageError
from lra_tasks.sources.archives import LeaveOut, files, ignore, opened
from lra_tasks.sources.tables import lines

RELEASE_FOLDERS = {6: "curv_baseline", 9: "curv_contour_length_9", 14: "curv_contour_length_14"}
RELEASE_PICTURES = 200_000  # of each size and contour length
Row = tuple[Path, int]  # file and label of a picture


def release_rows(folder: Path, contour_length: int, leave_out: LeaveOut = ignore) -> list[Row]:
    """Reads the metadata of the release's pictures of one size and contour length.

    Args:
      folder: For example pathfinder32/curv_contour_length_14, with metadata/K.npy and imgs/K/sample_N.png.
      contour_length: Expected contour length of every row.
      leave_out: Function that is told hidden files, those of systems, blank lines of the metadata, and
        pictures without content.

    Returns:
      File and label of every picture, ordered by K and then as in the metadata.

    Raises:
      MissingData: If the folder, or a picture in it, is missing.
      UsageError: If metadata and pictures do not match; the message names the file.
    """
    metadata: list[Path] = []
    pictures: dict[Path, set[str]] = defaultdict(set)
    for path in files(folder, leave_out):
        if path.suffix == ".png":
            pictures[path.parent].add(path.name)
        elif path.suffix == ".npy" and path.parent == folder / "metadata":
            metadata.append(path)
    if not metadata:
        raise MissingData(f"{folder / 'metadata' / 'K.npy'}, K a number, is missing.")
    rows: list[Row] = []
    for path in sorted(metadata, key=lambda path: (len(path.name), path.name)):
        parent = folder / "imgs" / path.stem
        for name, label in read_metadata(path, contour_length, leave_out):
            if name not in pictures[parent]:
                raise MissingData(f"{parent / name} is missing; {path} lists it.")
            pictures[parent].remove(name)
            rows.append((parent / name, label))
    for parent, names in pictures.items():
        if names:
            listing = folder / "metadata" / f"{parent.name}.npy"
            raise UsageError(f"{parent} has {min(names)}, which {listing} does not list.")
    for path, _ in rows:
        if not path.stat().st_size:
            leave_out("empty", str(path.relative_to(folder)))
    return rows


def read_metadata(path: Path, contour_length: int, leave_out: LeaveOut = ignore) -> list[tuple[str, int]]:
    """Reads one metadata file of the release: text, in spite of its name, or an array of strings.

    The columns read are folder (1st), file (2nd), label (4th) and contour length (6th). An array of Python
    objects is refused: it is a pickle, and reading a pickle runs its code.

    Args:
      path: The file metadata/K.npy, with a row per picture in the folder imgs/K.
      contour_length: Expected contour length of every row.
      leave_out: Function that is told blank lines.

    Returns:
      Name and label, 0 or 1, of every picture.

    Raises:
      UsageError: If the file cannot be read or a row is wrong; the message names file and row.
    """
    with opened(path) as file:
        content = file.read()
    if content.startswith(b"\x93NUMPY"):
        import numpy as np

        try:
            array = np.load(io.BytesIO(content), allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise UsageError(f"{path} cannot be read: {error}. Expected text, or strings.") from None
        if array.ndim != 2 or array.dtype.kind not in "SU":
            raise UsageError(f"{path} has {array.dtype} {array.shape}, expected rows of strings.")
        rows: Iterable[tuple[int, list[str]]] = enumerate(array.astype(str).tolist(), 1)
    else:
        rows = (
            (number, line.decode("ascii", errors="replace").split())
            for number, line in lines(content.splitlines(), f"metadata/{path.name}", leave_out)
        )
    read = []
    for number, row in rows:
        if len(row) < 6 or row[0] != f"imgs/{path.stem}" or not re.fullmatch(r"[\w-]+\.png", row[1]):
            raise UsageError(
                f"{path}, row {number}: expected imgs/{path.stem}, a name that ends in .png, and the columns "
                f"up to the 6th; found {' '.join(row)[:80]!r}."
            )
        if row[3] not in ("0", "1"):
            raise UsageError(f"{path}, row {number}: the label is {row[3]!r}, expected 0 or 1.")
        if row[5] != str(contour_length):
            raise UsageError(f"{path}, row {number}: the contour length is {row[5]!r}, not {contour_length}.")
        read.append((row[1], int(row[3])))
    return read


def read_pictures(size: int, rows: Sequence[Row]) -> list[tuple[bytes, int]]:
    """Decodes pictures of the release.

    Args:
      size: Expected side of the pictures.
      rows: Rows of `release_rows`.

    Returns:
      Pixels as bytes, row by row, and label of every picture. An empty file is left out, as in the arena;
      the release has one, pathfinder32/curv_baseline/imgs/0/sample_172.png.

    Raises:
      UsageError: If a file is not a gray PNG of that size; the message names it.
    """
    from PIL import Image, UnidentifiedImageError

    pictures = []
    for path, label in rows:
        if not path.stat().st_size:
            continue
        try:
            with Image.open(path, formats=["PNG"]) as picture:
                form = f"{picture.mode} {picture.width} × {picture.height}"
                if form != f"L {size} × {size}":
                    raise UsageError(f"{path} is {form}, expected L {size} × {size}: 8-bit gray.")
                pictures.append((picture.tobytes(), label))
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
            if isinstance(error, UsageError):
                raise
            raise UsageError(f"{path} cannot be read: {error}.") from None
    return pictures
