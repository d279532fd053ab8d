"""The pictures of a report."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lra_tasks.reporting.results import Row
from lra_tasks.reporting.style import colours, spread

LETTER, NAME_HEIGHT = 7, 28  # points that a letter takes, and a mixer's name above its memory


def plot_speed(axes: Any, rows: Sequence[Row], references: dict[str, float]) -> None:
    speeds = [row.examples_per_second for row in rows]
    low, high = min(speeds) / 3, max(speeds) * 20  # room for the names of the lines
    largest = max(row.peak_bytes for row in rows)
    ceiling = 1.25 * max([row.accuracy for row in rows] + list(references.values()))
    for names, accuracy in _apart(references, 0.04 * ceiling):
        axes.annotate(
            names,
            (high, accuracy),
            (-2, 3),
            textcoords="offset points",
            ha="right",
            fontsize=9,
            color="#666666",
        )
    for accuracy in references.values():
        axes.axhline(accuracy, color="#999999", linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    colour = colours(row.mixer for row in rows)
    areas = [2200 * row.peak_bytes / largest for row in rows]
    for row, area in zip(rows, areas, strict=True):
        point, own = (row.examples_per_second, row.accuracy), colour[row.mixer]
        if row.deviation is not None:
            axes.errorbar(*point, row.deviation, color=own, capsize=3, zorder=2)
        axes.scatter(*point, area, color=own, alpha=0.55, zorder=3)
    axes.set_xscale("log", subs=(2, 5))
    _plain_ticks(axes)
    axes.set_xlim(low, high)
    axes.set_ylim(0, ceiling)
    axes.set_xlabel("training examples per second")
    axes.set_ylabel("test accuracy, %")
    axes.set_title("Accuracy against speed; area is peak memory")
    _name_mixers(axes, rows, [math.sqrt(area / math.pi) for area in areas], colour)


def _name_mixers(axes: Any, rows: Sequence[Row], radii: Sequence[float], colour: Mapping[str, str]) -> None:
    """Writes each name above its disk; of disks that are near, one name stands above the other."""
    axes.figure.draw_without_rendering()  # the layout decides how far apart values are
    scale = 72 / axes.figure.dpi
    points = [scale * axes.transData.transform((row.examples_per_second, row.accuracy)) for row in rows]
    top = scale * axes.bbox.y1
    short = [row.mixer.rpartition(":")[2] for row in rows]
    names = short if len(set(short)) == len(rows) else [row.mixer for row in rows]
    texts = [f"{name}\n{row.peak_bytes / 1e6:,.0f} MB" for name, row in zip(names, rows, strict=True)]
    half = [LETTER / 2 * (1 + max(map(len, text.split("\n")))) for text in texts]
    above = [up + radius + NAME_HEIGHT / 2 + 2 for (_, up), radius in zip(points, radii, strict=True)]
    columns: list[list[int]] = []  # of names that would touch if they had one height
    for number in sorted(range(len(rows)), key=lambda number: points[number][0] - half[number]):
        left = points[number][0] - half[number]
        if columns and left < max(points[other][0] + half[other] for other in columns[-1]):
            columns[-1].append(number)
        else:
            columns.append([number])
    for column in columns:
        column.sort(key=above.__getitem__)
        places = spread([above[number] for number in column], NAME_HEIGHT)
        lift = max(0.0, above[column[0]] - places[0])  # up, since below a name is its disk, if there is room
        lift -= max(0.0, places[-1] + lift + NAME_HEIGHT / 2 - top)
        for number, place in zip(column, places, strict=True):
            row, own = rows[number], colour[rows[number].mixer]
            moved = place + lift - above[number] > 1
            axes.annotate(
                texts[number],
                (row.examples_per_second, row.accuracy),
                (0, place + lift - points[number][1]),
                textcoords="offset points",
                ha="center",
                va="center",
                fontsize=10,
                color=own,
                fontweight="bold",
                arrowprops={"arrowstyle": "-", "color": own, "linewidth": 0.8} if moved else None,
            ).set_in_layout(False)  # or the axes would make room


def _apart(lines: dict[str, float], distance: float) -> list[tuple[str, float]]:
    """Returns the names of the lines and their heights, names of lines closer than `distance` in one."""
    groups: list[tuple[str, float]] = []
    for name, height in sorted(lines.items(), key=lambda line: line[1]):
        if groups and height - groups[-1][1] < distance:
            groups[-1] = (f"{groups[-1][0]}; {name}", height)
        else:
            groups.append((name, height))
    return groups


def plot_curves(axes: Any, rows: Sequence[Row]) -> None:
    colour = colours(row.mixer for row in rows)
    for row in rows:
        for number, run in enumerate(row.runs):
            _, accuracies, seconds = zip(*run.curve, strict=True)
            axes.plot(
                seconds,
                accuracies,
                color=colour[row.mixer],
                linewidth=2,
                marker="o",
                markersize=4,
                alpha=1.0 if len(row.runs) == 1 else 0.6,
                label=row.mixer if number == 0 else None,
            )
    axes.set_xscale("log", subs=(2, 5))
    _plain_ticks(axes)
    axes.set_xlabel("seconds of training and validation")
    axes.set_ylabel("validation accuracy, %")
    axes.set_ylim(bottom=0)
    axes.set_title("Learning curves, one a seed, all of the same steps")
    axes.legend(frameon=False, loc="lower right")


def _plain_ticks(axes: Any) -> None:
    """Writes 20 and 500 on a logarithmic axis, where matplotlib would write powers of ten."""
    for which in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        which(lambda value, _: f"{value:g}")
