"""Recall: which value belongs to a key?

A diagnostic task beside the arena: associative recall, in the manner of Zoology (Arora et al. 2023, arXiv
2312.04927). A sequence begins with a query. Noise follows, with some pairs of a key and a value in it. One of
the pairs has the key of the query, and the label is its value. Neither keys nor values repeat within a
sequence, so the set of values leaves one guess per pair. Example number i of seed s is a pure function of
(s, i), the same on every machine and every Python.

A pair is one token here, and two neighbors in Zoology. The task thus tests the search by content alone, which
small models learn within minutes. With two tokens, they first have to learn the neighborhood of tokens, which
takes far more examples.

Token ids: 0 padding; 1 .. 24 a query of key 0 .. 23; 25 .. 216 the pairs, 25 + 8 · key + value; 217 .. 232
noise.
"""

import random
import string
from collections.abc import Iterable, Sequence

from lra_tasks.errors import UsageError
from lra_tasks.task import Examples, Task, chance
from lra_tasks.tasks import recipes
from lra_tasks.tasks.sampling import distinct

KEYS, VALUES, NOISE = 24, 8, 16
LEAST_LENGTH = 32
FIRST_QUERY = 1
FIRST_PAIR = FIRST_QUERY + KEYS
FIRST_NOISE = FIRST_PAIR + KEYS * VALUES
SYMBOLS = (  # the position in this tuple is the token id
    "<pad>",
    *(f"{key}?" for key in range(KEYS)),
    *(f"{key}={value}" for key in range(KEYS) for value in range(VALUES)),
    *string.ascii_lowercase[:NOISE],
)


def example(seed: int, index: int, length: int, pairs: int = 6) -> tuple[bytes, int]:
    """Draws example number `index` of `seed`: a pure function of the arguments.

    The number n of tokens is uniform between length / 2 and `length`. Places, keys and values of the pairs
    are uniform among all choices without repeats; so is the pair that the query asks for. Noise is uniform.
    The random numbers are those of `random.Random(f"recall:{seed}:{index}").random()`.

    Args:
      seed: Any int.
      index: Any int ≥ 0. The label is its remainder modulo 8, so that labels are balanced.
      length: Largest number of tokens, at least 32; with fewer, examples would repeat each other.
      pairs: Number of pairs, 2 .. 8. With 8, every value is present, so that the values alone say nothing.

    Returns:
      The token ids as bytes, and the label 0 .. 7.

    Raises:
      UsageError: If a size is out of range.

    >>> tokens, label = example(seed=0, index=3, length=32, pairs=2)
    >>> render(tokens), label
    ('14? d d 10=4 f o h b f h 14=3 k i o k h n', 3)
    """
    if length < LEAST_LENGTH or not 2 <= pairs <= VALUES:
        raise UsageError(
            f"The sizes of recall must be a length of at least {LEAST_LENGTH} and 2 to {VALUES} pairs; got"
            f" {length} and {pairs}."
        )
    uniform = random.Random(f"recall:{seed}:{index}").random
    size = length - int(uniform() * (length // 2 + 1))
    tokens = bytearray(FIRST_NOISE + int(uniform() * NOISE) for _ in range(size))
    label = index % VALUES
    others = [value for value in range(VALUES) if value != label]
    values = [label, *(others[i] for i in distinct(uniform, pairs - 1, VALUES - 1))]
    keys = distinct(uniform, pairs, KEYS)
    tokens[0] = FIRST_QUERY + keys[0]
    for place, key, value in zip(distinct(uniform, pairs, size - 1), keys, values, strict=True):
        tokens[1 + place] = FIRST_PAIR + VALUES * key + value
    return bytes(tokens), label


def answer(tokens: Sequence[int]) -> int:
    """Returns the label of a sequence, the value of the key that its first token asks for.

    Args:
      tokens: Token ids (n,) of any integer type, without padding.

    Raises:
      UsageError: If the tokens are not such a sequence; the message names the fault.

    >>> answer([FIRST_QUERY + 3, FIRST_NOISE, FIRST_PAIR + 8 * 3 + 5])
    5
    """
    if not len(tokens):
        raise UsageError("The sequence is empty.")
    query, *body = map(int, tokens)
    unknown = [token for token in body if not FIRST_PAIR <= token < len(SYMBOLS)]
    if unknown:
        raise UsageError(
            f"The tokens after the first must have ids {FIRST_PAIR} to {len(SYMBOLS) - 1}; got {unknown[0]}."
        )
    if not FIRST_QUERY <= query < FIRST_PAIR:
        raise UsageError(
            f"The first token must be a query, {FIRST_QUERY} to {FIRST_PAIR - 1}; got the id {query}."
        )
    pairs = [divmod(token - FIRST_PAIR, VALUES) for token in body if token < FIRST_NOISE]
    value_of = dict(pairs)
    if not len(pairs) == len(value_of) == len(set(value_of.values())):
        raise UsageError("A key or a value occurs in two pairs.")
    if query - FIRST_QUERY not in value_of:
        raise UsageError(f"The query asks for key {query - FIRST_QUERY}, and no pair has it.")
    return value_of[query - FIRST_QUERY]


def validate(tokens: Sequence[int], label: int) -> str | None:
    """Returns the fault of an example, an invalid sequence or a wrong label, or None if there is none."""
    try:
        right = answer(tokens)
    except UsageError as error:
        return str(error)
    return None if label == right else f"The label is {label}, the value of the key is {right}."


def references(train: Examples, test: Examples) -> dict[str, float]:
    """Measures the accuracy of rules that do not read the key.

    The rules predict the most frequent label of `train`; a value of the sequence at random, the expected
    score of a rule for the set of values; and the value of the first pair, the one nearest to the query.

    Args:
      train: Examples with "tokens", integers (n,), and "label", int.
      test: Examples of the same form.

    Returns:
      Name of the rule → accuracy on `test` in percent.
    """
    values, labels = [], [example["label"] for example in test]
    for example in test:
        pairs = (token for token in map(int, example["tokens"]) if FIRST_PAIR <= token < FIRST_NOISE)
        values.append([(token - FIRST_PAIR) % VALUES for token in pairs])
    nearest = sum(own[0] == label for own, label in zip(values, labels, strict=True))
    return chance(train, test) | {
        "any value of the sequence": 100 * sum(1 / len(own) for own in values) / len(values),
        "the value nearest to the query": 100 * nearest / len(values),
    }


def render(tokens: Iterable[int]) -> str:
    """Returns the pairs as "key=value", the query as "key?" and the noise as letters, without padding.

    Args:
      tokens: Token ids (n,) of any integer type.

    >>> render([FIRST_QUERY + 3, FIRST_NOISE, FIRST_PAIR + 8 * 3 + 5, FIRST_NOISE + 1, 0])
    '3? a 3=5 b'
    """
    return " ".join(SYMBOLS[token] for token in tokens if token)


TASK = Task(
    name="recall",
    description="Diagnostic: predict the value of one key among a few pairs in noise.",
    length=64,
    vocab_size=len(SYMBOLS),
    num_classes=VALUES,
    num_examples={"train": 50_000, "validation": 2_000, "test": 2_000},
    builder="lra_tasks.tasks.recall.builder:Recall",
    references=references,
    render=render,
    labels=tuple(f"value {value}" for value in range(VALUES)),
    disk_bytes=20_000_000,
    variant="64",
    is_whole=True,
    validate=validate,
    presets={
        "smoke": recipes.first_token(recipes.smoke("smoke", 64)),
        "quick": recipes.first_token(recipes.quick("64", 64, batch_size=64, num_steps=1000)),
        "cpu": recipes.first_token(recipes.cpu("256", 256, num_steps=2800)),
        "small": recipes.first_token(recipes.small("1024", 1024)),
    },
)
