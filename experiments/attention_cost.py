"""Cost of one HRR attention layer against the length of the sequence, and targets for it.

Question. How close are the layer's time and memory to those of its projections? How much faster than the
authors' formulation is its core? Does a million tokens fit a small machine?

    python -m experiments.attention_cost            prints the tables and the targets
    python -m experiments.attention_cost --record   also records them in experiments/results, with a picture

Setting. D = 512, 8 heads, batch 1, float32, T = 1,024 to 131,072; random inputs. Forward and backward is the
loss and its gradient in parameters and inputs. "hrr" chooses its implementation itself. "projections" is the
layer without attention and "authors" the published formulation, both in `lra_tasks.bench.implementations`.
Rounds in random order, medians, ratios within rounds; softmax last, in rounds of its own. Then one layer of
width 64 at T = 1,048,576, and a training step of a one-layer model (Text's preset "quick"), each in a process
of its own.

Hardware and time. Two CPU cores and 12 GiB; a quarter of an hour with --seconds 20, as recorded. Temporary
memory is the same on every run of one version of JAX; times need an idle machine.

Expected. The targets of `TARGETS`, which are older than the fast implementation. Before it, at T = 4,096:
11.3 T·D floats with backward and 4.1 without, 1.9 times the projections, and a core about as fast as the
authors'. The projections take 5.0 and 2.0, the authors' formulation 14.1 with backward. Memory is linear in
T.

Results, in experiments/results with their environment. Every target is met at every T that it covers. Earlier
records on the same machine had the core at up to 0.5 of the authors' time: softmax ran in the same rounds,
and the gigabytes that it left behind slowed the next call.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tyro

from lra_tasks import Progress
from lra_tasks.bench import train
from lra_tasks.bench.attention import bench_attention
from lra_tasks.bench.plot import plot
from lra_tasks.bench.settings import AttentionSettings, TrainSettings
from lra_tasks.cli.bench import print_apart, print_attention
from lra_tasks.cli.console import print_table
from lra_tasks.cli.exit_codes import exit_codes
from lra_tasks.files import write_json

RESULTS = Path(__file__).parent / "results"
IMPLEMENTATIONS = ("hrr", "authors", "softmax", "projections")
MILLION = 1 << 20
ROUNDS = 30  # enough to average over other programs on a shared machine
LONG = 4096  # fixed costs of a call no longer matter


class Target(NamedTuple):
    """An upper bound on a quantity of "hrr", at every T from `least` on."""

    name: str
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
    """Returns "target", "bound", "measured" (the worst value; None if one is missing) and "met" per target.

    Args:
      rows: Rows of `bench_attention`.
      apart: Measurements at a million tokens, with "peak_rss_bytes".
    """
    found = []
    for target in TARGETS:
        values = [
            row[target.quantity]
            for row in rows
            if (row["implementation"], row["level"], row["direction"])
            == ("hrr", target.level, target.direction)
            and row["length"] >= target.least
        ]
        known = [value for value in values if value is not None]
        measured = max(known) if known and len(known) == len(values) else None
        met = measured is not None and measured <= target.bound
        found.append({"target": target.name, "bound": target.bound, "measured": measured, "met": met})
    finished = [row["peak_rss_bytes"] for row in apart if row["seconds"] is not None]
    peak = max(finished) if finished and len(finished) == len(apart) else None
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
        lengths: Sequence lengths T.
        seconds: Time limit for the rounds of one length, and for a single call.
        record: Record the result in experiments/results.
    """
    settings = AttentionSettings(
        implementations=IMPLEMENTATIONS, lengths=lengths, repeats=ROUNDS, seconds=seconds
    )
    million = dataclasses.replace(settings, implementations=("hrr",))
    model = TrainSettings(mixers=("hrr",), lengths=(MILLION,), batch_size=1, preset="quick")
    with Progress() as progress:
        # The children come first: this process has not touched the device yet, and they have all of it.
        step = train.in_own_process(model, progress)
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
        plot(result, path.with_suffix(".png"))
        print(f"\nRecorded in {path}")


if __name__ == "__main__":
    with exit_codes():
        tyro.cli(main)
