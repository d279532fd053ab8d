"""The TFDS builder of Retrieval, in a module of its own because it imports TFDS."""

import contextlib
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from lra_tasks.errors import MissingData, UsageError
from lra_tasks.sources import archives, tables
from lra_tasks.sources.builder import ArenaBuilder, Example
from lra_tasks.task import SPLITS
from lra_tasks.tasks.retrieval import acl_pairs
from lra_tasks.tasks.retrieval import task as retrieval

RELEASE_FILES = {
    "train": "new_aan_pairs.train.tsv",
    "validation": "new_aan_pairs.eval.tsv",
    "test": "new_aan_pairs.test.tsv",
}
RELEASE_SHARD = 1_000  # pairs of two texts of some 50 kB
MOST_MALFORMED = 100  # lines of a file; and no more than one in a thousand
WHERE_RELEASE = (
    f"The arena's release has {', '.join(RELEASE_FILES.values())} in tsv_data. Put these three files, or the "
    "whole archive lra_release.gz (8.2 GB) as it is, into a folder and name that: --manual-dir FOLDER. It is "
    "not downloaded automatically; see github.com/google-research/long-range-arena."
)

ACL = ("acl-pairs-raw*.tar*", "acl-pairs-raw")
ACL_SHARD = 10_000  # pairs of two texts of 6 kB
ACL_SHA256 = {  # of the files this project's results are from
    "papers.jsonl": "5a5629b41807b85bdeb594a7ef468e0264b38f2f61ca56ad1ce8dcd90e9a2aad",
    "edges.tsv": "1cf51bf58bb422ad9425c9820390a0ff4e2777821b0bdd789b242a52682a945a",
}
WHERE_ACL = (
    f"Put acl-pairs-raw.tar.xz, or its {' and '.join(ACL_SHA256)}, into a folder and name that: --manual-dir "
    "FOLDER."
)


@dataclass(kw_only=True)
class RetrievalConfig(tfds.core.BuilderConfig):
    """A variant of Retrieval.

    Attributes:
      release: Whether the arena's release is read; otherwise `acl_pairs` makes pairs.
      num_examples: Examples of each split; None takes all of the source.
    """

    release: bool = False
    num_examples: dict[str, int] | None = None


class Retrieval(ArenaBuilder, skip_registration=True):
    """Pairs of papers: the arena's, from its release, or our own.

    "tokens1" and "tokens2" are the bytes of the two texts; "label" is 1 if one paper cites the other. In our
    own pairs the first cites the second; the arena's files do not give the direction.

    The release's files are read from a folder or directly from the archive: once to verify, count and hash
    them, and once more per split, because their order in the archive is arbitrary. An unreadable line is left
    out and counted, up to a limit. Repeated pairs of the release are kept.
    """

    name = "lra_retrieval"
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS: ClassVar = [
        RetrievalConfig(name="default", description="The arena's own files, read and checked.", release=True),
        RetrievalConfig(name="acl", description="Pairs of our own, of papers of the ACL Anthology."),
        RetrievalConfig(
            name="smoke",
            description="A few of our own for tests.",
            num_examples={"train": 256, "validation": 64, "test": 64},
        ),
    ]
    task = retrieval.TASK

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        config: Any = self.builder_config
        self.balanced = not config.release
        if config.release:  # published as they are
            self.may_repeat = frozenset(
                pair
                for place, split in enumerate(SPLITS)
                for pair in (split, *(f"{earlier}/{split}" for earlier in SPLITS[:place]))
            )

    def read(self) -> dict[str, tuple[int, Iterable[Example]]]:
        config: Any = self.builder_config
        return self._read_release() if config.release else self._make_pairs(config.num_examples)

    def _read_release(self) -> dict[str, tuple[int, Iterable[Example]]]:
        if self.manual_dir is None:
            raise MissingData(f"Retrieval needs the arena's files. {WHERE_RELEASE}")
        path = archives.source(self.manual_dir, RELEASE_FILES.values(), *archives.RELEASE)
        if path is None:
            raise MissingData(f"The arena's files are missing in {self.manual_dir}. {WHERE_RELEASE}")
        counts, digests = {}, {}
        for name, file in archives.named(path, RELEASE_FILES.values(), WHERE_RELEASE, self.leave_out):
            counts[name], digests[name] = self._check(path, name, file)
        metadata: Any = self.info.metadata
        metadata.update(origin="the Long Range Arena's release", sha256=digests)
        self.shard_examples = RELEASE_SHARD
        return {split: (counts[name], _rows(path, name)) for split, name in RELEASE_FILES.items()}

    def _check(self, path: Path, name: str, file: Iterable[bytes]) -> tuple[int, str]:
        """Returns number of readable lines and SHA-256 of a file of the release."""
        digest, count, number, wrong = hashlib.sha256(), 0, 0, list[str]()
        for number, line in tables.lines(_hashed(file, digest), name, self.leave_out):
            try:
                retrieval.read_row(line)
                count += 1
            except UsageError as error:
                wrong.append(f"line {number}: {error}")
                self.leave_out("unreadable lines", f"{name}, {wrong[-1]}")
                if len(wrong) > MOST_MALFORMED:
                    break
            if number % 256 == 0:
                self.report(f"checking {name}", number, 0)
        if len(wrong) > min(MOST_MALFORMED, number // 1_000):
            raise UsageError(
                f"{len(wrong):,} of the first {number:,} lines of {name} in {path} cannot be read: "
                f"{'; '.join(wrong[:3])}. At most one in 1,000, and {MOST_MALFORMED} in all, is left out."
            )
        return count, digest.hexdigest()

    def _make_pairs(self, num_examples: dict[str, int] | None) -> dict[str, tuple[int, Iterable[Example]]]:
        lines, digests = self._read_acl()
        papers = acl_pairs.read_papers("papers.jsonl", lines["papers.jsonl"], self.leave_out)
        citations = acl_pairs.read_citations("edges.tsv", lines["edges.tsv"], papers, self.leave_out)
        limits = num_examples and {split: count // 2 for split, count in num_examples.items()}
        made = acl_pairs.make_pairs(papers, citations, limits)
        found = {split: len(pairs) for split, pairs in made.splits.items()}
        unofficial = "pairs of our own from ACL Anthology papers, not the arena's Retrieval"
        others = [name for name in ACL_SHA256 if digests[name] != ACL_SHA256[name]]
        if others:
            unofficial += f"; the SHA-256 of {' and '.join(others)} is not that of this project's own files"
        metadata: Any = self.info.metadata
        metadata.update(
            unofficial=unofficial,
            origin="pairs made from texts and citations of the ACL Anthology (retrieval/acl_pairs.py)",
            license="CC BY-NC-SA 3.0, of the Anthology's papers of before 2016",
            sha256=digests,
            papers=made.papers,
            other_years=made.other_years,
        )
        for reason, ids in made.left_out.items():
            for id in ids:
                self.leave_out(reason, id)
        self.shard_examples = ACL_SHARD
        return {
            split: (found[split], (((a.text.encode(), b.text.encode()), label) for a, b, label in pairs))
            for split, pairs in made.splits.items()
        }

    def _read_acl(self) -> tuple[dict[str, list[bytes]], dict[str, str]]:
        """Returns lines and SHA-256 of each file."""
        if self.manual_dir is None:
            raise MissingData(f"Pairs of our own need papers and citations. {WHERE_ACL}")
        path = archives.source(self.manual_dir, ACL_SHA256, *ACL)
        if path is None:
            raise MissingData(f"acl-pairs-raw.tar.xz is missing in {self.manual_dir}. {WHERE_ACL}")
        lines, digests = {}, {}
        for name, file in archives.named(path, ACL_SHA256, WHERE_ACL, self.leave_out):
            content = file.read()
            lines[name] = content.splitlines()
            digests[name] = hashlib.sha256(content).hexdigest()
        return lines, {name: digests[name] for name in ACL_SHA256}


def _hashed(lines: Iterable[bytes], digest: Any) -> Iterator[bytes]:
    for line in lines:
        digest.update(line)
        yield line


def _rows(path: Path, wanted: str) -> Iterator[Example]:
    with contextlib.closing(archives.named(path, [wanted], WHERE_RELEASE)) as files:
        _, file = next(files)
        for _, line in tables.lines(file, wanted):
            with contextlib.suppress(UsageError):
                yield retrieval.read_row(line)
