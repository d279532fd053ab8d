"""Bytes as token ids."""

from collections.abc import Iterable

FIRST_TOKEN = 1
VOCAB_SIZE = 256 + FIRST_TOKEN


def content(tokens: Iterable[int]) -> bytes:
    """Returns the bytes of a text, without padding.

    Args:
      tokens: Token ids (T,) of any integer type, 0 .. 256.
    """
    return bytes(int(token) - FIRST_TOKEN for token in tokens if token)


def render(tokens: Iterable[int]) -> str:
    """Returns a text; bytes that are not valid UTF-8, as at a cut, become U+FFFD.

    Args:
      tokens: Token ids (T,) of any integer type, 0 .. 256.

    >>> render([72, 112, 112, 101, 34, 0, 0])
    'Good!'
    """
    return content(tokens).decode(errors="replace")
