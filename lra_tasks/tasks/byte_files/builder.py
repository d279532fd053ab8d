"""The TFDS builder of Bytes, in a module of its own because it imports TFDS."""

import functools
import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import tensorflow_datasets as tfds

from lra_tasks.errors import MissingData, UsageError
from lra_tasks.files import is_added
from lra_tasks.sources import archives
from lra_tasks.sources.builder import ArenaBuilder, Example, printable
from lra_tasks.task import SPLITS
from lra_tasks.tasks.byte_files import task as byte_files

SHARD_BYTES = 100_000_000
LEAST_FILES = 10  # per class: a tenth of them is the test split, another the validation split
SPLIT_NAMES = {"train", "training", "test", "testing", "val", "valid", "validation", "dev", "eval"}
LAYOUT = "--manual-dir FOLDER names a folder that has a folder of files for each class."
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


@dataclass(kw_only=True)
class ByteFilesConfig(tfds.core.BuilderConfig):
    """A collection of the user's files under a name of the user's choice."""

    num_examples: None = None


@functools.cache
def _config(name: str) -> ByteFilesConfig:
    return ByteFilesConfig(name=name, description="Files of the user's, a folder for each class.")


class File(NamedTuple):
    """A file: the SHA-256 of its stored bytes, its class, its path, its size."""

    digest: bytes
    label: int
    path: Path
    size: int


class ByteFiles(ArenaBuilder, skip_registration=True):
    """The files of a folder with one subfolder per class.

    "tokens" are the first 131,072 bytes of a file; "label" is the number of its class in the order of their
    names. All files below the folder of a class count, except empty files, special files, and hidden files
    or folders and those that systems add. A link to a file is read as a file. The folder of a class may be a
    link; links to folders below it are not followed. Folders that all have the same folders and no files, or
    names of splits, are refused: they are not classes.

    Files with equal stored bytes are one example. If they belong to two classes, they are left out; if this
    affects more than one content in a hundred, the folder is refused. The metadata count the files left out,
    and name some.

    Files are ordered by the SHA-256 of their stored bytes, which mixes the classes. The first tenth of each
    class is the test split, the second tenth the validation split. Splits and order thus depend on the
    contents alone.

    Every file is read twice, first to hash it and then to store it.
    """

    name = "lra_bytes"
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS: ClassVar = [_config("default")]
    task = byte_files.TASK

    @classmethod
    def config_named(cls, name: str) -> ByteFilesConfig:
        """Returns the config called `name`, for any name the user chose.

        Raises:
          UsageError: If the name cannot be the name of a dataset.
        """
        if not _NAME.fullmatch(name):
            raise UsageError(
                f"The variant of bytes is '{name}'. It is the name of your collection; expected letters, "
                "digits, - and _, with a letter or digit first."
            )
        return _config(name)

    def read(self) -> dict[str, tuple[int, Iterable[Example]]]:
        if self.manual_dir is None:
            raise MissingData(f"Bytes is made from your own files. {LAYOUT}")
        folders = self._class_folders(self.manual_dir)
        files = self._distinct(folders)
        splits: dict[str, list[File]] = {split: [] for split in SPLITS}
        counts: dict[str, dict[str, int]] = {}
        for label, folder in enumerate(folders):
            own = [file for file in files if file.label == label]
            if len(own) < LEAST_FILES:
                left_out = archives.in_words(self.counted()) or "none"
                raise UsageError(
                    f"The class {folder.name} of {self.manual_dir} has {len(own)} usable files, expected at "
                    f"least {LEAST_FILES}. Left out of all classes: {left_out}."
                )
            tenth = len(own) // 10
            cut = {"test": own[:tenth], "validation": own[tenth : 2 * tenth], "train": own[2 * tenth :]}
            counts[printable(folder.name)] = {split: len(cut[split]) for split in SPLITS}
            for split in SPLITS:
                splits[split] += cut[split]
        metadata: Any = self.info.metadata
        metadata.update(
            origin=f"files of the folder {printable(self.manual_dir.name)}",
            classes=list(counts),
            files=counts,
            cut=sum(file.size > byte_files.MAX_BYTES for file in files),
        )
        stored = sum(min(file.size, byte_files.MAX_BYTES) for file in files)
        self.shard_examples = max(1, SHARD_BYTES * len(files) // stored)
        return {split: (len(own), _examples(sorted(own))) for split, own in splits.items()}

    def _class_folders(self, root: Path) -> list[Path]:
        classes: list[Path] = []
        with archives.reading(root):
            for path in sorted(root.iterdir()):
                if is_added(path.name):
                    self.leave_out(archives.SYSTEM, path.name)
                elif path.is_dir():
                    classes.append(path)
                else:
                    self.leave_out("outside of the class folders", path.name)
        if len(classes) < 2:
            raise UsageError(
                f"{root} must have at least two folders, one per class; it has {_names(classes)}. {LAYOUT}"
            )
        return classes

    def _distinct(self, folders: list[Path]) -> list[File]:
        """Returns one file per distinct content, ordered by digest, without contents of two classes."""
        listed = [archives.files(folder, self.leave_out, self.manual_dir) for folder in folders]
        _check_layout(folders, listed)
        paths = [(label, path) for label, own in enumerate(listed) for path in own]
        found: dict[bytes, File] = {}
        contradictory: dict[bytes, str] = {}
        for number, (label, path) in enumerate(paths):
            if number % 256 == 0:
                self.report("hashing files", number, len(paths))
            content, size = _content(path)
            file = File(hashlib.sha256(content).digest(), label, path, size)
            first = found.setdefault(file.digest, file)
            name = str(path.relative_to(folders[label].parent))
            if not content:
                del found[file.digest]
                self.leave_out("empty", name)
            elif first.label != label:
                contradictory[file.digest] = f"{first.path} and {path}"
                self.leave_out("in two classes", name)
            elif first is not file:
                self.leave_out("repeated", name)
        if 100 * len(contradictory) > len(found):
            raise UsageError(
                f"{len(contradictory):,} of {len(found):,} contents in {self.manual_dir} belong to two "
                f"classes, more than one in a hundred: {next(iter(contradictory.values()))} are equal."
            )
        return [found[digest] for digest in sorted(found) if digest not in contradictory]


def _check_layout(folders: Sequence[Path], listed: Iterable[Iterable[Path]]) -> None:
    """Refuses folders of splits, and folders that all have the same folders instead of files."""
    below = [
        {path.relative_to(folder).parts[0] if path.parent != folder else "" for path in own}
        for folder, own in zip(folders, listed, strict=True)
    ]
    same = len(below[0]) > 1 and "" not in below[0] and all(names == below[0] for names in below)
    if same:
        found = f"have no files of their own, and each has the folders {', '.join(sorted(below[0]))}"
    elif sum(folder.name.lower() in SPLIT_NAMES for folder in folders) > 1:
        found = "are named like splits"
    else:
        return
    raise UsageError(
        f"The folders of {folders[0].parent}, {_names(folders)}, {found}; expected a folder for each class. "
        f"{LAYOUT} Move the files of each class into one folder; bytes makes the splits itself."
    )


def _names(folders: Iterable[Path]) -> str:
    return ", ".join(folder.name for folder in folders) or "none"


def _content(path: Path) -> tuple[bytes, int]:
    """The stored bytes of the file, and its full size."""
    with archives.reading(path), path.open("rb") as file:
        return file.read(byte_files.MAX_BYTES), os.fstat(file.fileno()).st_size


def _examples(files: Iterable[File]) -> Iterator[Example]:
    for file in files:
        content, _ = _content(file.path)
        if hashlib.sha256(content).digest() != file.digest:
            raise UsageError(f"{file.path} was changed while it was being read. Prepare bytes again.")
        yield content, file.label
