"""Comparisons of several mixers on one task, from one command to recorded results."""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import jax
import tyro

from lra_tasks import Config, Progress, Settings, compare
from lra_tasks.cli.console import print_report, print_table
from lra_tasks.cli.exit_codes import exit_codes
from lra_tasks.errors import unknown_name
from lra_tasks.files import write_json
from lra_tasks.reporting import plots
from lra_tasks.tasks import get_task
from lra_tasks.training.memory import memory_bytes
from lra_tasks.training.step import Trainer

RESULTS = Path(__file__).parent / "results"


@dataclasses.dataclass(frozen=True)
class Race:
    """One configuration of an experiment: settings, mixers, seeds, and lengths to compile at."""

    settings: Settings
    seeds: tuple[int, ...] = (0,)
    mixers: tuple[str, ...] = ("hrr", "softmax", "none")
    lengths: tuple[int, ...] = ()


@dataclasses.dataclass
class Arguments:
    """Runs or resumes one configuration, and prints its tables."""

    race: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RACE")] = "quick"
    """Name of the configuration."""
    data_dir: Path | None = None
    """Folder of all datasets; by default TFDS_DATA_DIR, or else ~/tensorflow_datasets."""
    out_dir: Path | None = None
    """Folder of the runs; by default runs/TASK-RACE."""
    record: bool = False
    """Record the result in experiments/results."""


def main(task: str, races: Mapping[str, Race]) -> None:
    """Runs the configuration named on the command line.

    Args:
      task: Name of the task.
      races: Configurations by name.
    """
    with exit_codes():
        arguments = tyro.cli(Arguments, prog=f"python -m experiments.{task}_race")
        if arguments.race not in races:
            raise unknown_name("race", arguments.race, races)
        _run(task, races[arguments.race], arguments)


def _run(task: str, race: Race, arguments: Arguments) -> None:
    out_dir = arguments.out_dir or Path("runs", f"{task}-{arguments.race}")
    with Progress() as progress:
        report = compare(
            task,
            race.mixers,
            race.settings,
            out_dir,
            seeds=race.seeds,
            data_dir=arguments.data_dir,
            progress=progress,
        )
        temp_bytes: dict[str, dict[int, int]] = {}
        for mixer in (mixer for mixer in race.mixers if mixer != "none" and race.lengths):
            config = Config(settings=race.settings, task=task, mixer=mixer)
            temp_bytes[mixer] = compiled_temp_bytes(config, race.lengths, progress)
    print_report(report, out_dir)
    if temp_bytes:
        print("\nTemporary memory of one compiled training step:")
        rows = [
            (f"{length:,}", *(f"{sizes[length] / 1e6:,.0f} MB" for sizes in temp_bytes.values()))
            for length in race.lengths
        ]
        print_table(("T", *temp_bytes), rows, numbers=True)
    if arguments.record:
        path = RESULTS / f"{task}_race-{arguments.race}.json"
        content: dict[str, Any] = {
            "settings": dataclasses.asdict(race.settings),
            "report": report.json(),
            "temp_bytes": temp_bytes,
        }
        write_json(path, content)
        plots.draw(report, path.with_suffix(".png"))
        print(f"\nRecorded in {path}")


def compiled_temp_bytes(config: Config, lengths: Iterable[int], progress: Progress) -> dict[int, int]:
    """Returns T → temporary memory of the compiled training step in bytes; nothing is trained."""
    sizes: dict[int, int] = {}
    for length in lengths:
        progress.show(f"{config.mixer}: compiling for T = {length:,}")
        settings = dataclasses.replace(config.settings, length=length)
        trainer = Trainer(dataclasses.replace(config, settings=settings), get_task(config.task))
        _, sizes[length] = memory_bytes(trainer.compile_training(jax.eval_shape(trainer.init)))
    return sizes
