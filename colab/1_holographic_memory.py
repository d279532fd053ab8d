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
# # Holographic memory, by hand
#
# A holographic memory is the sum of many pairs of vectors, in *one* vector of the same size. Each pair can
# still be retrieved, with some noise. HRR attention stores a whole sequence in one such memory. This notebook
# builds a memory from four operations, measures when it fails, and ends with the weights of the layer.
#
# [badge]: https://colab.research.google.com/assets/colab-badge.svg
# [colab]: https://colab.research.google.com/github/hrrformer/hrrformer/blob/main/colab/1_holographic_memory.ipynb

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
import functools

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import scipy.stats

from hrrformer import bind, cosine_similarity, hrr_attention, hrr_normal, unbind

size = os.environ.get("HRRFORMER_NOTEBOOK_SIZE", "default")  # the tests set "small"
NUM_TRIALS = {"default": 400, "small": 5}[size]
NUM_PAIRS = {"default": (1, 2, 4, 8, 16, 32, 64, 128, 256, 512), "small": (1, 16)}[size]
SIZES = (64, 256, 1024)  # H, numbers in a vector
BLUE, ORANGE, GREY, GREEN = "#0072B2", "#D55E00", "#7F7F7F", "#009E73"
plt.rcParams.update(
    {"axes.spines.top": False, "axes.spines.right": False, "font.size": 11, "figure.dpi": 110}
)
print(jax.devices())

# %% [markdown]
# ## Two pairs in one vector
#
# A word is a random vector of $H$ numbers. **Binding** two words is circular convolution. The result has $H$
# numbers again and resembles neither word. Adding bound pairs **superposes** them.

# %%
names = ("dog", "chases", "cat", "flees")
dog, chases, cat, flees = words = hrr_normal(jax.random.key(0), (4, 1024))
memory = bind(dog, chases) + bind(cat, flees)
print("numbers in a word:", dog.size, "  numbers in the memory of two pairs:", memory.size)
print("cosine of a pair with its own two words:", cosine_similarity(bind(dog, chases), words[:2]).round(2))

# %% [markdown]
# The question is: what does the cat do? **Unbind** the memory with `cat`, and compare the answer with every
# word by the cosine of their angle. A cosine of 1 means the word itself, 0 an unrelated word.

# %%
figure, axes = plt.subplots(1, 2, figsize=(6.4, 2.6), sharex=True, sharey=True, layout="constrained")
for ax, cue, word in zip(axes, ("dog", "cat"), (dog, cat), strict=True):
    cosines = cosine_similarity(unbind(memory, word), words)
    colours = [BLUE if cosine == cosines.max() else GREY for cosine in cosines]
    bars = ax.barh(names, cosines, color=colours)
    ax.bar_label(bars, fmt="%.2f", padding=3)
    ax.set_title(f"asked with “{cue}”")
    ax.set_xlabel("cosine")
    ax.set_xlim(-0.45, 1)
axes[0].invert_yaxis()
plt.show()

# %% [markdown]
# The right word has the largest cosine, but the answer is noisy: the cosine is far from 1. The next section
# explains how far.
#
# ## How the noise grows
#
# Put $n$ pairs of random vectors into one memory and ask for one of them. The answer is the value, of squared
# length 1, plus noise. Unbinding undoes binding only approximately, which adds noise of squared length 1.
# Each of the $n - 1$ other pairs adds as much. So the cosine with the right value should be about
#
# $$\frac{1}{\sqrt{n + 1}},$$
#
# for every large $H$. The cosine with a wrong value is that of two random directions: 0 on average, with
# standard deviation $1/\sqrt{H}$. More pairs lower the signal; more numbers in a vector lower the noise. The
# right value wins if its cosine is larger than all $n - 1$ others. With normal noise the probability is
#
# $$\mathbb{E}_z\left[\Phi\left(\sqrt{H / (n + 1)} + z\right)^{n - 1}\right],\quad z \sim \mathcal{N}(0, 1).$$
#
# Now the measurement: many memories of each size $H$, and their answers as pairs are added.


# %%
def ask(key, size):
    """Cosines of what the first key gets back with all values, (len(NUM_PAIRS), pairs)."""
    keys, values = hrr_normal(key, (2, NUM_PAIRS[-1], size))
    memories = jnp.cumsum(bind(keys, values), axis=0)  # of one pair, of two, ...
    answers = unbind(memories[np.array(NUM_PAIRS) - 1], keys[0])
    return cosine_similarity(answers[:, None], values)


measured = {}
for size in SIZES:
    trials = jax.random.split(jax.random.key(size), NUM_TRIALS)
    cosines = np.asarray(jax.lax.map(functools.partial(ask, size=size), trials, batch_size=8))
    measured |= {(n, size): cosines[:, row, :n] for row, n in enumerate(NUM_PAIRS)}


# %%
def expected_cosine(n):
    return 1 / np.sqrt(n + 1)


def expected_share(n, size):
    """Share of right answers, by a sum over a grid of z."""
    z = np.linspace(-6, 6, 401)
    won = scipy.stats.norm.cdf(np.sqrt(size) * expected_cosine(n) + z) ** (n - 1)
    return float(np.sum(scipy.stats.norm.pdf(z) * won) * (z[1] - z[0]))


figure, (top, bottom) = plt.subplots(2, 1, figsize=(6.4, 7.4), sharex=True, layout="constrained")
lines = np.geomspace(NUM_PAIRS[0], NUM_PAIRS[-1], 100)
top.plot(
    lines, expected_cosine(lines), "--", color="black", linewidth=1.5, label="theory, every $H$", zorder=3
)
for size, colour, marker in zip(SIZES, (ORANGE, BLUE, GREEN), "os^", strict=True):
    right = [measured[n, size][:, 0] for n in NUM_PAIRS]
    means, deviations = [x.mean() for x in right], [x.std() for x in right]
    top.errorbar(NUM_PAIRS, means, deviations, fmt=marker, color=colour, capsize=3, label=f"$H$ = {size:,}")
    top.axhline(1 / np.sqrt(size), color=colour, linewidth=1, linestyle=":")
    top.annotate(
        f"wrong values, $H$ = {size:,}",
        (NUM_PAIRS[0], 1 / np.sqrt(size)),
        (0, 3),
        textcoords="offset points",
        color=colour,
        fontsize=9,
    )
    won = [100 * (measured[n, size].argmax(1) == 0).mean() for n in NUM_PAIRS]
    bottom.plot(NUM_PAIRS, won, marker, color=colour, label=f"$H$ = {size:,}")
    bottom.plot(lines, [100 * expected_share(n, size) for n in lines], "--", color=colour, linewidth=1.5)
top.set_xscale("log", base=2)
top.set_yscale("log")
top.set_ylim(0.02, 1)
top.set_yticks([0.02, 0.05, 0.1, 0.2, 0.5, 1])
top.set_ylabel("cosine")
top.set_title("The right value, ± one standard deviation", loc="left")
top.legend(frameon=False)
bottom.set_xticks(NUM_PAIRS, [f"{n}" for n in NUM_PAIRS])
bottom.set_xlabel("$n$, pairs in one vector")
bottom.set_ylabel("right answers, %")
bottom.set_title("How often the right value wins; dashed: theory", loc="left")
for ax in (top, bottom):
    ax.yaxis.set_major_formatter("{x:g}")
top.yaxis.set_minor_formatter("")
plt.show()

# %%
errors = {}
for (n, size), cosines in measured.items():
    right = cosines[:, 0]
    errors[n, size] = abs(right.mean() - expected_cosine(n)), right.std() / np.sqrt(NUM_TRIALS)
(n, size), (distance, error) = max(errors.items(), key=lambda item: item[1][0])
print(
    f"A mean cosine is at most {distance:.3f} from theory (n = {n}, H = {size}, standard error {error:.3f})."
)
for size in SIZES:
    spread = np.concatenate([measured[n, size][:, 1:].ravel() for n in NUM_PAIRS]).std()
    print(f"H = {size:>5,}: wrong values spread by {spread:.3f}, theory {1 / np.sqrt(size):.3f}.")

# %% [markdown]
# Signal and noise meet where $n$ approaches $H$. The formula assumes a large $H$; at $H = 64$ the measured
# cosine is slightly off. The number of pairs that a memory can store grows with $H$. It is far smaller than
# $H$ if every answer must be right. Capacity is not free: the more you store, the noisier each answer.
#
# ## From memory to attention weights
#
# HRR attention gives every token $t$ of a sequence a query, a key and a value, all three learned. Then it
# uses the same operations:
#
# 1. bind and superpose: $\beta = \sum_t k_t \circledast v_t$, the memory of the whole sequence;
# 2. ask, with every token's query: $\hat v_t = q_t^* \circledast \beta$;
# 3. compare with the token's own value: $a_t = \cos(v_t, \hat v_t)$;
# 4. turn the cosines into weights: $w = \mathrm{softmax}(a / \tau)$, with temperature $\tau = 1$ in the
#    paper;
# 5. multiply: $o_t = w_t v_t$.
#
# The next cell makes a sequence. Every eighth token asks with its own key, so it retrieves its own value with
# noise. The others ask at random.

# %%
T, H = 64, 1024
query, key, value = hrr_normal(jax.random.key(1), (3, T, H))
asks_for_itself = np.arange(T) % 8 == 0
query = jnp.where(asks_for_itself[:, None], key, query)

beta = bind(key, value).sum(0)
cosines = cosine_similarity(unbind(beta, query), value)
weights = {temperature: jax.nn.softmax(cosines / temperature) for temperature in (1.0, 0.05)}

# %% [markdown]
# The library's function does the same. It takes a batch of sequences and several heads; here both have size
# 1.

# %%
arguments = (x[None, :, None] for x in (query, key, value))  # (B, T, N, H)
output, library_weights = hrr_attention(*arguments, return_weights=True)
np.testing.assert_allclose(library_weights[0, 0], weights[1.0], rtol=1e-4)
np.testing.assert_allclose(output[0, :, 0], weights[1.0][:, None] * value, rtol=1e-4, atol=1e-7)
print("by hand and by the library: the same weights, and each output is weight × own value")

# %%
figure, axes = plt.subplots(3, 1, figsize=(6.4, 6.6), sharex=True, layout="constrained")
panels = {"Cosine of the value with what came back": cosines}
panels |= {f"Weight × {T}, at temperature {temperature:g}": T * w for temperature, w in weights.items()}
for ax, (title, heights) in zip(axes, panels.items(), strict=True):
    colours = np.where(asks_for_itself, BLUE, "#BBBBBB")
    ax.bar(np.arange(T), heights, color=colours)
    ax.set_title(title, loc="left")
axes[0].set_xlim(-1, T)
for ax in axes[1:]:
    ax.axhline(1, color="black", linewidth=1, linestyle="--")
    ax.annotate("all alike", (T, 1), (4, 0), textcoords="offset points", va="center", fontsize=9)
axes[2].set_xlabel("token; blue: asks with its own key")
plt.show()

# %%
print(f"tokens that ask for themselves: {asks_for_itself.mean():.0%} of the tokens")
for temperature, w in weights.items():
    print(f"their share of all weight at temperature {temperature:g}: {w[asks_for_itself].sum():.0%}")
shifted = jax.nn.softmax(cosines + 0.5)
print(f"largest change of a weight when 0.5 is added to all cosines: {abs(shifted - weights[1.0]).max():.1e}")

# %% [markdown]
# The softmax cleans up some of the noise:
#
# - Weights are positive and sum to 1. A constant added to all cosines cancels.
# - The order of the cosines stays the same. A token that is lost in the noise stays lost. $T$ tokens are $n =
#   T$ pairs, so in long sequences the signal $1/\sqrt{T + 1}$ falls below $1/\sqrt{H}$, as measured above.
# - A cosine lies between -1 and 1. So at temperature 1 no weight exceeds another by more than a factor of
#   $e^2$, and here by much less. A lower temperature makes the weights differ more.
# - A token's output is its own value times one number. *Other* tokens influence only that number, through the
#   memory. [The next notebook on weights](5_what_the_model_looks_at.ipynb) shows the consequences.
