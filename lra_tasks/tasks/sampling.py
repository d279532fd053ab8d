"""Samples from the only random numbers that the standard library keeps the same across its versions."""

from collections.abc import Callable


def distinct(uniform: Callable[[], float], number: int, limit: int) -> list[int]:
    """Draws distinct integers 0 .. limit - 1 in random order, each choice with the same probability.

    Args:
      uniform: The method `random` of a `random.Random`.
      number: Number of integers, at most `limit`.
      limit: Number of integers to choose from.
    """
    chosen = list(range(limit))
    for i in range(number):
        j = i + int(uniform() * (limit - i))
        chosen[i], chosen[j] = chosen[j], chosen[i]
    return chosen[:number]
