"""Lower bound on the time of an attention layer: operations and bytes by formula, rates by measurement."""

import math

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from lra_tasks.bench.measure import timed

COPIED = 1 << 26  # numbers: larger than every cache
SIDE = 2048  # of the square matrices multiplied
TRIALS = 9


def least_counts(level: str, direction: str, tokens: int, width: int, head_size: int) -> tuple[float, float]:
    """Returns the fewest FLOPs and the fewest numbers moved that HRR attention can do with.

    With T tokens in total (of all sequences), width D and head size H:

        FLOPs                  core                     layer
        forward                3 · 2.5 T D log2 H       + 8 T D²
        forward and backward   6 · 2.5 T D log2 H       + 24 T D²

    These are the transforms of q, k and v, and in the backward of their gradients, by real FFTs of
    2.5 H log2 H operations; and four products of 2 T D² operations, each with two more in the backward.
    Elementwise arithmetic is not counted.

        numbers moved          core                     layer
        forward                5 T D                    + 6 T D + 4 D²
        forward and backward   12 T D                   + 14 T D + 12 D²

    Each pass over a number reads it from memory once. Core, forward: k and v are read for β; q and v are read
    for the scores while the output is written, up to one factor per head (5). Forward and backward, where the
    output only enters the loss: k and v are read for β (2); q, v and the cotangent for the loss, the gradient
    of β and the sum in that of the softmax (3); then q, k, v and the cotangent are read and three gradients
    written (7). The layer, forward: x is read and q, k, v written (4); o is read and y written (2). Forward
    and backward: x is read and q, k, v written (4); the cotangent is read and o's gradient written (2), which
    is the core's cotangent; o is written, and read with the cotangent for the gradient of W_o (3); the
    gradients of q, k and v, and x, are read, and that of x is written (5). Both passes read 4 D² parameters;
    the backward reads them again and writes as many gradients.

    A short sequence fits the caches, which are faster than the memory, and can be faster than this bound.
    """
    both = direction == "both"
    size = tokens * width
    flops = (6 if both else 3) * 2.5 * size * math.log2(max(head_size, 2))
    numbers = (12 if both else 5) * size
    if level == "layer":
        flops += (24 if both else 8) * size * width
        numbers += (14 if both else 6) * size + (12 if both else 4) * width**2
    return float(flops), float(numbers)


def machine_rates(dtype: DTypeLike) -> dict[str, float]:
    """Measures the rates of this machine's first device, the best of a few trials.

    Returns:
      "bytes_per_second": Read and written while 1 is added in place to each of `COPIED` float32 numbers.
      "flops_per_second": Of the product of two matrices with `SIDE` rows, in `dtype`.
    """
    add = jax.jit(lambda x: x + 1.0, donate_argnums=0)
    held = [jax.block_until_ready(add(jnp.ones(COPIED, jnp.float32)))]

    def step() -> jax.Array:
        held.append(add(held.pop()))
        return held[0]

    copying = min(timed(step) for _ in range(TRIALS))
    held.clear()
    matrix = jnp.ones((SIDE, SIDE), dtype)
    multiply = jax.jit(lambda x: x @ x)
    jax.block_until_ready(multiply(matrix))
    multiplying = min(timed(lambda: multiply(matrix)) for _ in range(TRIALS))
    return {
        "bytes_per_second": 2 * 4 * COPIED / copying,
        "flops_per_second": 2 * SIDE**3 / multiplying,
    }


def least_seconds(flops: float, numbers: float, itemsize: int, rates: dict[str, float]) -> float:
    """Returns the larger of the times for the operations and for the moves, which can overlap."""
    return max(flops / rates["flops_per_second"], numbers * itemsize / rates["bytes_per_second"])
