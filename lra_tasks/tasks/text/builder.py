"""The TFDS builder of Text, in a module of its own because it imports TFDS."""

import re
from pathlib import Path
from typing import ClassVar

import tensorflow_datasets as tfds

from lra_tasks.errors import UsageError
from lra_tasks.sources import archives
from lra_tasks.sources.carving import CarvedBuilder, Named, configs
from lra_tasks.tasks.text import task as text

RATINGS = {"neg": range(1, 5), "pos": range(7, 11)}  # stars; the order is that of the labels
MAX_BYTES = 100_000  # of a review; the longest official one has 13,704 characters
_PLACE = re.compile(r"(?:.*/)?(train|test)/(neg|pos)/([^/]+)")
_FILE_NAME = re.compile(r"(0|[1-9][0-9]*)_([0-9]+)\.txt")


class Text(CarvedBuilder, skip_registration=True):
    """Film reviews, from the official archive or from files of the same layout.

    The layout is `{train,test}/{pos,neg}/ID_RATING.txt`; other files, such as unlabeled reviews, are
    ignored. "tokens" are the bytes of the review's file; "label" is 0 for negative, 1 for positive. The
    validation split is a tenth of the published training split, 1,250 reviews per class.
    """

    name = "lra_text"
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS: ClassVar = configs(text.TASK)
    task = text.TASK
    classes = text.CLASSES
    patterns = ("aclImdb", "aclImdb*.tar*", "aclImdb_v1")
    official = archives.Official(  # as TFDS has it, in datasets/imdb_reviews/checksums.tsv
        "http://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz",
        84_125_825,
        "c40f74a18d3b61f90feba1e17730e0d38e8b97c05fde7008942e91923d1658fe",
    )

    def published(self, path: Path) -> dict[str, list[Named]]:
        reviews: dict[str, list[Named]] = {"train": [], "test": []}
        numbers: dict[str, set[int]] = {f"{split}/{kind}": set() for split in reviews for kind in RATINGS}
        for name, file in archives.members(path, self.leave_out):
            place = _PLACE.fullmatch(name)
            if place is None:
                continue
            split, kind, file_name = place.groups()
            parsed = _FILE_NAME.fullmatch(file_name)
            if parsed is None:
                raise UsageError(
                    f"{path} has {name}; expected a name like 0_{RATINGS[kind][-1]}.txt, ID_RATING."
                )
            number, rating = map(int, parsed.groups())
            ratings, known = RATINGS[kind], numbers[f"{split}/{kind}"]
            if rating not in ratings:
                raise UsageError(f"{path} has {name}; expected a rating of {ratings[0]} to {ratings[-1]}.")
            if number in known:
                raise UsageError(f"{path} has {name} and another review with the ID {number} beside it.")
            tokens = file.read(MAX_BYTES + 1)
            if not tokens:
                raise UsageError(f"{name} in {path} is empty.")
            if len(tokens) > MAX_BYTES:
                raise UsageError(
                    f"{name} in {path} has more than {MAX_BYTES:,} bytes; no review is that long."
                )
            try:
                tokens.decode()
            except UnicodeDecodeError as error:
                raise UsageError(f"{name} in {path} is not UTF-8 from byte {error.start} on.") from None
            known.add(number)
            label = list(RATINGS).index(kind)
            reviews[split].append(Named(f"{split}/{kind}/{file_name}", tokens, label))
            self.report(f"reading {path.name}", sum(map(len, reviews.values())), 0)
        for folder, known in numbers.items():
            gaps = set(range(len(known))) - known
            if gaps:
                raise UsageError(
                    f"{path} has no review with the ID {min(gaps)} in {folder}, but higher ones."
                )
        return reviews
