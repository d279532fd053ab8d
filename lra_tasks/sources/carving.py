"""Datasets published as a training and a test split; the validation split is cut from the first."""

import hashlib
import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import tensorflow_datasets as tfds

from lra_tasks.errors import MissingData, UsageError
from lra_tasks.files import describe
from lra_tasks.sources import archives
from lra_tasks.sources.builder import ArenaBuilder
from lra_tasks.task import Task


class Named(NamedTuple):
    """An example with a unique name, which determines its position.

    Attributes:
      name: Name, independent of the source of the example.
      tokens: Tokens as bytes.
      label: Label, 0 .. number of classes - 1.
    """

    name: str
    tokens: bytes
    label: int


@dataclass(kw_only=True)
class CarvedConfig(tfds.core.BuilderConfig):
    """A variant of a `CarvedBuilder`.

    Attributes:
      num_examples: Examples of each split.
      whole: Whether the source must contain exactly these, or may contain more.
    """

    num_examples: dict[str, int]
    whole: bool


def configs(task: Task) -> list[CarvedConfig]:
    """Returns the configs of a task: all examples, and a few."""
    return [
        CarvedConfig(
            name="default", description="All examples.", num_examples=dict(task.num_examples), whole=True
        ),
        CarvedConfig(
            name="smoke",
            description="A few of them for tests.",
            num_examples={"train": 256, "validation": 64, "test": 64},
            whole=False,
        ),
    ]


class CarvedBuilder(ArenaBuilder, skip_registration=True):
    """Base class of datasets that are read from a published archive without a validation split.

    In addition to an `ArenaBuilder`, a subclass sets the attributes below, defines `published`, and takes its
    configs from `configs`. The source is the user's folder or archive, or else the official archive, which is
    downloaded. `carve` cuts and orders the splits. Repeated inputs of the published data are kept, all on the
    same side of the cut.

    Attributes:
      official: The published archive.
      patterns: Names of the user's folders and archives to accept, as in `archives.find`.
      classes: Names of the labels in order.
    """

    official: ClassVar[archives.Official]
    patterns: ClassVar[tuple[str, ...]]
    classes: ClassVar[tuple[str, ...]]
    balanced = True
    may_repeat = frozenset({"train", "validation", "test", "train/test", "validation/test"})

    def published(self, path: Path) -> dict[str, list[Named]]:
        """Reads "train" and "test" from a folder or an archive.

        Raises:
          UsageError: If a file is wrong; the message names path and file.
        """
        raise NotImplementedError

    def read(self) -> Mapping[str, tuple[int, Sequence[tuple[bytes, int]]]]:
        path = archives.find(self.manual_dir, *self.patterns)
        path, origin = self._downloaded() if path is None else (path, self._origin(path))
        examples = self.published(path)
        config: Any = self.builder_config
        sizes = config.num_examples
        quotas = {split: _quotas(size, len(self.classes)) for split, size in sizes.items()}
        in_train = [sum(pair) for pair in zip(quotas["train"], quotas["validation"], strict=True)]
        for split, wanted in (("train", in_train), ("test", quotas["test"])):
            counts = Counter(example.label for example in examples[split])
            for label, name in enumerate(self.classes):
                if counts[label] < wanted[label] or (config.whole and counts[label] > wanted[label]):
                    raise UsageError(
                        f"{path} has {counts[label]:,} {split} examples of the class {name}; expected "
                        f"{'' if config.whole else 'at least '}{wanted[label]:,}."
                    )
            if len(set(counts.values())) > 1:
                raise UsageError(f"{path} has unequal numbers of {split} examples per class: {dict(counts)}.")
        metadata: Any = self.info.metadata
        metadata.update(origin, classes=list(self.classes))
        return carve(examples["train"], examples["test"], sizes, len(self.classes))

    def _downloaded(self) -> tuple[Path, dict[str, str]]:
        """Returns the official archive and the metadata on it."""
        official, message = self.official, f"downloading {self.official.name} (kB)"
        try:
            path = archives.download(
                *official,
                self.downloads,
                lambda done, total: self.report(message, done // 1000, total // 1000),
            )
        except MissingData as error:
            if self.manual_dir is None:
                raise
            sought = " or ".join(self.patterns)
            raise MissingData(f"{sought} is missing in {self.manual_dir}. {error}") from error
        return path, {"origin": official.url, "sha256": official.sha256}

    def _origin(self, path: Path) -> dict[str, str]:
        """Returns the metadata on the user's folder or archive, or refuses it."""
        official = self.official
        if path.is_dir():
            origin, unofficial = {"origin": path.name}, f"the folder {path.name}, which has no checksum"
        else:
            self.report(f"checking {path.name}", 0, 0)
            with archives.reading(path):
                sha256 = describe(path)["sha256"]
            origin = {"origin": path.name, "sha256": sha256}
            if sha256 == official.sha256:
                return origin
            unofficial = f"the archive {path.name} with the SHA-256 {sha256}"
        unofficial = f"{unofficial}, not the official {official.name}"
        self.accept_unofficial(
            unofficial,
            f"The source of {self.task.name} in {path.parent} is {unofficial} with the SHA-256 "
            f"{official.sha256}. --unofficial uses it if its structure is right, and marks the dataset, its "
            f"runs and their reports; without --manual-dir {official.url} is downloaded.",
        )
        return origin


def carve(
    train: Iterable[Named], test: Iterable[Named], num_examples: Mapping[str, int], num_classes: int
) -> dict[str, tuple[int, list[tuple[bytes, int]]]]:
    """Cuts the validation split from the training split, and orders every split.

    Examples are ordered by the BLAKE2b digests of their names, and the classes alternate. The order is thus
    independent of the source, and the beginning of a split is like the rest of it. The validation split takes
    the first examples of each class, equally many of each. Examples with equal tokens stay together, in the
    split of the first of their names. Surplus examples at the end are left out.

    Args:
      train: The published training split.
      test: The published test split.
      num_examples: "train", "validation" and "test" → their sizes. If a size is not a multiple of the number
        of classes, the first classes get one more example.
      num_classes: Number of labels.

    Returns:
      Split → its size and its examples, tokens and label; fewer than its size if too few were given.
    """
    ordered = _ordered(train)
    same = defaultdict(list)
    for example in sorted(ordered):
        same[example.tokens].append(example)
    missing = Counter(dict(enumerate(_quotas(num_examples["validation"], num_classes))))
    chosen = set()
    for group in sorted(same.values(), key=lambda group: _digest(group[0])):
        wanted = Counter(example.label for example in group)
        if wanted <= missing:
            missing -= wanted
            chosen.add(group[0].tokens)
    splits = {
        "train": [example for example in ordered if example.tokens not in chosen],
        "validation": [example for example in ordered if example.tokens in chosen],
        "test": _ordered(test),
    }
    return {
        split: (num_examples[split], _taking_turns(examples, num_examples[split], num_classes))
        for split, examples in splits.items()
    }


def _quotas(count: int, num_classes: int) -> list[int]:
    return [count // num_classes + (label < count % num_classes) for label in range(num_classes)]


def _digest(example: Named) -> bytes:
    return hashlib.blake2b(example.name.encode()).digest()


def _ordered(examples: Iterable[Named]) -> list[Named]:
    return sorted(examples, key=_digest)


def _taking_turns(examples: Sequence[Named], count: int, num_classes: int) -> list[tuple[bytes, int]]:
    classes = [[example for example in examples if example.label == label] for label in range(num_classes)]
    rounds = itertools.chain.from_iterable(itertools.zip_longest(*classes))
    taken = itertools.islice((example for example in rounds if example is not None), count)
    return [(example.tokens, example.label) for example in taken]
