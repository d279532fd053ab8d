"""The TFDS builder of ListOps, apart from the task's record because it imports TFDS.

Worker processes import `lra_tasks.tasks.listops` only, which needs nothing but the standard library.
"""

import contextlib
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from lra_tasks.errors import MissingData, UsageError
from lra_tasks.sources import archives
from lra_tasks.sources.builder import ArenaBuilder, Example
from lra_tasks.sources.parts import Part
from lra_tasks.sources.workers import Call, spread
from lra_tasks.task import SPLITS
from lra_tasks.tasks.listops import grammar, release
from lra_tasks.tasks.listops import task as listops

CHUNK = 250  # lines of the release a worker reads before it hands them over
PART = 1_000  # expressions of a part
RELEASE_FILES = {"train": "basic_train.tsv", "validation": "basic_val.tsv", "test": "basic_test.tsv"}
WHERE = f"The arena's release, lra_release.gz, has {', '.join(RELEASE_FILES.values())} in listops-1000."


@dataclass(kw_only=True)
class ListOpsConfig(tfds.core.BuilderConfig):
    """What a config of `ListOps` holds.

    Attributes:
      seed: Seed of `listops.expression`.
      num_examples: Examples of each split, taken from the seed's expressions in the order of `SPLITS`; None
        reads the arena's release instead.
    """

    seed: int = 0
    num_examples: dict[str, int] | None = None


class ListOps(ArenaBuilder, skip_registration=True):
    """ListOps, drawn by `listops.expression` or read from the arena's release.

    "tokens" are token ids of `listops.SYMBOLS`; "label" is 0 .. 9. The records stand in generation order, and
    the files' bytes do not depend on the number of workers. No expression comes twice, within a split or
    across them.
    """

    name = "lra_listops"
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS: ClassVar = [
        ListOpsConfig(
            name="default",
            description="The arena's sizes, drawn with seed 0.",
            num_examples=dict(listops.TASK.num_examples),
        ),
        ListOpsConfig(
            name="smoke",
            description="A few of the same kind for tests.",
            num_examples={"train": 2_000, "validation": 256, "test": 256},
        ),
        ListOpsConfig(name="release", description="The arena's own files, read and checked."),
    ]
    task = listops.TASK
    shard_examples = 100_000

    def drawn(self) -> dict[str, list[Part]] | None:
        config: Any = self.builder_config
        if config.num_examples is None:
            return None
        work, start = {}, 0
        for split in SPLITS:
            stop = start + config.num_examples[split]
            bounds = [(i, min(i + PART, stop)) for i in range(start, stop, PART)]
            work[split] = [
                Part(f"{i:07d}-{j:07d}", j - i, grammar.expressions, (config.seed, i, j)) for i, j in bounds
            ]
            start = stop
        metadata: Any = self.info.metadata
        metadata.update(origin="lra_tasks.tasks.listops.grammar.expression", seed=config.seed)
        return work

    def read(self) -> dict[str, tuple[int, Iterable[Example]]]:
        if self.manual_dir is None:
            raise MissingData(
                "ListOps from the arena's release needs the folder with its files: "
                f"--manual-dir FOLDER. {WHERE}"
            )
        splits, digests = {}, {}
        for split, name in RELEASE_FILES.items():
            path = self.manual_dir / name
            if not path.is_file():
                raise MissingData(f"There is no {name} in {self.manual_dir}. {WHERE}")
            with archives.opened(path) as file:
                content = file.read()
            header, *lines = content.decode("ascii", errors="replace").splitlines() or [""]
            if header.split("\t") != ["Source", "Target"]:
                raise UsageError(f"{path}, line 1: the columns are {header!r}, expected Source<tab>Target.")
            work: list[Call] = [
                (release.read_rows, (str(path), i + 2, lines[i : i + CHUNK]))
                for i in range(0, len(lines), CHUNK)
            ]
            splits[split] = len(lines), self._rows(work)
            digests[name] = hashlib.sha256(content).hexdigest()
        metadata: Any = self.info.metadata
        metadata.update(origin="the Long Range Arena's release", sha256=digests)
        return splits

    def _rows(self, work: list[Call]) -> Iterator[Example]:
        with contextlib.closing(spread(work, self.num_workers)) as chunks:
            for rows in chunks:
                yield from rows
