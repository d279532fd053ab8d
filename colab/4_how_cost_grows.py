# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# [![Open in Colab][badge]][colab]
#
# # How cost grows
#
# This notebook measures time and memory of one attention layer, forward and backward, from a thousand tokens
# to a million. Softmax attention compares every token with every other. Its curve stops where that no longer
# fits or takes too long.
#
# [badge]: https://colab.research.google.com/assets/colab-badge.svg
# [colab]: https://colab.research.google.com/github/hrrformer/hrrformer/blob/main/colab/4_how_cost_grows.ipynb

# %%
import importlib.metadata
import importlib.util
import os
import subprocess
import sys

if "google.colab" in sys.modules:  # elsewhere install the library as in its README
    plugins = {"jax_cuda12_plugin": "cuda12", "jax_cuda13_plugin": "cuda13", "libtpu": "tpu"}
    accelerators = ",".join(plugins[name] for name in plugins if importlib.util.find_spec(name))
    jax_and_plugins = f"jax[{accelerators}]"  # a plugin fits one version of JAX only
    numpy = f"numpy=={importlib.metadata.version('numpy')}"  # keep the version that this kernel has loaded
    library = "hrrformer[lra] @ git+https://github.com/hrrformer/hrrformer"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", jax_and_plugins, numpy, library]
    subprocess.run(pip, check=True)

# %%
import tempfile
from pathlib import Path

import jax
from IPython.display import Image, Markdown, display

from lra_tasks.bench.attention import bench_attention
from lra_tasks.bench.plot import plot
from lra_tasks.bench.settings import AttentionSettings

K = 1024
size = os.environ.get("HRRFORMER_NOTEBOOK_SIZE", "default")  # the tests set "small"
LENGTHS = {"default": (K, 4 * K, 16 * K, 64 * K, 256 * K, K * K), "small": (K // 4,)}[size]
print(jax.devices())

# %% [markdown]
# ## The measurement
#
# The layer has 32 features and one head. It reads one sequence of random numbers and computes a loss and all
# gradients.
#
# - `hrr` is this library's layer.
# - `softmax` is JAX's own attention, which stores the weights of all pairs of tokens.
# - `projections` is the layer without attention: the minimum cost of any such layer.
#
# The compiler reports memory: the temporary arrays beside inputs and results. Times are medians of rounds in
# shuffled order. Calls that need more memory than is free, or more than a few seconds, are left out.

# %%
settings = AttentionSettings(
    levels=("layer",),
    implementations=("hrr", "softmax", "projections"),
    lengths=LENGTHS,
    width=32,
    num_heads=1,
    repeats=3,
    seconds=15.0,
)
result = bench_attention(settings)

# %%
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder, "costs.png")
    plot(result, path, stacked=True)
    display(Image(path.read_bytes(), width=640))

# %% [markdown]
# The first panel shows the time relative to the layer without attention: a flat line grows linearly with $T$.
# In the second, both axes are logarithmic: memory that grows with $T$ is a line of slope 1, with $T^2$ one of
# slope 2. The same as numbers, two columns of times and then two of memory:


# %%
def written(value, units):
    """The value in the largest unit that leaves at least 1 before the point."""
    scale, unit = next((u for u in units if value >= u[0]), units[-1])
    return f"{value / scale:,.3g} {unit}"


SECONDS = ((1, "s"), (1e-3, "ms"), (1e-6, "µs"))
BYTES = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
both = [row for row in result["rows"] if row["direction"] == "both"]
table = ["| T | hrr | softmax | hrr | softmax |", "| ---: | ---: | ---: | ---: | ---: |"]
for length in LENGTHS:
    cells = []
    for quantity, units in (("seconds", SECONDS), ("temp_bytes", BYTES)):
        for name in ("hrr", "softmax"):
            (row,) = (r for r in both if (r["length"], r["implementation"]) == (length, name))
            cells.append(written(row[quantity], units) if row[quantity] else "–")
    table.append(f"| {length:,} | {' | '.join(cells)} |")
display(Markdown("\n".join(table)))
for row in both:
    if row["missing"]:
        print(f"{row['implementation']}, T = {row['length']:,}: {row['note']}")

# %% [markdown]
# ## Conclusions
#
# - HRR attention takes about twice the time of its projections, and the two lines are parallel.
# - On shorter sequences softmax attention may be faster. The crossing depends on width, heads and machine.
# - Softmax attention does not have to store all weights. Fused kernels for GPUs recompute them block by
#   block, which saves memory, not operations. On a GPU `lra bench attention` measures such a kernel too.
# - Cost does not measure learning. See [the arena](3_arena_in_five_minutes.ipynb) for accuracy.
