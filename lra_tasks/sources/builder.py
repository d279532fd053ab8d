"""What the arena's TFDS builders share: features, shards, and examples drawn in parts.

A builder draws its examples (`drawn`) or reads them (`read`). Nothing here imports TensorFlow.
"""

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from lra_tasks.errors import UsageError
from lra_tasks.sources import parts
from lra_tasks.sources.parts import Part
from lra_tasks.task import SPLITS, Task

# The tokens of an example, one a byte, a pair of such where two sequences are compared; and its label.
Example = tuple[Any, int]


class ArenaBuilder(tfds.core.ShardBasedBuilder, skip_registration=True):
    """Base class of the arena's datasets.

    Features: "tokens", uint8 (T,), or "tokens1" and "tokens2" where two sequences are compared; "label",
    int64. The records stand in the order they are drawn or read in: nothing is shuffled here, so a builder
    has to see to it that the beginning of a split is like the rest of it.

    A subclass sets `name`, `VERSION`, `BUILDER_CONFIGS` and `task`, and has one of `drawn` and `read`. Every
    config has `num_examples`: split → count, or None where the count shows only in reading.

    Attributes:
      task: The record this is the data of.
      shard_examples: Examples of a file; some 100 MB are held in memory while it is written.
      may_repeat: Which examples may be equal: "train" within that split, "train/test" across these two. All
        others are refused.
      balanced: Whether a split has equally many examples of each label, but for one where they do not divide.
      num_workers: Processes for drawing; None takes one for each processor.
      report: Is told what is done, the number of examples finished, and of all (0: unknown).
      manual_dir: Folder with files the user has; None where there is none.
      downloads: Folder for what is downloaded.
      unofficial: Whether files that are not the official ones may be used, and marked in the metadata.
      parts: Folder for drawn parts.
    """

    task: ClassVar[Task]
    shard_examples: int = 25_000
    may_repeat: frozenset[str] = frozenset()
    balanced: bool = False
    num_workers: int | None = None
    report: Callable[[str, int, int], None] = staticmethod(lambda message, done, total: None)
    manual_dir: Path | None = None
    downloads: Path = Path()
    unofficial: bool = False
    parts: Path = Path()

    @classmethod
    def config_named(cls, name: str) -> Any:
        """Returns the config called `name`, or None."""
        return next((config for config in cls.BUILDER_CONFIGS if config.name == name), None)

    def drawn(self) -> dict[str, list[Part]] | None:
        """Returns the parts of every split in order, or None for a config that is read."""
        return None

    def read(self) -> Mapping[str, tuple[int, Iterable[Example]]]:
        """Returns the number of examples of every split, a guess where it is unknown, and the examples.

        They are taken split after split in the order of `SPLITS`, each once. What it learns of their origin
        it puts into `self.info.metadata`: "origin", a few words; "unofficial", what makes the source so, if
        it is.

        Raises:
          UsageError: a file is missing or wrong; the message names it, what was expected and what is there.
        """
        raise NotImplementedError

    def _info(self) -> tfds.core.DatasetInfo:
        tokens = tfds.features.Tensor(shape=(None,), dtype=np.uint8, encoding="bytes")
        names = ("tokens",) if self.task.num_inputs == 1 else ("tokens1", "tokens2")
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.task.description,
            features=tfds.features.FeaturesDict(
                dict.fromkeys(names, tokens) | {"label": tfds.features.Scalar(dtype=np.int64)}
            ),
            homepage="https://arxiv.org/abs/2011.04006",
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(),
        )

    def _shard_iterators_per_split(self, dl_manager: Any) -> dict[str, list[Callable[[], Iterator[Any]]]]:
        drawn = self.drawn()
        splits = self.read() if drawn is None else self._from_parts(drawn)
        total = sum(count for count, _ in splits.values())
        numbers = itertools.count()
        return {split: self._shards(*splits[split], numbers, total) for split in SPLITS}

    def make_parts(self, wanted: list[Part]) -> None:
        """Makes the files of these parts."""
        total = sum(part.size for part in wanted)
        parts.make(
            wanted,
            self.parts,
            num_workers=self.num_workers,
            report=lambda done: self.report(f"drawing {self.task.name}", done, total),
        )

    def _from_parts(self, drawn: dict[str, list[Part]]) -> dict[str, tuple[int, Iterable[Example]]]:
        self.make_parts([part for split in SPLITS for part in drawn[split]])
        return {
            split: (
                sum(part.size for part in wanted),
                itertools.chain.from_iterable(parts.examples(part, self.parts) for part in wanted),
            )
            for split, wanted in drawn.items()
        }

    def _shards(
        self, count: int, examples: Iterable[Example], numbers: Iterator[int], total: int
    ) -> list[Callable[[], Iterator[Any]]]:
        if count < 1:
            raise UsageError(f"{self.task.name} cannot be prepared: a split of it would be empty.")
        iterator = iter(examples)
        number = -(-count // self.shard_examples)
        limits = [self.shard_examples] * (number - 1) + [None]  # the last takes whatever is left
        return [functools.partial(self._records, iterator, limit, numbers, total) for limit in limits]

    def _records(
        self, examples: Iterator[Example], limit: int | None, numbers: Iterator[int], total: int
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        for tokens, label in itertools.islice(examples, limit):
            number = next(numbers)
            if number % 256 == 0:
                self.report(f"writing {self.task.name}", number, total)
            sequences = (tokens,) if self.task.num_inputs == 1 else tokens
            names = ("tokens",) if self.task.num_inputs == 1 else ("tokens1", "tokens2")
            arrays = (np.frombuffer(sequence, np.uint8) for sequence in sequences)
            yield number, dict(zip(names, arrays, strict=True)) | {"label": label}
