"""Speed of the fused kernels of `hrrformer.experimental` against XLA's "matmul" and the memory bandwidth.

Question. How close are the kernels to the memory roofline, and are they faster than XLA?

    python -m experiments.pallas_speed            the tables, on one GPU or TPU
    python -m experiments.pallas_speed --record   the same, recorded in experiments/results
    python -m experiments.pallas_speed --tiny     the same code on CPU, interpreted: its times mean nothing

Hardware and time. One GPU (A100, H100) or TPU with 16 GB; a few minutes, most of them compilation. The first
of several devices is used.

Method. 8 sequences of 16,384 tokens with 8 heads, without a mask, for H = 64 and 128 in float32 and bfloat16.
The memory bandwidth is measured with x ↦ -x over the numbers of such a query: it reads and writes each number
once. The roofline of a pass is the time to read and write its arrays at that bandwidth. Every time is the
median of 7 means, each over consecutive calls that take about 50 ms. "all" is a gradient by `jax.grad` with
its forward pass; its roofline includes the parts by XLA. The error is the largest relative error of output
and gradients against "matmul" with precision "highest".

Expectation. Each pass reaches at least 70 % of its roofline, and every line is faster than "matmul". The
error is below 1e-5 in float32 and 2e-2 in bfloat16. "matmul" writes v̂ and its cotangent to memory and reads
them again several times; the kernels do not, so "matmul" should take at least twice as long. If not, the
kernels cannot become a default. Then try other values of GPU_BLOCK, GPU_PROGRAMS and TPU_BLOCK_SIZE first.
Compiled for an H100 without running, all cases stay in registers except float32 with H = 128. There
`pull_superposition` spills much, and `scores` and `pull_scores` spill some.

Results. None yet: the second command records them.
"""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import tyro

from hrrformer import hrr_attention, passes
from hrrformer.experimental.pallas import FusedPasses
from hrrformer.variant import Implementation, Variant
from lra_tasks import Progress
from lra_tasks.cli.console import print_table
from lra_tasks.cli.exit_codes import exit_codes
from lra_tasks.files import write_json
from lra_tasks.training.metrics import environment

RESULTS = Path(__file__).parent / "results"
SHAPE, TINY = (8, 16_384, 8), (1, 200, 2)  # B, T, N
GOAL = 0.7  # share of the roofline


def seconds(function: Callable[..., Any], *arguments: Any, tiny: bool) -> float:
    """Returns the seconds per call of the compiled function; see the method above."""
    compiled = jax.jit(function).lower(*arguments).compile()

    def run(calls: int) -> float:
        start = time.perf_counter()
        result = None
        for _ in range(calls):
            result = compiled(*arguments)
        jax.block_until_ready(result)
        return (time.perf_counter() - start) / calls

    run(1)
    calls = 1 if tiny else max(1, round(0.05 / run(3)))
    return statistics.median(run(calls) for _ in range(1 if tiny else 7))


def gradient(
    implementation: Implementation, precision: str | None, *inputs: jax.Array
) -> tuple[jax.Array, ...]:
    """Returns the output of attention and its gradients along a cotangent, the last of `inputs`."""

    def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return hrr_attention(q, k, v, implementation=implementation, precision=precision, rescale=True)

    out, pull = jax.vjp(attend, *inputs[:3])
    return out, *pull(inputs[3])


def measure(size: int, dtype: str, tiny: bool, progress: Progress) -> dict[str, Any]:
    """Returns times, rooflines and error for one head size and dtype."""
    batch, length, heads = TINY if tiny else SHAPE
    shape = (batch, length, heads, size)
    whole = [jax.random.normal(key, shape, dtype) for key in jax.random.split(jax.random.key(0), 4)]
    q, k, v, o_bar = (passes.cut(x, -3, 1) for x in whole)
    unit, single = q.size * q.dtype.itemsize, q.size * 4
    speed = 2 * unit / seconds(lambda x: -x, q, tiny=tiny)

    memory = jax.random.normal(jax.random.key(1), (batch, 1, heads, size))
    rows = jax.random.normal(jax.random.key(2), (3, *q.shape[:2], heads, q.shape[2])) * 1e-2
    moved = {
        "superpose": 2 * unit,
        "scores": 2 * unit,
        "pull_scores": 4 * unit + single,
        "pull_superposition": 4 * unit + single,
        "all": 16 * unit + 2 * single,
    }
    dv = jnp.zeros(q.shape, jnp.float32)
    variant = Variant(implementation="matmul")
    kinds: dict[Implementation, passes.Passes] = {
        "pallas": FusedPasses(variant._replace(implementation="pallas"), q.shape, q.dtype, None),
        "matmul": passes.Passes(variant, q.shape, q.dtype, None),
    }
    times: dict[str, dict[str, float]] = {name: {} for name in moved}
    for kind, run in kinds.items():
        calls: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
            "superpose": (run.superpose, (k, v)),
            "scores": (lambda *x, run=run: run.scores(*x, unbound=False), (q, v, memory)),
            "pull_scores": (run.pull_scores, (q, v, memory, *rows, o_bar)),
            "pull_superposition": (run.pull_superposition, (k, v, memory, dv)),
            "all": (lambda *x, kind=kind: gradient(kind, None, *x), tuple(whole)),
        }
        for name, (function, arguments) in calls.items():
            progress.show(f"H = {size}, {dtype}: {name} by {kind}")
            times[name][kind] = seconds(function, *arguments, tiny=tiny)

    progress.show(f"H = {size}, {dtype}: agreement")
    found = jax.jit(lambda *x: gradient("pallas", None, *x))(*whole)
    reference = jax.jit(lambda *x: gradient("matmul", "highest", *x))(*whole)
    pairs = [(x.astype(jnp.float32), y.astype(jnp.float32)) for x, y in zip(found, reference, strict=True)]
    errors = [float(jnp.linalg.norm(x - y) / jnp.linalg.norm(y)) for x, y in pairs]
    return {
        "size": size,
        "dtype": dtype,
        "shape": shape,
        "copy_bytes_per_second": speed,
        "roofline_seconds": {name: numbers / speed for name, numbers in moved.items()},
        "seconds": times,
        "error": max(errors),
    }


def main(record: bool = False, tiny: bool = False) -> None:
    """Times the passes of attention by fused kernels and by XLA, and prints them beside their rooflines.

    Args:
        record: Keep the result in experiments/results.
        tiny: Use a few tokens and one measurement, to check on CPU that everything runs; keep nothing.
    """
    if jax.default_backend() == "cpu" and not tiny:
        raise SystemExit("A GPU or TPU is required. On CPU, --tiny runs the same code, interpreted.")
    with Progress() as progress:
        measured = [measure(h, t, tiny, progress) for h in (64, 128) for t in ("float32", "bfloat16")]
    good = True
    for one in measured:
        speed, error = one["copy_bytes_per_second"], one["error"]
        print(f"\nH = {one['size']}, {one['dtype']}: memory {speed / 1e9:,.0f} GB/s, error {error:.1e}")
        rows = []
        for name, times in one["seconds"].items():
            roofline = one["roofline_seconds"][name]
            good = good and roofline / times["pallas"] >= GOAL and times["pallas"] < times["matmul"]
            milliseconds = (f"{1e3 * x:.3f}" for x in (roofline, times["pallas"], times["matmul"]))
            share, faster = roofline / times["pallas"], times["matmul"] / times["pallas"]
            rows.append((name, *milliseconds, f"{100 * share:.0f} %", f"{faster:.2f}"))
        header = ("pass", "roofline, ms", "pallas", "matmul", "of roofline", "speed ×")
        print_table(header, rows, numbers=True)
    if tiny:
        return
    print(f"\n{100 * GOAL:.0f} % and faster than matmul in every line: {'yes' if good else 'no'}.")
    if record:
        write_json(RESULTS / "pallas_speed.json", {"measured": measured, "environment": environment()})


if __name__ == "__main__":
    with exit_codes():
        tyro.cli(main)
