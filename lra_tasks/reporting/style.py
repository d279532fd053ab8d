"""What the pictures of the arena share: their style, one colour a name, names that do not touch."""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

STYLE: Any = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E6E6E6",
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titlelocation": "left",
}
# Told apart by colour-blind readers too. The first are those of names that most pictures have.
COLOURS = ("#0072B2", "#D55E00", "#7F7F7F", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
FIXED = {"hrr": COLOURS[0], "softmax": COLOURS[1], "none": COLOURS[2], "projections": COLOURS[2]}


def colours(names: Iterable[str]) -> dict[str, str]:
    """Returns a colour for each name: "hrr" has the same in every picture, whoever stands beside it.

    >>> colours(["none", "hrr", "my_mixers:Mean"])
    {'none': '#7F7F7F', 'hrr': '#0072B2', 'my_mixers:Mean': '#009E73'}
    """
    others = itertools.cycle(COLOURS[3:])
    return {name: FIXED[name] if name in FIXED else next(others) for name in dict.fromkeys(names)}


def spread(heights: Sequence[float], apart: float) -> list[float]:
    """Returns ascending heights moved as little as may be, so that neighbours are `apart` at least.

    >>> spread([0.0, 1.0, 50.0], 10.0)
    [-4.5, 5.5, 50.0]
    """
    groups: list[list[float]] = []  # neighbours that touch, moved as one
    for height in heights:
        groups.append([height])
        while len(groups) > 1 and _places(groups[-1], apart)[0] - _places(groups[-2], apart)[-1] < apart:
            last = groups.pop()
            groups[-1].extend(last)
    return [place for group in groups for place in _places(group, apart)]


def _places(group: Sequence[float], apart: float) -> list[float]:
    middle = sum(group) / len(group)
    return [middle + apart * (number - (len(group) - 1) / 2) for number in range(len(group))]


def short(length: int) -> str:
    """Returns a length as a table's head or an axis has it.

    >>> short(4096), short(1048576), short(1000)
    ('4K', '1M', '1,000')
    """
    for unit, letter in ((1 << 20, "M"), (1 << 10, "K")):
        if length % unit == 0:
            return f"{length // unit}{letter}"
    return f"{length:,}"
