"""ListOps: the value of a nested list of minima, maxima, medians and sums modulo ten.

An expression is a digit, or an operator, its arguments and a closing bracket: `[MAX 2 9 [MIN 4 7 ] 0 ]`
is 9. The task as the Long Range Arena sets it (Tay et al. 2021, arXiv 2011.04006) after Nangia and Bowman
(2018, arXiv 1804.06028), drawn here by our own generator: expression number i of seed s is a pure
function of (s, i), the same on every machine and every Python. This module needs the standard library only.

Token ids, fixed for good: 0 padding; 1 .. 10 the digits 0 .. 9; 11 `[MIN`; 12 `[MAX`; 13 `[MED`;
14 `[SM`; 15 `]`.
"""

import random
from collections.abc import Callable, Iterable, Sequence

from lra_tasks.errors import UsageError

OPERATORS = ("[MIN", "[MAX", "[MED", "[SM")
SYMBOLS = ("<pad>", *"0123456789", *OPERATORS, "]")  # the position in this tuple is the token id
IDS = {symbol: i for i, symbol in enumerate(SYMBOLS) if i}
ZERO, NINE, FIRST_OPERATOR, CLOSE = IDS["0"], IDS["9"], IDS["[MIN"], IDS["]"]

MAX_DEPTH = 10  # a node this deep is a digit; the root is at depth 1
OPERATOR_PROBABILITY = 0.25
MIN_ARGUMENTS, MAX_ARGUMENTS = 2, 10
MIN_LENGTH, MAX_LENGTH = 501, 1999  # the arena keeps 500 < length < 2,000


def _median(values: list[int]) -> int:
    """The middle value; of an even count, the mean of the middle two without its fraction."""
    values = sorted(values)
    return (values[(len(values) - 1) // 2] + values[len(values) // 2]) // 2


APPLY: tuple[Callable[[list[int]], int], ...] = (min, max, _median, lambda values: sum(values) % 10)


def _draw(uniform: Callable[[], float]) -> bytes | None:
    """Draws one tree; returns None as soon as it must come out too long."""
    tokens = bytearray()
    outer: list[int] = []  # missing arguments of the operators around the innermost open one
    missing = 1  # arguments of that one, at first the root
    length = 1  # of the whole expression if every missing argument is a digit
    while True:
        while missing:
            missing -= 1
            if len(outer) < MAX_DEPTH - 1 and uniform() < OPERATOR_PROBABILITY:
                tokens.append(FIRST_OPERATOR + int(uniform() * len(OPERATORS)))
                outer.append(missing)
                missing = MIN_ARGUMENTS + int(uniform() * (MAX_ARGUMENTS - MIN_ARGUMENTS + 1))
                length += 1 + missing
                if length > MAX_LENGTH:
                    return None
            else:
                tokens.append(ZERO + int(uniform() * 10))
        if not outer:
            return bytes(tokens)
        tokens.append(CLOSE)
        missing = outer.pop()


def expression(seed: int, index: int) -> tuple[bytes, int]:
    """Draws expression number `index` of `seed`: a pure function of the two.

    Trees are drawn until one has 501 .. 1,999 tokens. A node at depth 1 .. 9 (the root has depth 1) is an
    operator with probability 1/4, a node at depth 10 is a digit; operators, their 2 .. 10 arguments and
    digits are uniform. The random numbers are those of `random.Random(f"listops:{seed}:{index}").random()`,
    which the standard library keeps the same across its versions.

    Args:
      seed: Any int.
      index: Any int ≥ 0; neighboring indices are independent.

    Returns:
      The token ids as bytes, and the label 0 .. 9. About 0.4 ms, most of it for rejected trees.

    Source: the arena's generator as described by Tay et al. (2021). That one draws from a single stream,
    keeps a set of the trees it has seen and numbers its tokens by hash. Here every index is independent of
    the others, and the caller checks that no expression is repeated.

    >>> tokens, label = expression(seed=0, index=0)
    >>> label == evaluate(tokens), 500 < len(tokens) < 2000
    (True, True)
    """
    uniform = random.Random(f"listops:{seed}:{index}").random
    while True:
        tokens = _draw(uniform)
        if tokens is not None and len(tokens) >= MIN_LENGTH:
            return tokens, evaluate(tokens)


def evaluate(tokens: Sequence[int]) -> int:
    """Returns the value of an expression, 0 .. 9.

    `[MIN`, `[MAX` and `[MED` are minimum, maximum and median of the arguments, `[SM` is their sum modulo 10.
    The median of an even count is the mean of the middle two without its fraction, `int(np.median(...))`.

    Args:
      tokens: Token ids (T,) of any integer type, without padding.

    Raises:
      UsageError: If the tokens are not an expression; the message names the token, counted from 1.

    >>> evaluate(parse("[MED 1 8 [SM 9 9 9 ] 4 ]"))
    5
    """
    values: list[int] = []  # arguments so far of the innermost open operator, or the value of the whole
    outer: list[tuple[int, list[int]]] = []  # each open operator, and the arguments beside it
    for position, token in enumerate(map(int, tokens), 1):
        if values and not outer:
            raise UsageError(f"The expression ends before token {position}; nothing may follow it.")
        if ZERO <= token <= NINE:
            values.append(token - ZERO)
        elif FIRST_OPERATOR <= token < CLOSE:
            outer.append((token - FIRST_OPERATOR, values))
            values = []
        elif token != CLOSE:
            raise UsageError(f"Token {position} has the id {token}; ids are 1 to {CLOSE}.")
        elif not outer:
            raise UsageError(f"Token {position} is a closing bracket and no operator is open.")
        elif not values:
            raise UsageError(f"Token {position} closes {OPERATORS[outer[-1][0]]}, which has no argument.")
        else:
            operator, beside = outer.pop()
            beside.append(APPLY[operator](values))
            values = beside
    if outer or not values:
        raise UsageError(
            f"The expression stops after token {len(tokens)} with operators open: {len(outer)}."
            if outer
            else "The expression is empty."
        )
    return values[0]


def parse(text: str) -> bytes:
    """Returns the token ids of an expression in words, as bytes.

    Reads the arena's files and those of Nangia and Bowman, `( ( ( [MAX 3 ) 4 ) ] )`. The round brackets have
    no meaning and are left out. `evaluate` verifies that the tokens are an expression.

    Args:
      text: Symbols separated by white space.

    Raises:
      UsageError: If a word is not a symbol (the message names it and its position, counted from 1 without
        round brackets), or the round brackets do not balance.

    >>> list(parse("( ( ( [MAX 3 ) 4 ) ] )"))
    [12, 4, 5, 15]
    """
    if text.count("(") != text.count(")"):
        raise UsageError(
            f"The expression has {text.count('(')} opening and {text.count(')')} closing round brackets."
        )
    words = text.replace("(", " ").replace(")", " ").split()
    try:
        return bytes([IDS[word] for word in words])
    except KeyError as error:
        word = error.args[0]
        raise UsageError(
            f"'{word}', symbol {words.index(word) + 1} of the expression, is unknown. "
            f"The symbols are: {' '.join(SYMBOLS[1:])}."
        ) from None


def render(tokens: Iterable[int]) -> str:
    """Returns the expression in words, symbols between single spaces, padding left out.

    Args:
      tokens: Token ids (T,) of any integer type, 0 .. 15.

    >>> render([12, 4, 5, 15, 0, 0])
    '[MAX 3 4 ]'
    """
    return " ".join(SYMBOLS[token] for token in tokens if token)
