"""Makes a task's dataset: whole or not at all.

A dataset is written to a folder beside its place, read back, described by a manifest with its contents and
the size and SHA-256 of every file, and renamed. Nothing here uses TensorFlow, nor the network unless the
builder downloads.
"""

import contextlib
import json
import os
import platform
import shutil
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from lra_tasks.data.contents import contents, violations
from lra_tasks.data.dataset import Source
from lra_tasks.data.location import MANIFEST, DatasetDir, checked_manifest, read_manifest
from lra_tasks.errors import UsageError
from lra_tasks.files import UNSUPPORTED, describe, local_path, locked
from lra_tasks.presets import preset
from lra_tasks.progress import Progress, Silent
from lra_tasks.sources.archives import in_words
from lra_tasks.tasks import ARENA, SPLITS, Task, get_task


def prepare(
    task: Task | str,
    data_dir: str | os.PathLike[str] | None = None,
    *,
    variant: str | None = None,
    manual_dir: str | os.PathLike[str] | None = None,
    unofficial: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Makes a task's dataset, unless it is already complete, and returns its folder.

    The folder is `data_dir/<builder>/<variant>/<version>`. It appears by one rename, after every file is read
    back, hashed and on the disk. An interrupted preparation leaves nothing usable: the next one removes the
    remains and starts again. With `overwrite` the old dataset stays until the new one is complete. For data
    that are read from files, `progress` prints the classes with their counts, and the files left out.

    Args:
      task: The task or its name.
      data_dir: Folder of all datasets on this machine, "~/data" for example; None uses the environment's
        TFDS_DATA_DIR, else ~/tensorflow_datasets.
      variant: Variant of the task's data, "smoke" for example; None makes the full task.
      manual_dir: Folder with the user's files, for a variant that reads such files.
      unofficial: Whether to accept files that are not the official ones, if their structure is right; the
        dataset, its runs and their reports are marked.
      overwrite: Whether to make the dataset again even if it exists.
      progress: Where progress is shown; None shows nothing.

    Raises:
      MissingData: If the files that the dataset is made from are missing and cannot be downloaded.
      UsageError: If the variant is unknown; the existing dataset is damaged; another process is preparing the
        same one; the folder cannot be written or the disk is full; the builder refuses its input; without
        `unofficial`, if files in place of the arena's have other numbers of examples.
    """
    task, progress = get_task(task) if isinstance(task, str) else task, progress or Silent()
    _check_manual_dir(manual_dir)
    place = DatasetDir(task, task.variant if variant is None else variant, data_dir)
    missing = overwrite or not _is_prepared(place, progress)
    if missing:
        _make(place, progress, overwrite, manual_dir=manual_dir, unofficial=unofficial)
    if manual_dir is not None and not place.builder_class.is_drawn(place.variant):
        manifest = read_manifest(place)
        progress.say(f"{task.title(place.variant)} has {_classes(manifest)}")
        left_out = manifest["metadata"].get("left_out")
        if missing and left_out:
            progress.say(f"{task.title(place.variant)} leaves out {in_words(left_out)}")
    return place.folder


def _make(place: DatasetDir, progress: Progress, overwrite: bool, **options: Any) -> None:
    """Makes a dataset under its lock, unless another process has made it meanwhile."""
    with _writable(place):
        place.lock.parent.mkdir(parents=True, exist_ok=True)
        name = place.task.name
        message = f"{name} is being prepared in {place.folder} by process PID; wait for it, or end it."
        with locked(place.lock, message) as no_locks:
            if no_locks:
                progress.say(
                    f"{place.lock.parent} is on a file system without file locks ({no_locks}): do not prepare"
                    f" {name} there by another command at the same time."
                )
            if overwrite or not _is_prepared(place, progress):
                try:
                    _discard(place.staging)
                    _check_room(place)
                    _generate(make_builder(place, progress, **options), place, progress)
                finally:
                    shutil.rmtree(place.staging, ignore_errors=True)


def _classes(manifest: dict[str, Any]) -> str:
    """Returns the classes of a dataset and the number of their examples in each split."""
    splits = manifest["contents"]["splits"]
    names = dict(enumerate(manifest["metadata"].get("classes", ())))
    labels = sorted({int(label) for split in SPLITS for label in splits[split]["labels"]})
    counts = [" / ".join(f"{splits[split]['labels'].get(str(i), 0):,}" for split in SPLITS) for i in labels]
    classes = ", ".join(f"{names.get(i, i)} {count}" for i, count in zip(labels, counts, strict=True))
    return f"{len(labels):,} classes ({' / '.join(SPLITS)}): {classes}"


class Outcome(NamedTuple):
    """The result of `prepare_all` for one task.

    Attributes:
      folder: Folder of the dataset, or None.
      was_there: Whether it had been prepared before.
      error: The reason for a missing dataset; names the missing files and where to put them.
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
    progress: Progress | None = None,
) -> dict[str, Outcome]:
    """Prepares the six tasks of the arena one after the other; a task that fails does not stop the others.

    Args:
      smoke: Whether to prepare only a few examples of each, those of the preset "smoke".
      manual_dir: Folder with the user's files, for any of the tasks.
      data_dir, unofficial, overwrite, progress: Same as in `prepare`.

    Returns:
      Name of the task → its outcome.

    Raises:
      UsageError: If `manual_dir` is not a folder.
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
                progress=progress,
            )
            outcomes[task.name] = Outcome(folder, was_there)
        except UsageError as error:
            outcomes[task.name] = Outcome(None, error=error)
    return outcomes


def _check_manual_dir(manual_dir: str | os.PathLike[str] | None) -> None:
    if manual_dir is not None and not local_path(manual_dir, "manual_dir").is_dir():
        raise UsageError(
            f"The folder {manual_dir} does not exist; --manual-dir names a folder with your files."
        )


@contextlib.contextmanager
def _writable(place: DatasetDir) -> Iterator[None]:
    """Turns a refusal of the system to write the dataset into a `UsageError`."""
    try:
        yield
    except OSError as error:
        task = place.task
        raise UsageError(
            f"{task.name} cannot be prepared in {place.folder}: {error}. That folder has to be writable, "
            f"with {_megabytes(task.disk_bytes)} free for the variant '{task.variant}'; --data-dir or "
            "TFDS_DATA_DIR names another one."
        ) from error


def _is_prepared(place: DatasetDir, progress: Progress) -> bool:
    """Whether the dataset exists; a damaged one raises UsageError."""
    if not place.folder.exists():
        return False
    total = sum(checked_manifest(place, verify=True)["num_examples"].values())
    progress.show(f"{place.task.name} is prepared in {place.folder}", total, total)
    return True


def _discard(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


def _megabytes(size: int) -> str:
    return f"{max(1, round(size / 1e6)):,} MB"


def _check_room(place: DatasetDir) -> None:
    free = shutil.disk_usage(place.root).free
    if place.variant == place.task.variant and free < place.task.disk_bytes:
        raise OSError(f"only {_megabytes(free)} are free there")


def make_builder(
    place: DatasetDir,
    progress: Progress | None = None,
    *,
    manual_dir: str | os.PathLike[str] | None = None,
    unofficial: bool = False,
) -> Any:
    """Returns the configured builder of a dataset; nothing is written yet."""
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    builder = place.builder_class(
        data_dir=place.staging,
        config=place.builder_class.config_named(place.variant),
        file_format="array_record",
    )
    builder.manual_dir = None if manual_dir is None else local_path(manual_dir, "manual_dir").absolute()
    builder.unofficial = unofficial
    builder.downloads = place.root / "downloads"
    builder.report = (progress or Silent()).show
    return builder


def _generate(builder: Any, place: DatasetDir, progress: Progress) -> None:
    """Writes the dataset into the staging folder, verifies and describes it, and moves it to its place."""
    task = place.task
    builder._log_download_bytes = builder._log_download_done = lambda: None  # they print the staging folder
    builder._example_writer = lambda: _stable_writer(builder.info.file_format)
    try:
        builder.download_and_prepare()
    except RuntimeError as error:
        if "write() failed" not in str(error):
            raise
        raise OSError(str(error)) from error  # array_record's error for a full disk
    # Read it back.
    written = place.staging / place.relative
    counts = count_records(builder)
    total = sum(counts.values())
    expected = builder.builder_config.num_examples or counts
    if counts != expected or counts != _counts(builder):
        raise UsageError(
            f"{task.name} was written with {counts} examples, expected {expected}; nothing was kept. "
            f"Run {place.command()} again."
        )
    _mark_other_counts(builder, place, counts)
    sources = {split: Source(task, split, {}, builder.as_data_source(split)) for split in SPLITS}
    found = contents(sources, lambda done: progress.show(f"reading {task.name} back", done, total))
    for violation in violations(found, may_repeat=builder.may_repeat, balanced=builder.balanced):
        raise UsageError(f"{task.name} cannot be prepared: {violation}.")
    # Describe it.
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
    # Move it.
    for path in (*written.iterdir(), written):
        _flush_to_disk(path)
    place.folder.parent.mkdir(parents=True, exist_ok=True)
    if place.folder.exists():
        place.folder.rename(place.staging / "replaced")
    written.rename(place.folder)
    _flush_to_disk(place.folder.parent)
    progress.show(f"{task.name} is prepared in {place.folder}", total, total)


def _mark_other_counts(builder: Any, place: DatasetDir, counts: dict[str, int]) -> None:
    """Refuses files in place of the arena's with other numbers of examples, or marks them if allowed.

    The counts of a variant with `num_examples` are already verified.
    """
    task = place.task
    if builder.builder_config.num_examples or not task.is_arena(place.variant) or not task.num_examples:
        return
    if counts == task.num_examples:
        return
    found, expected = (
        " / ".join(f"{numbers[split]:,}" for split in SPLITS) for numbers in (counts, task.num_examples)
    )
    builder.accept_unofficial(
        f"{found} examples, the arena's are {expected}",
        f"The files for {task.name} give {found} examples of {' / '.join(SPLITS)}, expected the arena's "
        f"{expected}; nothing was kept. Get the arena's files; or --unofficial takes these as they are, and "
        "marks the dataset, its runs and their reports.",
    )
    builder.info.metadata.save_metadata(place.staging / place.relative)


def _stable_writer(file_format: Any) -> Any:
    """Returns a TFDS record writer that writes the same bytes in every process.

    An example is a protobuf map. Its keys are serialized in an order that differs between processes.
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
    """Number of examples per split, as TFDS recorded them."""
    return {split: builder.info.splits[split].num_examples for split in SPLITS}


def count_records(builder: Any) -> dict[str, int]:
    """Number of records per split, counted in the files."""
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    return {
        split: len(ArrayRecordDataSource([os.fspath(path) for path in builder.info.splits[split].filepaths]))
        for split in SPLITS
    }


def _flush_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:  # some file systems flush files only, and no folders
        if error.errno not in UNSUPPORTED:
            raise
    finally:
        os.close(descriptor)
