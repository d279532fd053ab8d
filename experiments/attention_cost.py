"""What one HRR attention layer costs against the length of the sequence, and whether that is what it should.

Question. How near does the layer come to its own projections in time and memory, how far is its core from the
authors' formulation, and does a million tokens fit a small machine?

    python -m experiments.attention_cost            the tables and the targets
    python -m experiments.attention_cost --record   the same, kept in experiments/results, and a picture

Setting. D = 512, 8 heads, batch 1, float32, T = 1,024 to 131,072; random inputs; forward and backward is the
loss and its gradient in parameters and inputs. "hrr" chooses its implementation itself. "projections" is the
layer without attention, "authors" the published formulation, both in `lra_tasks.bench.baselines`. Rounds in
shuffled order, medians, ratios within rounds; softmax last, in rounds of its own. Then one layer of width 64
at T = 1,048,576, and a training step of a whole one-layer model (Text's preset "quick"), each in a process of
its own.

Hardware and time. Two CPU cores and 12 GiB; a quarter of an hour with --seconds 20, as recorded. Temporary
memory is the same on every run of one version of JAX; times need a machine that does nothing else.

Expected. The targets of `TARGETS`, set before the fast implementation was written. Before it, at T = 4,096:
11.3 T·D floats with backward and 4.1 without, 1.9 times the projections, and a core about as fast as the
authors'; the projections themselves 5.0 and 2.0, the authors' 14.1 with backward. Memory grows as T^1.00.

Results, in experiments/results with their environment. All targets are met at every T that they are for.
Earlier records on the same machine had the core at up to 0.5 of the authors' time: softmax ran in the same
rounds, and the gigabytes that it left behind slowed what came next. It has rounds of its own now, at the end.
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
from lra_tasks.cli.console import print_table
from lra_tasks.cli.exit_codes import exit_codes
from lra_tasks.files import write_json

RESULTS = Path(__file__).parent / "results"
CONTESTANTS = ("hrr", "authors", "softmax", "projections")
MILLION = 1 << 20
ROUNDS = 30  # what else runs on a shared machine comes and goes: few rounds would all be of one such time
LONG = 4096  # from here on fixed costs of a call no longer matter


class Target(NamedTuple):
    """A number that is to stay on one side of a bound, at every T from `least` on."""

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
    """Returns "target", "bound", "measured" (the worst; None where nothing was) and "met", for each target.

    Args:
      rows: of `bench_attention`; those of the contestant "hrr" count.
      apart: what was run at a million tokens, with "peak_rss_bytes".
    """
    found = []
    for target in TARGETS:
        values = [
            row[target.quantity]
            for row in rows
            if (row["contestant"], row["level"], row["direction"]) == ("hrr", target.level, target.direction)
            and row["length"] >= target.least
        ]
        # A time that is missing somewhere is not met there.
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
    """Measures, prints the tables, and the targets beside what was measured.

    Args:
        lengths: values of T.
        seconds: time for the rounds of a length, and the longest call made.
        record: keep the result in experiments/results.
    """
    settings = AttentionSettings(contestants=CONTESTANTS, lengths=lengths, repeats=ROUNDS, seconds=seconds)
    million = dataclasses.replace(settings, contestants=("hrr",))
    model = TrainSettings(mixers=("hrr",), lengths=(MILLION,), batch_size=1, preset="quick")
    with Progress() as progress:
        # First: as long as this process has not touched the device, theirs have all of it.
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
