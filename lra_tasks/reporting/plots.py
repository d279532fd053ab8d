"""The pictures of a report and of a grid: accuracy, speed and memory per mixer, and learning curves."""

import math
import statistics
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lra_tasks.files import writing
from lra_tasks.model.mixers import MIXERS
from lra_tasks.reporting.grid import Grid
from lra_tasks.reporting.results import Report, rounded
from lra_tasks.reporting.style import STYLE, colors, plain_ticks

DASHES: Sequence[Any] = ("-", "--", ":", "-.", (0, (8, 2)), (0, (1, 4)), (0, (6, 2, 1, 2, 1, 2)), (0, (3, 5)))
RULE = "#555555"  # color of simple rules and of reasons
ACROSS = 5  # panels of a grid's picture side by side
METADATA: dict[str, dict[str, Any]] = {  # without a date: equal results give equal files
    ".png": {"Software": None},
    ".svg": {"Date": None},
    ".pdf": {"CreationDate": None},
}


def draw(report: Report, path: Path) -> None:
    """Draws the picture of a report.

    Args:
      report: The report.
      path: PNG file.

    Raises:
      UsageError: The file cannot be written.
    """
    import matplotlib
    from matplotlib.figure import Figure  # without pyplot: a notebook keeps its own backend

    groups = _by_score(report.baselines)
    mixers = report.mixers
    above = 1.3 + _height(mixers, 0.42) * len(mixers)
    below = max(3.2, 1.4 + 0.25 * (len(report.rows) + sum(text.count("\n") + 1 for text in groups)))
    with matplotlib.rc_context(STYLE), writing(path):
        figure = Figure(figsize=(12, 0.4 + above + below), layout="constrained")
        grid = figure.add_gridspec(2, 3, width_ratios=[2.2, 1, 1], height_ratios=[above, below])
        accuracy, rate, memory = (figure.add_subplot(grid[0, column]) for column in range(3))
        curves, key = figure.add_subplot(grid[1, 0]), figure.add_subplot(grid[1, 1:])
        color = colors(mixers)
        lines = _plot_accuracy(accuracy, report, groups, color)
        _plot_bars(rate, mixers, {row.mixer: row.examples_per_second for row in report.rows}, color)
        _plot_bars(memory, mixers, {row.mixer: row.peak_bytes / 1e6 for row in report.rows}, color)
        for axes, title in (
            (rate, "Training speed,\nexamples/s"),
            (memory, "Memory of a\ntraining step, MB"),
        ):
            axes.set_title(title)
        key.axis("off")
        side: Any = {"alignment": "left", "borderaxespad": 0}
        if report.rows:
            _plot_curves(curves, report, color)
            named = curves.get_legend_handles_labels()
            key.add_artist(key.legend(*named, loc="upper left", title="Mixer", **side))
        else:
            curves.axis("off")
        if lines:
            title = "Baseline scores on the test split"
            key.legend(lines.values(), lines.keys(), loc="lower left", title=title, **side)
        unofficial = ", from an unofficial source" if "unofficial" in report.data else ""
        figure.suptitle(f"{report.title}{unofficial}", x=0.01, ha="left")
        figure.savefig(path, dpi=130, metadata=METADATA[".png"])


def draw_grid(grid: Grid, path: Path) -> None:
    """Draws the picture of a grid: one row per mixer, one panel per task, and a panel of relative speed.

    Args:
      grid: The grid, with one report or more.
      path: PNG, SVG or PDF file.

    Raises:
      UsageError: The file cannot be written.
    """
    import matplotlib
    from matplotlib.figure import Figure

    mixers = grid.mixers
    lines = math.ceil((len(grid.reports) + 1) / ACROSS)
    across = math.ceil((len(grid.reports) + 1) / lines)
    size = (1.8 + 2.4 * across, 0.6 + lines * (1.3 + _height(mixers, 0.3) * len(mixers)))
    with matplotlib.rc_context(STYLE | {"svg.fonttype": "none", "svg.hashsalt": "grid"}), writing(path):
        figure = Figure(figsize=size, layout="constrained")
        panels = list(figure.subplots(lines, across, sharey=True, squeeze=False).flat)
        color = colors(mixers)
        for report, axes in zip(grid.reports, panels, strict=False):
            _plot_points(axes, report, mixers, color)
            axes.set_title(textwrap.fill(report.title, 24))
            if rule := grid.rule(report):
                score = report.baselines[rule]
                axes.axvline(score, color=RULE, linewidth=1.2, linestyle="--", zorder=1)
                named = textwrap.fill(f"{score:.2f} %: {rule}", 28)
                axes.set_xlabel(named, color=RULE, fontsize=9, loc="left")
            axes.margins(x=0.12)
        if grid.base:
            _plot_speed(panels[len(grid.reports)], grid, mixers, color)
        for axes in panels[len(grid.reports) + bool(grid.base) :]:
            axes.axis("off")
        _name_rows(panels[0], mixers)
        title = f"Test accuracy, %, {_bars(grid.reports)}; dashed: the best simple rule, named below"
        layout: Any = figure.get_layout_engine()
        layout.set(wspace=0.05)
        figure.suptitle(textwrap.fill(title, 27 * across), x=0.01, ha="left", fontsize=11)
        figure.savefig(path, dpi=130, metadata=METADATA.get(path.suffix.lower()))


def label(mixer: str) -> str:
    """Returns a mixer's name without its module.

    >>> label("my_mixers:Mean"), label("hrr:rescale=True")
    ('Mean', 'hrr:rescale=True')
    """
    module, _, rest = mixer.partition(":")
    return mixer if module in MIXERS else rest or mixer


def _labels(mixers: Sequence[str]) -> list[str]:
    """Returns the names without modules where they stay distinct."""
    names = [label(mixer) for mixer in mixers]
    return names if len(set(names)) == len(names) else list(mixers)


def _lines(mixers: Sequence[str]) -> list[str]:
    """Returns the names with one option per line."""
    return [name.replace(",", ",\n") for name in _labels(mixers)]


def _height(mixers: Sequence[str], least: float) -> float:
    """Returns the height of a row in inches, so that names of several lines fit."""
    return max([least, *(0.1 + 0.18 * (name.count("\n") + 1) for name in _lines(mixers))])


def _by_score(baselines: dict[str, float]) -> dict[str, float]:
    """Returns one name per score; rules with equal scores share it."""
    names: dict[float, list[str]] = {}
    for name, score in sorted(baselines.items(), key=lambda each: each[1]):
        names.setdefault(round(score, 2), []).append(name)
    return {textwrap.fill(f"{score:.2f} %: {'; '.join(group)}", 58): score for score, group in names.items()}


def _plot_accuracy(
    axes: Any, report: Report, groups: dict[str, float], color: dict[str, str]
) -> dict[str, Any]:
    """Draws one row per mixer, and returns the lines of the baselines by name."""
    _plot_points(axes, report, report.mixers, color)
    lines = {
        name: axes.axvline(score, color=RULE, linewidth=1.2, linestyle=DASHES[number % len(DASHES)], zorder=1)
        for number, (name, score) in enumerate(groups.items())
    }
    several = any(len(row.runs) > 1 for row in report.rows)
    bars = textwrap.fill(_bars([report]), 50)
    axes.set_title("Test accuracy, %\n" + (bars if several or report.num_test else "one seed"))
    _name_rows(axes, report.mixers)
    axes.margins(x=0.08)
    return lines


def _bars(reports: Sequence[Report]) -> str:
    """Returns what the bars around the accuracies are."""
    several = {len(row.runs) > 1 for report in reports for row in report.rows}
    if several == {True}:
        return "mean ± standard deviation over seeds"
    if several == {True, False}:
        return "mean ± standard deviation over seeds, or ± one standard error of the test set"
    return "± one standard error of the test set"


def _plot_points(axes: Any, report: Report, mixers: Sequence[str], color: dict[str, str]) -> None:
    """Draws accuracy and interval, the seeds, or the reason why there is none, one row per mixer."""
    rows = {row.mixer: row for row in report.rows}
    for number, mixer in enumerate(mixers):
        if mixer not in rows:
            reason = textwrap.fill(report.reasons(mixer), 26)
            where: Any = {"x": 0.03, "y": number, "transform": axes.get_yaxis_transform(), "va": "center"}
            back = {"facecolor": "white", "edgecolor": "none", "pad": 1}
            axes.text(s=reason, color=RULE, fontsize=9, style="italic", bbox=back, **where)
            continue
        row = rows[mixer]
        style: Any = {"color": color[mixer], "capsize": 4, "markersize": 6, "linewidth": 2}
        axes.errorbar(row.accuracy, number, xerr=row.error(report.num_test), fmt="o", **style)
        if len(row.runs) > 1:
            single = [run.test_accuracy for run in row.runs]
            axes.plot(single, [number] * len(single), "o", color=color[mixer], markersize=3, alpha=0.5)
    axes.grid(axis="y", visible=False)


def _plot_speed(axes: Any, grid: Grid, mixers: Sequence[str], color: dict[str, str]) -> None:
    """Draws the speed relative to softmax: the median over the tasks, and small points for the tasks."""
    for number, mixer in enumerate(mixers):
        if speeds := grid.relative(mixer, lambda row: row.examples_per_second):
            style: Any = {"color": color[mixer], "linestyle": "none"}
            axes.plot(speeds, [number] * len(speeds), "o", markersize=3, alpha=0.5, **style)
            axes.plot(statistics.median(speeds), number, "d", markersize=7, **style)
    axes.axvline(1, color=RULE, linewidth=0.8, zorder=1)
    axes.set_xscale("log")
    axes.margins(x=0.12)
    plain_ticks(axes.xaxis, widest=40)
    axes.set_title("training speed ×")
    shown = ": median (large) and tasks (small)" if len(grid.reports) > 1 else ""
    axes.set_xlabel(textwrap.fill(f"relative to {grid.base}{shown}", 28), color=RULE, fontsize=9, loc="left")
    axes.grid(axis="y", visible=False)


def _name_rows(axes: Any, mixers: Sequence[str]) -> None:
    axes.set_yticks(range(len(mixers)), _lines(mixers))
    axes.set_ylim(len(mixers) - 0.4, -0.6)


def _plot_bars(axes: Any, mixers: Sequence[str], values: dict[str, float], color: dict[str, str]) -> None:
    bars = axes.barh(
        [mixers.index(mixer) for mixer in values],
        list(values.values()),
        0.6,
        color=[color[mixer] for mixer in values],
    )
    axes.bar_label(bars, [rounded(value) for value in values.values()], padding=4, fontsize=10)
    axes.set_xlim(0, 1.25 * max(values.values(), default=1))
    axes.set_ylim(len(mixers) - 0.4, -0.6)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(visible=False)
    axes.spines["bottom"].set_visible(False)


def _plot_curves(axes: Any, report: Report, color: dict[str, str]) -> None:
    names = dict(zip(report.mixers, _labels(report.mixers), strict=True))
    for row in report.rows:
        for number, run in enumerate(row.runs):
            _, accuracies, seconds = zip(*run.curve, strict=True)
            style: Any = {
                "color": color[row.mixer],
                "label": None if number else names[row.mixer],
                "linewidth": 2,
                "marker": "o",
                "markersize": 4,
                "alpha": 0.9 if len(row.runs) == 1 else 0.6,
            }
            axes.plot(seconds, accuracies, **style)
    axes.set_xscale("log")
    plain_ticks(axes.xaxis, "s")
    axes.set_xlabel("Time of training and validation")
    axes.set_title("Validation accuracy, % (one curve per seed)")
