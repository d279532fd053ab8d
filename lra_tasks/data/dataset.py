"""From a prepared dataset to batches: check it, read it at random, pad and batch."""

import bisect
import dataclasses
import itertools
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from lra_tasks.config import Config
from lra_tasks.data.batches import read_many
from lra_tasks.data.location import DatasetDir, checked_manifest
from lra_tasks.errors import UsageError, unknown_name
from lra_tasks.tasks import SPLITS, Examples, Task, get_task

READ_AHEAD = 256  # examples an iteration over a source reads at once


class Source:
    """One split of a prepared dataset, read at random from its files; threads may share it.

    Example i is {"tokens": token ids, uint8 or uint16 (T_i,), or a pair of such, "label": int, "index": i}.
    `__getitems__` and iteration read many at a time, some 40 µs each; one alone takes three times as long.

    Attributes:
      task: The task.
      split: One of `SPLITS`.
      manifest: What the dataset's manifest says: "num_examples", "metadata", "versions", "files".
    """

    def __init__(self, task: Task, split: str, manifest: dict[str, Any], examples: Examples) -> None:
        self.task, self.split, self.manifest = task, split, manifest
        self._examples = examples

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Returns the examples with these indices, in their order."""
        for index in indices:
            if not 0 <= index < len(self):
                raise IndexError(f"{self.task.name} {self.split} has {len(self)} examples, no number {index}")
        examples = read_many(self._examples, indices)
        return [
            {"tokens": self._tokens(example), "label": int(example["label"]), "index": index}
            for index, example in zip(indices, examples, strict=True)
        ]

    def _tokens(self, example: dict[str, Any]) -> Any:
        if self.task.num_inputs == 2:
            return self._ids(example["tokens1"]), self._ids(example["tokens2"])
        return self._ids(example["tokens"])

    def _ids(self, stored: np.ndarray) -> np.ndarray:
        first = self.task.first_token
        return np.add(stored, first, dtype=np.uint16) if first else stored

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for start in range(0, len(self), READ_AHEAD):
            yield from self.__getitems__(range(start, min(start + READ_AHEAD, len(self))))


def load(
    task: Task | str,
    split: str,
    data_dir: str | os.PathLike[str] | None = None,
    *,
    variant: str | None = None,
    verify: bool = True,
    in_memory: bool = False,
) -> Source:
    """Opens one split of a prepared dataset.

    Args:
      task: The task or its name.
      split: "train", "validation" or "test".
      data_dir: As in `prepare`.
      variant: As in `prepare`.
      verify: Compares the SHA-256 of every file with the manifest's; without it, only names and sizes.
      in_memory: Reads the whole split now, so that batches come several times as fast afterwards.

    Returns:
      The examples in the order they were prepared in.

    Raises:
      UsageError: The split or variant is unknown; the dataset is not prepared, not whole, or a file of it is
        missing, cut or altered. The message names folder and file and the command that mends it.
    """
    if split not in SPLITS:
        raise unknown_name("split", split, SPLITS)
    task = get_task(task) if isinstance(task, str) else task
    place = DatasetDir(task, task.variant if variant is None else variant, data_dir)
    manifest = checked_manifest(place, verify=verify)
    import tensorflow_datasets as tfds

    builder: Any = tfds.builder_from_directory(place.folder)
    stored: Examples = builder.as_data_source(split)
    if in_memory:
        stored = [
            example
            for i in range(0, len(stored), READ_AHEAD)
            for example in read_many(stored, range(i, min(i + READ_AHEAD, len(stored))))
        ]
    return Source(task, split, manifest, stored)


def record(task: str, variant: str, data_dir: str | os.PathLike[str] | None = None) -> Task:
    """Returns a task's record, completed by what its prepared data tell: the number of classes of `bytes`.

    Raises:
      UsageError: There is no such task; or its data decide and are not prepared.
    """
    known = get_task(task)
    if known.num_classes:
        return known
    manifest = checked_manifest(DatasetDir(known, variant, data_dir), verify=False)
    return dataclasses.replace(known, num_classes=len(manifest["metadata"]["classes"]))


class Joined:
    """Several sources one after the other, as one."""

    def __init__(self, *sources: Examples) -> None:
        self._sources = sources
        self._starts = list(itertools.accumulate(map(len, sources), initial=0))

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> dict[str, Any]:
        number = bisect.bisect_right(self._starts, index) - 1
        return self._sources[number][index - self._starts[number]] | {"index": index}

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        found: dict[int, dict[str, Any]] = {}
        for source, start in zip(self._sources, self._starts, strict=False):
            mine = [index for index in indices if start <= index < start + len(source)]
            for index, example in zip(mine, read_many(source, [i - start for i in mine]), strict=True):
                found[index] = example | {"index": index}
        return [found[index] for index in indices]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for source, start in zip(self._sources, self._starts, strict=False):
            for example in source:
                yield example | {"index": start + example["index"]}


def open_splits(config: Config, data_dir: str | os.PathLike[str] | None = None) -> dict[str, Examples]:
    """Opens what a run trains on, validates on and is tested on, as its protocol says; checks every file.

    Raises:
      UsageError: As `load`; the protocol is not for this task; the length would cut or pad pictures.
    """
    task = record(config.task, config.variant, data_dir)
    splits: dict[str, Examples] = {}
    for split in SPLITS:  # the files are of all splits: checked once
        source = load(task, split, data_dir, variant=config.variant, verify=split == "train")
        check_length(source, config.length)
        splits[split] = source
    if config.protocol == "paper":
        if not task.validation_from_train:
            raise UsageError(
                f"--protocol paper is for tasks whose validation split is cut from the training split; "
                f"{task.name} has one of its own."
            )
        joined = Joined(splits["train"], splits["validation"])
        splits = {"train": joined, "validation": splits["test"], "test": splits["test"]}
    return splits


def check_length(source: Source, length: int) -> None:
    """Refuses a length at which pictures would be cut or padded: no row would stand above the next one.

    Raises:
      UsageError: The task's tokens are pixels, and the pictures have another number of them.
    """
    if source.task.is_image:
        pixels = source.manifest["contents"]["splits"][source.split]["lengths"][1]
        if length != pixels:
            raise UsageError(
                f"The pictures of {source.task.name} in {source.manifest['dataset']} have {pixels:,} pixels; "
                f"--length is {length:,}. It has to be {pixels}."
            )
