"""Memory of one training step on Path-X, 16,384 pixels, by preset and mixer.

Question. Does the full configuration fit one GPU?

    python -m experiments.pathx_memory --record   half a minute on two CPU cores; nothing is trained

XLA reports the memory of the step compiled for this machine's devices: arguments, results and temporaries. It
fuses a program for CPU differently from one for a GPU, and their memory differs too.

Results, in experiments/results with their environment. hrr fits a GPU of 80 GB with every preset. Softmax
attention by XLA, which holds all T × T weights, needs more than 500 GB with "small", "arena" and "paper".
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import tyro

from lra_tasks import Config, Progress, preset
from lra_tasks.cli.console import print_table
from lra_tasks.cli.exit_codes import exit_codes
from lra_tasks.files import write_json
from lra_tasks.presets import PRESETS
from lra_tasks.tasks import get_task
from lra_tasks.training.memory import memory_bytes
from lra_tasks.training.metrics import environment
from lra_tasks.training.step import Trainer

RESULTS = Path(__file__).parent / "results"
MIXERS = ("hrr", "softmax", "none")


def main(record: bool = False) -> None:
    """Compiles a training step for every preset and mixer, and prints its memory.

    Args:
        record: Record the result in experiments/results.
    """
    sizes: dict[str, dict[str, int]] = {}
    batches: dict[str, int] = {}
    used: dict[str, Any] = {}
    with Progress() as progress:
        for name in PRESETS:
            settings = preset("pathx", name)
            used[name] = dataclasses.asdict(settings)
            batches[name] = settings.batch_size
            sizes[name] = {}
            for mixer in MIXERS:
                progress.show(f"{name} {mixer}: compiling")
                trainer = Trainer(Config(settings=settings, task="pathx", mixer=mixer), get_task("pathx"))
                compiled = trainer.compile_training(jax.eval_shape(trainer.init))
                sizes[name][mixer], _ = memory_bytes(compiled)
    print_table(
        ("preset", "batch", *MIXERS),
        [
            (name, str(batches[name]), *(f"{size / 1e9:,.2f} GB" for size in row.values()))
            for name, row in sizes.items()
        ],
        numbers=True,
    )
    if record:
        content = {
            "settings": used,
            "bytes": sizes,
            "batch_size": batches,
            "environment": environment(),
        }
        write_json(RESULTS / "pathx_memory.json", content)


if __name__ == "__main__":
    with exit_codes():
        tyro.cli(main)
