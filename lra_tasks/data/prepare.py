"""Makes a task's dataset: whole or not at all.

A dataset is written beside its place, read back, described by a manifest with its contents and the size and
SHA-256 of every file, and renamed. Nothing here touches TensorFlow, nor the network unless the builder
downloads.
"""

import contextlib
import json
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from lra_tasks.data.contents import contents, violations
from lra_tasks.data.dataset import Source
from lra_tasks.data.location import MANIFEST, DatasetDir, checked_manifest
from lra_tasks.errors import UsageError
from lra_tasks.files import describe, locked
from lra_tasks.presets import preset
from lra_tasks.tasks import ARENA, SPLITS, Task, get_task

# What is being done, examples finished, examples in all (0: unknown).
Progress = Callable[[str, int, int], None]


def prepare(
    task: Task | str,
    data_dir: str | os.PathLike[str] | None = None,
    *,
    variant: str | None = None,
    manual_dir: str | os.PathLike[str] | None = None,
    unofficial: bool = False,
    overwrite: bool = False,
    num_workers: int | None = None,
    progress: Progress | None = None,
) -> Path:
    """Makes a task's dataset, unless a whole one is there already, and returns its folder.

    The folder is `data_dir/<builder>/<variant>/<version>`. It appears by one rename, after every file is read
    back, hashed and on the disk; what an interrupted preparation left is removed by the next one, but for the
    parts of a drawn dataset (ListOps, Pathfinder), from which it goes on. With `overwrite` the old dataset
    stays until the new one is whole.

    Args:
      task: The task or its name.
      data_dir: Folder of all datasets; None takes the environment's TFDS_DATA_DIR, else
        ~/tensorflow_datasets.
      variant: Variant of the task's builder, "smoke" for example; None takes the whole task's.
      manual_dir: Folder with the files the user has, for a variant that reads such.
      unofficial: Allows files that are not the official ones, if their structure is right; the dataset, runs
        and reports say so.
      overwrite: Makes the dataset again even if there is one.
      num_workers: Processes; None takes one for each processor. The files' bytes do not depend on it.
      progress: Is called with a message, the examples finished and the examples in all (0: unknown).

    Raises:
      MissingData: Files that the dataset is made from are not there, and cannot be downloaded.
      UsageError: The variant is unknown; a damaged dataset is in the way; another process is preparing the
        same one; the folder cannot be written or the disk is full; the builder refuses its input; without
        `unofficial`, files that should be the arena's have other numbers of examples.
    """
    place, tell = _place(task, variant, data_dir, manual_dir), progress or _silent
    task = place.task
    if not overwrite and _is_prepared(place, tell):
        return place.folder
    with _writable(place):
        place.lock.parent.mkdir(parents=True, exist_ok=True)
        message = f"{task.name} is being prepared in {place.folder} by process PID; wait for it, or end it."
        with locked(place.lock, message):
            if overwrite or not _is_prepared(place, tell):
                try:
                    _discard(place.staging)
                    _check_room(place)
                    builder = make_builder(
                        place,
                        tell,
                        manual_dir=manual_dir,
                        unofficial=unofficial,
                        num_workers=num_workers,
                    )
                    _generate(builder, place, tell)
                finally:
                    shutil.rmtree(place.staging, ignore_errors=True)
    return place.folder


def prepare_part(
    task: Task | str,
    shard: tuple[int, int],
    data_dir: str | os.PathLike[str] | None = None,
    *,
    variant: str | None = None,
    num_workers: int | None = None,
    progress: Progress | None = None,
) -> Path:
    """Makes one machine's share of a drawn dataset, and returns the folder its parts lie in.

    When the shares of all machines lie in that folder of one of them, `prepare` there joins them to the bytes
    that one machine would have made; what is missing it draws itself. Where the dataset is whole already,
    nothing is drawn, and its own folder is returned.

    Args:
      task: The task or its name.
      shard: (i, n): the i-th of n shares, counted from 1.
      data_dir, variant, num_workers, progress: As in `prepare`.

    Raises:
      UsageError: The share does not exist; the dataset is read and not drawn; a damaged one is in the way;
        the folder cannot be written.
    """
    place, tell = _place(task, variant, data_dir, None), progress or _silent
    number, of = shard
    if not 1 <= number <= of:
        raise UsageError(f"--shard is {number}/{of}; expected I/N with I from 1 to N.")
    with _writable(place):
        builder = make_builder(place, tell, num_workers=num_workers)
        drawn = builder.drawn()
        if drawn is None:
            raise UsageError(
                f"{place.task.name} with the variant {place.variant} is read from files, not drawn: it has"
                " no shares for many machines."
            )
        if _is_prepared(place, tell):
            return place.folder
        wanted = [part for split in SPLITS for part in drawn[split]]
        builder.make_parts(wanted[len(wanted) * (number - 1) // of : len(wanted) * number // of])
    return place.parts


class Outcome(NamedTuple):
    """What became of a task in `prepare_all`.

    Attributes:
      folder: Of its dataset; None where there is none.
      was_there: Whether it had been prepared before.
      error: Why there is none; says what is missing and where to put it.
    """

    folder: Path | None
    was_there: bool = False
    error: UsageError | None = None


def prepare_all(
    data_dir: str | os.PathLike[str] | None = None,
    *,
    smoke: bool = False,
    manual_dir: str | os.PathLike[str] | None = None,
    unofficial: bool = False,
    overwrite: bool = False,
    num_workers: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Outcome]:
    """Prepares the six tasks of the arena one after the other; what cannot be had does not stop the others.

    Args:
      smoke: Prepares a few examples of each, those of the preset "smoke".
      manual_dir: Folder with the files the user has, of whichever tasks.
      data_dir, unofficial, overwrite, num_workers, progress: As in `prepare`.

    Returns:
      Name of the task → what became of it.

    Raises:
      UsageError: `manual_dir` is no folder.
    """
    _check_manual_dir(manual_dir)
    outcomes = {}
    for task in ARENA:
        variant = preset(task.name, "smoke").variant if smoke else task.variant
        was_there = DatasetDir(task, variant, data_dir).folder.exists() and not overwrite
        try:
            folder = prepare(
                task,
                data_dir,
                variant=variant,
                manual_dir=manual_dir,
                unofficial=unofficial,
                overwrite=overwrite,
                num_workers=num_workers,
                progress=progress,
            )
            outcomes[task.name] = Outcome(folder, was_there)
        except UsageError as error:
            outcomes[task.name] = Outcome(None, error=error)
    return outcomes


def _check_manual_dir(manual_dir: str | os.PathLike[str] | None) -> None:
    if manual_dir is not None and not Path(manual_dir).expanduser().is_dir():
        raise UsageError(
            f"There is no folder {manual_dir} to read from; --manual-dir names one with files you have."
        )


def _silent(message: str, done: int, total: int) -> None:
    pass


def _place(
    task: Task | str,
    variant: str | None,
    data_dir: str | os.PathLike[str] | None,
    manual_dir: str | os.PathLike[str] | None,
) -> DatasetDir:
    task = get_task(task) if isinstance(task, str) else task
    _check_manual_dir(manual_dir)
    return DatasetDir(task, task.variant if variant is None else variant, data_dir)


@contextlib.contextmanager
def _writable(place: DatasetDir) -> Iterator[None]:
    """Turns what the system says against writing the dataset into a `UsageError`."""
    try:
        yield
    except OSError as error:
        task = place.task
        raise UsageError(
            f"{task.name} cannot be prepared in {place.folder}: {error}. That folder has to be writable, "
            f"with {_megabytes(task.disk_bytes)} free for the variant '{task.variant}'; --data-dir or "
            "TFDS_DATA_DIR names another one."
        ) from error


def _is_prepared(place: DatasetDir, tell: Progress) -> bool:
    """Whether the dataset is there; a damaged one raises UsageError."""
    if not place.folder.exists():
        return False
    total = sum(checked_manifest(place, verify=True)["num_examples"].values())
    tell(f"{place.task.name} is prepared in {place.folder}", total, total)
    return True


def _discard(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


def _megabytes(size: int) -> str:
    return f"{max(1, round(size / 1e6)):,} MB"


def _check_room(place: DatasetDir) -> None:
    free = shutil.disk_usage(place.root).free
    finished = sum(path.stat().st_size for path in place.parts.glob("*.npz"))
    if place.variant == place.task.variant and free + finished < place.task.disk_bytes:
        beside = f" beside {_megabytes(finished)} of finished parts" if finished else ""
        raise OSError(f"only {_megabytes(free)} are free there{beside}")


def make_builder(
    place: DatasetDir,
    tell: Progress,
    *,
    manual_dir: str | os.PathLike[str] | None = None,
    unofficial: bool = False,
    num_workers: int | None = None,
) -> Any:
    """Returns the builder of a dataset, told all it may use; nothing is written yet."""
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    builder = place.builder_class(
        data_dir=place.staging,
        config=place.builder_class.config_named(place.variant),
        file_format="array_record",
    )
    builder.manual_dir = None if manual_dir is None else Path(manual_dir).expanduser()
    builder.unofficial = unofficial
    builder.downloads = place.root / "downloads"
    builder.parts = place.parts
    builder.num_workers = num_workers
    builder.report = tell
    return builder


def _generate(builder: Any, place: DatasetDir, tell: Progress) -> None:
    """Writes the dataset into the staging folder, checks and describes it, and moves it into its place."""
    task = place.task
    builder._log_download_bytes = builder._log_download_done = lambda: None  # they print the staging folder
    builder._example_writer = lambda: _stable_writer(builder.info.file_format)
    try:
        builder.download_and_prepare()
    except RuntimeError as error:
        if "write() failed" not in str(error):
            raise
        raise OSError(str(error)) from error  # what array_record makes of a full disk
    written = place.staging / place.relative
    counts = count_records(builder)
    expected = builder.builder_config.num_examples or counts
    if counts != expected or counts != _counts(builder):
        raise UsageError(
            f"{task.name} was written with {counts} examples, expected {expected}; nothing was kept. "
            f"Run {place.command()} again."
        )
    _mark_other_counts(builder, place, counts)
    sources = {split: Source(task, split, {}, builder.as_data_source(split)) for split in SPLITS}
    found = contents(sources, lambda done: tell(f"reading {task.name} back", done, sum(counts.values())))
    for violation in violations(found, may_repeat=builder.may_repeat, balanced=builder.balanced):
        raise UsageError(f"{task.name} cannot be prepared: {violation}.")
    manifest = {
        "dataset": str(place.relative),
        "num_examples": counts,
        "metadata": dict(builder.info.metadata or {}),
        "contents": found,
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("tensorflow-datasets", "array_record", "numpy")},
        },
        "files": {path.name: describe(path) for path in sorted(written.iterdir())},
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
    _discard(place.parts)
    tell(f"{task.name} is prepared in {place.folder}", sum(counts.values()), sum(counts.values()))


def _mark_other_counts(builder: Any, place: DatasetDir, counts: dict[str, int]) -> None:
    """Refuses files in the place of the arena's that have other numbers of examples; with leave, marks them.

    A variant with `num_examples` was checked before.
    """
    task = place.task
    if builder.builder_config.num_examples or not task.is_arena(place.variant) or not task.num_examples:
        return
    if counts == task.num_examples:
        return
    found, expected = (
        " / ".join(f"{numbers[split]:,}" for split in SPLITS) for numbers in (counts, task.num_examples)
    )
    if not builder.unofficial:
        raise UsageError(
            f"The files for {task.name} give {found} examples of {' / '.join(SPLITS)}, expected the arena's "
            f"{expected}; nothing was kept. Get the arena's files; or --unofficial takes these as they are, "
            "and marks the dataset, its runs and their reports."
        )
    metadata = builder.info.metadata
    reasons = [metadata["unofficial"]] if "unofficial" in metadata else []
    metadata["unofficial"] = "; ".join([*reasons, f"{found} examples, the arena's are {expected}"])
    metadata.save_metadata(place.staging / place.relative)


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


def count_records(builder: Any) -> dict[str, int]:
    """What the files themselves hold."""
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    return {
        split: len(ArrayRecordDataSource([os.fspath(path) for path in builder.info.splits[split].filepaths]))
        for split in SPLITS
    }


def _flush_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
