"""Longest sequence with forward and backward in a given memory, by kind of attention.

Question. How far does linear memory reach on a machine of 24 GiB, without `jax.checkpoint` or other devices?

    python -m experiments.longest_sequence            prints the table
    python -m experiments.longest_sequence --record   also records it in experiments/results

Setting. One layer of `lra bench attention` in float32, batch 1: D = 512 with 8 heads, and D = 64 with one
head. XLA reports the memory of the compiled program: arguments, results and temporaries. Nothing runs; Python
and JAX need some memory beside that. T grows by doubling, and then by eighths.

Hardware and time. Any; about two minutes on two CPU cores. XLA fuses a program for CPU differently from one
for a GPU, and their memory differs too.

Results, in experiments/results with their environment, and in the pages' table.
"""

from pathlib import Path

import tyro

from lra_tasks import Progress
from lra_tasks.bench.attention import longest_length
from lra_tasks.bench.settings import AttentionSettings
from lra_tasks.cli.console import print_table
from lra_tasks.cli.exit_codes import exit_codes
from lra_tasks.files import write_json
from lra_tasks.training.metrics import environment

RESULTS = Path(__file__).parent / "results"
IMPLEMENTATIONS = ("projections", "hrr", "authors", "softmax")
SIZES = ((512, 8), (64, 1))  # D and N


def main(memory: float = 24.0, record: bool = False) -> None:
    """Compiles each layer at growing lengths, and prints the longest that fits.

    Args:
        memory: Memory in GiB.
        record: Record the result in experiments/results.
    """
    rows = []
    with Progress() as progress:
        for width, num_heads in SIZES:
            settings = AttentionSettings(width=width, num_heads=num_heads)
            for name in IMPLEMENTATIONS:
                found = longest_length("layer", name, int(memory * 2**30), settings, progress)
                rows.append(found | {"width": width, "num_heads": num_heads})
    print_table(
        ("D", "heads", "attention", "longest T", "GiB", ""),
        [
            (
                str(row["width"]),
                str(row["num_heads"]),
                row["implementation"],
                "-" if row["length"] is None else f"{row['length']:,}",
                "-" if row["length"] is None else f"{row['total_bytes'] / 2**30:.1f}",
                row["note"],
            )
            for row in rows
        ],
        numbers=True,
    )
    if record:
        content = {"memory": memory, "rows": rows, "environment": environment()}
        write_json(RESULTS / "longest_sequence.json", content)


if __name__ == "__main__":
    with exit_codes():
        tyro.cli(main)
