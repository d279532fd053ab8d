"""The folder of a dataset, its manifest, and whether its files match the manifest."""

import functools
import hashlib
import json
import os
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lra_tasks.errors import UsageError, unknown_name
from lra_tasks.files import describe, local_path
from lra_tasks.tasks import SPLITS, Task

MANIFEST = "manifest.json"


def data_root(data_dir: str | os.PathLike[str] | None) -> Path:
    """Returns the folder of all datasets; for None TFDS's own, `TFDS_DATA_DIR` or ~/tensorflow_datasets."""
    if data_dir:
        return local_path(data_dir, "data_dir").absolute()
    root = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return local_path(root, "TFDS_DATA_DIR", flag=False).absolute()


@dataclass(frozen=True)
class DatasetDir:
    """The folder of a task's dataset, and the command that makes it."""

    task: Task
    variant: str
    data_dir: str | os.PathLike[str] | None

    def __post_init__(self) -> None:
        if self.builder_class.config_named(self.variant) is None:
            configs = [config.name for config in self.builder_class.BUILDER_CONFIGS]
            raise unknown_name(f"{self.task.name} variant", self.variant, configs)

    @functools.cached_property
    def builder_class(self) -> Any:
        return self.task.builder_class()

    @property
    def root(self) -> Path:
        return data_root(self.data_dir)

    @property
    def relative(self) -> Path:
        return Path(self.builder_class.name, self.variant, str(self.builder_class.VERSION))

    @property
    def folder(self) -> Path:
        return self.root / self.relative

    @property
    def staging(self) -> Path:
        return self.root / self.builder_class.name / f".incomplete-{self.variant}"

    @property
    def lock(self) -> Path:
        return self.root / self.builder_class.name / f".{self.variant}.lock"

    def command(self, *options: str) -> str:
        words = ["lra", "prepare", self.task.key, *options]
        if self.variant != self.task.variant:
            words += ["--variant", self.variant]
        if self.data_dir is not None:
            words += ["--data-dir", os.fspath(self.data_dir)]
        return f"`{shlex.join(words)}`"


def checked_manifest(place: DatasetDir, *, verify: bool) -> dict[str, Any]:
    """Returns the manifest of a dataset whose files match it (their SHA-256 only with `verify`)."""
    manifest = read_manifest(place)
    for problem in damage(place.folder, manifest, verify=verify):
        raise UsageError(f"{problem} {_rebuild(place)}")
    return manifest


def _rebuild(place: DatasetDir) -> str:
    return f"{place.command('--overwrite')} makes it again."


def read_manifest(place: DatasetDir) -> dict[str, Any]:
    """Returns the manifest of a dataset, or raises UsageError if it is missing or unreadable."""
    rebuild = _rebuild(place)
    if not place.folder.exists():
        raise UsageError(
            f"{place.task.name} is not prepared in {place.folder}. Run {place.command()}, or name its"
            " folder with --data-dir or TFDS_DATA_DIR."
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


def identity(manifest: Mapping[str, Any]) -> str:
    """Returns a digest of all examples and labels of a dataset in order: equal for equal data."""
    digests = [manifest["contents"]["splits"][split]["sha256"] for split in SPLITS]
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def damage(folder: Path, manifest: dict[str, Any], *, verify: bool) -> Iterator[str]:
    """Yields the problems of the files that a manifest lists (their SHA-256 only with `verify`)."""
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
