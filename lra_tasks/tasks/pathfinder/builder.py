"""The TFDS builder of Pathfinder and Path-X, in a module of its own because it imports TFDS."""

import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from lra_tasks.errors import MissingData, UsageError
from lra_tasks.sources import archives
from lra_tasks.sources.builder import ArenaBuilder, Example, Splits
from lra_tasks.sources.threads import in_threads
from lra_tasks.task import SPLITS
from lra_tasks.tasks.pathfinder import release, sizes
from lra_tasks.tasks.pathfinder import task as pathfinder

AT_ONCE = 1_000_000  # pixels that a thread draws or reads in one call
SHARD_BYTES = 100_000_000
SMOKE = {"train": 256, "validation": 64, "test": 64}
ALL_REPEATS = [*SPLITS, *(f"{a}/{b}" for a, b in itertools.combinations(SPLITS, 2))]


@dataclass(kw_only=True)
class PathfinderConfig(tfds.core.BuilderConfig):
    """A variant of Pathfinder.

    Attributes:
      size: Side of the pictures in pixels.
      contour_length: Paddles of a long snake.
      seed: Seed of `drawing.images`.
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
    """Pathfinder of all sizes and contour lengths, drawn by `drawing.images` or read from the release.

    "tokens" are gray values row by row; "label" is 1 if the discs are on one snake. Drawn pictures keep the
    order of their numbers, and exactly half of each split have the label 1.

    The release has no splits of its own. The arena's splits are eight tenths, one and one, in an order that
    TFDS drew in its builder. Here they are the first eight tenths, the next and the last, ordered by the
    number of the metadata file and then as it lists them. Pictures of one file are no more alike than others.
    """

    name = "lra_pathfinder"
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS: ClassVar = list(_configs())
    task = pathfinder.PATHFINDER
    origin = "lra_tasks.tasks.pathfinder.drawing.images"

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        config: Any = self.builder_config
        self.pixels = config.size**2
        self.shard_examples = SHARD_BYTES // self.pixels
        self.balanced = config.num_examples is not None
        if config.num_examples is None:  # published as they are
            self.may_repeat = frozenset(ALL_REPEATS)

    def draw(self, numbers: range) -> Iterator[Example]:
        from lra_tasks.tasks.pathfinder import drawing

        config: Any = self.builder_config

        def pictures_of(some: range) -> dict[str, Any]:
            kind = (config.size, config.contour_length, config.seed)
            return drawing.images(*kind, some.start, some.stop)

        for pictures in in_threads(pictures_of, self._portions(numbers)):
            yield from zip(pictures["tokens"], pictures["label"].tolist(), strict=True)

    def read(self) -> Splits:
        config: Any = self.builder_config
        name = f"pathfinder{config.size}/{release.RELEASE_FOLDERS[config.contour_length]}"
        found = [] if self.manual_dir is None else archives.nested(self.manual_dir, name)
        if not found:
            raise MissingData(
                f"Pathfinder from the arena's release needs the folder that has {name}: --manual-dir FOLDER. "
                "Unpack lra_release.gz for it."
            )
        if len(found) > 1:
            raise UsageError(
                f"{self.manual_dir} has {' and '.join(map(str, found))}, expected one of them. Name the "
                "folder of the right one: --manual-dir FOLDER."
            )
        rows = release.release_rows(found[0], config.contour_length, self.leave_out)
        if len(rows) != release.RELEASE_PICTURES:
            count = f"{len(rows):,} pictures, the release has {release.RELEASE_PICTURES:,}"
            self.accept_unofficial(
                count,
                f"{found[0]} has {count}; nothing was kept. Get the release's; or --unofficial takes these "
                "as they are, and marks the dataset, its runs and their reports.",
            )
        metadata: Any = self.info.metadata
        metadata.update(origin="the Long Range Arena's release")
        splits = {}
        for split, (start, stop) in zip(SPLITS, itertools.pairwise((0, 8, 9, 10)), strict=True):
            tenths = rows[len(rows) * start // 10 : len(rows) * stop // 10]
            splits[split] = len(tenths), self._pictures(tenths)
        return splits

    def _pictures(self, rows: Sequence[release.Row]) -> Iterator[Example]:
        config: Any = self.builder_config
        read = functools.partial(release.read_pictures, config.size)
        return itertools.chain.from_iterable(in_threads(read, self._portions(rows)))

    def _portions(self, items: Any) -> Iterator[Any]:
        """Slices of a sequence, one per call of a thread."""
        step = max(1, AT_ONCE // self.pixels)
        return (items[start : start + step] for start in range(0, len(items), step))
