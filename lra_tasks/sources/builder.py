"""The base class of the TFDS builders: features and shards. Nothing here imports TensorFlow."""

import functools
import itertools
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from lra_tasks.errors import UsageError
from lra_tasks.task import SPLITS, Task

# The tokens of an example as bytes, or a pair of such where two sequences are compared; and its label.
Example = tuple[Any, int]
# Split → number of examples, a guess where it is unknown, and the examples.
Splits = Mapping[str, tuple[int, Iterable[Example]]]
NAMED = 3  # files or lines named of those left out for one reason


class ArenaBuilder(tfds.core.ShardBasedBuilder, skip_registration=True):
    """Base class of the arena's datasets.

    Features: "tokens", uint8 (T,), or "tokens1" and "tokens2" where two sequences are compared; "label",
    int64. Records keep the order in which they are drawn or read. Nothing is shuffled here, so a builder
    has to ensure that the beginning of a split is like the rest of it.

    A subclass sets `name`, `VERSION`, `BUILDER_CONFIGS` and `task`, and defines `draw` or `read`. Every
    config has `num_examples`: split → count, or None where only reading shows the count.

    Attributes:
      task: The task of these data.
      origin: Function that draws the examples; the metadata of drawn data name it.
      shard_examples: Examples per file. Some 100 MB are kept in memory while one is written.
      may_repeat: Splits that may contain equal examples: "train" within that split, "train/test" across
        the two. All other repeats are refused.
      balanced: Whether a split has equally many examples of each label, up to one.
      report: Function of a message, the number of examples finished, and of all (0: unknown).
      manual_dir: Folder with the user's files, or None.
      downloads: Folder for downloaded files.
      unofficial: Whether files other than the official ones may be used, and marked in the metadata.
      left_out: Reason → names of the files or lines that are not examples. The metadata of data that are read
        count them, and name some.
    """

    task: ClassVar[Task]
    origin: ClassVar[str] = ""
    shard_examples: int = 25_000
    may_repeat: frozenset[str] = frozenset()
    balanced: bool = False
    report: Callable[[str, int, int], None] = staticmethod(lambda message, done, total: None)
    manual_dir: Path | None = None
    downloads: Path = Path()
    unofficial: bool = False

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.left_out: defaultdict[str, list[str]] = defaultdict(list)

    def leave_out(self, reason: str, name: str) -> None:
        """Counts a file or a line that is not an example."""
        self.left_out[reason].append(name)

    def counted(self) -> dict[str, dict[str, Any]]:
        """Returns reason → number and first names of the files and lines that `leave_out` counted."""
        return {
            reason: {"count": len(names), "first": [printable(name) for name in names[:NAMED]]}
            for reason, names in self.left_out.items()
        }

    def accept_unofficial(self, reason: str, refusal: str) -> None:
        """Marks the metadata with the reason, or raises `UsageError` of the refusal without `unofficial`."""
        if not self.unofficial:
            raise UsageError(refusal)
        metadata: Any = self.info.metadata
        metadata["unofficial"] = "; ".join(filter(None, (metadata.get("unofficial"), reason)))

    @classmethod
    def config_named(cls, name: str) -> Any:
        """Returns the config called `name`, or None."""
        return next((config for config in cls.BUILDER_CONFIGS if config.name == name), None)

    @classmethod
    def get_builder_config(cls, name: str, version: Any = None) -> Any:
        """Returns the same config for TFDS, which by itself knows only `BUILDER_CONFIGS`."""
        return cls.config_named(name)

    @classmethod
    def is_drawn(cls, name: str) -> bool:
        """Whether the config called `name` is drawn from a seed, and not read from files."""
        return (
            cls.draw is not ArenaBuilder.draw
            and getattr(cls.config_named(name), "num_examples", None) is not None
        )

    def draw(self, numbers: range) -> Iterable[Example]:
        """Yields the examples with these numbers, drawn from the config's seed."""
        raise NotImplementedError

    def drawn(self) -> Splits | None:
        """Returns the splits, drawn from a seed while they are iterated; None if the config reads files."""
        config: Any = self.builder_config
        if not self.is_drawn(config.name):
            return None
        metadata: Any = self.info.metadata
        metadata.update(origin=self.origin, seed=config.seed)
        splits, start = {}, 0
        for split in SPLITS:
            count = config.num_examples[split]
            splits[split] = count, self.draw(range(start, start + count))
            start += count
        return splits

    def read(self) -> Splits:
        """Returns the splits, read from files.

        They are iterated once each, in the order of `SPLITS`. The builder adds to `self.info.metadata`:
        "origin", a few words; "unofficial", the reason if the source is not the official one.

        Raises:
          UsageError: If a file is missing or wrong; the message names it.
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
        splits = self.drawn()
        if splits is None:
            splits = self.read()
            metadata: Any = self.info.metadata
            metadata["left_out"] = self.counted()
        total = sum(count for count, _ in splits.values())
        numbers = itertools.count()
        return {split: self._shards(*splits[split], numbers, total) for split in SPLITS}

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


def printable(name: str) -> str:
    """Returns the name of a file as UTF-8, which Linux does not guarantee."""
    return os.fsencode(name).decode(errors="backslashreplace")
