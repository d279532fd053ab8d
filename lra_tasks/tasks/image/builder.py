"""The TFDS builder of Image, in a module of its own because it imports TFDS."""

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from lra_tasks.errors import UsageError
from lra_tasks.sources import archives
from lra_tasks.sources.carving import CarvedBuilder, Named, configs
from lra_tasks.tasks.image import task as image

RECORD = 1 + 3 * image.PIXELS  # bytes: the label, then the red, green and blue planes
FILES = {
    "train": [f"data_batch_{number}.bin" for number in range(1, 6)],
    "test": ["test_batch.bin"],
}
AT_ONCE = 1_000  # records converted together


class Image(CarvedBuilder, skip_registration=True):
    """CIFAR-10 in gray, from the official archive or from files of the same binary layout.

    "tokens" are the 1,024 gray values row by row, see `image.gray`; "label" is the index of the class in
    `image.CLASSES`. The validation split is a tenth of the published training split, 500 pictures per class.
    """

    name = "lra_image"
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS: ClassVar = configs(image.TASK)
    task = image.TASK
    classes = image.CLASSES
    patterns = ("cifar-10-batches-bin", "cifar-10-binary*.tar*", "cifar-10-binary")
    official = archives.Official(  # as TFDS has it, in url_checksums/cifar10.txt
        "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        170_052_171,
        "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    )

    def published(self, path: Path) -> dict[str, list[Named]]:
        wanted = [name for names in FILES.values() for name in names]
        where = f"The files of CIFAR-10 are {', '.join(wanted)}."
        pictures: dict[str, list[Named]] = {}
        for name, file in archives.named(path, wanted, where, self.leave_out):
            pictures[name] = self._pictures(path, name, file.read())
            self.report(f"reading {path.name}", sum(map(len, pictures.values())), 0)
        return {
            split: [example for name in names for example in pictures[name]] for split, names in FILES.items()
        }

    def _pictures(self, path: Path, name: str, content: bytes) -> list[Named]:
        config: Any = self.builder_config
        sizes = config.num_examples
        train = (sizes["train"] + sizes["validation"]) // len(FILES["train"])
        expected = RECORD * (sizes["test"] if name in FILES["test"] else train)
        if config.whole and len(content) != expected:
            raise UsageError(f"{name} in {path} has {len(content):,} bytes; expected {expected:,}.")
        if not content or len(content) % RECORD:
            raise UsageError(
                f"{name} in {path} has {len(content):,} bytes; expected a multiple of {RECORD:,}, which a "
                "picture and its label take."
            )
        records = np.frombuffer(content, np.uint8).reshape(-1, RECORD)
        wrong = np.flatnonzero(records[:, 0] >= len(image.CLASSES))
        if wrong.size:
            raise UsageError(
                f"Record {wrong[0]} of {name} in {path}, counted from 0, has the label "
                f"{records[wrong[0], 0]}; labels are 0 to 9."
            )
        pictures = []
        for start in range(0, len(records), AT_ONCE):
            some = records[start : start + AT_ONCE]
            gray = image.gray(*(some[:, 1 + i * image.PIXELS :][:, : image.PIXELS] for i in range(3)))
            for number, (label, row) in enumerate(zip(some[:, 0].tolist(), gray, strict=True), start):
                pictures.append(Named(f"{name}/{number}", row.tobytes(), label))
        return pictures
