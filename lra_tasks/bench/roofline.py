"""What an attention layer cannot be cheaper than: operations and bytes by formula, rates by measurement."""

import math

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from lra_tasks.bench.measure import timed

COPIED = 1 << 26  # numbers: larger than every cache
SIDE = 2048  # of the square matrices multiplied
TRIALS = 9


def floor_counts(level: str, direction: str, tokens: int, width: int, head_size: int) -> tuple[float, float]:
    """Returns the FLOPs that HRR attention has to do and the numbers it has to move, at least.

    With T tokens in all (of all sequences), width D and head size H:

        FLOPs                  core                     layer
        forward                3 · 2.5 T D log2 H       + 8 T D²
        forward and backward   6 · 2.5 T D log2 H       + 24 T D²

    These are the transforms of q, k and v, and in the backward of their gradients, by real FFTs of
    2.5 H log2 H operations; and four products of 2 T D² operations, each of which has two more in the
    backward. Elementwise arithmetic is not counted.

        numbers moved          core                     layer
        forward                5 T D                    + 6 T D + 4 D²
        forward and backward   12 T D                   + 14 T D + 12 D²

    Each number is taken to be read from memory once a pass over it. Core, forward: k and v are read for β;
    q and v for the scores, when the output, but for a factor a head, is written (5). Forward and backward,
    whose output only enters the loss: k and v are read for β (2); q, v and the cotangent for the loss, the
    gradient of β and the sum in that of the softmax (3); with these known, q, k, v and the cotangent are
    read and three gradients written (7). The layer, forward: x is read and q, k, v written (4); o is read
    and y written (2). Forward and backward: x is read and q, k, v written (4); the cotangent is read and o's
    gradient written (2), which the core takes for its cotangent; o is written, and read with the cotangent
    for the gradient of W_o (3); the gradients of q, k and v, and x, are read, and that of x is written (5).
    Both passes read 4 D² parameters; the backward reads them again and writes as many gradients.

    So 26 T D numbers and 24 T D² FLOPs and a little at T, D = 512: what limits a layer on a CPU is
    arithmetic, and what limits the core is memory.

    A short sequence fits the caches, whose bandwidth is higher than the memory's: there the time may be
    shorter than this floor, and the floor's share of it above 100 %.

    Args:
      level: "layer" or "core".
      direction: "forward" or "both".
      tokens: T times the number of sequences.
      width: D.
      head_size: H.
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
    """Measures what this machine's first device does at best, the best of a few trials.

    Returns:
      "bytes_per_second": read and written, of an addition to each of `COPIED` float32 numbers in place;
      "flops_per_second": of the product of two matrices with `SIDE` rows, in `dtype`, at JAX's default
      precision.
    """
    numbers = jnp.ones(COPIED, jnp.float32)
    add = jax.jit(lambda x: x + 1.0, donate_argnums=0)
    held = [jax.block_until_ready(add(numbers))]

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


def floor_seconds(flops: float, numbers: float, itemsize: int, rates: dict[str, float]) -> float:
    """Returns the time in which this machine can do neither the operations nor the moving faster.

    The larger of the two times: at best, one happens behind the other.
    """
    return max(flops / rates["flops_per_second"], numbers * itemsize / rates["bytes_per_second"])
