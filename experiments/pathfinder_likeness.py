"""Pathfinder pictures of this project compared with the arena's: likeness, drawing speed, shortcuts.

Question. `lra_tasks.tasks.pathfinder.drawing` and the arena use different algorithms. Are the pictures alike,
and equally hard?

    python -m experiments.pathfinder_likeness            the tables
    python -m experiments.pathfinder_likeness --record   the same, recorded in experiments/results, and a plot

Hardware and time. One CPU core, two minutes; no GPU.

The arena's numbers. The release is a download of many gigabytes, so the measurements use pictures of its
generator, that of Linsley et al. (github.com/drewlinsley/pathfinder), with the arena's parameters. The byte
scaling of `scipy.misc`, which its current version lacks, is restored. Likeness uses 500, 100, 60 and 30
pictures of 32, 64, 128 and 256 pixels. Rules use 1,500, 120 and 300 pairs of snakes of 32, 64 and 128 pixels,
in five folds. "Published" numbers are earlier measurements of the same quantities.

Rules. By geometry: the more frequent label in each of 8 ranges of the distance between the discs, or in each
of 6 × 6 ranges of the directions of the snakes at the discs, relative to the line between the discs. By
pixels: the baseline rules of the task, which find discs and directions in the pictures.

Results, contour length 14, in experiments/results with their environment:
- Likeness. The share of black is within one point of the published share at 32 and 128 pixels. Mean
  brightness and the distance between the discs are near the arena's at all sizes. At 32 and 64 pixels the
  pictures have more parts, because touching snakes of the arena merge. Pictures with shorter contours, not in
  these tables, are fuller than the arena's at 32 and 64 pixels: more distractors find a place.
- Deliberate differences. The arena's snakes sometimes touch and cross; here they never do. The arena's discs
  can hide the continuation of a snake; here they cannot.
- Speed. One core draws 200,000 pictures in less than a minute at 32 pixels and in less than three at 128. The
  original generator takes 0.1 to 0.75 seconds per picture at 32 pixels and 2.5 to 11 at 128. At 64 pixels
  the snakes need most of the space, and both algorithms discard most attempts.
- Distance between the discs. The rule reaches 54 % on the arena's pictures of 32 pixels and 55 % at 128. Here
  it is at chance: both places of the second disc are equally far.
- Directions. The arena has a stronger shortcut, and these pictures share it: the ends of a smooth line have
  matching directions. Two places of a Path-X picture, without the pixels between them, give 81 % on the
  arena's pictures and 83 % here; at 64 pixels 82 % and 89 %, at 32 pixels 64 % and 58 %. It is a baseline
  rule of the task: a model below it on Path-X may not follow any snake. Matching directions for both places
  of the second disc would weaken the shortcut. But the published numbers are for pictures with the shortcut.
"""

import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from scipy import ndimage

from lra_tasks.cli.console import print_table
from lra_tasks.cli.exit_codes import exit_codes
from lra_tasks.files import write_json
from lra_tasks.tasks.pathfinder.drawing import Scene, images, scene
from lra_tasks.tasks.pathfinder.references import find_discs, references
from lra_tasks.tasks.pathfinder.sizes import CONTOUR_LENGTHS, SIZES
from lra_tasks.training.metrics import environment

RESULTS = Path(__file__).parent / "results"
SEED = 0
BRIGHT = 100  # a brighter pixel is part of a stroke or a disc, a darker one of a rim
LOOKED_AT = 500
RULED = 5_000  # pictures on which the rules are fitted, and as many on which they are scored
PUBLISHED = {32: 65.6, 128: 87.1}
ARENA = {
    32: {"black": 65.8, "gray": 20.3, "parts": 15.7, "apart": 13.2, "distance": 54.0, "directions": 63.7},
    64: {"black": 73.3, "gray": 13.7, "parts": 33.1, "apart": 30.9, "distance": 48.8, "directions": 81.7},
    128: {"black": 86.3, "gray": 7.9, "parts": 58.0, "apart": 74.9, "distance": 54.9, "directions": 81.4},
    256: {"black": 96.1, "gray": 2.9, "parts": 55.8, "apart": 117.3},
}
LABELS = {
    "black": "black, %",
    "gray": "mean gray value",
    "parts": "bright parts",
    "apart": "discs apart",
    "distance": "rule: distance, %",
    "directions": "rule: directions, %",
    "pixels": "same, by pixels, %",
}


def looks(pictures: np.ndarray) -> dict[str, float]:
    """Measures pictures (B, size, size): the first four lines of `LABELS`."""
    discs = find_discs(pictures)
    areas: list[Any] = [ndimage.label(picture > BRIGHT, np.ones((3, 3))) for picture in pictures]
    return {
        "black": 100 * float((pictures == 0).mean()),
        "gray": float(pictures.mean()),
        "parts": float(np.mean([number for _, number in areas])),
        "apart": float(np.hypot(*(discs[:, 0] - discs[:, 1]).T).mean()),
    }


def leaving(shown: Scene) -> tuple[float, float, float]:
    """Returns the distance between the discs and the directions of the snakes at the discs, in radians.

    The directions are relative to the line from the other disc; the first is from 0 to π.
    """
    here, there = shown.discs @ [1, 1j]
    ends = shown.paddles @ [1, 1j]
    angles = []
    for disc, away in ((here, here - there), (there, there - here)):
        paddle, end = np.unravel_index(np.abs(ends - disc).argmin(), ends.shape)
        angles.append(np.angle((ends[paddle, 1 - end] - disc) / away))
    side = -1 if angles[0] < 0 else 1
    return abs(here - there), side * angles[0], side * angles[1]


def score(features: np.ndarray, labels: np.ndarray, ranges: int) -> float:
    """Fits a table over ranges of features (B, F) on one half, and scores it on the other, in percent."""
    cells = np.zeros(len(labels), np.int64)
    for feature in features.T:
        bounds = np.quantile(feature, np.arange(1, ranges) / ranges)
        cells = cells * ranges + np.searchsorted(bounds, feature)
    half = len(labels) // 2
    counts = np.zeros((ranges ** features.shape[1], 2), np.int64)
    np.add.at(counts, (cells[:half], labels[:half]), 1)
    return 100 * float(np.mean(counts.argmax(1)[cells[half:]] == labels[half:]))


def rules(size: int) -> dict[str, float]:
    """Measures the rules, the last three lines of `LABELS`."""
    scenes = [scene(size, 14, SEED, index) for index in range(2 * RULED)]
    features = np.array([leaving(shown) for shown in scenes])
    labels = np.array([shown.label for shown in scenes])
    made = images(size, 14, SEED, 0, 2 * RULED)
    pairs = zip(made["tokens"], made["label"].tolist(), strict=True)
    examples = [{"tokens": tokens, "label": label} for tokens, label in pairs]
    lines = references(examples[:RULED], examples[RULED:])
    return {
        "distance": score(features[:, :1], labels, 8),
        "directions": score(features[:, 1:], labels, 6),
        "pixels": lines["distance and directions at the discs"],
    }


def speed(size: int, contour_length: int, seconds: float = 1.0) -> float:
    """Measures the pictures per second of one core, after compilation."""
    number, taken = 0, 0.0
    while taken < seconds:
        start = time.process_time()
        images(size, contour_length, SEED, number, number + 100)
        taken += time.process_time() - start
        number += 100
    return number / taken


def cpu() -> str:
    """Returns the name of the processor, or "unknown"."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown")


def plot(path: Path) -> None:
    """Draws two pictures of every kind, one of each label."""
    import matplotlib.pyplot as plt

    columns = 2 * len(CONTOUR_LENGTHS)
    figure, axes = plt.subplots(len(SIZES), columns, figsize=(2 * columns, 2.2 * len(SIZES)), dpi=110)
    for row, size in zip(axes, SIZES, strict=True):
        for i, ax in enumerate(row):
            made = images(size, CONTOUR_LENGTHS[i // 2], SEED, 0, 2)
            label = i % 2
            picture = made["tokens"][made["label"] == label].reshape(size, size)
            ax.imshow(picture, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            ax.set_title(f"{size}-{CONTOUR_LENGTHS[i // 2]}, label {label}", fontsize=8)
            ax.axis("off")
    figure.tight_layout(pad=0.5)
    figure.savefig(path)
    plt.close(figure)


def main(*, record: bool = False) -> None:
    """Measures the pictures and prints the results beside the arena's.

    Args:
        record: Record the result in experiments/results.
    """
    images(32, 14, SEED, 0, 1)  # compiles
    ours: dict[int, dict[str, float]] = {}
    for size in SIZES:
        pictures = images(size, 14, SEED, 0, LOOKED_AT)["tokens"].reshape(-1, size, size)
        ours[size] = looks(pictures) | (rules(size) if "distance" in ARENA[size] else {})
    speeds = {f"{size}-{length}": speed(size, length) for size in SIZES for length in CONTOUR_LENGTHS}

    print("Contour length 14; arena | ours:")
    rows = []
    for key, label in LABELS.items():
        cells = ((ARENA[size].get(key), ours[size].get(key)) for size in SIZES)
        rows.append((label, *(" | ".join("–" if x is None else f"{x:.1f}" for x in cell) for cell in cells)))
    print_table(("", *(f"{size} pixels" for size in SIZES)), rows, numbers=True)
    print(
        f"\nPublished share of black, %: {PUBLISHED}\n\nPictures per second on one core, by contour length:"
    )
    rows = [
        (f"{size} pixels", *(f"{speeds[f'{size}-{length}']:,.0f}" for length in CONTOUR_LENGTHS))
        for size in SIZES
    ]
    print_table(("", *map(str, CONTOUR_LENGTHS)), rows, numbers=True)
    if record:
        path = RESULTS / "pathfinder_likeness.json"
        measured = environment()
        measured["versions"] |= {name: version(name) for name in ("numba", "scipy")}
        content = {
            "seed": SEED,
            "published_black": PUBLISHED,
            "arena": ARENA,
            "ours": ours,
            "pictures_per_second": speeds,
            "environment": measured | {"cpu": cpu()},
        }
        write_json(path, content)
        plot(path.with_suffix(".png"))
        print(f"\nRecorded in {path}")


if __name__ == "__main__":
    with exit_codes():
        tyro.cli(main)
