"""Cost of one HRR attention layer as the sequence grows, beside the project's targets.

Question. How close is the layer to its own projections in time and memory? How much faster is its core than
the authors' formulation? Does a million tokens fit a small machine?

    python -m experiments.attention_cost            the tables and the targets
    python -m experiments.attention_cost --record   the same, kept in experiments/results, and a picture

Setting. D = 512, 8 heads, batch 1, float32, T = 1,024 to 131,072; random inputs. Forward and backward is the
loss and its gradient in parameters and inputs. "hrr" chooses its implementation itself. "projections" is the
layer without attention, "authors" the published formulation. Rounds run in shuffled order; times are medians,
and ratios are taken within rounds. Softmax runs last, in separate rounds. Then one layer of width 64 runs at
T = 1,048,576, and a training step of a whole one-layer model (Text's preset "quick"), each in a separate
process.

Hardware and time. Two CPU cores and 12 GiB; a quarter of an hour with --seconds 20, as recorded. Temporary
memory is the same on every run of one version of JAX. Times need an otherwise idle machine.

Expected. The targets of `TARGETS`, set before the fast implementation was written. Before it, at T = 4,096:
11.3 T·D floats with backward and 4.1 without, 1.9 times the projections, and a core about as fast as the
authors'; the projections themselves 5.0 and 2.0, the authors' 14.1 with backward. Memory grows as T^1.00.

Results, in experiments/results with their environment. All targets are met at every T that they apply to.
Earlier records on the same machine had the core at up to 0.5 of the authors' time. There softmax ran in the
same rounds, and its gigabytes of memory slowed the next calls. It now has separate rounds at the end.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tyro

from lra_tasks import Progress
from lra_tasks.bench.attention import AttentionSettings, bench_attention
from lra_tasks.bench.plot import plot_attention
from lra_tasks.bench.train import TrainSettings
from lra_tasks.bench.train import measure_apart as train_apart
from lra_tasks.cli.bench import print_apart, print_attention
from lra_tasks.cli.exit_codes import exit_codes
from lra_tasks.cli.tables import print_table
from lra_tasks.files import write_json

RESULTS = Path(__file__).parent / "results"
CONTESTANTS = ("hrr", "authors", "softmax", "projections")
MILLION = 1 << 20
ROUNDS = 30  # the load of a shared machine varies: a few rounds could all fall into one busy period
LONG = 4096  # from this T on the fixed cost of a call is negligible


class Target(NamedTuple):
    """An upper bound on a quantity, at every T from `least` on."""

    what: str
    level: str
    direction: str
    quantity: str
    bound: float
    least: int = 0


TARGETS = (
    Target("temporaries of forward + backward, T·D floats", "layer", "both", "temp_floats", 7.0),
    Target("temporaries of forward, T·D floats", "layer", "forward", "temp_floats", 2.5),
    Target("time over projections, T ≥ 4K", "layer", "both", "ratio", 1.4, LONG),
    Target("core's time over authors', T ≥ 4K", "core", "both", "ratio", 1 / 2.5, LONG),
)
MILLION_TARGET = 16 * 2**30


def verdicts(rows: Sequence[dict[str, Any]], apart: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns "target", "bound", "measured" (the worst case, or None) and "met", for each target.

    Args:
      rows: of `bench_attention`; those of the contestant "hrr" count.
      apart: Results of the runs at a million tokens, with "peak_rss_bytes".
    """
    found = []
    for target in TARGETS:
        values = [
            row[target.quantity]
            for row in rows
            if (row["contestant"], row["level"], row["direction"]) == ("hrr", target.level, target.direction)
            and row["length"] >= target.least
        ]
        # A missing time does not meet its target.
        measured = max(values) if values and None not in values else None
        met = measured is not None and measured <= target.bound
        found.append({"target": target.what, "bound": target.bound, "measured": measured, "met": met})
    peaks = [row["peak_rss_bytes"] if row["seconds"] is not None else None for row in apart]
    peak = max(peaks) if peaks and None not in peaks else None
    found.append(
        {
            "target": "peak memory at T = 1M, D = 64, GiB",
            "bound": MILLION_TARGET / 2**30,
            "measured": None if peak is None else peak / 2**30,
            "met": peak is not None and peak <= MILLION_TARGET,
        }
    )
    return found


def main(
    *,
    lengths: tuple[int, ...] = tuple(1 << n for n in range(10, 18)),
    seconds: float = 30.0,
    record: bool = False,
) -> None:
    """Measures, and prints the tables and the targets.

    Args:
        lengths: Values of T.
        seconds: Time for the rounds of a length, and the longest call made.
        record: Keep the result in experiments/results.
    """
    settings = AttentionSettings(contestants=CONTESTANTS, lengths=lengths, repeats=ROUNDS, seconds=seconds)
    million = dataclasses.replace(settings, contestants=("hrr",))
    model = TrainSettings(mixers=("hrr",), lengths=(MILLION,), batch_size=1, preset="quick")
    with Progress() as progress:
        # First, before this process uses the device: the other processes then have all of it.
        step = train_apart(model, progress=progress)
        apart = bench_attention(million, million=True, progress=progress)["million"]
        result = bench_attention(settings, progress=progress) | {"million": apart}
    print_attention(result)
    print_apart([step], "mixer")
    targets = verdicts(result["rows"], [*result["million"], step])
    print()
    print_table(
        ("target", "at most", "measured", "met?"),
        [
            (
                row["target"],
                f"{row['bound']:.2f}",
                "-" if row["measured"] is None else f"{row['measured']:.2f}",
                "yes" if row["met"] else "no",
            )
            for row in targets
        ],
        numbers=True,
    )
    if record:
        path = RESULTS / "attention_cost.json"
        write_json(path, result | {"million_model": step, "targets": targets})
        plot_attention(result, path.with_suffix(".png"))
        print(f"\nRecorded in {path}")


if __name__ == "__main__":
    with exit_codes():
        tyro.cli(main)
