"""Makes a task's dataset: whole or not at all.

A dataset is written beside its place, counted, described by a manifest with the size and SHA-256 of every
file, and renamed. Nothing here touches TensorFlow or the network.
"""

import json
import os
import platform
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lra_tasks.data import MANIFEST, Place, checked_manifest, describe
from lra_tasks.errors import UsageError
from lra_tasks.files import locked
from lra_tasks.tasks import SPLITS, Task, get_task

# What is being done, examples finished, examples in all (0: unknown).
Progress = Callable[[str, int, int], None]


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
    place = Place(task, config, data_dir)
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


def _is_prepared(place: Place, tell: Progress) -> bool:
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


def _check_room(place: Place) -> None:
    free = shutil.disk_usage(place.root).free
    if place.config == "default" and free < place.task.disk_bytes:
        raise OSError(f"only {_megabytes(free)} are free there")


def _generate(
    place: Place, manual_dir: str | os.PathLike[str] | None, num_workers: int | None, tell: Progress
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


def _flush_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
