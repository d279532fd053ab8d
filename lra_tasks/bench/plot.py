"""Pictures of costs against length: logarithmic axes, a colour a contestant, names at the ends of lines."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lra_tasks.files import writing
from lra_tasks.reporting.style import STYLE, colours, short, spread

ENDS = {"memory": "then out of memory", "slow": "then too slow", "refused": ""}
LINE_HEIGHT = 16  # points between two names
NAME_WIDTH = 120  # points that a name and its exponent take at most
TIMES = ((1e-6, "µs"), (1e-3, "ms"), (1.0, "s"), (1e3, "s"))
SIZES = ((1e3, "kB"), (1e6, "MB"), (1e9, "GB"), (1e12, "TB"))


@dataclasses.dataclass(frozen=True)
class Line:
    """One contestant's costs: T → value, the exponent fitted to them, and why they end."""

    values: Mapping[int, float]
    power: float | None
    end: str = ""


def plot_attention(result: dict[str, Any], path: Path, *, stacked: bool = False) -> None:
    """Draws time and temporary memory of forward and backward against T, a row of panels for each level.

    Args:
      result: of `lra_tasks.bench.attention.bench_attention`.
      path: of the PNG.
      stacked: all panels one below the other, for a narrow page.

    Raises:
      UsageError: if the file cannot be written.
    """
    settings = result["settings"]
    panels = []
    for level in settings["levels"]:
        rows = [r for r in result["rows"] if (r["level"], r["direction"]) == (level, "both")]
        what = "a layer with its four projections" if level == "layer" else "attention alone"
        panels.append((what, rows, result["exponents"][level]["both"]))
    title = (
        f"Forward and backward: D = {settings['width']}, N = {settings['num_heads']},"
        f" batch {settings['batch_size']}, {settings['dtype']}, {result['environment']['devices'][0]}"
    )
    _figure(panels, "contestant", title, path, stacked=stacked)


def plot_train(result: dict[str, Any], path: Path) -> None:
    """Draws time and temporary memory of a training step against T.

    Args:
      result: of `lra_tasks.bench.train.bench_train`.
      path: of the PNG.

    Raises:
      UsageError: if the file cannot be written.
    """
    settings = result["settings"]
    title = (
        f"One training step of {settings['batch_size']} examples, preset {settings['preset']},"
        f" {result['environment']['devices'][0]}"
    )
    _figure([("the whole model", result["rows"], result["exponents"])], "mixer", title, path)


def _figure(
    panels: Sequence[tuple[str, Sequence[dict[str, Any]], Mapping[str, Any]]],
    name: str,
    title: str,
    path: Path,
    *,
    stacked: bool = False,
) -> None:
    import matplotlib
    from matplotlib.figure import Figure  # without pyplot: a notebook keeps its own backend

    colour = colours(row[name] for _, rows, _ in panels for row in rows)
    with matplotlib.rc_context(STYLE), writing(path):
        columns = 1 if stacked else 2
        height = 4.6 * len(panels) * 2 / columns
        figure = Figure(figsize=(6.5 * columns, 0.6 + height), layout="constrained")
        grid = figure.subplots(2 * len(panels) // columns, columns, squeeze=False).reshape(-1, 2)
        for (what, rows, powers), (time, memory) in zip(panels, grid, strict=True):
            for axes, quantity, word, units in (
                (time, "seconds", "Time", TIMES),
                (memory, "temp_bytes", "Temporary memory", SIZES),
            ):
                lines = {
                    each: _line([row for row in rows if row[name] == each], quantity, powers)
                    for each in dict.fromkeys(row[name] for row in rows)
                }
                axes.set_title(f"{word} of {what}")
                _draw(axes, lines, colour, lambda value, _, units=units: _with_unit(value, units))
        figure.suptitle(title, x=0.01, ha="left")
        figure.savefig(path, dpi=130, metadata={"Software": None})


def _line(rows: Sequence[dict[str, Any]], quantity: str, powers: Mapping[str, Any]) -> Line:
    name = rows[0].get("contestant") or rows[0]["mixer"]
    values = {row["length"]: row[quantity] for row in rows if row[quantity]}
    missing = [row["missing"] for row in rows if row["missing"] and not row[quantity]]
    return Line(values, powers[name][quantity], ENDS[missing[0]] if missing else "")


def _draw(
    axes: Any, lines: Mapping[str, Line], colours: Mapping[str, str], formatter: Callable[[float, Any], str]
) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    lengths = sorted({length for line in lines.values() for length in line.values})
    if not lengths:
        axes.text(0.5, 0.5, "nothing was measured", ha="center", transform=axes.transAxes)
        return
    for name, line in lines.items():
        axes.plot(
            line.values.keys(), line.values.values(), "o-", color=colours[name], linewidth=2, markersize=4
        )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlim(lengths[0] / 1.1, lengths[-1] * (lengths[-1] / lengths[0]) ** 0.42 * 1.3)
    axes.set_xticks(lengths, [short(length) for length in lengths])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(LogLocator(10, numticks=12))
    axes.yaxis.set_major_formatter(FuncFormatter(formatter))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("T, tokens")
    _name_lines(axes, lines, colours)


def _name_lines(axes: Any, lines: Mapping[str, Line], colours: Mapping[str, str]) -> None:
    """Writes each name beside the last point of its line; names that would touch stand apart."""
    axes.figure.draw_without_rendering()  # the layout decides how far apart values are
    scale = 72 / axes.figure.dpi
    points = {
        name: scale * axes.transData.transform((max(line.values), line.values[max(line.values)]))
        for name, line in lines.items()
        if line.values
    }
    columns: dict[float, list[str]] = {}  # names that stand under each other, by where they begin
    for name, (across, _) in sorted(points.items(), key=lambda each: -each[1][0]):
        near = next((column for column in columns if column - across < NAME_WIDTH), across)
        columns.setdefault(near, []).append(name)
    for column, names in columns.items():
        group = sorted(names, key=lambda name: points[name][1])
        apart = LINE_HEIGHT * (2 if any(lines[name].end for name in group) else 1)
        places = spread([points[name][1] for name in group], apart)
        for name, place in zip(group, places, strict=True):
            line, (across, up) = lines[name], points[name]
            end = max(line.values)
            power = "" if line.power is None else f"  T^{line.power:.2f}"
            axes.annotate(
                f"{name}{power}" + (f",\n{line.end}" if line.end else ""),
                (end, line.values[end]),
                (12 + column - across, place - up),
                textcoords="offset points",
                va="center",
                color=colours[name],
                fontsize=12,
                fontweight="bold",
                annotation_clip=False,
                arrowprops={"arrowstyle": "-", "color": colours[name], "linewidth": 0.8, "shrinkB": 3},
            )


def _with_unit(value: float, units: Sequence[tuple[float, str]]) -> str:
    """Writes 0.01 s as 10 ms."""
    size, unit = next((each for each in reversed(units) if value >= 0.999 * each[0]), units[0])
    size = 1.0 if unit == "s" else size
    return f"{value / size:,.4g} {unit}"
