"""The TFDS builder of Pathfinder and Path-X, apart from the tasks' records because it imports TFDS."""

import contextlib
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from lra_tasks.errors import MissingData
from lra_tasks.sources.builder import ArenaBuilder, Example
from lra_tasks.sources.parts import Part
from lra_tasks.sources.workers import Call, spread
from lra_tasks.task import SPLITS
from lra_tasks.tasks.pathfinder import release, sizes
from lra_tasks.tasks.pathfinder import task as pathfinder

AT_ONCE = 4_000_000  # pixels that a worker makes before it hands them over
SHARD_BYTES = 100_000_000
SMOKE = {"train": 256, "validation": 64, "test": 64}
ALL_REPEATS = [*SPLITS, *(f"{a}/{b}" for a, b in itertools.combinations(SPLITS, 2))]


@dataclass(kw_only=True)
class PathfinderConfig(tfds.core.BuilderConfig):
    """What a config of `Pathfinder` holds.

    Attributes:
      size: Side of the pictures in pixels.
      contour_length: Paddles of a long snake.
      seed: Seed of `snakes.images`.
      num_examples: Examples of each split, taken from the seed's pictures in the order of `SPLITS`; None
        reads the arena's release instead.
    """

    size: int
    contour_length: int
    seed: int = 0
    num_examples: dict[str, int] | None = None


def _configs() -> Iterator[PathfinderConfig]:
    for size, length in itertools.product(sizes.SIZES, sizes.CONTOUR_LENGTHS):
        kind = f"{size} × {size} pixels, snakes of {length} paddles"
        yield PathfinderConfig(
            name=f"{size}-{length}",
            description=f"{kind}; the arena's number of pictures, drawn with seed 0.",
            size=size,
            contour_length=length,
            num_examples=dict(pathfinder.PATHFINDER.num_examples),
        )
        yield PathfinderConfig(
            name=f"release-{size}-{length}",
            description=f"{kind}; the arena's own pictures.",
            size=size,
            contour_length=length,
        )
    for size in (32, 128):
        yield PathfinderConfig(
            name=f"smoke-{size}",
            description=f"A few of the kind of {size}-14 for tests.",
            size=size,
            contour_length=14,
            num_examples=SMOKE,
        )


class Pathfinder(ArenaBuilder, skip_registration=True):
    """Pathfinder of all sizes and contour lengths, drawn by `snakes.images` or read from the arena's release.

    "tokens" are grey values row by row; "label" is 1 if the discs are on one snake. Drawn pictures stand in
    the order of their numbers, and exactly half of each split have the label 1.

    The release has no splits of its own. The arena's are eight, one and one tenth of it in an order that TFDS
    drew in its builder. Here they are the first eight tenths, the next and the last, ordered by the number of
    the metadata file and then as it lists them. The pictures of one file are no more alike than others.
    """

    name = "lra_pathfinder"
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS: ClassVar = list(_configs())
    task = pathfinder.PATHFINDER

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        config: Any = self.builder_config
        self.pixels = config.size**2
        self.shard_examples = SHARD_BYTES // self.pixels
        self.balanced = config.num_examples is not None
        if config.num_examples is None:  # published as they are
            self.may_repeat = frozenset(ALL_REPEATS)

    def drawn(self) -> dict[str, list[Part]] | None:
        config: Any = self.builder_config
        if config.num_examples is None:
            return None
        from lra_tasks.tasks.pathfinder import drawing

        kind = (config.size, config.contour_length, config.seed)
        work, start, step = {}, 0, AT_ONCE // self.pixels
        for split in SPLITS:
            stop = start + config.num_examples[split]
            bounds = [(i, min(i + step, stop)) for i in range(start, stop, step)]
            work[split] = [Part(f"{i:07d}-{j:07d}", j - i, drawing.images, (*kind, i, j)) for i, j in bounds]
            start = stop
        metadata: Any = self.info.metadata
        metadata.update(origin="lra_tasks.tasks.pathfinder.drawing.images", seed=config.seed)
        return work

    def read(self) -> dict[str, tuple[int, Iterable[Example]]]:
        config: Any = self.builder_config
        name = f"pathfinder{config.size}/{release.RELEASE_FOLDERS[config.contour_length]}"
        if self.manual_dir is None or not (self.manual_dir / name).is_dir():
            raise MissingData(
                f"Pathfinder from the arena's release needs the folder that has {name}: --manual-dir FOLDER. "
                "In lra_release.gz it is lra_release/lra_release."
            )
        rows = release.release_rows(self.manual_dir / name, config.contour_length)
        empty = [str(path.relative_to(self.manual_dir)) for path, _ in rows if not path.stat().st_size]
        metadata: Any = self.info.metadata
        metadata.update(origin="the Long Range Arena's release", left_out=empty)
        splits = {}
        for split, (start, stop) in zip(SPLITS, itertools.pairwise((0, 8, 9, 10)), strict=True):
            tenths = rows[len(rows) * start // 10 : len(rows) * stop // 10]
            splits[split] = len(tenths), self._pictures(tenths)
        return splits

    def _pictures(self, rows: list[Any]) -> Iterator[Example]:
        config: Any = self.builder_config
        step = AT_ONCE // self.pixels
        work: list[Call] = [
            (release.read_pictures, (config.size, rows[i : i + step])) for i in range(0, len(rows), step)
        ]
        with contextlib.closing(spread(work, self.num_workers)) as chunks:
            for pictures in chunks:
                yield from pictures
