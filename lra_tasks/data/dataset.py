"""Prepared datasets: the task, the manifest, and splits with random access."""

import bisect
import dataclasses
import functools
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from lra_tasks.config import Settings
from lra_tasks.data.batches import count_tokens, read_many
from lra_tasks.data.location import DatasetDir, checked_manifest, identity
from lra_tasks.errors import UsageError, unknown_name
from lra_tasks.task import SPLITS, Examples, Task
from lra_tasks.tasks import get_task

READ_AHEAD = 256  # examples per read of an iteration over a source


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A prepared dataset.

    Attributes:
      task: Task of the dataset; for `bytes`, with the number of classes in the data.
      variant: Variant of the task.
      manifest: Content of the manifest: "dataset", "num_examples", "metadata", "contents", "versions",
        "files".
      splits: Sources of the examples: "train", "validation" and "test".
    """

    task: Task
    variant: str
    manifest: Mapping[str, Any]
    splits: Mapping[str, "Source"]

    @property
    def identity(self) -> str:
        """The digest of all examples and labels in order: equal for equal data."""
        return identity(self.manifest)

    @property
    def origin(self) -> dict[str, Any]:
        """The name, the identity and the metadata of the dataset, which runs keep in `data.json`."""
        return {"dataset": self.manifest["dataset"], "identity": self.identity, **self.manifest["metadata"]}

    def for_run(self, settings: Settings) -> dict[str, Examples]:
        """Returns the examples for training, validation and testing under the run's protocol.

        Raises:
          UsageError: If the protocol does not apply to this task, or the length would cut or pad pictures.
        """
        self.check_length(settings.length)
        if settings.protocol != "paper":
            return dict(self.splits)
        if not self.task.validation_from_train:
            raise UsageError(
                f"protocol must be 'held-out' for {self.task.name}, which has a validation split of its own;"
                f" got '{settings.protocol}'.",
                argument="protocol",
            )
        joined = Joined(self.splits["train"], self.splits["validation"])
        return {"train": joined, "validation": self.splits["test"], "test": self.splits["test"]}

    def check_length(self, length: int) -> None:
        """Refuses a length that would cut or pad pictures, or cut a sequence that its label needs whole.

        Rows of pixels would no longer align; the answer to a question would be cut off.

        Raises:
          UsageError: If the tokens are pixels and the length is not the number of pixels of a picture, or the
            task's sequences must be whole and the length is below the longest.
        """
        splits = self.manifest["contents"]["splits"].values()
        longest = max(split["lengths"][1] for split in splits)
        if self.task.is_image and length != longest:
            expected = f"{longest:,}, the number of pixels of {self.manifest['dataset']}"
        elif self.task.is_whole and length < longest:
            expected = f"at least {longest:,}, the longest sequence of {self.manifest['dataset']}"
        else:
            return
        raise UsageError(f"length must be {expected}; got {length:,}.", argument="length")


def open_dataset(
    task: Task | str,
    variant: str | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    *,
    verify: bool = True,
) -> Dataset:
    """Opens a prepared dataset.

    Args:
      task: Task or its name.
      variant: Variant of the task, as in `prepare`.
      data_dir: Folder of all datasets, as in `prepare`.
      verify: Whether to compare the SHA-256 of every file with the manifest; otherwise only names and sizes
        are compared.

    Raises:
      UsageError: If the variant is unknown, or the dataset is not prepared or incomplete, or one of its files
        is missing, cut or altered. The message names folder, file and the command that repairs it.
    """
    task = get_task(task) if isinstance(task, str) else task
    variant = task.variant if variant is None else variant
    place = DatasetDir(task, variant, data_dir)
    manifest = checked_manifest(place, verify=verify)
    import tensorflow_datasets as tfds

    builder: Any = tfds.builder_from_directory(place.folder)
    task = _completed(task, manifest)
    splits = {split: Source(task, split, manifest, builder.as_data_source(split)) for split in SPLITS}
    return Dataset(task, variant, manifest, splits)


def load(
    task: Task | str,
    split: str,
    data_dir: str | os.PathLike[str] | None = None,
    *,
    variant: str | None = None,
    verify: bool = True,
    in_memory: bool = False,
) -> "Source":
    """Opens one split of a prepared dataset.

    Args:
      task: Task or its name.
      split: "train", "validation" or "test".
      data_dir: Folder of all datasets, as in `prepare`.
      variant: Variant of the task, as in `prepare`.
      verify: Whether to compare the SHA-256 of every file, as in `lra_tasks.data.dataset.open_dataset`.
      in_memory: Whether to read the whole split now; batches are then several times as fast.

    Returns:
      Source of the examples, in the order of preparation.

    Raises:
      UsageError: If the split is unknown, and as `open_dataset`.
    """
    if split not in SPLITS:
        raise unknown_name("split", split, SPLITS)
    source = open_dataset(task, variant, data_dir, verify=verify).splits[split]
    return source.in_memory() if in_memory else source


def completed_task(task: Task | str, variant: str, data_dir: str | os.PathLike[str] | None = None) -> Task:
    """Returns a task with its number of classes, which for `bytes` comes from the prepared data.

    Raises:
      UsageError: If the task is unknown, or the data are needed and not prepared.
    """
    task = get_task(task) if isinstance(task, str) else task
    if task.num_classes:
        return task
    return _completed(task, checked_manifest(DatasetDir(task, variant, data_dir), verify=False))


def _completed(task: Task, manifest: Mapping[str, Any]) -> Task:
    if task.num_classes:
        return task
    return dataclasses.replace(task, num_classes=len(manifest["metadata"]["classes"]))


class Source:
    """One split of a prepared dataset, with random access to its files; threads may share it.

    Example i is {"tokens": token ids, uint8 or uint16 (T_i,), or a pair of such arrays, "label": int,
    "index": i}. `__getitems__` and iteration read many examples at a time, in some 40 µs each; a single read
    takes three times as long.

    Attributes:
      task: Task of the dataset.
      split: Name of the split, one of `SPLITS`.
      manifest: Content of the dataset's manifest, as in `Dataset`.
    """

    def __init__(self, task: Task, split: str, manifest: Mapping[str, Any], examples: Examples) -> None:
        self.task, self.split, self.manifest = task, split, manifest
        self._examples = examples

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Returns the examples with these indices, in the same order."""
        for index in indices:
            if not 0 <= index < len(self):
                raise IndexError(
                    f"index must be between 0 and {len(self) - 1}, in {self.task.name} {self.split}; got"
                    f" {index}."
                )
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

    @functools.cached_property
    def sizes(self) -> np.ndarray:
        """The number of tokens of each example, as `count_tokens`; the first access reads the whole split."""
        return count_tokens(self)

    def in_memory(self) -> "Source":
        """Returns the same split, read into memory."""
        starts = range(0, len(self), READ_AHEAD)
        blocks = (read_many(self._examples, range(i, min(i + READ_AHEAD, len(self)))) for i in starts)
        return Source(self.task, self.split, self.manifest, list(itertools.chain.from_iterable(blocks)))


class Joined:
    """Concatenation of several sources."""

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

    @functools.cached_property
    def sizes(self) -> np.ndarray:
        """The number of tokens of each example, as `count_tokens`."""
        return count_tokens(self)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for source, start in zip(self._sources, self._starts, strict=False):
            for example in source:
                yield example | {"index": start + example["index"]}
