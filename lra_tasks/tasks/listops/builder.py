"""The TFDS builder of ListOps, in a module of its own because it imports TFDS."""

import functools
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from lra_tasks.errors import MissingData, UsageError
from lra_tasks.sources import archives, tables
from lra_tasks.sources.builder import ArenaBuilder, Example, Splits
from lra_tasks.tasks.listops import grammar, release
from lra_tasks.tasks.listops import task as listops

RELEASE_FILES = {"train": "basic_train.tsv", "validation": "basic_val.tsv", "test": "basic_test.tsv"}
WHERE = (
    f"The arena's release, lra_release.gz, has {', '.join(RELEASE_FILES.values())} in listops-1000. "
    "--manual-dir names the folder with that archive, or a folder with the three files."
)


@dataclass(kw_only=True)
class ListOpsConfig(tfds.core.BuilderConfig):
    """A variant of ListOps.

    Attributes:
      seed: Seed of `grammar.expression`.
      num_examples: Examples of each split, taken from the seed's expressions in the order of `SPLITS`; None
        reads the arena's release instead.
    """

    seed: int = 0
    num_examples: dict[str, int] | None = None


class ListOps(ArenaBuilder, skip_registration=True):
    """ListOps, drawn by `grammar.expression` or read from the arena's release.

    "tokens" are token ids of `grammar.SYMBOLS`; "label" is 0 .. 9. Records keep the order in which they are
    drawn or listed. No expression is repeated, within a split or across them.
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
    origin = "lra_tasks.tasks.listops.grammar.expression"
    shard_examples = 100_000

    def draw(self, numbers: range) -> Iterable[Example]:
        config: Any = self.builder_config
        return map(functools.partial(grammar.expression, config.seed), numbers)

    def read(self) -> Splits:
        if self.manual_dir is None:
            raise MissingData(
                f"ListOps from the arena's release needs its files: --manual-dir FOLDER. {WHERE}"
            )
        names = list(RELEASE_FILES.values())
        path = archives.source(self.manual_dir, names, *archives.RELEASE)
        if path is None:
            raise MissingData(f"The arena's files for ListOps are missing in {self.manual_dir}. {WHERE}")
        self.report(f"reading {path.name}", 0, 0)
        read, digests = {}, {}
        for name, file in archives.named(path, names, WHERE, self.leave_out):
            content = file.read()
            rows = list(tables.lines(content.splitlines(), name, self.leave_out))
            number, header = rows[0] if rows else (1, b"")
            place = f"{path}: {name}, line {number}"
            if tables.fields(header, place) != ["Source", "Target"]:
                columns = header[:80].decode(errors="replace")
                raise UsageError(f"{place}: the columns are {columns!r}, expected Source<tab>Target.")
            read[name] = len(rows) - 1, release.read_rows(f"{path}: {name}", rows[1:])
            digests[name] = hashlib.sha256(content).hexdigest()
        metadata: Any = self.info.metadata
        metadata.update(origin="the Long Range Arena's release", sha256=digests)
        return {split: read[name] for split, name in RELEASE_FILES.items()}
