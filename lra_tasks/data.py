"""From a prepared dataset to batches: check it, read it at random, pad and batch."""

import bisect
import dataclasses
import functools
import hashlib
import itertools
import json
import os
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lra_tasks.config import Config
from lra_tasks.errors import UsageError, unknown_name
from lra_tasks.tasks import SPLITS, Examples, Task, get_task

if TYPE_CHECKING:
    import grain

MANIFEST = "manifest.json"
READ_AHEAD = 256  # examples an iteration over a source reads at once

Batch = dict[str, np.ndarray]
ALL = slice(None)


def data_root(data_dir: str | os.PathLike[str] | None) -> Path:
    """The folder of all datasets; for None it is that of TFDS: `TFDS_DATA_DIR`, or a folder at home."""
    root = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return Path(root).expanduser().absolute()


@dataclass(frozen=True)
class Place:
    """Where a task's dataset lies, and the command that puts it there."""

    task: Task
    config: str
    data_dir: str | os.PathLike[str] | None

    def __post_init__(self) -> None:
        if self.builder_class.config_named(self.config) is None:
            configs = [config.name for config in self.builder_class.BUILDER_CONFIGS]
            raise unknown_name(f"{self.task.name} config", self.config, configs)

    @functools.cached_property
    def builder_class(self) -> Any:
        return self.task.builder_class()

    @property
    def root(self) -> Path:
        return data_root(self.data_dir)

    @property
    def relative(self) -> Path:
        return Path(self.builder_class.name, self.config, str(self.builder_class.VERSION))

    @property
    def folder(self) -> Path:
        return self.root / self.relative

    @property
    def staging(self) -> Path:
        return self.root / self.builder_class.name / f".incomplete-{self.config}"

    @property
    def parts(self) -> Path:
        return self.root / self.builder_class.name / f".parts-{self.config}-{self.builder_class.VERSION}"

    @property
    def lock(self) -> Path:
        return self.root / self.builder_class.name / f".{self.config}.lock"

    def command(self, *options: str) -> str:
        words = ["lra", "prepare", self.task.name, *options]
        if self.config != self.task.config:
            words += ["--config", self.config]
        if self.data_dir is not None:
            words += ["--data-dir", os.fspath(self.data_dir)]
        return f"`{shlex.join(words)}`"


def describe(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        return {"size": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def checked_manifest(place: Place, *, verify: bool) -> dict[str, Any]:
    """Returns the manifest of a dataset whose files are what it says (their content, only with `verify`)."""
    manifest = read_manifest(place)
    for what in damage(place.folder, manifest, verify=verify):
        raise UsageError(f"{what} {_rebuild(place)}")
    return manifest


def _rebuild(place: Place) -> str:
    return f"{place.command('--overwrite')} makes it again."


def read_manifest(place: Place) -> dict[str, Any]:
    """Returns the manifest of a dataset, if there is one that can be read."""
    rebuild = _rebuild(place)
    if not place.folder.exists():
        raise UsageError(
            f"{place.task.name} is not prepared in {place.folder}. Run {place.command()}, or name the"
            " folder it is in with --data-dir or TFDS_DATA_DIR."
        )
    try:
        manifest = json.loads((place.folder / MANIFEST).read_text())
        files = dict(manifest["files"])
        if not files or not set(SPLITS) == set(manifest["num_examples"]) == set(
            manifest["contents"]["splits"]
        ):
            raise ValueError("it does not describe a whole dataset")
    except FileNotFoundError:
        raise UsageError(f"{place.folder} has no {MANIFEST}, so it is not whole. {rebuild}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{place.folder / MANIFEST} cannot be read: {error!r}. {rebuild}") from error
    return manifest


def identity(manifest: dict[str, Any]) -> str:
    """Returns a digest of all examples and labels of a dataset, in their order: equal for equal data."""
    digests = [manifest["contents"]["splits"][split]["sha256"] for split in SPLITS]
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def damage(folder: Path, manifest: dict[str, Any], *, verify: bool) -> Iterator[str]:
    """Yields what is wrong with the files that a manifest names (their content, only with `verify`)."""
    for name, recorded in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            yield f"{name} is missing in {folder}."
            continue
        size = path.stat().st_size
        if size != recorded["size"]:
            yield f"{name} in {folder} has {size:,} bytes, expected {recorded['size']:,}."
        elif verify and describe(path) != recorded:
            yield f"{name} in {folder} was altered: its SHA-256 is not the manifest's."


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
        examples = _read(self._examples, indices)
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
    config: str | None = None,
    verify: bool = True,
    in_memory: bool = False,
) -> Source:
    """Opens one split of a prepared dataset.

    Args:
      task: The task or its name.
      split: "train", "validation" or "test".
      data_dir: As in `prepare`.
      config: As in `prepare`.
      verify: Compares the SHA-256 of every file with the manifest's; without it, only names and sizes.
      in_memory: Reads the whole split now, so that batches come several times as fast afterwards.

    Returns:
      The examples in the order they were prepared in.

    Raises:
      UsageError: The split or config is unknown; the dataset is not prepared, not whole, or a file of it is
        missing, cut or altered. The message names folder and file and the command that mends it.
    """
    if split not in SPLITS:
        raise unknown_name("split", split, SPLITS)
    task = get_task(task) if isinstance(task, str) else task
    place = Place(task, task.config if config is None else config, data_dir)
    manifest = checked_manifest(place, verify=verify)
    import tensorflow_datasets as tfds

    builder: Any = tfds.builder_from_directory(place.folder)
    stored: Examples = builder.as_data_source(split)
    if in_memory:
        stored = [
            example
            for i in range(0, len(stored), READ_AHEAD)
            for example in _read(stored, range(i, min(i + READ_AHEAD, len(stored))))
        ]
    return Source(task, split, manifest, stored)


def record(task: str, config: str, data_dir: str | os.PathLike[str] | None = None) -> Task:
    """Returns a task's record, completed by what its prepared data tell: the number of classes of `bytes`.

    Raises:
      UsageError: There is no such task; or its data decide and are not prepared.
    """
    known = get_task(task)
    if known.num_classes:
        return known
    manifest = checked_manifest(Place(known, config, data_dir), verify=False)
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
            for index, example in zip(mine, _read(source, [i - start for i in mine]), strict=True):
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
    task = record(config.task, config.dataset, data_dir)
    splits: dict[str, Examples] = {}
    for split in SPLITS:  # the files are of all splits: checked once
        source = load(task, split, data_dir, config=config.dataset, verify=split == "train")
        check_length(source, config.length)
        splits[split] = source
    if config.protocol == "paper":
        if not task.carved:
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
    if source.task.pixels:
        pixels = source.manifest["contents"]["splits"][source.split]["lengths"][1]
        if length != pixels:
            raise UsageError(
                f"The pictures of {source.task.name} in {source.manifest['dataset']} have {pixels:,} pixels; "
                f"--length is {length:,}. It has to be {pixels}."
            )


def _read(source: Examples, indices: Sequence[int]) -> list[dict[str, Any]]:
    read_many = getattr(source, "__getitems__", None)
    return read_many(indices) if read_many else [source[i] for i in indices]


def _collate(examples: Sequence[dict[str, Any]], length: int) -> Batch:
    pairs = isinstance(examples[0]["tokens"], tuple)
    shape = (len(examples), 2) if pairs else (len(examples),)
    sequences = [s for example in examples for s in (example["tokens"] if pairs else (example["tokens"],))]
    tokens = np.zeros((len(sequences), length), np.int32)
    sizes = np.zeros(len(sequences), np.int64)
    for row, sequence in enumerate(sequences):
        kept = sequence[:length]
        sizes[row] = len(kept)
        tokens[row, : len(kept)] = kept
    return {
        "tokens": tokens.reshape(*shape, length),
        "mask": (np.arange(length) < sizes[:, None]).reshape(*shape, length),
        "label": np.array([example["label"] for example in examples], np.int32),
    }


def _check_positive(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise UsageError(f"{name} is {size}; it has to be at least 1.")


def training_batches(
    source: Examples,
    *,
    length: int,
    batch_size: int,
    seed: int,
    rows: slice | np.ndarray = ALL,
    num_threads: int = 2,
    prefetch: int = 8,
) -> "grain.DatasetIterator[Batch]":
    """Returns batches for ever: every epoch in an order of its own, read ahead by threads.

    Batch k is a pure function of the source, the arguments and k. A batch may hold the end of one epoch and
    the beginning of the next, so every example comes once in every `len(source)` examples.

    The iterator's state is one integer: `get_state()` is {"next_index": k}, and after `set_state` of it, in
    this process or another, batches k, k + 1, … follow exactly as if there had been no break.

    Args:
      source: A `Source`, or a list of such dicts.
      length: T; longer inputs lose their end, shorter ones are padded with 0.
      batch_size: B.
      seed: Of the order, 0 .. 2³² - 1.
      rows: The rows of each batch to read, R of them, for a process that shares the batches with others.
      num_threads: Threads that make batches.
      prefetch: Batches made ahead.

    Returns:
      Iterator of {"tokens": int32 (R, T), "mask": bool (R, T), True at a real token, from the input's
      length and not from its ids, "label": int32 (R,), "index": int64 (B,), the places in `source` of all
      examples of the batch}; R is B unless `rows` are given. Where examples are pairs, tokens and mask are
      (R, 2, T).

    Raises:
      UsageError: A size is below 1, the source is empty, or the seed is out of range.
    """
    import grain

    _check_positive(length=length, batch_size=batch_size, num_threads=num_threads, prefetch=prefetch)
    if not len(source):
        raise UsageError("There is no example to train on.")
    if not 0 <= seed < 2**32:
        raise UsageError(f"The seed is {seed}; it has to be 0 to {2**32 - 1}.")
    # Batches of indices are cheap to shuffle and to skip; only the last step reads examples.
    return iter(
        grain.MapDataset.range(len(source))
        .seed(seed)
        .shuffle()
        .repeat()
        .batch(batch_size)
        .map(lambda indices: _collate(_read(source, indices[rows].tolist()), length) | {"index": indices})
        .to_iter_dataset(grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=prefetch))
    )


def evaluation_batches(
    source: Examples,
    *,
    length: int,
    batch_size: int,
    limit: int | None = None,
    rows: slice | np.ndarray = ALL,
) -> Iterator[Batch]:
    """Yields every example once, in order, in batches of one size.

    The last batch is filled up with repetitions of its first example (so no row is empty, and none can make
    a mean over nothing), with weight 0 and index -1.

    Args:
      source: A `Source`, or a list of such dicts.
      length: T, as in `training_batches`.
      batch_size: B.
      limit: Takes only the first so many examples; None takes all.
      rows: As in `training_batches`.

    Returns:
      Iterator of the dicts of `training_batches` with "weight" beside them: float32 (R,), 1 for an
      example, 0 for filling. The weights' sum, over all rows, is the number of examples.

    Raises:
      UsageError: A size is below 1.
    """
    _check_positive(length=length, batch_size=batch_size, limit=1 if limit is None else limit)
    stop = len(source) if limit is None else min(limit, len(source))
    return _evaluation_batches(source, length, batch_size, stop, rows)


def _evaluation_batches(
    source: Examples, length: int, batch_size: int, stop: int, rows: slice | np.ndarray
) -> Iterator[Batch]:
    for start in range(0, stop, batch_size):
        indices = np.arange(start, start + batch_size)
        real = indices < stop
        batch = _collate(_read(source, np.where(real, indices, start)[rows].tolist()), length)
        yield batch | {"index": np.where(real, indices, -1), "weight": real[rows].astype(np.float32)}
