"""From a task's name to batches: prepare the dataset once, check it, read it at random, pad and batch.

A dataset is prepared whole or not at all: it is written beside its place, counted, described by a manifest
with the size and SHA-256 of every file, and renamed. Nothing here touches TensorFlow or the network.
"""

import functools
import hashlib
import json
import os
import platform
import shlex
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lra_tasks.errors import UsageError, unknown_name
from lra_tasks.files import locked
from lra_tasks.tasks import SPLITS, Examples, Task, get_task

if TYPE_CHECKING:
    import grain

MANIFEST = "manifest.json"
READ_AHEAD = 256  # examples an iteration over a source reads at once

Batch = dict[str, np.ndarray]
Progress = Callable[
    [str, int, int], None
]  # what is being done, examples finished, examples in all (0: unknown)


def _default_data_dir() -> Path:
    """The folder TFDS uses: `TFDS_DATA_DIR`, or tensorflow_datasets at home."""
    return Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")


@dataclass(frozen=True)
class _Place:
    """Where a task's dataset lies, and the command that puts it there."""

    task: Task
    config: str
    data_dir: str | os.PathLike[str] | None

    def __post_init__(self) -> None:
        configs = [config.name for config in self.builder_class.BUILDER_CONFIGS]
        if self.config not in configs:
            raise unknown_name(f"{self.task.name} config", self.config, configs)

    @functools.cached_property
    def builder_class(self) -> Any:
        return self.task.builder_class()

    @property
    def root(self) -> Path:
        return Path(self.data_dir or _default_data_dir()).expanduser().absolute()

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
    def lock(self) -> Path:
        return self.root / self.builder_class.name / f".{self.config}.lock"

    def command(self, *options: str) -> str:
        words = ["lra", "prepare", self.task.name, *options]
        if self.config != "default":
            words += ["--config", self.config]
        if self.data_dir is not None:
            words += ["--data-dir", os.fspath(self.data_dir)]
        return f"`{shlex.join(words)}`"


def prepare(
    task: Task | str,
    data_dir: str | os.PathLike[str] | None = None,
    *,
    config: str = "default",
    manual_dir: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    num_workers: int | None = None,
    progress: Progress | None = None,
) -> Path:
    """Makes a task's dataset, unless a whole one is there already, and returns its folder.

    The folder is `data_dir/<builder>/<config>/<version>`. It appears by one rename, after every file is
    counted, hashed and on the disk; what an interrupted preparation left is removed by the next one. With
    `overwrite` the old dataset stays until the new one is whole.

    Args:
      task: The task or its name.
      data_dir: Folder of all datasets; None takes the environment's TFDS_DATA_DIR, else
        ~/tensorflow_datasets.
      config: Config of the task's builder: "default", "smoke", ....
      manual_dir: Folder with the files the user has to provide, for a config that reads such.
      overwrite: Makes the dataset again even if there is one.
      num_workers: Processes; None takes one for each processor. The files' bytes do not depend on it.
      progress: Is called with a message, the examples finished and the examples in all (0: unknown).

    Raises:
      UsageError: The config is unknown; a damaged dataset is in the way; another process is preparing the
        same one; the folder cannot be written or the disk is full; the builder refuses its input.
    """
    task = get_task(task) if isinstance(task, str) else task
    place = _Place(task, config, data_dir)
    tell = progress or (lambda message, done, total: None)
    if manual_dir is not None and not Path(manual_dir).expanduser().is_dir():
        raise UsageError(f"There is no folder {manual_dir} to read {task.name} from.")
    if not overwrite and _is_prepared(place, tell):
        return place.folder
    try:
        place.lock.parent.mkdir(parents=True, exist_ok=True)
        message = f"{task.name} is being prepared in {place.folder} by process PID; wait for it, or end it."
        with locked(place.lock, message):
            if overwrite or not _is_prepared(place, tell):
                try:
                    _discard(place.staging)
                    _check_room(place)
                    _generate(place, manual_dir, num_workers, tell)
                finally:
                    shutil.rmtree(place.staging, ignore_errors=True)
    except OSError as error:
        raise UsageError(
            f"{task.name} cannot be prepared in {place.folder}: {error}. That folder has to be writable, "
            f"with {_megabytes(task.disk_bytes)} free for the config 'default'; --data-dir or TFDS_DATA_DIR "
            "names another one."
        ) from error
    return place.folder


def _is_prepared(place: _Place, tell: Progress) -> bool:
    """Whether the dataset is there; a damaged one raises UsageError."""
    if not place.folder.exists():
        return False
    total = sum(_checked_manifest(place, verify=True)["num_examples"].values())
    tell(f"{place.task.name} is prepared in {place.folder}", total, total)
    return True


def _discard(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


def _megabytes(size: int) -> str:
    return f"{max(1, round(size / 1e6)):,} MB"


def _check_room(place: _Place) -> None:
    free = shutil.disk_usage(place.root).free
    if place.config == "default" and free < place.task.disk_bytes:
        raise OSError(f"only {_megabytes(free)} are free there")


def _generate(
    place: _Place, manual_dir: str | os.PathLike[str] | None, num_workers: int | None, tell: Progress
) -> None:
    """Writes the dataset into the staging folder, checks and describes it, and moves it into its place."""
    import tensorflow_datasets as tfds

    builder = place.builder_class(data_dir=place.staging, config=place.config, file_format="array_record")
    expected = builder.builder_config.num_examples
    total = sum(expected.values()) if expected else 0
    builder.num_workers = num_workers
    builder.report = lambda done: tell(f"preparing {place.task.name}", done, total)
    tfds.disable_progress_bar()
    builder._log_download_bytes = builder._log_download_done = lambda: None  # they print the staging folder
    builder._example_writer = lambda: _stable_writer(builder.info.file_format)
    try:
        builder.download_and_prepare(
            download_dir=place.root / "downloads",
            download_config=tfds.download.DownloadConfig(
                manual_dir=None if manual_dir is None else Path(manual_dir).expanduser(),
                try_download_gcs=False,
            ),
        )
    except RuntimeError as error:
        if "write() failed" not in str(error):
            raise
        raise OSError(str(error)) from error  # what array_record makes of a full disk
    written = place.staging / place.relative
    counts = _count_records(builder)
    if counts != (expected or counts) or counts != _counts(builder):
        raise UsageError(
            f"{place.task.name} was written with {counts} examples, expected {expected or _counts(builder)}; "
            f"nothing was kept. Run {place.command()} again."
        )
    manifest = {
        "dataset": str(place.relative),
        "num_examples": counts,
        "metadata": dict(builder.info.metadata or {}),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("tensorflow-datasets", "array_record", "numpy")},
        },
        "files": {path.name: _describe(path) for path in sorted(written.iterdir())},
    }
    with open(written / MANIFEST, "w") as file:
        json.dump(manifest, file, indent=2)
    for path in (*written.iterdir(), written):
        _flush_to_disk(path)
    place.folder.parent.mkdir(parents=True, exist_ok=True)
    if place.folder.exists():
        place.folder.rename(place.staging / "replaced")
    written.rename(place.folder)
    _flush_to_disk(place.folder.parent)
    tell(f"{place.task.name} is prepared in {place.folder}", sum(counts.values()), sum(counts.values()))


def _stable_writer(file_format: Any) -> Any:
    """A TFDS record writer that writes the same bytes in every process.

    An example is a protobuf map, whose keys are serialized in an order drawn anew for each process.
    """
    from tensorflow_datasets.core.writer import ExampleWriter
    from tensorflow_datasets.proto import tf_example_pb2

    example: Any = tf_example_pb2.Example  # pyright: ignore[reportAttributeAccessIssue]

    class StableWriter(ExampleWriter):
        def write(self, path: Any, examples: Any) -> Any:
            ordered = (
                (key, example.FromString(record).SerializeToString(deterministic=True))
                for key, record in examples
            )
            return super().write(path, ordered)

    return StableWriter(file_format)


def _counts(builder: Any) -> dict[str, int]:
    """What TFDS says it has written."""
    return {split: builder.info.splits[split].num_examples for split in SPLITS}


def _count_records(builder: Any) -> dict[str, int]:
    """What the files themselves hold."""
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    return {
        split: len(ArrayRecordDataSource([os.fspath(path) for path in builder.info.splits[split].filepaths]))
        for split in SPLITS
    }


def _describe(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        return {"size": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _flush_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _checked_manifest(place: _Place, *, verify: bool) -> dict[str, Any]:
    """Returns the manifest of a dataset whose files are what it says (their content, only with `verify`)."""
    rebuild = f"{place.command('--overwrite')} makes it again."
    if not place.folder.exists():
        raise UsageError(f"{place.task.name} is not prepared in {place.folder}. Run {place.command()}.")
    try:
        manifest = json.loads((place.folder / MANIFEST).read_text())
        files = dict(manifest["files"])
        if not files or set(manifest["num_examples"]) != set(SPLITS):
            raise ValueError("it does not describe a whole dataset")
    except FileNotFoundError:
        raise UsageError(f"{place.folder} has no {MANIFEST}, so it is not whole. {rebuild}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{place.folder / MANIFEST} cannot be read: {error!r}. {rebuild}") from error
    for name, recorded in files.items():
        path = place.folder / name
        if not path.is_file():
            raise UsageError(f"{name} is missing in {place.folder}. {rebuild}")
        size = path.stat().st_size
        if size != recorded["size"]:
            raise UsageError(
                f"{name} in {place.folder} has {size:,} bytes, expected {recorded['size']:,}. {rebuild}"
            )
        if verify and _describe(path) != recorded:
            raise UsageError(
                f"{name} in {place.folder} was altered: its SHA-256 is not the manifest's. {rebuild}"
            )
    return manifest


class Source:
    """One split of a prepared dataset, read at random from its files; threads may share it.

    Example i is {"tokens": uint8 (T_i,), "label": int, "index": i}. `__getitems__` and iteration read many at
    a time, some 40 µs each where one alone takes three times as long.

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
            {"tokens": example["tokens"], "label": int(example["label"]), "index": index}
            for index, example in zip(indices, examples, strict=True)
        ]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for start in range(0, len(self), READ_AHEAD):
            yield from self.__getitems__(range(start, min(start + READ_AHEAD, len(self))))


def load(
    task: Task | str,
    split: str,
    data_dir: str | os.PathLike[str] | None = None,
    *,
    config: str = "default",
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
    place = _Place(task, config, data_dir)
    manifest = _checked_manifest(place, verify=verify)
    import tensorflow_datasets as tfds

    builder: Any = tfds.builder_from_directory(place.folder)
    source = Source(task, split, manifest, builder.as_data_source(split))
    return Source(task, split, manifest, list(source)) if in_memory else source


def _read(source: Examples, indices: Sequence[int]) -> list[dict[str, Any]]:
    read_many = getattr(source, "__getitems__", None)
    return read_many(indices) if read_many else [source[i] for i in indices]


def _collate(examples: Sequence[dict[str, Any]], length: int) -> Batch:
    tokens = np.zeros((len(examples), length), np.int32)
    sizes = np.zeros(len(examples), np.int64)
    for row, example in enumerate(examples):
        kept = example["tokens"][:length]
        sizes[row] = len(kept)
        tokens[row, : len(kept)] = kept
    return {
        "tokens": tokens,
        "mask": np.arange(length) < sizes[:, None],
        "label": np.array([example["label"] for example in examples], np.int32),
        "index": np.array([example["index"] for example in examples], np.int64),
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
      num_threads: Threads that make batches.
      prefetch: Batches made ahead.

    Returns:
      Iterator of {"tokens": int32 (B, T), "mask": bool (B, T), True at a real token, from the input's
      length and not from its ids, "label": int32 (B,), "index": int64 (B,), the example's place in `source`}.

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
        .map(lambda indices: _collate(_read(source, indices.tolist()), length))
        .to_iter_dataset(grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=prefetch))
    )


def evaluation_batches(
    source: Examples, *, length: int, batch_size: int, limit: int | None = None
) -> Iterator[Batch]:
    """Yields every example once, in order, in batches of one size.

    The last batch is filled up with repetitions of its first example (so no row is empty, and none can make
    a mean over nothing), with weight 0 and index -1.

    Args:
      source: A `Source`, or a list of such dicts.
      length: T, as in `training_batches`.
      batch_size: B.
      limit: Takes only the first so many examples; None takes all.

    Returns:
      Iterator of the dicts of `training_batches` with "weight" beside them: float32 (B,), 1 for an
      example, 0 for filling. The weights' sum is the number of examples.

    Raises:
      UsageError: A size is below 1.
    """
    _check_positive(length=length, batch_size=batch_size, limit=1 if limit is None else limit)
    return _evaluation_batches(source, length, batch_size, len(source) if limit is None else limit)


def _evaluation_batches(source: Examples, length: int, batch_size: int, limit: int) -> Iterator[Batch]:
    stop = min(limit, len(source))
    for start in range(0, stop, batch_size):
        examples = _read(source, range(start, min(start + batch_size, stop)))
        filling = batch_size - len(examples)
        batch = _collate(examples + filling * examples[:1], length)
        batch["weight"] = np.ones(batch_size, np.float32)
        if filling:
            batch["weight"][-filling:] = 0
            batch["index"][-filling:] = -1
        yield batch
