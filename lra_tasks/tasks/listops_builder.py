"""The TFDS builder of ListOps, apart from the task's record because it imports TFDS.

Worker processes import `lra_tasks.tasks.listops` only, which needs nothing but the standard library.
"""

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from lra_tasks.errors import UsageError
from lra_tasks.tasks import listops
from lra_tasks.tasks.base import SPLITS
from lra_tasks.workers import Call, spread

CHUNK = 250  # expressions a worker makes before it hands them over
RELEASE_FILES = {"train": "basic_train.tsv", "validation": "basic_val.tsv", "test": "basic_test.tsv"}


@dataclass(kw_only=True)
class ListOpsConfig(tfds.core.BuilderConfig):
    """What a config of `ListOps` holds.

    Attributes:
      seed: Seed of `listops.expression`.
      num_examples: Examples of each split, taken from the seed's expressions in the order of `SPLITS`; None
        reads the arena's release instead.
    """

    seed: int = 0
    num_examples: dict[str, int] | None = None


class ListOps(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """ListOps, drawn by `listops.expression` or read from the arena's release.

    Features: "tokens", uint8 (T,), token ids of `listops.SYMBOLS`; "label", int64 (), 0 .. 9. The records
    stand in generation order, and the files' bytes do not depend on the number of workers. The metadata
    tell where the data are from. No expression comes twice, within a split or across them.

    Raises (from `download_and_prepare`):
      UsageError: A file of the release is missing or a row of it is wrong; an expression comes twice.
    """

    name = "lra_listops"
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS: ClassVar = [
        ListOpsConfig(
            name="default",
            description="The arena's sizes, drawn with seed 0.",
            num_examples=dict(listops.TASK.num_examples),
        ),
        ListOpsConfig(
            name="smoke",
            description="A few of the same kind for tests.",
            num_examples={"train": 2_000, "validation": 256, "test": 256},
        ),
        ListOpsConfig(name="release", description="The arena's own files, read and checked."),
    ]
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        f"The arena's release, lra_release.gz, has {', '.join(RELEASE_FILES.values())} in listops-1000."
    )

    num_workers: int | None = None  # processes; None takes one for each processor this process may use
    report: Callable[[int], None] | None = None  # is told the number of examples finished

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"{listops.TASK.description} Lengths 501 to 1,999, 0 is padding.",
            features=tfds.features.FeaturesDict(
                {
                    "tokens": tfds.features.Tensor(shape=(None,), dtype=np.uint8, encoding="bytes"),
                    "label": tfds.features.Scalar(dtype=np.int64),
                }
            ),
            homepage="https://arxiv.org/abs/2011.04006",
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        config: Any = self.builder_config
        if config.num_examples is None:
            work, origin = self._release_work(dl_manager)
        else:
            work, origin = self._drawn_work(config)
        self.info.metadata.update(origin)  # pyright: ignore[reportOptionalMemberAccess]
        seen: dict[bytes, tuple[str, int]] = {}
        return {split: self._generate_examples(split, work[split], seen) for split in SPLITS}

    def _drawn_work(self, config: Any) -> tuple[dict[str, list[Call]], dict[str, Any]]:
        work, start = {}, 0
        for split in SPLITS:
            stop = start + config.num_examples[split]
            work[split] = [
                (listops.expressions, (config.seed, i, min(i + CHUNK, stop)))
                for i in range(start, stop, CHUNK)
            ]
            start = stop
        return work, {"origin": "lra_tasks.tasks.listops.expression", "seed": config.seed}

    def _release_work(self, dl_manager: Any) -> tuple[dict[str, list[Call]], dict[str, Any]]:
        try:
            folder = Path(dl_manager.manual_dir)
        except AssertionError as error:
            raise UsageError(
                "ListOps from the arena's release needs the folder with its files: "
                f"--manual-dir FOLDER. {self.MANUAL_DOWNLOAD_INSTRUCTIONS}"
            ) from error
        work, digests = {}, {}
        for split, name in RELEASE_FILES.items():
            path = folder / name
            if not path.is_file():
                raise UsageError(f"There is no {name} in {folder}. {self.MANUAL_DOWNLOAD_INSTRUCTIONS}")
            content = path.read_bytes()
            header, *lines = content.decode("ascii", errors="replace").splitlines() or [""]
            if header.split("\t") != ["Source", "Target"]:
                raise UsageError(f"{path}, line 1: the columns are {header!r}, expected Source<tab>Target.")
            work[split] = [
                (listops.read_rows, (str(path), i + 2, lines[i : i + CHUNK]))
                for i in range(0, len(lines), CHUNK)
            ]
            digests[name] = hashlib.sha256(content).hexdigest()
        return work, {"origin": "the Long Range Arena's release", "sha256": digests}

    def _generate_examples(
        self, split: str, work: list[Call], seen: dict[bytes, tuple[str, int]]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        index = 0
        with contextlib.closing(spread(work, self.num_workers)) as chunks:
            for rows in chunks:
                for tokens, label in rows:
                    first = seen.setdefault(hashlib.blake2b(tokens, digest_size=16).digest(), (split, index))
                    if first != (split, index):
                        raise UsageError(
                            f"Example {index} of {split} repeats example {first[1]} of {first[0]}; "
                            "the expressions of ListOps have to differ."
                        )
                    yield index, {"tokens": np.frombuffer(tokens, np.uint8), "label": label}
                    index += 1
                if self.report is not None:
                    self.report(len(seen))
