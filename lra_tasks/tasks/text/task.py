"""Text: is a film review positive or negative? The model reads it byte by byte.

The task of the Long Range Arena (Tay et al. 2021, arXiv 2011.04006) on the reviews of Maas et al. (2011,
"Learning word vectors for sentiment analysis"), 25,000 for training and 25,000 for testing. The bytes are
those of the published UTF-8 files, including capitals and `<br />`. The arena validates on the test split.
This project validates on a tenth of the training split; `--protocol paper` follows the arena.

Token ids: 0 is padding, 1 + b is the byte b. 2.9 % of the test reviews are longer than 4,000 bytes and are
cut.
"""

from collections.abc import Callable, Sequence
from typing import Any

from lra_tasks.task import Examples, Task, chance
from lra_tasks.tasks import published, recipes
from lra_tasks.tasks.byte_tokens import FIRST_TOKEN, VOCAB_SIZE, content, render

LENGTH = 4000
CLASSES = ("negative", "positive")  # label i is the i-th class


def validate(tokens: Sequence[int], label: int) -> str | None:
    """Returns the fault of an example, an empty text or invalid UTF-8, or None if there is none."""
    try:
        return None if content(tokens).decode() else "The review is empty."
    except UnicodeDecodeError as error:
        return f"Byte {error.start} of the review, counted from 0, is not UTF-8: {error.reason}."


def references(train: Examples, test: Examples) -> dict[str, float]:
    """Measures the accuracy of rules that ignore the order of the text.

    Naive Bayes is fitted on `train` and scored on `test`. Its features, from the first 4,000 bytes of a
    review, are the counts of bytes; the counts of pairs of adjacent bytes; and the set of words, separated by
    white space. Counts are smoothed by one, and classes are assumed to be equally frequent. Words alone
    outperform every model in the arena's paper. Cost: one pass over the data, some 10 seconds for 47,500
    reviews.

    Args:
      train: Examples with "tokens", integers (T,), and "label", 0 or 1.
      test: Examples of the same form.

    Returns:
      Name of the rule → accuracy on `test` in percent.
    """
    import numpy as np

    words: dict[bytes, int] = {}

    def pairs(tokens: Any) -> Any:
        return tokens[:-1] * VOCAB_SIZE + tokens[1:]

    def words_of(tokens: Any) -> set[bytes]:
        return set((tokens - FIRST_TOKEN).astype(np.uint8).tobytes().split())

    def known_words(tokens: Any) -> Any:
        return np.array([words[word] for word in words_of(tokens) if word in words], np.int64)

    def read(examples: Examples) -> list[dict[str, Any]]:
        return [{"tokens": x["tokens"][:LENGTH], "label": x["label"]} for x in examples]

    def accuracy(features: Callable[[Any], Any], size: int) -> float:
        """Scores naive Bayes on features(tokens), integers below `size`; converts one review at a time."""
        counts = np.ones((2, size))
        for example in fitted:
            np.add.at(counts[example["label"]], features(example["tokens"].astype(np.int64)), 1)
        weights = np.diff(np.log(counts / counts.sum(1, keepdims=True)), axis=0)[0]
        hits = [(weights[features(x["tokens"].astype(np.int64))].sum() > 0) == x["label"] for x in asked]
        return 100 * float(np.mean(hits))

    fitted, asked = read(train), read(test)
    for example in fitted:
        for word in words_of(example["tokens"]):
            words.setdefault(word, len(words))
    return chance(fitted, asked) | {
        "naive Bayes on bytes": accuracy(lambda tokens: tokens, VOCAB_SIZE),
        "naive Bayes on byte pairs": accuracy(pairs, VOCAB_SIZE**2),
        "naive Bayes on words": accuracy(known_words, len(words)),
    }


TASK = Task(
    name="text",
    description="Predict whether a film review, given as bytes, is positive or negative.",
    length=LENGTH,
    vocab_size=VOCAB_SIZE,
    num_classes=len(CLASSES),
    num_examples={"train": 22_500, "validation": 2_500, "test": 25_000},
    builder="lra_tasks.tasks.text.builder:Text",
    references=references,
    render=render,
    disk_bytes=150_000_000,
    first_token=FIRST_TOKEN,
    validation_from_train=True,
    validate=validate,
    published=published.of("text"),
    presets={
        "smoke": recipes.smoke("smoke", 256),
        "quick": recipes.quick("default", 1000),
        "cpu": recipes.cpu("default", 2048, positions="sinusoidal", buckets=4, num_steps=980),
        "small": recipes.small("default", 4000),
        "arena": recipes.arena_documents(4000, recipes.ARENA_TEXT, 8000, 20_000),
        "paper": recipes.paper("default", 4000, recipes.PAPER_TEXT, batch_size=32, epoch=703, decay_rate=0.9),
    },
)
