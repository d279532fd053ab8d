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
# # The layer in your Flax model
#
# A standard small transformer, once with softmax attention and once with HRR attention: one line differs.
# This notebook trains both on the same data. Then it shows padding, Linen, and several devices.
#
# [badge]: https://colab.research.google.com/assets/colab-badge.svg
# [colab]: https://colab.research.google.com/github/hrrformer/hrrformer/blob/main/colab/2_layer_in_your_model.ipynb

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

# %% [markdown]
# The last part requires several devices. JAX can split a processor into four devices. The next cell requests
# this before it imports JAX.

# %%
FLAG = "--xla_force_host_platform_device_count"
if FLAG not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAG}=4".strip()

import ast
import functools
import importlib.util
import random
import re
import time
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from hrrformer.nnx import HRRAttention

size = os.environ.get("HRRFORMER_NOTEBOOK_SIZE", "default")  # the tests set "small"
NUM_STEPS = {"default": 200, "small": 4}[size]
FUNCTIONS = {"default": 450, "small": 20}[size]  # of each library
LENGTHS = {"default": (256, 512, 1024, 2048, 4096, 8192), "small": (256, 512)}[size]
BLUE, ORANGE, GREY, GREEN = "#0072B2", "#D55E00", "#7F7F7F", "#009E73"
plt.rcParams.update(
    {"axes.spines.top": False, "axes.spines.right": False, "font.size": 11, "figure.dpi": 110}
)
print(jax.devices())

# %% [markdown]
# ## Data: who wrote this function?
#
# We use the source code of the installed libraries as data. The task is to predict the library of a function
# from its text. Tokens are words and signs, padded or cut to 256. The id of a word is its rank among the most
# frequent ones. A test function and a training function may come from the same file.

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


def words(text):
    return re.findall(r"\w+|[^\w\s]", text)


texts = {name: functions(packages, FUNCTIONS) for name, packages in LIBRARIES.items()}
examples = [(words(text), label) for label, found in enumerate(texts.values()) for text in found]
random.Random(0).shuffle(examples)
num_test = len(examples) // 5
counts = Counter(word for found, _ in examples[num_test:] for word in found)
ids = {word: rank for rank, (word, _) in enumerate(counts.most_common(VOCABULARY - 2), start=2)}


def batch_of(examples, length=LENGTH):
    """Tokens (B, T), mask (B, T), True for real tokens, and labels (B,)."""
    tokens = np.zeros((len(examples), length), np.int32)
    for row, (found, _) in zip(tokens, examples, strict=True):
        kept = [ids.get(word, UNKNOWN) for word in found[:length]]
        row[: len(kept)] = kept
    return {"tokens": tokens, "mask": tokens > 0, "label": np.array([label for _, label in examples])}


test, train = batch_of(examples[:num_test]), batch_of(examples[num_test:])
print({name: len(found) for name, found in texts.items()})
print(f"{len(train['label']):,} functions to train on, {num_test:,} to test on;", end=" ")
print(f"{train['mask'].mean():.0%} of the tokens are real, the others padding")

# %% [markdown]
# ## The model
#
# The model has an embedding, two blocks, the mean over the real tokens, and a linear classifier. The
# attention layer is an argument. `HRRAttention` takes the arguments of `nnx.MultiHeadAttention`, so both
# layers are made and called alike. The model `none` has no attention, for comparison.

# %%
WIDTH, HEADS = 32, 2


class Block(nnx.Module):
    def __init__(self, make_attention, *, rngs):
        self.attention_norm, self.mlp_norm = nnx.LayerNorm(WIDTH, rngs=rngs), nnx.LayerNorm(WIDTH, rngs=rngs)
        self.attention = make_attention(HEADS, WIDTH, rngs=rngs)
        self.mlp_in, self.mlp_out = nnx.Linear(WIDTH, 64, rngs=rngs), nnx.Linear(64, WIDTH, rngs=rngs)

    def __call__(self, x, mask):
        if self.attention is not None:
            x = x + self.attention(self.attention_norm(x), mask=mask[:, None, None, :])
        return x + self.mlp_out(nnx.gelu(self.mlp_in(self.mlp_norm(x))))


class Encoder(nnx.Module):
    def __init__(self, make_attention, *, rngs):
        self.embedding = nnx.Embed(VOCABULARY, WIDTH, rngs=rngs)
        self.positions = nnx.Embed(LENGTH, WIDTH, rngs=rngs)
        self.blocks = nnx.List([Block(make_attention, rngs=rngs) for _ in range(2)])
        self.classes = nnx.Linear(WIDTH, len(LIBRARIES), rngs=rngs)

    def __call__(self, tokens, mask):
        x = self.embedding(tokens) + self.positions(jnp.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x, mask)
        share = mask / mask.sum(1, keepdims=True)
        return self.classes(jnp.einsum("bt,btd->bd", share, x))


ATTENTION = {
    "softmax": functools.partial(nnx.MultiHeadAttention, decode=False),
    "hrr": HRRAttention,
    "none": lambda *arguments, rngs: None,
}

# %% [markdown]
# ## Training
#
# All models use the same seed, the same batches in the same order and the same optimizer.


# %%
def mean_loss(model, batch):
    logits = model(batch["tokens"], batch["mask"])
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()


@nnx.jit
def step(model, optimizer, batch):
    loss, gradients = nnx.value_and_grad(mean_loss)(model, batch)
    optimizer.update(model, gradients)
    return loss


@nnx.jit
def num_correct(model, batch):
    return jnp.sum(model(batch["tokens"], batch["mask"]).argmax(-1) == batch["label"])


def rows_of(split, rows):
    return {name: values[rows] for name, values in split.items()}


def accuracy(model):
    """Percent of the test split, read in batches of 64."""
    chunks = [slice(i, i + 64) for i in range(0, num_test, 64)]
    return 100 * sum(int(num_correct(model, rows_of(test, chunk))) for chunk in chunks) / num_test


def trained(make_attention):
    """A trained model, the loss of every step, and the median time of a step in seconds."""
    model = Encoder(make_attention, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(3e-3), wrt=nnx.Param)
    order = np.random.default_rng(0)
    losses, seconds = [], []
    for _ in range(NUM_STEPS):
        batch = rows_of(train, order.integers(len(train["label"]), size=32))
        began = time.perf_counter()
        losses.append(float(step(model, optimizer, batch)))
        seconds.append(time.perf_counter() - began)
    return model, losses, float(np.median(seconds))


models, losses = {}, {}
for name, make_attention in ATTENTION.items():
    models[name], losses[name], seconds = trained(make_attention)
    numbers = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(models[name], nnx.Param)))
    right = accuracy(models[name])
    print(f"{name:8} {right:5.1f} % right   {numbers:,} parameters   {1e3 * seconds:.0f} ms a step")
majority = 100 * np.bincount(test["label"]).max() / num_test
print(f"always the most frequent library: {majority:.1f} %")

# %%
figure, ax = plt.subplots(figsize=(6.4, 3.4), layout="constrained")
window = max(1, NUM_STEPS // 20)
for (name, curve), colour in zip(losses.items(), (ORANGE, BLUE, GREY), strict=True):
    smooth = np.convolve(curve, np.ones(window) / window, mode="valid")
    ax.plot(np.arange(len(smooth)) + window, smooth, color=colour, linewidth=2, label=name)
ax.set_xlabel("training step")
ax.set_ylabel("loss")
ax.set_title(f"Training loss, mean of {window} steps", loc="left")
ax.set_ylim(bottom=0)
ax.legend(frameon=False)
plt.show()

# %% [markdown]
# `none` is the fastest model here and as accurate as the others: the words of a function alone reveal its
# library. So this task does not need attention. HRR attention takes less time per step than softmax attention
# already at 256 tokens, and the gap grows with the length ([how cost grows](4_how_cost_grows.ipynb)). HRR
# attention cannot move a token's value to another token. Where a task needs that, softmax attention is
# better.
#
# ## Padding
#
# The mask is True for real tokens. It enters the memory and the softmax of HRR attention, so padding changes
# nothing. The next cell pads a short function more and more, with the mask and without it.

# %%
short = next(example for example in examples if 20 <= len(example[0]) <= 48)
start = len(short[0])
padded = np.unique(np.linspace(start, LENGTH, 12).astype(int))


@nnx.jit
def logits_of(model, tokens, mask):
    return model(tokens, mask)


def drift(model, masked):
    """Largest change of a logit with padding, for every padded length."""
    batches = [batch_of([short], int(length)) for length in padded]
    logits = [logits_of(model, b["tokens"], b["mask"] if masked else b["tokens"] >= 0) for b in batches]
    return [float(jnp.max(jnp.abs(each - logits[0]))) for each in logits]


with_mask, without = drift(models["hrr"], True), drift(models["hrr"], False)
figure, ax = plt.subplots(figsize=(6.4, 3), layout="constrained")
ax.plot(padded, without, "s-", color=ORANGE, label="without mask")
ax.plot(padded, with_mask, "o-", color=BLUE, label="with mask")
ax.set_xlabel(f"length after padding, of {start} real tokens")
ax.set_ylabel("largest change of a logit")
ax.set_title("HRR attention and padding", loc="left")
ax.legend(frameon=False)
plt.show()
print(f"largest change with the mask: {max(with_mask):.1e}, without: {max(without):.1e}")

# %% [markdown]
# ## The same in Linen
#
# `hrrformer.linen.HRRAttention` has the same parameters with the same names and shapes. It infers
# `in_features` from its input; the other arguments are the same. So the parameters trained with NNX above
# work in Linen unchanged.

# %%
from flax import linen

from hrrformer.linen import HRRAttention as LinenHRRAttention


class LinenBlock(linen.Module):
    @linen.compact
    def __call__(self, x, mask):
        attention = LinenHRRAttention(HEADS, name="attention")
        x = x + attention(linen.LayerNorm(name="attention_norm")(x), mask=mask[:, None, None, :])
        hidden = linen.Dense(64, name="mlp_in")(linen.LayerNorm(name="mlp_norm")(x))
        return x + linen.Dense(WIDTH, name="mlp_out")(linen.gelu(hidden))


class LinenEncoder(linen.Module):
    @linen.compact
    def __call__(self, tokens, mask):
        x = linen.Embed(VOCABULARY, WIDTH, name="embedding")(tokens)
        x = x + linen.Embed(LENGTH, WIDTH, name="positions")(jnp.arange(tokens.shape[1]))
        for number in range(2):
            x = LinenBlock(name=f"blocks_{number}")(x, mask)
        share = mask / mask.sum(1, keepdims=True)
        return linen.Dense(len(LIBRARIES), name="classes")(jnp.einsum("bt,btd->bd", share, x))


parameters = nnx.to_pure_dict(nnx.state(models["hrr"], nnx.Param))
blocks = parameters.pop("blocks")
parameters |= {f"blocks_{number}": block for number, block in blocks.items()}

few = rows_of(test, slice(0, 8))
linen_model = LinenEncoder()
fresh = linen_model.init(jax.random.key(0), few["tokens"], few["mask"])["params"]
assert jax.tree.map(jnp.shape, fresh) == jax.tree.map(jnp.shape, parameters)
linen_logits = jax.jit(linen_model.apply)({"params": parameters}, few["tokens"], few["mask"])
difference = jnp.max(jnp.abs(linen_logits - logits_of(models["hrr"], few["tokens"], few["mask"])))
print(f"Linen and NNX with the same parameters: logits differ by {difference:.1e} at most")

# %% [markdown]
# ## Many devices
#
# Shard the arrays over the devices with `NamedSharding` and call the same compiled function. First the usual
# way: every device gets a part of the batch.

# %%
devices = jax.devices() if jax.device_count() > 1 else jax.devices("cpu")
mesh = jax.sharding.Mesh(np.array(devices), ("devices",), axis_types=(AxisType.Auto,))
replicated = NamedSharding(mesh, PartitionSpec())
by_batch = NamedSharding(mesh, PartitionSpec("devices"))
batch = rows_of(train, slice(0, 8 * len(devices)))

loss_of = nnx.jit(mean_loss)
alone = float(loss_of(models["hrr"], batch))
graph, state = nnx.split(models["hrr"])
spread = nnx.merge(graph, jax.device_put(state, replicated))
together = float(loss_of(spread, jax.device_put(batch, by_batch)))
print(f"{len(devices)} × {devices[0].device_kind}")
print(f"loss on one device {alone:.6f}, on all of them {together:.6f}")

# %% [markdown]
# A sequence too long for one device can be sharded too: each device has some of the *tokens*. In softmax
# attention every token needs the keys and values of all others, so the devices exchange them. In HRR
# attention they exchange the memory and the softmax's denominator: a few numbers per head, at every length.
# XLA does so by itself. The next cell reads the bytes sent from the compiled programs.

# %%
by_token = NamedSharding(mesh, PartitionSpec(None, "devices"))
COLLECTIVE = r"= (.*?) (?:all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(?:-start)?\("
BYTES = {"f32": 4, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "pred": 1}


def bytes_sent(make_attention, length):
    """Bytes of the results of all transfers between devices in one forward pass of a layer."""
    graph, state = nnx.split(make_attention(HEADS, WIDTH, rngs=nnx.Rngs(0)))
    attend = jax.jit(lambda state, x: nnx.merge(graph, state)(x), out_shardings=by_token)
    x = jax.ShapeDtypeStruct((1, length, WIDTH), jnp.float32, sharding=by_token)
    program = attend.lower(jax.device_put(state, replicated), x).compile().as_text()
    results = " ".join(re.findall(COLLECTIVE, program))
    arrays = re.findall(r"(\w+)\[([\d,]*)\]", results)
    return sum(BYTES[kind] * int(np.prod([int(n) for n in shape.split(",") if n])) for kind, shape in arrays)


sent = {name: [bytes_sent(ATTENTION[name], length) for length in LENGTHS] for name in ("softmax", "hrr")}
figure, ax = plt.subplots(figsize=(6.4, 3.4), layout="constrained")
for (name, values), colour in zip(sent.items(), (ORANGE, BLUE), strict=True):
    ax.plot(LENGTHS, values, "o-", color=colour, linewidth=2)
    ax.annotate(name, (LENGTHS[-1], values[-1]), (0, 7), textcoords="offset points", color=colour, ha="right")
ax.set_xscale("log", base=2)
ax.set_yscale("log")
ax.set_xticks(LENGTHS, [f"{length:,}" for length in LENGTHS])
ax.set_xlabel("tokens in the sequence")
ax.set_ylabel("bytes")
ax.set_title(f"Sent between {len(devices)} devices in one forward pass", loc="left")
plt.show()
for name, values in sent.items():
    print(f"{name:8} {values[0]:>12,} bytes at {LENGTHS[0]:,} tokens, {values[-1]:>12,} at {LENGTHS[-1]:,}")
