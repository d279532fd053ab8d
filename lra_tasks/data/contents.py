"""What a dataset holds, apart from the files it lies in, and whether that is what its manifest says."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any


def contents(
    sources: Mapping[str, Iterable[dict[str, Any]]], report: Callable[[int], None]
) -> dict[str, Any]:
    """Reads all examples of a dataset once and describes them.

    Args:
      sources: split → examples.
      report: is told the number of examples read.

    Returns:
      "splits": split → {"labels": label → count, "lengths": [shortest, longest], "sha256": of the examples in
      their order, labels included}. "repeats": "train" for that split alone, "train/test" across two → how
      many examples of the (second) split hold what one before them holds, and a sentence on the first; tokens
      count, labels do not.
    """
    splits: dict[str, Any] = {}
    repeats: dict[str, list[Any]] = {}
    first: dict[bytes, tuple[str, int]] = {}
    done = 0
    for split, source in sources.items():
        labels: Counter[int] = Counter()
        digest, lengths = hashlib.sha256(), set()
        for example in source:
            tokens = example["tokens"] if isinstance(example["tokens"], tuple) else (example["tokens"],)
            sizes = [len(sequence) for sequence in tokens]
            key = hashlib.blake2b(repr(sizes).encode(), digest_size=16)
            for sequence in tokens:
                key.update(sequence.tobytes())
            digest.update(key.digest() + repr(example["label"]).encode())
            labels[example["label"]] += 1
            lengths.update(sizes)
            place, index = first.setdefault(key.digest(), (split, example["index"]))
            if (place, index) != (split, example["index"]):
                pair = split if place == split else f"{place}/{split}"
                sentence = f"Example {example['index']} of {split} repeats example {index} of {place}"
                repeats.setdefault(pair, [0, sentence])[0] += 1
            done += 1
            if done % 256 == 0:
                report(done)
        splits[split] = {
            "labels": {str(label): labels[label] for label in sorted(labels)},
            "lengths": [min(lengths), max(lengths)],
            "sha256": digest.hexdigest(),
        }
    return {"splits": splits, "repeats": repeats}


def violations(found: Mapping[str, Any], *, may_repeat: Iterable[str], balanced: bool) -> Iterator[str]:
    """Yields what a dataset must not hold, in sentences.

    Args:
      found: Of `contents`.
      may_repeat: Keys of "repeats" that are allowed.
      balanced: Whether every split has to have equally many examples of each label, as far as they divide.
    """
    for pair, (number, example) in found["repeats"].items():
        if pair not in may_repeat:
            more = f", and so do {number - 1:,} more" if number > 1 else ""
            yield f"{example}{more}; the examples have to differ"
    labels = {label for split in found["splits"].values() for label in split["labels"]}
    for name, split in found["splits"].items():
        counts = {label: split["labels"].get(label, 0) for label in sorted(labels, key=int)}
        if balanced and max(counts.values()) - min(counts.values()) > 1:
            yield f"The labels of {name} are not balanced: {counts}; expected equally many of each"
