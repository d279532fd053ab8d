"""Draws the pages' pictures with the library's own functions and from recorded results.

    python docs/pictures.py

writes the SVG files of docs/pictures, as `make readme` does. They have no background and the width of a
phone.
"""

import json
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hrrformer import bind, cosine_similarity, hrr_attention, hrr_normal, unbind
from lra_tasks.bench import plot
from lra_tasks.reporting.style import BLUE, GREY, ORANGE

FOLDER = Path(__file__).parent / "pictures"
RECORDED = Path(__file__).parent.parent / "experiments" / "results" / "attention_cost.json"
WIDTH = 4.6  # inches
STYLE = {
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 11,
    "figure.constrained_layout.use": True,
    "legend.frameon": False,
    "font.size": 11,
    "svg.hashsalt": "hrrformer",  # the same names on every run
}


def cells(axes: Axes, values: np.ndarray, numbers: np.ndarray, limit: float) -> None:
    """Draws a table of numbers with cells colored by value: red below 0, blue above 0."""
    axes.imshow(values, cmap="RdBu", vmin=-1.5 * limit, vmax=1.5 * limit)
    for (row, column), number in np.ndenumerate(numbers):
        axes.text(column, row, str(number), ha="center", va="center")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def binding() -> Figure:
    """Draws all products of two entries, and the sums over entries with equal i + j."""
    size = 7
    x, y = hrr_normal(jax.random.key(0), (2, size))
    products, places = np.outer(x, y), np.add.outer(np.arange(size), np.arange(size)) % size
    figure, (above, below) = plt.subplots(2, 1, figsize=(WIDTH, 5.0), height_ratios=[size, 1])
    cells(above, products, places, float(np.abs(products).max()))
    above.set(title="x[i] y[j]; in each cell (i + j) mod H", xlabel="j")
    above.set_ylabel("i", rotation=0)
    bound = np.array(bind(x, y))
    cells(below, bound[None], np.arange(size)[None], float(np.abs(bound).max()))
    below.set_title("x ⊛ y: the cells of each number, summed")
    return figure


def retrieval() -> Figure:
    """Compares the vector that one key retrieves from a sum of eight bindings with all eight values."""
    pairs, size, asked = 8, 256, 2
    keys, values = hrr_normal(jax.random.key(0), (2, pairs, size))
    memory = jnp.sum(bind(keys, values), axis=0)
    cosines = np.array(cosine_similarity(unbind(memory, keys[asked]), values))
    figure, axes = plt.subplots(figsize=(WIDTH, 3.0))
    names = [f"value {number + 1}" for number in range(pairs)]
    axes.barh(names, cosines, color=[ORANGE if number == asked else BLUE for number in range(pairs)])
    axes.invert_yaxis()
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set(xlabel=f"cosine with the vector that key {asked + 1} retrieves")
    return figure


def noise() -> Figure:
    """Draws the cosine with the right value and with wrong ones, by the number of pairs in the sum."""
    counts = 2 ** np.arange(11)
    figure, axes = plt.subplots(figsize=(WIDTH, 3.8))
    for size, color, marker in ((64, ORANGE, "o"), (1024, BLUE, "s")):
        trials = 2**14 // size
        keys, values = hrr_normal(jax.random.key(0), (2, trials, int(counts[-1]), size))
        memories = jnp.cumsum(bind(keys, values), axis=1)[:, counts - 1]
        retrieved = unbind(memories, keys[:, :1])
        right = jnp.mean(cosine_similarity(retrieved, values[:, :1]), axis=0)
        others = hrr_normal(jax.random.key(1), (trials, 1, size))
        wrong = jnp.std(cosine_similarity(retrieved, others), axis=0)
        axes.plot(counts, right, marker, color=color, label=f"right value, H = {size:,}")
        axes.plot(counts, wrong, ":", color=color, label=f"wrong values, H = {size:,}: their spread")
    axes.plot(counts, 1 / np.sqrt(counts + 1), color=GREY, zorder=0, label="1 / √(n + 1)")
    axes.set_xscale("log", base=2)
    axes.set_xticks(counts[::2], [f"{count:,}" for count in counts[::2]])
    axes.set(xlabel="pairs in the memory, n", ylabel="cosine", ylim=(0, 1.05))
    figure.legend(fontsize=10, loc="outside lower left")
    return figure


def weights() -> Figure:
    """Draws scores and weights of sixteen tokens; the first four query with their own key."""
    length, size, asking = 16, 256, 4
    key, value, other = hrr_normal(jax.random.key(0), (3, length, size))
    query = jnp.where(jnp.arange(length)[:, None] < asking, key, other)
    scores = cosine_similarity(value, unbind(jnp.sum(bind(key, value), axis=0), query))
    rows = {"score a: the cosine": scores}
    for temperature in (1.0, 0.1):
        _, result = hrr_attention(
            *(x[:, None] for x in (query, key, value)), temperature=temperature, return_weights=True
        )
        rows[f"weight w at temperature {temperature:g}"] = result[0]
    figure, axes = plt.subplots(len(rows), 1, figsize=(WIDTH, 5.0), sharex=True)
    bars = {"queries with its own key": slice(0, asking), "queries with another key": slice(asking, length)}
    for each, (title, heights) in zip(axes, rows.items(), strict=True):
        for (name, some), color in zip(bars.items(), (BLUE, GREY), strict=True):
            each.bar(np.arange(1, length + 1)[some], np.array(heights)[some], color=color, label=name)
        each.set_title(title)
    for each in axes[1:]:
        each.axhline(1 / length, color="black", linewidth=0.8, linestyle=":")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower left")
    axes[-1].set(xlabel="token; dotted: 1 / T", xticks=range(1, length + 1, 3))
    return figure


def hankel() -> Figure:
    """Draws the matrix that unbinds, and its product beside the result of `unbind`."""
    size = 7
    x, m = hrr_normal(jax.random.key(1), (2, size))
    places = np.add.outer(np.arange(size), np.arange(size)) % size
    matrix = np.array(m)[places]
    figure, (above, below) = plt.subplots(2, 1, figsize=(WIDTH, 5.6), height_ratios=[2.4, 1])
    cells(above, matrix, places, float(np.abs(m).max()))
    above.set(title="M; in each cell its place in m, (i + j) mod H", xlabel="j")
    above.set_ylabel("i", rotation=0)
    below.bar(np.arange(size), np.array(x) @ matrix, color=BLUE, label="x M")
    below.plot(np.arange(size), np.array(unbind(m, x)), "o", color=ORANGE, label="unbind(m, x)")
    below.axhline(0, color="black", linewidth=0.8)
    below.set(xticks=np.arange(size))
    below.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=2)
    return figure


def cost() -> Figure:
    """Draws the recorded cost of a layer, forward and backward, against T; see
    experiments/attention_cost.py."""
    rows = json.loads(RECORDED.read_text())["rows"]
    both = [row for row in rows if (row["level"], row["direction"]) == ("layer", "both")]
    figure, panels = plt.subplots(2, 1, figsize=(WIDTH, 6.4))
    plot.draw(figure, panels, both, "implementation")
    return figure


PICTURES: tuple[Callable[[], Figure], ...] = (binding, retrieval, noise, weights, hankel, cost)


def main(folder: Path = FOLDER) -> None:
    with plt.rc_context(STYLE):
        for draw in PICTURES:
            figure = draw()
            figure.savefig(folder / f"{draw.__name__}.svg", transparent=True, metadata={"Date": None})
            plt.close(figure)


if __name__ == "__main__":
    main()
