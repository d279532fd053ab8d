"""The arena on two CPU cores: mixers × tasks, with the presets "quick" and "cpu".

Question. Which mixers learn which tasks, within a budget that anyone has?

    make compare                                                      minutes: a diagnostic task, and ListOps
    python -m experiments.grid image,text --mixers none hrr holographic s4d conv linear      hours
    python -m experiments.grid image --seeds 0 1 2 --record

The flags are those of `lra compare`; the preset is "cpu" unless set, and the runs are in the folder
`runs/PRESET`. With `--record`, the files of every finished run without its checkpoints are copied to
experiments/results/PRESET/TASK/MIXER-seedN. `lra report experiments/results/PRESET` makes the table and the
page of what is recorded.
"""

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.race import RESULTS
from lra_tasks.cli import main as lra
from lra_tasks.cli.compare import ALL
from lra_tasks.comparison import task_folder
from lra_tasks.presets import preset
from lra_tasks.training.run_folder import LIGHT

OF_A_TASK = ("baselines.json", "comparison.json")


def record(runs: Path, recorded: Path) -> None:
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
    """Runs `lra compare` with the arguments, the first of which names the tasks."""
    parser = argparse.ArgumentParser(prog="python -m experiments.grid", allow_abbrev=False)
    parser.add_argument("tasks", metavar="TASK[,TASK...]")
    parser.add_argument("--preset", default="cpu")
    parser.add_argument("--record", action="store_true")
    given, others = parser.parse_known_args(arguments)
    tasks, name = given.tasks, given.preset
    runs = Path("runs", name)
    several = tasks == ALL or "," in tasks
    folder = runs if several else task_folder(runs, tasks, preset(tasks, name))
    try:
        lra.main(["compare", tasks, *others, "--preset", name, "--run-dir", str(folder)])
    finally:
        if given.record:
            record(runs, RESULTS / name)


if __name__ == "__main__":
    main(sys.argv[1:])
