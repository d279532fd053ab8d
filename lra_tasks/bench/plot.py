"""Pictures of the benchmarks: time and temporary memory against T, one color per implementation."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lra_tasks.files import writing
from lra_tasks.reporting.style import STYLE, colors, plain_ticks, short

ENDS = {"memory": " (then out of memory)", "slow": " (then too slow)", "refused": " (does not run here)"}


def plot(result: dict[str, Any], path: Path, *, stacked: bool = False) -> None:
    """Draws relative time and temporary memory of training steps, or of forward and backward of attention.

    Args:
      result: Result of `bench_train`, or of `bench_attention`, whose first level is drawn.
      path: PNG file.
      stacked: Whether the panels are one below the other, for a narrow page.

    Raises:
      UsageError: The file cannot be written.
    """
    import matplotlib
    from matplotlib.figure import Figure  # without pyplot: a notebook keeps its own backend

    settings, device, rows = result["settings"], result["environment"]["devices"][0], result["rows"]
    if "mixers" in settings:
        name, title = (
            "mixer",
            f"Training step: {settings['batch_size']} examples, preset {settings['preset']}",
        )
    else:
        name, level = "implementation", settings["levels"][0]
        rows = [row for row in rows if (row["level"], row["direction"]) == (level, "both")]
        sizes = f"D = {settings['width']}, N = {settings['num_heads']}, batch {settings['batch_size']}"
        title = f"Attention {level}, forward and backward: {sizes}, {settings['dtype']}"
    title = f"{title}, {device}"
    with matplotlib.rc_context(STYLE), writing(path):
        figure = Figure(figsize=(6.5, 8.4) if stacked else (11.5, 4.8), layout="constrained")
        draw(figure, figure.subplots(2, 1) if stacked else figure.subplots(1, 2), rows, name)
        figure.suptitle(title.replace(": ", ":\n") if stacked else title, x=0.01, ha="left", fontsize=12)
        figure.savefig(path, dpi=130, metadata={"Software": None})


def draw(figure: Any, panels: Any, rows: Sequence[dict[str, Any]], name: str) -> None:
    """Draws time and temporary memory against T, and one legend below both.

    The time is that relative to the reference, or in seconds where the reference was not measured.

    Args:
      figure: Figure of the panels.
      panels: Axes for time and memory.
      rows: Measurements, one per name and length.
      name: Key of the name in a row.
    """
    lengths = sorted({row["length"] for row in rows})
    color = colors(row[name] for row in rows)
    reference = next((row[name] for row in rows if row["ratio"] == 1.0), None)
    relative = reference is not None and all(row["ratio"] for row in rows if row["seconds"])
    words = f"Time relative to {reference}" if relative else "Time"
    for axes, quantity, title, unit in (
        (panels[0], "ratio" if relative else "seconds", words, "×" if relative else "s"),
        (panels[1], "temp_bytes", "Temporary memory", "B"),
    ):
        for each in color:
            own = [row for row in rows if row[name] == each]
            ends = [ENDS[row["missing"]] for row in own if row["missing"]]
            values = {row["length"]: row[quantity] for row in own if row[quantity]}
            line: dict[str, Any] = {"marker": "o", "markersize": 4, "linewidth": 2, "zorder": 2}
            if each == reference:  # wide, since others are close to it
                line = {"linewidth": 7, "alpha": 0.4, "zorder": 1}
            line |= {"color": color[each], "label": each + "".join(ends[:1])}
            axes.plot(values.keys(), values.values(), **line)
        axes.set_title(title)
        axes.set_xlabel("T, tokens")
        axes.set_xscale("log", base=2)
        axes.set_xticks(lengths, [short(length) for length in lengths])
        axes.tick_params(axis="x", which="minor", bottom=False)
        axes.set_yscale("log")
        plain_ticks(axes.yaxis, unit)
    columns = max(2, round(figure.get_figwidth() / 3))
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower left", ncols=columns)
