"""Order: which of two marks comes first?

A diagnostic task beside the arena. A sequence of noise contains the marks A and B once each, at least a
quarter of its length apart. The counts of the tokens say nothing about the answer. Example number i of seed s
is a pure function of (s, i), the same on every machine and every Python.

Token ids: 0 padding; 1 the mark A; 2 the mark B; 3 .. 18 noise.
"""

import random
import string
from collections.abc import Iterable, Sequence

from lra_tasks.errors import UsageError
from lra_tasks.task import Examples, Task, chance
from lra_tasks.tasks import recipes
from lra_tasks.tasks.sampling import distinct

A, B = 1, 2
NOISE = 16  # kinds of noise tokens
SYMBOLS = f"_AB{string.ascii_lowercase[:NOISE]}"  # the position in this string is the token id
LEAST_LENGTH = 32


def example(seed: int, index: int, length: int) -> tuple[bytes, int]:
    """Draws example number `index` of `seed`: a pure function of the arguments.

    The number n of tokens is uniform between length / 2 and `length`. The places of the marks are uniform
    among all pairs at least n / 4 apart, without the first: read alone, it says nothing. Noise is uniform.
    The random numbers are those of `random.Random(f"order:{seed}:{index}").random()`.

    Args:
      seed: Any int.
      index: Any int ≥ 0. Even indices have the label 0 and odd ones the label 1.
      length: Largest number of tokens, at least 32; with fewer, examples would repeat each other.

    Returns:
      The token ids as bytes, and the label: 0 if A comes first, 1 if B comes first.

    Raises:
      UsageError: If the length is too small.

    >>> tokens, label = example(seed=0, index=1, length=32)
    >>> render(tokens), label
    ('mddBffnoaAlpelikigdi', 1)
    """
    if length < LEAST_LENGTH:
        raise UsageError(f"The length of order must be at least {LEAST_LENGTH}; got {length}.")
    uniform = random.Random(f"order:{seed}:{index}").random
    size = length - int(uniform() * (length // 2 + 1))
    tokens = bytearray(B + 1 + int(uniform() * NOISE) for _ in range(size))
    gap = -(-size // 4)
    first, last = sorted(distinct(uniform, 2, size - gap))
    label = index % 2
    tokens[1 + first], tokens[last + gap] = (B, A) if label else (A, B)
    return bytes(tokens), label


def answer(tokens: Sequence[int]) -> int:
    """Returns the label of a sequence: 0 if A comes first, 1 if B comes first.

    Args:
      tokens: Token ids (n,) of any integer type, without padding.

    Raises:
      UsageError: If the tokens are not such a sequence; the message names the fault.

    >>> answer([3, 2, 5, 1])
    1
    """
    tokens = [int(token) for token in tokens]
    unknown = [token for token in tokens if not 0 < token < len(SYMBOLS)]
    if unknown:
        raise UsageError(f"A token has the id {unknown[0]}; ids are 1 to {len(SYMBOLS) - 1}.")
    if (counts := (tokens.count(A), tokens.count(B))) != (1, 1):
        raise UsageError(f"The marks A and B must occur once each; got {counts[0]} and {counts[1]} times.")
    between = tokens.index(B) - tokens.index(A)
    if 4 * abs(between) < len(tokens):
        raise UsageError(
            f"The marks must be at least a quarter of {len(tokens)} tokens apart; got {abs(between)}."
        )
    return int(between < 0)


def validate(tokens: Sequence[int], label: int) -> str | None:
    """Returns the fault of an example, an invalid sequence or a wrong label, or None if there is none."""
    try:
        right = answer(tokens)
    except UsageError as error:
        return str(error)
    return None if label == right else f"The label is {label}, the marks say {right}."


def references(train: Examples, test: Examples) -> dict[str, float]:
    """Measures the accuracy of rules that read no order, or one mark alone.

    Naive Bayes on the counts of the tokens, smoothed by one, is fitted on `train`: a bag of tokens. The last
    rule predicts that a mark in the first half of the sequence is the first one. All are scored on `test`.

    Args:
      train: Examples with "tokens", integers (n,), and "label", 0 or 1.
      test: Examples of the same form.

    Returns:
      Name of the rule → accuracy on `test` in percent.
    """
    import numpy as np

    def read(examples: Examples) -> tuple[np.ndarray, np.ndarray]:
        """Returns counts of tokens (number of examples, V) and labels."""
        counts = [np.bincount(example["tokens"], minlength=len(SYMBOLS)) for example in examples]
        return np.array(counts), np.array([example["label"] for example in examples])

    (counts, labels), (asked, wanted) = read(train), read(test)
    totals = np.stack([counts[labels == label].sum(0) + 1 for label in (0, 1)])
    bag = asked @ np.diff(np.log(totals / totals.sum(1, keepdims=True)), axis=0)[0] > 0
    late = [2 * list(example["tokens"]).index(A) >= len(example["tokens"]) for example in test]
    return chance(train, test) | {
        "naive Bayes on tokens": 100 * float(np.mean(bag == wanted)),
        "A in the first half comes first": 100 * float(np.mean(np.array(late) == wanted)),
    }


def render(tokens: Iterable[int]) -> str:
    """Returns the marks as A and B and the noise as small letters, without padding.

    Args:
      tokens: Token ids (n,) of any integer type.

    >>> render([3, 2, 5, 1, 0, 0])
    'aBcA'
    """
    return "".join(SYMBOLS[token] for token in tokens if token)


TASK = Task(
    name="order",
    description="Diagnostic: predict which of two distant marks in noise comes first.",
    length=64,
    vocab_size=len(SYMBOLS),
    num_classes=2,
    num_examples={"train": 50_000, "validation": 2_000, "test": 2_000},
    builder="lra_tasks.tasks.order.builder:Order",
    references=references,
    render=render,
    labels=("A first", "B first"),
    disk_bytes=20_000_000,
    variant="64",
    is_whole=True,
    validate=validate,
    presets={
        "smoke": recipes.first_token(recipes.smoke("smoke", 64)),
        "quick": recipes.first_token(recipes.quick("64", 64, batch_size=64, num_steps=500)),
        "cpu": recipes.first_token(recipes.cpu("256", 256, num_steps=2800)),
        "small": recipes.first_token(recipes.small("1024", 1024)),
    },
)
