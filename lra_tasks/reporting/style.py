"""Style of all pictures: one color per name, short numbers, plain ticks."""

import itertools
from collections.abc import Iterable
from typing import Any

from lra_tasks.model.mixers import MIXERS

STYLE: Any = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E6E6E6",
    "font.size": 11,
    "text.parse_math": False,  # names may contain dollar signs
    "axes.titlesize": 12,
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "legend.fontsize": 10,
}
# Distinct for color-blind readers too (Okabe and Ito).
BLUE, ORANGE, GREY, GREEN = "#0072B2", "#D55E00", "#7F7F7F", "#009E73"
PINK, YELLOW, SKY, BLACK = "#CC79A7", "#E69F00", "#56B4E9", "#000000"
FIXED = {
    "hrr": BLUE,
    "softmax": ORANGE,
    "none": GREY,
    "projections": GREY,
    "authors": GREEN,
    "hrr-matmul": "#004B75",
    "hrr-fft": SKY,
    "hrr-pallas": PINK,
    "softmax-cudnn": YELLOW,
}
OTHERS = (
    *(GREEN, PINK, YELLOW, SKY, BLACK, "#8C564B", "#004B75", "#4B0082", "#B8DE29", "#EE3377"),
    *("#999933", "#B22222", "#00C5C8", "#6B4C9A", "#882255", "#2CA02C", "#F4A582", "#A0A0FF"),
)
FIXED.update(zip((name for name in MIXERS if name not in FIXED), OTHERS, strict=False))
PREFIXES = {
    "s": ((1.0, ""), (1e-3, "m"), (1e-6, "µ")),
    "B": ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")),
}


def colors(names: Iterable[str]) -> dict[str, str]:
    """Returns one color per name; built-in mixers have the same color in every picture.

    >>> colors(["none", "hrr", "my_mixers:Mean"])
    {'none': '#7F7F7F', 'hrr': '#0072B2', 'my_mixers:Mean': '#009E73'}
    """
    names = list(dict.fromkeys(names))
    taken = {FIXED[name] for name in names if name in FIXED}
    others = itertools.cycle([color for color in OTHERS if color not in taken])
    return {name: FIXED[name] if name in FIXED else next(others) for name in names}


def on_dark(color: str) -> str:
    """Returns a color for a dark page: mixed with white until its contrast to the page is 3 or more.

    >>> on_dark("#0072B2"), on_dark("#004B75"), on_dark("#000000")
    ('#0072b2', '#2e6b8e', '#ffffff')
    """
    if color == BLACK:
        return "#ffffff"
    channels = [int(color[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    for share in range(0, 100, 2):
        mixed = [channel + (1 - channel) * share / 100 for channel in channels]
        linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in mixed]
        luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
        if luminance >= 3 * 0.06 - 0.05:  # the page has a luminance of 0.01
            return "#" + "".join(f"{round(255 * value):02x}" for value in mixed)
    return "#ffffff"


def short(length: int) -> str:
    """Returns a length for the head of a table or the tick of an axis.

    >>> short(4096), short(1048576), short(1000)
    ('4K', '1M', '1,000')
    """
    for unit, letter in ((1 << 20, "M"), (1 << 10, "K")):
        if length % unit == 0:
            return f"{length // unit}{letter}"
    return f"{length:,}"


def with_unit(value: float, unit: str) -> str:
    """Returns a number with its unit: "s" and "B" take the prefix that fits, other units none.

    >>> with_unit(0.01, "s"), with_unit(20, "s"), with_unit(25e6, "B"), with_unit(5, "×")
    ('10 ms', '20 s', '25 MB', '5 ×')
    """
    for size, prefix in PREFIXES.get(unit, ()):
        if value >= 0.999 * size:
            return f"{value / size:,.4g} {prefix}{unit}"
    return f"{value:,.4g} {unit}".rstrip()


def plain_ticks(axis: Any, unit: str = "", widest: float = 300) -> None:
    """Labels a logarithmic axis with few numbers such as 10 ms, the fewer the wider its range.

    Args:
      axis: Axis of matplotlib.
      unit: Unit of `with_unit`.
      widest: Ratio of the ends from which on only powers of ten have a label; less for a narrow picture.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    low, high = axis.get_view_interval()
    some = LogLocator(10, subs=(1, 2, 5) if high / low < widest else (1,), numticks=12)
    axis.set_major_locator(MaxNLocator(4) if high / low < 5 else some)
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: with_unit(value, unit)))
