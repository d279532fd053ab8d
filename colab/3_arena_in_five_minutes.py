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
# The Long Range Arena asks what a model can do with long sequences. One of its tasks, ListOps, at its full
# length of 2,000 tokens: HRR attention against softmax attention, and against no attention at all, with
# learning curves that grow while you watch.
#
# [badge]: https://colab.research.google.com/assets/colab-badge.svg
# [colab]: https://colab.research.google.com/github/hrrformer/hrrformer/blob/main/colab/3_arena_in_five_minutes.ipynb

# %%
import importlib.metadata
import importlib.util
import os
import subprocess
import sys

if "google.colab" in sys.modules:  # elsewhere the library is installed as its README says
    plugins = {"jax_cuda12_plugin": "cuda12", "jax_cuda13_plugin": "cuda13", "libtpu": "tpu"}
    accelerators = ",".join(plugins[name] for name in plugins if importlib.util.find_spec(name))
    jax_and_plugins = f"jax[{accelerators}]"  # a plugin fits one version of JAX, so they go together
    numpy = f"numpy=={importlib.metadata.version('numpy')}"  # as it is: this kernel has loaded it already
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
# Nested minima, maxima, medians and sums modulo 10 of digits; the answer is a digit. The expressions are
# drawn here, from a seed.

# %%
lra_tasks.prepare(
    "listops", data_dir, variant="smoke"
)  # a few of the arena's kind; "default" for all of them
examples = lra_tasks.load("listops", "train", data_dir, variant="smoke")
for number in range(3):
    text = examples.task.render(examples[number]["tokens"])
    print(f"{text[:60]} … = {examples[number]['label']}   ({len(examples[number]['tokens']):,} tokens)")

# %% [markdown]
# ## The race
#
# One small encoder, one order of the data, one schedule; only the mixer differs. The settings are those of
# the preset `quick`, which reads its answer off the first token.

# %%
quick = lra_tasks.preset("listops", "quick")
steps = dataclasses.replace(
    quick, variant="smoke", num_steps=100, eval_every=20, eval_examples=128, log_every=5
)
tiny = lra_tasks.preset("listops", "smoke")
settings = {"default": steps, "small": tiny}[size]
print(f"{settings.num_steps} steps of {settings.batch_size} examples, {settings.length:,} tokens")

# %% [markdown]
# Every run writes its measurements to `metrics.jsonl` in its folder. A `Progress` is told what is under way,
# at every step; this one draws what the files hold so far.

# %%
MIXERS = {"hrr": "#0072B2", "none": "#7F7F7F", "softmax": "#D55E00"}


def rows(run, split):
    """What a run has measured so far on a split."""
    path = Path(run, "metrics.jsonl")
    lines = path.read_text().splitlines() if path.exists() else []
    return [row for row in map(json.loads, lines) if row["split"] == split]


def curves(title):
    """Loss against steps, accuracy against seconds."""
    figure = Figure(
        figsize=(6.4, 6.4), dpi=110, layout="constrained"
    )  # without pyplot, so it is shown only once
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
    """Shows the curves and draws them anew every few seconds, in place of lines of text."""

    def __init__(self, every=2.0):
        super().__init__()
        self.every, self.drawn = every, time.monotonic()
        self.shown = display(curves("starting"), display_id=True)

    def __enter__(self):
        return self  # no bar, and no thread that prints

    def show(self, message, done=0, total=0, note=""):
        if time.monotonic() - self.drawn > self.every:
            self.shown.update(curves(f"{message}  {done:,}/{total:,}" if total else message))
            self.drawn = time.monotonic()

    def say(self, message):
        pass  # the curves say it


with LiveCurves() as progress:
    report = lra_tasks.compare("listops", list(MIXERS), settings, runs, data_dir=data_dir, progress=progress)
    progress.shown.update(curves(f"ListOps, {settings.length:,} tokens: all runs have ended"))

# %%
display(Markdown(report.table()))

# %% [markdown]
# ## How to read it
#
# Much of ListOps can be guessed without reading the expression. These are the accuracies of such guesses,
# measured on the same test split; an accuracy near a line shows nothing beyond that line's rule.

# %%
lines = "\n".join(f"| {name} | {value:.1f} |" for name, value in report.baselines.items())
display(Markdown(f"| guess | test accuracy, % |\n| --- | ---: |\n{lines}"))
num_test = len(lra_tasks.load("listops", "test", data_dir, variant="smoke"))
error = 100 * np.sqrt(0.35 * 0.65 / num_test)
print(f"{num_test} test examples: an accuracy of 35 % is uncertain by ± {error:.1f} (one standard error)")

# %% [markdown]
# - The upper panel sets the mixers side by side at equal steps, the lower one at equal time. The lower one is
#   where HRR attention earns its keep: its time grows with the length, that of softmax attention with its
#   square.
# - `none` is the same model without attention: each token alone. It is the honest measure of what attention
#   adds. In a race this short do not expect anyone to add much: the root operator, which is the first token,
#   tells as much as the third line above. Many published models, trained far longer, end between the third
#   and the fourth.
# - HRR attention never carries a token's value to another token, so do not expect one layer of it to read a
#   nested expression step by step.
#
# What was run, and on what:

# %%
display(Markdown("\n".join(f"- {note}" for note in report.notes)))
