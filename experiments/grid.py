"""The arena on two CPU cores: mixers × tasks, from runs that are long enough to learn something.

Question. Which mixers learn which tasks, within a budget that anyone has?

    python -m experiments.grid image,text --mixers none hrr holographic s4d conv linear
    python -m experiments.grid image --seeds 0 1 2

The flags are those of `lra compare`, with the preset `cpu` and the folder `runs/cpu`. Every finished run is
recorded in experiments/results/cpu/TASK/MIXER-seedN: its files without checkpoints. `lra report
experiments/results/cpu` makes the table and the page of what is recorded.
"""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.race import RESULTS
from lra_tasks.cli import main as lra
from lra_tasks.cli.commands import ALL
from lra_tasks.comparison import task_folder
from lra_tasks.presets import preset
from lra_tasks.training.run_folder import LIGHT

RUNS = Path("runs", "cpu")
RECORDED = RESULTS / "cpu"
OF_A_TASK = ("baselines.json", "comparison.json")


def record(runs: Path = RUNS, recorded: Path = RECORDED) -> None:
    """Copies the files of all runs that have ended, and of their tasks, except checkpoints and reports."""
    for summary in sorted([*runs.glob("*/*/summary.json"), *runs.glob("*/*/failure.json")]):
        task, run = summary.parent.parent, summary.parent
        place = recorded / task.name / run.name
        place.mkdir(parents=True, exist_ok=True)
        for source, target, names in ((run, place, LIGHT), (task, place.parent, OF_A_TASK)):
            for name in names:
                if (source / name).is_file():
                    shutil.copyfile(source / name, target / name)


def main(arguments: Sequence[str]) -> None:
    """Runs `lra compare` with the arguments, the first of which names the tasks, and records the runs."""
    tasks = arguments[0] if arguments else ALL
    several = tasks == ALL or "," in tasks
    folder = RUNS if several else task_folder(RUNS, tasks, preset(tasks, "cpu"))
    try:
        lra.main(["compare", *arguments, "--preset", "cpu", "--run-dir", str(folder)])
    finally:
        record()


if __name__ == "__main__":
    main(sys.argv[1:])
