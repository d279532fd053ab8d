"""The picture of a report: accuracy, speed and memory per mixer, and learning curves."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lra_tasks.files import writing
from lra_tasks.model.mixers import MIXERS
from lra_tasks.reporting.results import Report, Row, rounded
from lra_tasks.reporting.style import STYLE, colors, plain_ticks

DASHES: Sequence[Any] = ("-", "--", ":", "-.", (0, (8, 2)), (0, (1, 4)), (0, (6, 2, 1, 2, 1, 2)), (0, (3, 5)))


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
    above = 1.3 + 0.42 * len(report.rows)
    below = max(3.2, 1.4 + 0.25 * (len(report.rows) + sum(text.count("\n") + 1 for text in groups)))
    with matplotlib.rc_context(STYLE), writing(path):
        figure = Figure(figsize=(12, 0.4 + above + below), layout="constrained")
        grid = figure.add_gridspec(2, 3, width_ratios=[2.2, 1, 1], height_ratios=[above, below])
        accuracy, rate, memory = (figure.add_subplot(grid[0, column]) for column in range(3))
        curves, key = figure.add_subplot(grid[1, 0]), figure.add_subplot(grid[1, 1:])
        color = colors(row.mixer for row in report.rows)
        lines = _plot_accuracy(accuracy, report, groups, color)
        _plot_bars(rate, report.rows, [row.examples_per_second for row in report.rows], color)
        _plot_bars(memory, report.rows, [row.peak_bytes / 1e6 for row in report.rows], color)
        for axes, title in (
            (rate, "Training speed,\nexamples/s"),
            (memory, "Memory of a\ntraining step, MB"),
        ):
            axes.set_title(title)
        _plot_curves(curves, report.rows, color)
        key.axis("off")
        side: Any = {"alignment": "left", "borderaxespad": 0}
        mixers = key.legend(*curves.get_legend_handles_labels(), loc="upper left", title="Mixer", **side)
        key.add_artist(mixers)
        if lines:
            title = "Baseline scores on the test split"
            key.legend(lines.values(), lines.keys(), loc="lower left", title=title, **side)
        unofficial = ", from an unofficial source" if "unofficial" in report.data else ""
        figure.suptitle(f"{report.title}{unofficial}", x=0.01, ha="left")
        figure.savefig(path, dpi=130, metadata={"Software": None})


def label(mixer: str) -> str:
    """Returns a mixer's name without its module.

    >>> label("my_mixers:Mean"), label("hrr:rescale=True")
    ('Mean', 'hrr:rescale=True')
    """
    module, _, rest = mixer.partition(":")
    return mixer if module in MIXERS else rest or mixer


def _labels(rows: Sequence[Row]) -> list[str]:
    """Returns the names without modules where they stay distinct."""
    names = [label(row.mixer) for row in rows]
    return names if len(set(names)) == len(names) else [row.mixer for row in rows]


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
    for number, row in enumerate(report.rows):
        error = row.error(report.num_test)
        axes.errorbar(
            row.accuracy,
            number,
            xerr=error,
            fmt="o",
            color=color[row.mixer],
            capsize=4,
            markersize=6,
            linewidth=2,
        )
        if len(row.runs) > 1:
            single = [run.test_accuracy for run in row.runs]
            axes.plot(single, [number] * len(single), "o", color=color[row.mixer], markersize=3, alpha=0.5)
    lines = {
        name: axes.axvline(
            score, color="#555555", linewidth=1.2, linestyle=DASHES[number % len(DASHES)], zorder=1
        )
        for number, (name, score) in enumerate(groups.items())
    }
    several = any(len(row.runs) > 1 for row in report.rows)
    bar = "mean ± standard deviation over seeds" if several else "± one standard error of the test set"
    axes.set_title("Test accuracy, %\n" + (bar if several or report.num_test else "one seed"))
    _name_rows(axes, report.rows)
    axes.margins(x=0.08)
    axes.grid(axis="y", visible=False)
    return lines


def _name_rows(axes: Any, rows: Sequence[Row]) -> None:
    names = [name.replace(",", ",\n") for name in _labels(rows)]
    axes.set_yticks(range(len(rows)), names)
    axes.set_ylim(len(rows) - 0.4, -0.6)


def _plot_bars(axes: Any, rows: Sequence[Row], values: Sequence[float], color: dict[str, str]) -> None:
    bars = axes.barh(range(len(rows)), values, 0.6, color=[color[row.mixer] for row in rows])
    axes.bar_label(bars, [rounded(value) for value in values], padding=4, fontsize=10)
    axes.set_xlim(0, 1.25 * max(values))
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(visible=False)
    axes.spines["bottom"].set_visible(False)


def _plot_curves(axes: Any, rows: Sequence[Row], color: dict[str, str]) -> None:
    for row, name in zip(rows, _labels(rows), strict=True):
        for number, run in enumerate(row.runs):
            _, accuracies, seconds = zip(*run.curve, strict=True)
            style = {
                "linewidth": 2,
                "marker": "o",
                "markersize": 4,
                "alpha": 0.9 if len(row.runs) == 1 else 0.6,
            }
            axes.plot(seconds, accuracies, color=color[row.mixer], label=None if number else name, **style)
    axes.set_xscale("log")
    plain_ticks(axes.xaxis, "s")
    axes.set_xlabel("Time of training and validation")
    axes.set_title("Validation accuracy, % (one curve per seed)")
