"""Pathfinder and Path-X: are two discs in a picture joined by a dashed line?

The tasks as the Long Range Arena sets them (Tay et al. 2021, arXiv 2011.04006) after Linsley et al. (2018,
arXiv 1805.08315): a grey picture in raster order, one pixel a token, and label 1 if both discs lie on the
ends of one snake of paddles. Pathfinder has 32 × 32 pixels and Path-X 128 × 128, both with snakes of 14
paddles. The pictures are drawn by `lra_tasks.tasks.snakes`, or read from the arena's release by what stands
here.

Token ids are the grey values 0 .. 255. There is no padding: 0 is a black pixel.
"""

import io
import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lra_tasks.errors import MissingData, UsageError
from lra_tasks.tasks.base import Examples, Task, chance

if TYPE_CHECKING:
    import numpy as np

RADII = {32: 1.5, 64: 2.5, 128: 3.0, 256: 5.0}  # side of a picture → radius of its discs, in pixels
RELEASE_FOLDERS = {6: "curv_baseline", 9: "curv_contour_length_9", 14: "curv_contour_length_14"}
SIZES = tuple(RADII)
CONTOUR_LENGTHS = tuple(RELEASE_FOLDERS)
LEVELS = 256
RELEASE_PICTURES = 200_000  # of each size and contour length
MEASURED = 10_000  # examples of a split that `references` looks at


def find_discs(pictures: "np.ndarray") -> "np.ndarray":
    """Finds the two discs in pictures, by their brightness alone.

    A disc is where a round window of a disc's size holds the most light; the second one is sought where the
    window has nothing in common with the first.

    Args:
      pictures: uint8 (B, size, size), of a size in `SIZES`.

    Returns:
      Middles, float64 (B, 2, 2): x and y in pixels from the upper left corner of the picture, to half a
      pixel or so. The brighter window comes first.
    """
    import numpy as np

    batch, size, _ = pictures.shape
    radius = RADII[size]
    reach = int(radius)
    padded = np.pad(pictures, ((0, 0), (reach, reach), (reach, reach))).astype(np.uint16)
    light = np.zeros(pictures.shape, np.uint16)  # at most 81 · 255
    for dy, dx in itertools.product(range(-reach, reach + 1), repeat=2):
        if dy * dy + dx * dx <= radius * radius:
            light += padded[:, reach + dy : reach + dy + size, reach + dx : reach + dx + size]
    rows, columns = np.arange(size)[:, None], np.arange(size)
    middles = np.zeros((batch, 2, 2))
    for picture, found in zip(light, middles, strict=True):
        for disc in found:
            row, column = np.unravel_index(picture.argmax(), picture.shape)
            disc[:] = column + 0.5, row + 0.5
            picture[(rows - row) ** 2 + (columns - column) ** 2 <= 4 * radius * radius] = 0
    return middles


def directions(pictures: "np.ndarray", discs: "np.ndarray") -> "np.ndarray":
    """Measures in which direction light leaves each disc: its paddle's, if nothing else is near.

    Args:
      pictures: uint8 (B, size, size), of a size in `SIZES`.
      discs: float64 (B, 2, 2), of `find_discs`.

    Returns:
      Angles from the direction away from the other disc, float64 (B, 2), in turns 0 .. 1; the first is at
      most 1/2, which makes them the same for a picture and its mirror image.
    """
    import numpy as np

    size = pictures.shape[1]
    radius = RADII[size]
    middles = np.arange(size) + 0.5
    lines = np.zeros((len(pictures), 2), np.complex128)  # x + iy
    for picture, places, line in zip(pictures, discs, lines, strict=True):
        for disc, (x, y) in enumerate(places):
            offset = (middles - x) + 1j * (middles - y)[:, None]
            distance = np.abs(offset)
            ring = (distance > radius + 0.5) & (distance < radius + 2.5)
            line[disc] = (picture[ring] * offset[ring]).sum()
    beyond = (discs[:, 0] - discs[:, 1]) @ np.array([1, 1j])
    angles = np.angle(lines * np.conj(np.stack([beyond, -beyond], 1))) / (2 * np.pi)
    return (angles * np.where(angles[:, :1] < 0, -1, 1)) % 1


def references(train: Examples, test: Examples) -> dict[str, float]:
    """Measures what can be had without following a snake, on the first 10,000 examples of each split.

    Rules fitted on `train`, the more frequent label in each cell, and scored on `test`: on the distance
    between the discs, in 16 ranges; and on the distance in 4 ranges and the `directions` at both discs, in 12
    each. Smooth lines that are joined leave their ends in directions that suit each other; no more than two
    places of the picture have to be looked at to see that.

    Args:
      train: Examples with "tokens", integers (size · size,), and "label", 0 or 1.
      test: The same.

    Returns:
      Name of the line → accuracy on `test` in percent. Cost: ten seconds for Path-X.
    """
    import numpy as np

    def read(examples: Examples) -> tuple[Any, Any, Any]:
        """Distances, directions and labels."""
        distances, angles, labels = [], [], []
        first = itertools.islice(examples, MEASURED)
        while some := list(itertools.islice(first, 100)):
            pictures = np.stack([np.asarray(example["tokens"], np.uint8) for example in some])
            size = round(pictures.shape[1] ** 0.5)
            pictures = pictures.reshape(-1, size, size)
            discs = find_discs(pictures)
            distances.append(np.hypot(*(discs[:, 0] - discs[:, 1]).T))
            angles.append(directions(pictures, discs))
            labels += [example["label"] for example in some]
        return np.concatenate(distances), np.concatenate(angles), np.array(labels)

    fitted, asked = read(train), read(test)

    def accuracy(ranges: int, parts: int) -> float:
        bounds = np.quantile(fitted[0], np.arange(1, ranges) / ranges)

        def cells(distances: Any, angles: Any) -> Any:
            first, second = np.minimum((angles * parts).astype(np.int64), parts - 1).T
            return (np.searchsorted(bounds, distances) * parts + first) * parts + second

        counts = np.zeros((ranges * parts**2, 2), np.int64)
        np.add.at(counts, (cells(*fitted[:2]), fitted[2]), 1)
        return 100 * float(np.mean(counts.argmax(1)[cells(*asked[:2])] == asked[2]))

    labels = [[{"label": label} for label in split[2].tolist()] for split in (fitted, asked)]
    return chance(*labels) | {
        "distance between the discs": accuracy(16, 1),
        "distance and directions at the discs": accuracy(4, 12),
    }


def problem(tokens: Sequence[int], label: int) -> str | None:
    """Says what is wrong with an example: no picture of a known size, or another label; None if nothing."""
    if len(tokens) not in {size * size for size in SIZES}:
        return f"The picture has {len(tokens)} pixels, expected the square of one of {SIZES}."
    return None if label in (0, 1) else f"The label is {label}, expected 0 or 1."


def release_rows(folder: Path, contour_length: int) -> list[tuple[Path, int]]:
    """Reads the metadata of the release's pictures of one size and contour length.

    Args:
      folder: For example pathfinder32/curv_contour_length_14, with metadata/K.npy and imgs/K/sample_N.png.
      contour_length: What every row has to say.

    Returns:
      File and label of every picture, ordered by K and then as in the metadata.

    Raises:
      MissingData: The folder, or a picture in it, is not there.
      UsageError: Metadata and pictures do not fit together, or there are not `RELEASE_PICTURES`; the message
        names the file, what was expected and what is there.
    """
    metadata = sorted((folder / "metadata").glob("*.npy"), key=lambda path: (len(path.name), path.name))
    if not metadata:
        raise MissingData(f"There is no {folder / 'metadata' / 'K.npy'}, K a number.")
    rows = []
    for path in metadata:
        pictures = folder / "imgs" / path.stem
        listed = read_metadata(path, contour_length)
        names = [name for name, _ in listed]
        found = {file.name for file in pictures.glob("*.png")}
        for name in names:
            if name not in found:
                raise MissingData(f"There is no {pictures / name}, which {path} lists.")
            found.remove(name)
        if found:
            raise UsageError(f"{pictures} has {min(found)}, which {path} does not list.")
        rows += [(pictures / name, label) for name, label in listed]
    if len(rows) != RELEASE_PICTURES:
        raise UsageError(f"{folder} has {len(rows):,} pictures, expected {RELEASE_PICTURES:,}.")
    return rows


def read_metadata(path: Path, contour_length: int) -> list[tuple[str, int]]:
    """Reads the rows of one metadata file of the release: text, in spite of its name, or an array of strings.

    Of the columns, folder (the 1st), file (2nd), label (4th) and contour length (6th) are looked at. An array
    of Python objects is refused: it is a pickle, and to read it is to run whatever it says.

    Args:
      path: The file metadata/K.npy, whose rows name pictures in the folder imgs/K.
      contour_length: What every row has to say.

    Returns:
      Name and label, 0 or 1, of every picture.

    Raises:
      UsageError: The file cannot be read or a row is wrong; the message names file and row.
    """
    content = path.read_bytes()
    if content.startswith(b"\x93NUMPY"):
        import numpy as np

        try:
            array = np.load(io.BytesIO(content), allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise UsageError(f"{path} cannot be read: {error}. Expected text, or strings.") from None
        if array.ndim != 2 or array.dtype.kind not in "SU":
            raise UsageError(f"{path} has {array.dtype} {array.shape}, expected rows of strings.")
        rows = array.astype(str).tolist()
    else:
        rows = [line.split() for line in content.decode("ascii", errors="replace").splitlines()]
    read = []
    for number, row in enumerate(rows, 1):
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


def read_pictures(size: int, rows: Sequence[tuple[Path, int]]) -> list[tuple[bytes, int]]:
    """Decodes pictures of the release: one worker's share of the reading.

    Args:
      size: Side they have to have.
      rows: Files and labels, of `release_rows`.

    Returns:
      Pixels, one a byte, row by row, and label of every picture. A file of no bytes is left out, as the arena
      does; the release has one, pathfinder32/curv_baseline/imgs/0/sample_172.png.

    Raises:
      UsageError: A file is no grey PNG of that size; the message names it.
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
                    raise UsageError(f"{path} is {form}, expected L {size} × {size}: 8-bit grey.")
                pictures.append((picture.tobytes(), label))
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
            if isinstance(error, UsageError):
                raise
            raise UsageError(f"{path} cannot be read: {error}.") from None
    return pictures


def _task(name: str, size: int, **more: Any) -> Task:
    return Task(
        name=name,
        description=f"Predict whether two discs in {size} × {size} pixels mark the ends of one dashed line.",
        length=size * size,
        vocab_size=LEVELS,
        num_classes=2,
        num_examples={"train": 160_000, "validation": 20_000, "test": 20_000},
        builder="lra_tasks.tasks.pathfinder_builder:Pathfinder",
        references=references,
        config=f"{size}-14",
        same=(f"release-{size}-14",),
        pixels=True,
        problem=problem,
        **more,
    )


PATHFINDER = _task(
    "pathfinder",
    32,
    disk_bytes=250_000_000,
    published={
        "Transformer": 71.40,
        "Local Attention": 66.63,
        "Linear Transformer": 75.30,
        "Reformer": 68.50,
        "Sparse Transformer": 71.71,
        "Sinkhorn Transformer": 67.45,
        "Linformer": 76.34,
        "Performer": 77.05,
        "Synthesizer": 69.45,
        "Longformer": 69.71,
        "BigBird": 74.87,
        "FNet": 77.78,
        "Nyströmformer": 70.94,
        "Luna-256": 78.55,
        "H-Transformer-1D": 68.78,
        "Hrrformer, 1 layer": 70.71,
        "Hrrformer, multi-layer": 72.17,
        "S4 (updated)": 94.20,
        "S5": 95.33,
        "Mega": 96.01,
    },
)
PATHX = _task(
    "pathx",
    128,
    disk_bytes=1_500_000_000,
    published={"S4 (updated)": 96.35, "S5": 98.58, "Mega": 97.98},  # all others named above fail at it
)
