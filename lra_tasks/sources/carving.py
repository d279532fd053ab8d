"""Datasets published as a training and a test split, from which a validation split is cut."""

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
    """An example with a name of its own, from which its place follows.

    Attributes:
      name: the same wherever the example is read from.
      tokens: one a byte.
      label: 0 .. number of classes - 1.
    """

    name: str
    tokens: bytes
    label: int


@dataclass(kw_only=True)
class CarvedConfig(tfds.core.BuilderConfig):
    """What a config of a `CarvedBuilder` holds.

    Attributes:
      num_examples: Examples of each split.
      whole: Whether the source has to hold exactly these, or may hold more.
    """

    num_examples: dict[str, int]
    whole: bool


def configs(task: Task) -> list[CarvedConfig]:
    """Returns the configs of a task: all there is, and a little of it."""
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
    """Base class of the datasets that are read from a published archive and have no validation split.

    A subclass sets what an `ArenaBuilder` has to set and the attributes below, has `published`, and takes
    its configs from `configs`. The source is a folder or an archive of the user, or the official archive,
    downloaded. How the splits are cut and ordered, `carve` says. Inputs that the published data repeat are
    kept; none stands on both sides of the cut.

    Attributes:
      official: The archive the data were published in.
      patterns: Names of folders and archives of the user that may be it, as in `archives.find`.
      classes: Names of the labels in their order.
    """

    official: ClassVar[archives.Official]
    patterns: ClassVar[tuple[str, ...]]
    classes: ClassVar[tuple[str, ...]]
    balanced = True
    may_repeat = frozenset({"train", "validation", "test", "train/test", "validation/test"})

    def published(self, path: Path) -> dict[str, list[Named]]:
        """Reads "train" and "test" from a folder or an archive.

        Raises:
          UsageError: the files are not what they have to be; the message names path and file.
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
                raise UsageError(f"{path} has unequal numbers of {split} examples a class: {dict(counts)}.")
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
            raise MissingData(f"There is no {sought} in {self.manual_dir}. {error}") from error
        return path, {"origin": official.url, "sha256": official.sha256}

    def _origin(self, path: Path) -> dict[str, str]:
        """Returns the metadata on the user's folder or archive, if it may be used."""
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
        if not self.unofficial:
            raise UsageError(
                f"What there is for {self.task.name} in {path.parent} is {unofficial} with the SHA-256 "
                f"{official.sha256}. --unofficial uses it if its structure is right, and marks the dataset, "
                f"its runs and their reports; without --manual-dir {official.url} is downloaded."
            )
        return origin | {"unofficial": unofficial}


def carve(
    train: Iterable[Named], test: Iterable[Named], num_examples: Mapping[str, int], num_classes: int
) -> dict[str, tuple[int, list[tuple[bytes, int]]]]:
    """Cuts the training examples in two, and puts every split into its order.

    The order is that of the BLAKE2b digests of the names, the classes taking turns: the same wherever the
    examples come from, and the beginning of a split is like the rest of it. The validation split takes the
    first examples of each class in this order, equally many of each. Examples with the same tokens are taken
    all or none, as the first of their names has it: no input stands on both sides of the cut. Of more
    examples than asked for, the last are left out.

    Args:
      train: the published training split.
      test: the published test split.
      num_examples: "train", "validation" and "test" → their sizes. Where one is no multiple of the number
        of classes, the first classes get one example more.
      num_classes: number of labels.

    Returns:
      split → its size and its examples, tokens and label; fewer than its size where too few were given.
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
