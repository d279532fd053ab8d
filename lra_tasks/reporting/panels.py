"""Small pictures for a page: one task each, as SVG that takes its colors from the page's style sheet."""

import re
from collections.abc import Callable
from html import escape
from io import StringIO
from typing import Any

from lra_tasks.reporting.grid import Grid
from lra_tasks.reporting.results import Report, base_of
from lra_tasks.reporting.style import STYLE, plain_ticks

INK = "#010203"  # becomes the color of the text around the picture
MARKERS = "os^Dv*"
GLYPHS = "●■▲◆▼★"  # the markers as text
SIZE = (3.4, 2.6)  # inches
LOOK: Any = STYLE | {
    **{f"{part}.color": INK for part in ("text", "xtick", "ytick")},
    **{f"axes.{part}color": INK for part in ("edge", "label")},
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "font.size": 10,
    "svg.fonttype": "none",
}


def speed_panel(grid: Grid, report: Report) -> str:
    """Returns the picture of accuracy against relative training speed as an SVG element.

    A dashed line is the accuracy of the best simple rule.

    Args:
      grid: The grid: the order of its mixers determines their markers and colors.
      report: Results of the task, with one row or more.
    """
    base, rule = base_of(report.rows), grid.rule(report)

    def plot(axes: Any) -> None:
        for row in report.rows:
            number = grid.mixers.index(row.mixer)
            speed = row.examples_per_second / base.examples_per_second
            style: Any = {"color": _color(number), "capsize": 2, "markersize": 6, "linewidth": 1.2}
            points, caps, bars = axes.errorbar(
                speed, row.accuracy, row.error(report.num_test), fmt=MARKERS[number % len(MARKERS)], **style
            )
            for artist in (points, *caps, *bars):
                artist.set_gid(f"mixer-{number}")
        if rule is not None:
            axes.axhline(report.baselines[rule], color=INK, linewidth=1, linestyle="--", zorder=1)
        axes.set_xlabel(f"training speed relative to {base.mixer}")
        axes.margins(x=0.08)

    return _svg(f"{report.title}: test accuracy against training speed", plot, grid, report)


def curve_panel(grid: Grid, report: Report) -> str:
    """Returns the picture of validation accuracy against time as an SVG element.

    Every run is a curve, with the mixer's marker at its best validation.

    Args:
      grid: The grid: the order of its mixers determines their markers and colors.
      report: Results of the task, with one row or more.
    """

    def plot(axes: Any) -> None:
        for row in report.rows:
            number = grid.mixers.index(row.mixer)
            style: Any = {"color": _color(number), "linewidth": 1.2, "markersize": 5}
            for run in (run for run in row.runs if run.curve):
                steps, accuracies, seconds = zip(*run.curve, strict=True)
                best = run.best_step if run.best_step in steps else steps[accuracies.index(max(accuracies))]
                marker = {"marker": MARKERS[number % len(MARKERS)], "markevery": [steps.index(best)]}
                (line,) = axes.plot(seconds, accuracies, **style, **marker)
                line.set_gid(f"mixer-{number}")
        axes.set_xlabel("time of training and validation")

    return _svg(f"{report.title}: validation accuracy against time", plot, grid, report, unit="s")


def _color(number: int) -> str:
    """Returns a color that becomes the mixer's; matplotlib does not write black, the default of SVG."""
    return f"#fe{number:04x}"


def _svg(title: str, plot: Callable[[Any], None], grid: Grid, report: Report, unit: str = "") -> str:
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    text = StringIO()
    with matplotlib.rc_context(LOOK | {"svg.hashsalt": title}):
        figure = Figure(figsize=SIZE, layout="constrained")
        axes = figure.subplots()
        plot(axes)
        axes.set_xscale("log")
        plain_ticks(axes.xaxis, unit, widest=60)
        axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], min_n_ticks=3))
        axes.set_ylabel("accuracy, %")
        metadata: Any = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(text, format="svg", metadata=metadata)
    return _for_page(text.getvalue(), title, grid, report)


def _for_page(svg: str, title: str, grid: Grid, report: Report) -> str:
    """Returns matplotlib's SVG file as an element: named, scalable, in the fonts and colors of the page."""
    view = re.findall(r'viewBox="[^"]*"', svg)[0]
    body = svg[svg.index("</defs>") + len("</defs>") :]  # after a style that would hold for the whole page
    body = re.sub(r' id="[\w.]+_\d+"', "", body)  # figure_1, the same in every picture
    body = re.sub(r"font-family: [^;]*; ", "", body)
    body = body.replace(INK, "currentColor").replace(STYLE["grid.color"].lower(), "var(--line)")
    for number, mixer in enumerate(grid.mixers):
        body = body.replace(_color(number), f"var(--mixer-{number})")
        told = f"<title>{escape(f'{mixer}: {grid.accuracy(mixer, report)}')}</title>"
        body = body.replace(f'<g id="mixer-{number}">', f'<g data-mixer="{number}">{told}')
    return f'<svg {view} role="img" aria-label="{escape(title)}"><title>{escape(title)}</title>{body}'
