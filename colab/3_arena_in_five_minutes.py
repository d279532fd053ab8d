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
# # The arena in five minutes
#
# The Long Range Arena is a benchmark for models of long sequences. This notebook compares HRR attention,
# softmax attention and no attention on one of its tasks, ListOps, at the full length of 2,000 tokens. The
# learning curves grow while you watch.
#
# [badge]: https://colab.research.google.com/assets/colab-badge.svg
# [colab]: https://colab.research.google.com/github/hrrformer/hrrformer/blob/main/colab/3_arena_in_five_minutes.ipynb

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
import dataclasses
import io
import json
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from IPython.display import Image, Markdown, display
from matplotlib.figure import Figure

import lra_tasks

size = os.environ.get("HRRFORMER_NOTEBOOK_SIZE", "default")  # the tests set "small"
work = tempfile.TemporaryDirectory()  # data and runs; gone with the notebook's kernel
data_dir, runs = Path(work.name, "data"), Path(work.name, "runs")
print(jax.devices())

# %% [markdown]
# ## The task
#
# An expression has nested minima, maxima, medians and sums modulo 10 of digits. The answer is a digit. The
# next cell draws expressions from a seed.

# %%
lra_tasks.prepare(
    "listops", data_dir, variant="smoke"
)  # a few of the arena's kind; "default" for all of them
examples = lra_tasks.load("listops", "train", data_dir, variant="smoke")
for number in range(3):
    text = examples.task.render(examples[number]["tokens"])
    print(f"{text[:60]} … = {examples[number]['label']}   ({len(examples[number]['tokens']):,} tokens)")

# %% [markdown]
# ## The comparison
#
# All models share one small encoder, one order of the data and one schedule. Only the mixer differs. The
# settings are those of the preset `quick`, which classifies from the first token.

# %%
quick = lra_tasks.preset("listops", "quick")
steps = dataclasses.replace(
    quick, variant="smoke", num_steps=100, eval_every=20, eval_examples=128, log_every=5
)
tiny = lra_tasks.preset("listops", "smoke")
settings = {"default": steps, "small": tiny}[size]
print(f"{settings.num_steps} steps of {settings.batch_size} examples, {settings.length:,} tokens")

# %% [markdown]
# Every run writes its measurements to `metrics.jsonl` in its folder. The functions report each step to a
# `Progress`; this one draws the measurements so far.

# %%
MIXERS = {"hrr": "#0072B2", "none": "#7F7F7F", "softmax": "#D55E00"}


def rows(run, split):
    """The measurements of a run so far on a split."""
    path = Path(run, "metrics.jsonl")
    lines = path.read_text().splitlines() if path.exists() else []
    return [row for row in map(json.loads, lines) if row["split"] == split]


def curves(title):
    """Loss against steps, accuracy against seconds."""
    figure = Figure(
        figsize=(6.4, 6.4), dpi=110, layout="constrained"
    )  # without pyplot, so that it is shown only once
    loss, accuracy = figure.subplots(2, 1)
    for mixer, colour in MIXERS.items():
        run = runs / f"{mixer}-seed0"
        trained, validated = rows(run, "train"), rows(run, "validation")
        loss.plot([r["step"] for r in trained], [r["loss"] for r in trained], color=colour, label=mixer)
        seconds, percent = [r["seconds"] for r in validated], [r["accuracy"] for r in validated]
        accuracy.plot(seconds, percent, "o-", color=colour, linewidth=2, markersize=4, label=mixer)
    loss.set_xlim(0, settings.num_steps)
    loss.set_xlabel("training step")
    loss.set_ylabel("training loss")
    loss.set_title(title, loc="left", fontsize=10)
    loss.legend(frameon=False)
    accuracy.set_xscale("log")
    accuracy.xaxis.set_major_formatter("{x:g}")
    accuracy.set_ylim(0, 50)
    accuracy.set_xlabel("seconds of training and validation")
    accuracy.set_ylabel("validation accuracy, %")
    for ax in (loss, accuracy):
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(color="#E6E6E6")
    png = io.BytesIO()
    figure.savefig(png, dpi=110)
    return Image(png.getvalue())


class LiveCurves(lra_tasks.Progress):
    """Shows the curves and redraws them every few seconds, instead of lines of text."""

    def __init__(self, every=2.0):
        super().__init__()
        self.every, self.drawn = every, time.monotonic()
        self.shown = display(curves("starting"), display_id=True)

    def __enter__(self):
        return self  # without a bar and without a thread that prints

    def show(self, message, done=0, total=0, note=""):
        if time.monotonic() - self.drawn > self.every:
            self.shown.update(curves(f"{message}  {done:,}/{total:,}" if total else message))
            self.drawn = time.monotonic()

    def say(self, message):
        pass  # the curves show it


with LiveCurves() as progress:
    report = lra_tasks.compare("listops", list(MIXERS), settings, runs, data_dir=data_dir, progress=progress)
    progress.shown.update(curves(f"ListOps, {settings.length:,} tokens: all runs have ended"))

# %%
display(Markdown(report.table()))

# %% [markdown]
# ## How to read it
#
# Much of ListOps can be guessed without reading the expression. The next table lists the accuracy of such
# guesses on the same test split. A model with about the same accuracy has learned no more than that rule.

# %%
lines = "\n".join(f"| {name} | {value:.1f} |" for name, value in report.baselines.items())
display(Markdown(f"| guess | test accuracy, % |\n| --- | ---: |\n{lines}"))
num_test = len(lra_tasks.load("listops", "test", data_dir, variant="smoke"))
error = 100 * np.sqrt(0.35 * 0.65 / num_test)
print(f"{num_test} test examples: an accuracy of 35 % is uncertain by ± {error:.1f} (one standard error)")

# %% [markdown]
# - The upper panel compares the mixers at equal steps, the lower one at equal time. In the lower one HRR
#   attention is ahead of softmax attention. Its time grows with the length, that of softmax attention with
#   the square.
# - `none` is the same model without attention: each token alone. Compare against it to see the gain from
#   attention. This comparison is too short for a large gain. The root operator, which is the first token,
#   gives the third line above. Many published models, trained far longer, end between the third line and the
#   fourth.
# - HRR attention never moves a token's value to another token. So do not expect one layer of it to evaluate a
#   nested expression step by step.
#
# Settings, versions and device of these runs:

# %%
display(Markdown("\n".join(f"- {note}" for note in report.notes)))

# %% [markdown]
# ## A task that separates them
#
# In the task `order`, two marks are far apart in noise, and the label says which one comes first. The model
# reads the first token's state, so it has to move information there. HRR attention scales each token's own
# value: it can only guess, as `none` does. The holographic memory moves values.

# %%
quick = dataclasses.replace(lra_tasks.preset("order", "quick"), num_steps=200, eval_every=50)
settings = {"default": quick, "small": lra_tasks.preset("order", "smoke")}[size]
mixers = ["none", "hrr", "holographic"]
separated = lra_tasks.compare("order", mixers, settings, runs / "order", data_dir=data_dir)
display(Markdown(separated.table()))

# %% [markdown]
# Try this: add "s4d" or "softmax" to `mixers`, and run the cell again. Runs that have ended are not repeated.
