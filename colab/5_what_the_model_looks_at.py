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
# # What the model looks at
#
# HRR attention gives every token one weight per head, so its weights can be drawn over a picture or a text.
# This notebook trains a small model on pictures and then on texts. It draws the weights and tests their
# meaning.
#
# [badge]: https://colab.research.google.com/assets/colab-badge.svg
# [colab]: https://colab.research.google.com/github/hrrformer/hrrformer/blob/main/colab/5_what_the_model_looks_at.ipynb

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
import ast
import importlib.util
import random
import re
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx
from matplotlib.colors import LogNorm
from PIL import Image, ImageDraw, ImageFont

from hrrformer import hrr_attention
from hrrformer.nnx import HRRAttention

size = os.environ.get("HRRFORMER_NOTEBOOK_SIZE", "default")  # the tests set "small"
PICTURES, FUNCTIONS = {"default": (4096, 450), "small": (64, 20)}[size]  # functions of each library
PICTURE_STEPS, TEXT_STEPS = {"default": (800, 300), "small": (3, 3)}[size]
BLUE, ORANGE, GREY, GREEN = "#0072B2", "#D55E00", "#7F7F7F", "#009E73"
plt.rcParams.update(
    {"axes.spines.top": False, "axes.spines.right": False, "font.size": 11, "figure.dpi": 110}
)
print(jax.devices())

# %% [markdown]
# ## The model
#
# The model has one block: embedding and positions, HRR attention, an MLP, the mean over all real tokens, and
# a classifier. With `rescale=True` weights are 1 on average, instead of 1 divided by the number of tokens. A
# weight above 1 amplifies the token's own value, one below 1 attenuates it. `sow_weights=True` keeps the
# weights.

# %%
WIDTH, HEADS = 32, 2


class Model(nnx.Module):
    def __init__(self, vocabulary, length, classes, *, rngs):
        self.embedding = nnx.Embed(vocabulary, WIDTH, rngs=rngs)
        self.positions = nnx.Embed(length, WIDTH, rngs=rngs)
        self.norm, self.mlp_norm = nnx.LayerNorm(WIDTH, rngs=rngs), nnx.LayerNorm(WIDTH, rngs=rngs)
        self.attention = HRRAttention(HEADS, WIDTH, rescale=True, use_bias=False, rngs=rngs)
        self.mlp_in, self.mlp_out = nnx.Linear(WIDTH, 64, rngs=rngs), nnx.Linear(64, WIDTH, rngs=rngs)
        self.head_norm = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.head_in, self.head_out = nnx.Linear(WIDTH, 64, rngs=rngs), nnx.Linear(64, classes, rngs=rngs)

    def embed(self, tokens):
        return self.embedding(tokens) + self.positions(jnp.arange(tokens.shape[1]))

    def __call__(self, tokens, mask):
        x = self.embed(tokens)
        x = x + self.attention(self.norm(x), mask=mask)
        x = x + self.mlp_out(nnx.gelu(self.mlp_in(self.mlp_norm(x))))
        mean = jnp.einsum("bt,btd->bd", mask / mask.sum(1, keepdims=True), x)
        return self.head_out(nnx.gelu(self.head_in(self.head_norm(mean))))


def weights_of(model, tokens, mask):
    """The weights of all heads, (B, N, T)."""
    attention = nnx.capture(model.attention, nnx.Intermediate)
    _, kept = attention(model.norm(model.embed(tokens)), mask=mask, sow_weights=True)
    return np.asarray(kept["attention_weights"][0])


@nnx.jit
def step(model, optimizer, tokens, mask, labels):
    def mean_loss(model):
        logits = model(tokens, mask)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    gradients = nnx.grad(mean_loss)(model)
    optimizer.update(model, gradients)


@nnx.jit
def answers(model, tokens, mask):
    return model(tokens, mask).argmax(-1)


def accuracy(model, tokens, mask, labels):
    chunks = [slice(i, i + 64) for i in range(0, len(labels), 64)]
    found = [np.asarray(answers(model, tokens[chunk], mask[chunk])) for chunk in chunks]
    return 100 * np.mean(np.concatenate(found) == labels)


def trained(model, tokens, mask, labels, num_steps):
    optimizer = nnx.Optimizer(model, optax.adam(3e-3), wrt=nnx.Param)
    order = np.random.default_rng(0)
    for _ in range(num_steps):
        rows = order.integers(len(labels), size=32)
        step(model, optimizer, tokens[rows], mask[rows], labels[rows])


# %% [markdown]
# ## Pictures
#
# The pictures are digits in the fonts of Matplotlib, slightly rotated, shifted and scaled. Tokens are pixels
# with 16 levels of gray, row by row.

# %%
SIDE, GREYS = 16, 16
folder = Path(matplotlib.get_data_path(), "fonts", "ttf")
FONTS = sorted(
    {*folder.glob("DejaVuS*.ttf"), *folder.glob("STIXGeneral*.ttf")} - {*folder.glob("*Display.ttf")}
)


def digit(value, draw):
    """A picture of a digit, gray levels (SIDE · SIDE,)."""
    font = ImageFont.truetype(str(draw.choice(FONTS)), int(draw.integers(11, 16)))
    picture = Image.new("L", (SIDE, SIDE))
    middle = tuple(SIDE / 2 + draw.uniform(-1, 1, size=2))
    ImageDraw.Draw(picture).text(middle, str(value), fill=255, font=font, anchor="mm")
    turned = picture.rotate(draw.uniform(-10, 10), resample=Image.Resampling.BILINEAR)
    return np.asarray(turned).ravel() // (256 // GREYS)


draw = np.random.default_rng(0)
digits = np.arange(PICTURES) % 10
drawn = np.stack([digit(value, draw) for value in digits]).astype(np.int32)
everywhere = np.ones(drawn.shape, bool)  # no padding

num_test = PICTURES // 8
test, train = slice(num_test), slice(num_test, None)
untrained, looker = (Model(GREYS, SIDE * SIDE, 10, rngs=nnx.Rngs(0)) for _ in range(2))
trained(looker, drawn[train], everywhere[train], digits[train], PICTURE_STEPS)
print(
    f"right: {accuracy(looker, drawn[test], everywhere[test], digits[test]):.1f} % of {num_test} new pictures"
)

# %% [markdown]
# The next picture draws the weights over new digits: red amplifies a pixel, blue attenuates it. Below, bars
# show the mean weight of each kind of pixel, before and after training.

# %%
PICKED = [2, 5, 8]


def shades(weights):
    """Colours for weights, the same distance from white for 1/2 as for 2; and a colour bar's ticks."""
    factor = max(weights.max(), 1 / weights.min())
    colours = plt.cm.ScalarMappable(LogNorm(1 / factor, factor), "RdBu_r")
    return colours, {"ticks": [1 / factor, 1, factor], "format": "{x:.2f}"}


after = weights_of(looker, drawn[PICKED], everywhere[PICKED])
colours, bar = shades(after)
figure, axes = plt.subplots(len(PICKED), 1 + HEADS, figsize=(6.4, 6.2), layout="constrained")
for row, picture, weights, value in zip(axes, drawn[PICKED], after, digits[PICKED], strict=True):
    row[0].imshow(picture.reshape(SIDE, SIDE), cmap="gray")
    row[0].set_title(f"a {value}", fontsize=10)
    for head, ax in enumerate(row[1:]):
        ax.imshow(colours.to_rgba(weights[head].reshape(SIDE, SIDE)))
        ax.set_title(f"head {head + 1}", fontsize=10)
for ax in axes.ravel():
    ax.set_axis_off()
below = {"location": "bottom", "shrink": 0.6, "aspect": 40}
figure.colorbar(colours, ax=axes, label="weight", **below, **bar).minorticks_off()
plt.show()

# %%
kinds = {"ink": drawn[test] >= GREYS // 2, "edge": drawn[test] > 0, "paper": drawn[test] == 0}
kinds["edge"] &= ~kinds["ink"]
looks = {
    name: weights_of(model, drawn[test], everywhere[test])
    for name, model in (("untrained", untrained), ("trained", looker))
}
figure, axes = plt.subplots(1, HEADS, figsize=(6.4, 2.8), sharey=True, layout="constrained")
for head, ax in enumerate(axes):
    for shift, (name, weights), colour in zip((-0.2, 0.2), looks.items(), (GREY, BLUE), strict=True):
        means = [weights[:, head][where].mean() for where in kinds.values()]
        ax.bar(np.arange(len(kinds)) + shift, means, 0.4, color=colour, label=name)
    ax.axhline(1, color="black", linewidth=1, linestyle="--")
    ax.set_xticks(range(len(kinds)), kinds)
    ax.set_title(f"head {head + 1}", loc="left")
axes[0].set_ylabel("mean weight")
axes[0].legend(frameon=False, fontsize=9, loc="upper right")
axes[0].set_ylim(top=1.25 * axes[0].get_ylim()[1])
plt.show()
weights = looks["trained"]  # (pictures, heads, T)
ratio = (weights.max(-1) / weights.min(-1)).max()
print(f"within a head and picture, weights differ by a factor of {ratio:.2f} at most; e² is {np.exp(2):.2f}")

# %% [markdown]
# A pixel's weight depends on its gray level, its position, and the sum of all pixels in the memory. Most
# pixels are paper, so paper is most of that sum. The difference between the gray and blue bars is the effect
# of training. A weight far from 1 does not yet explain an answer.
#
# ## Text
#
# The task is to predict the library of a function. The functions are those of the installed libraries; tokens
# are words and signs.

# %%
LIBRARIES = {
    "JAX": ["jax"],
    "Flax": ["flax"],
    "NumPy": ["numpy"],
    "Matplotlib": ["matplotlib"],
    "this library": ["hrrformer", "lra_tasks"],
}
LENGTH, VOCABULARY = 256, 1024
UNKNOWN = 1  # 0 is padding


def functions(packages, wanted):
    """Texts of functions from the files of some packages, drawn at random."""
    folders = [importlib.util.find_spec(package).submodule_search_locations[0] for package in packages]
    files = sorted(path for folder in folders for path in Path(folder).rglob("*.py"))
    random.Random(0).shuffle(files)
    found = []
    for path in files:
        source = path.read_text(encoding="utf-8")
        lines = source.splitlines()
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno >= 4:
                found.append("\n".join(lines[node.lineno - 1 : node.end_lineno]))
        if len(found) >= 3 * wanted:  # from several files, if there are many
            break
    return random.Random(0).sample(found, min(wanted, len(found)))


WORD = re.compile(r"\w+|[^\w\s]")
texts = {name: functions(packages, FUNCTIONS) for name, packages in LIBRARIES.items()}
examples = [(text, label) for label, found in enumerate(texts.values()) for text in found]
random.Random(0).shuffle(examples)
num_test = len(examples) // 5
counts = Counter(word for text, _ in examples[num_test:] for word in WORD.findall(text))
ids = {word: rank for rank, (word, _) in enumerate(counts.most_common(VOCABULARY - 2), start=2)}

tokens = np.zeros((len(examples), LENGTH), np.int32)
for row, (text, _) in zip(tokens, examples, strict=True):
    kept = [ids.get(word, UNKNOWN) for word in WORD.findall(text)[:LENGTH]]
    row[: len(kept)] = kept
mask, labels = tokens > 0, np.array([label for _, label in examples])

test, train = slice(num_test), slice(num_test, None)
reader = Model(VOCABULARY, LENGTH, len(LIBRARIES), rngs=nnx.Rngs(0))
trained(reader, tokens[train], mask[train], labels[train], TEXT_STEPS)
print(f"right: {accuracy(reader, tokens[test], mask[test], labels[test]):.1f} % of {num_test} new functions")
print(f"always the most frequent library: {100 * np.bincount(labels[test]).max() / num_test:.1f} %")

# %% [markdown]
# The next picture shows a function of this library, from the test split, with the weight of every word.


# %%
def lines_of(text):
    """The text without the indentation that all its lines have."""
    lines = text.splitlines()
    first = len(lines[0]) - len(lines[0].lstrip())
    return [line[first:] for line in lines]


def preference(number):
    """Narrow and short functions first; of those the longest."""
    width, words = max(map(len, lines_of(examples[number][0]))), mask[number].sum()
    return width <= 72, words <= 120, words


chosen = max(np.flatnonzero(labels[test] == len(LIBRARIES) - 1), key=preference)
lines = lines_of(examples[chosen][0])
weights = weights_of(reader, tokens[chosen : chosen + 1], mask[chosen : chosen + 1])[0]
head = weights.std(1).argmax()  # the head whose weights differ most
colours, bar = shades(weights[head][mask[chosen]])

POINTS, LETTER = 9, 0.602  # a letter of DejaVu Sans Mono is 0.602 of its size wide
COLUMNS = max(map(len, lines))
inches = 1.05 * COLUMNS * LETTER * POINTS / 72
figure, ax = plt.subplots(figsize=(inches, 0.18 * len(lines) + 0.8), layout="constrained")
ax.set(xlim=(0, COLUMNS), ylim=(len(lines), 0))
ax.set_axis_off()
number = 0
for y, line in enumerate(lines):
    for word in WORD.finditer(line):
        if number < LENGTH:
            box = {"facecolor": colours.to_rgba(weights[head, number]), "alpha": 0.55, "linewidth": 0}
            ax.add_patch(plt.Rectangle((word.start(), y), len(word.group()), 1, **box))
        style = {"family": "DejaVu Sans Mono", "size": POINTS, "va": "center", "parse_math": False}
        ax.text(word.start(), y + 0.5, word.group(), **style)
        number += 1
figure.colorbar(colours, ax=ax, alpha=0.55, label=f"weight, head {head + 1}", **below, **bar).minorticks_off()
plt.show()

# %% [markdown]
# ## Do weights show importance?
#
# If they did, a model without the words of largest weight would fail soonest. The next
# cell masks words of the test functions like padding. It masks the largest mean weight first, the smallest
# first, or words at random.

# %%
by_weight = np.where(mask[test], weights_of(reader, tokens[test], mask[test]).mean(1), np.inf)
at_random = np.where(mask[test], np.random.default_rng(0).random(by_weight.shape), np.inf)
orders = {
    "smallest weight first": by_weight,
    "largest weight first": np.where(mask[test], -by_weight, np.inf),
    "at random": at_random,
}
SHARES = np.linspace(0, 0.9, 10)
figure, ax = plt.subplots(figsize=(6.4, 3.4), layout="constrained")
for (name, keys), colour in zip(orders.items(), (BLUE, ORANGE, GREY), strict=True):
    rank = keys.argsort(1).argsort(1)  # of each word among those of its function
    real = mask[test].sum(1, keepdims=True)
    right = []
    for share in SHARES:
        kept = mask[test] & (rank >= np.floor(share * real))
        right.append(accuracy(reader, tokens[test], kept, labels[test]))
    ax.plot(100 * SHARES, right, "o-", color=colour, linewidth=2, label=name)
ax.set_xlabel("words taken away, %")
ax.set_ylabel("right answers, %")
ax.set_ylim(0, 100)
ax.legend(frameon=False)
ax.set_title("What is left to read", loc="left")
plt.show()

# %% [markdown]
# Where the curves differ, weights measure importance to that degree. Where they do not differ, weights do not
# explain the answer. The same holds for softmax attention: a weight is a part of the computation, not a
# reason.
#
# ## No token receives another's value
#
# In softmax attention a weight belongs to two tokens: it is the share of the *other* token's value in the
# output. An HRR weight belongs to one token. The next cell shows the difference. It replaces one word of the
# function and measures by how many degrees the output of every token turns. Queries, keys and values are the
# same for both kinds of attention.


# %%
def heads_of(model, tokens):
    """Query, key and value, each (B, T, N, H)."""
    x = model.norm(model.embed(tokens))
    return [project(x) for project in (model.attention.query, model.attention.key, model.attention.value)]


def turned(attend, before, after):
    """Degrees by which each token's output turns, head by head, (T, N)."""
    x, y = (np.asarray(attend(*given)[0], np.float64) for given in (before, after))
    cosine = (x * y).sum(-1) / (np.linalg.norm(x, axis=-1) * np.linalg.norm(y, axis=-1))
    return np.degrees(np.arccos(np.clip(cosine, -1, 1)))


real = int(mask[chosen].sum())
text = tokens[chosen : chosen + 1, :real]
other = text.copy()
replaced = real // 2
other[0, replaced] = next(rank for rank in ids.values() if rank not in text)
before, after = heads_of(reader, text), heads_of(reader, other)

figure, axes = plt.subplots(2, 1, figsize=(6.4, 4.6), sharex=True, sharey=True, layout="constrained")
layers = {"softmax attention": (jax.nn.dot_product_attention, ORANGE), "HRR attention": (hrr_attention, BLUE)}
for ax, (name, (attend, colour)) in zip(axes, layers.items(), strict=True):
    degrees = turned(attend, before, after).max(1)
    ax.bar(range(real), degrees, color=[GREEN if token == replaced else colour for token in range(real)])
    ax.set_title(name, loc="left")
    ax.set_ylabel("degrees")
    ax.set_yscale("symlog", linthresh=1e-2)
    others = np.delete(degrees, replaced)
    print(f"{name}: the other tokens' outputs turn by {others.max():.2g} degrees at most")
axes[1].set_xlabel("token; green: the one that was replaced")
plt.show()

# %% [markdown]
# In summary, a weight of HRR attention has this meaning:
#
# - It amplifies or attenuates the token's own value. The other tokens decide only the factor; the output does
#   not contain their values. (With `output="unbound"` the output is the retrieved vector instead.)
# - Weights of one head in one sequence are comparable. They differ by a factor of $e^2$ at most.
# - Weights are part of the computation of an answer. A test as above shows whether they explain it.
