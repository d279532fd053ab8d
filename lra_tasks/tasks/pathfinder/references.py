"""Baseline rules for Pathfinder, which do not follow a line."""

import itertools
from typing import TYPE_CHECKING, Any

from lra_tasks.task import Examples, chance
from lra_tasks.tasks.pathfinder.sizes import RADII

if TYPE_CHECKING:
    import numpy as np


MEASURED = 10_000  # examples per split that `references` reads


def find_discs(pictures: "np.ndarray") -> "np.ndarray":
    """Finds the two discs in pictures, by their brightness alone.

    The first disc is the round window of a disc's size with the largest sum of brightness. The second is the
    brightest window that does not overlap the first.

    Args:
      pictures: Pictures, uint8 (B, size, size), of a size in `SIZES`.

    Returns:
      Centers, float64 (B, 2, 2): x and y in pixels from the upper left corner of the picture, accurate to
      about half a pixel. The brighter disc comes first.
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
    """Measures the direction of the light around each disc: that of its paddle, if nothing else is near.

    Args:
      pictures: Pictures, uint8 (B, size, size), of a size in `SIZES`.
      discs: Centers of the discs, float64 (B, 2, 2), as `find_discs` returns them.

    Returns:
      Angles from the direction away from the other disc, float64 (B, 2), in turns 0 .. 1. The first is at
      most 1/2, so that a picture and its mirror image have equal angles.
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
    """Measures the accuracy of rules that follow no snake, on the first 10,000 examples of each split.

    Each rule predicts the more frequent label of a cell in `train`, and is scored on `test`. The first rule
    uses 16 ranges of the distance between the discs. The second uses 4 ranges of the distance and 12 ranges
    of each of the two `directions`. The ends of one smooth snake have matching directions, and two small
    regions of the picture suffice to see them. Cost: ten seconds for Path-X.

    Args:
      train: Examples with "tokens", integers (size · size,), and "label", 0 or 1.
      test: Examples of the same form.

    Returns:
      Name of the rule → accuracy on `test` in percent.
    """
    import numpy as np

    def read(examples: Examples) -> tuple[Any, Any, Any]:
        """Returns distances, directions and labels."""
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
