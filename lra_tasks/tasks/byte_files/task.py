"""Bytes: classification of the user's own files, read byte by byte.

The Hrrformer paper (Alam et al. 2023, arXiv 2305.19534) trains on the bytes of programs, malware or not
(EMBER), at lengths up to 131,072. This task repeats that experiment on any files. Each class is a folder, and
--variant names the dataset. A result means as much as the collection does. The baseline scores show whether
byte counts alone separate the classes, or the four bytes with which many formats begin.

Token ids: 0 is padding, 1 + b is the byte b.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any

from lra_tasks.task import Examples, Task
from lra_tasks.tasks import recipes
from lra_tasks.tasks.byte_tokens import FIRST_TOKEN, VOCAB_SIZE, content

MAX_BYTES = 131_072  # bytes stored of each file: the greatest length in the paper
FITTED_ON = 10_000  # training examples on which the rules are fitted


def render(tokens: Iterable[int]) -> str:
    r"""Returns the bytes as printable ASCII; other bytes are escaped as in Python: \n, \x7f.

    Args:
      tokens: Token ids (T,) of any integer type, 0 .. 256.

    >>> print(render([128, 70, 77, 71, 11, 0]))
    \x7fELF\n
    """
    return repr(content(tokens))[2:-1]


def references(train: Examples, test: Examples) -> dict[str, float]:
    """Measures the accuracy of rules that ignore the order of the bytes.

    Each rule is fitted on up to 10,000 examples, evenly spaced in `train`, and scored on `test`. The rules
    are the most frequent class; the most frequent class of the files with the same first four bytes, or of
    all files if there are none; and naive Bayes on the counts of the bytes among the first 4,096, smoothed by
    one. Cost: one pass over these examples.

    Args:
      train: Examples with "tokens", integers (T,), and "label", int.
      test: Examples of the same form.

    Returns:
      Name of the rule → accuracy on `test` in percent. "chance" is 100 over the number of classes: that of
      the source's task or, without one, the largest label plus one.
    """
    import numpy as np

    def read(examples: Iterable[dict[str, Any]]) -> tuple[list[bytes], Any, Any]:
        """Returns first bytes, histograms (n, V) and labels (n,)."""
        rows = [(x["tokens"][:4].tobytes(), _histogram(x["tokens"]), x["label"]) for x in examples]
        beginnings, histograms, labels = zip(*rows, strict=True)
        return list(beginnings), np.array(histograms), np.array(labels)

    def _histogram(tokens: Any) -> Any:
        return np.bincount(tokens[: TASK.length], minlength=VOCAB_SIZE)

    step = -(-len(train) // FITTED_ON)
    beginnings, histograms, labels = read(train[i] for i in range(0, len(train), step))
    asked_beginnings, asked_histograms, wanted = read(test)
    known = getattr(train, "task", None)
    num_classes = (known and known.num_classes) or int(max(labels.max(), wanted.max())) + 1
    majority = int(np.bincount(labels).argmax())
    groups: dict[bytes, Counter[int]] = defaultdict(Counter)
    for beginning, label in zip(beginnings, labels.tolist(), strict=True):
        groups[beginning][label] += 1
    by_beginning = [
        max(sorted(groups[beginning]), key=groups[beginning].__getitem__) if beginning in groups else majority
        for beginning in asked_beginnings
    ]
    counts = np.ones((num_classes, VOCAB_SIZE))
    np.add.at(counts, labels, histograms)
    priors = np.log(np.maximum(np.bincount(labels, minlength=num_classes), 1) / len(labels))
    scores = asked_histograms @ np.log(counts / counts.sum(1, keepdims=True)).T + priors
    return {
        "chance": 100 / num_classes,
        "majority class": 100 * float(np.mean(wanted == majority)),
        "majority by the first four bytes": 100 * float(np.mean(wanted == by_beginning)),
        "naive Bayes on bytes": 100 * float(np.mean(wanted == scores.argmax(1))),
    }


TASK = Task(
    name="bytes",
    description="Predict the class of a file, in the user's own collection, from its bytes.",
    length=4096,
    vocab_size=VOCAB_SIZE,
    num_classes=0,
    num_examples={},
    builder="lra_tasks.tasks.byte_files.builder:ByteFiles",
    references=references,
    render=render,
    disk_bytes=0,
    first_token=FIRST_TOKEN,
    presets={
        "smoke": recipes.smoke("default", 256),
        "quick": recipes.quick("default", 4096, batch_size=4),
        "cpu": recipes.cpu("default", 4096, positions="sinusoidal", batch_size=16, buckets=4, num_steps=700),
        "small": recipes.small("default", 16_384, batch_size=16),
        "arena": recipes.arena_documents(4096, recipes.ARENA_TEXT, 8000, 20_000),
        "paper": recipes.paper(
            "default", 16_384, recipes.PAPER_TEXT, batch_size=32, epoch=1000, decay_rate=0.9
        ),
    },
)
