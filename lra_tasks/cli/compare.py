"""`lra compare` and `lra report`: comparisons on one task and on several, and their reports."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from lra_tasks.cli.console import print_grid, print_report
from lra_tasks.config import Settings
from lra_tasks.errors import UsageError
from lra_tasks.presets import comparison_name, grid_name

ALL = "all"  # in place of names of tasks
Positional = tyro.conf.Positional
Flat = tyro.conf.arg(name="")  # the fields of a nested dataclass become flags without a prefix


@dataclasses.dataclass
class Compare:
    """Train several mixers on the same data and budget, and print one table."""

    settings: Annotated[Settings, Flat]
    task: Annotated[Positional[str], tyro.conf.arg(metavar="TASK[,TASK...]")]
    """Name of a task, see `lra list`, or your own as module:TASK; several names, separated by commas; or all,
    for the six tasks of the arena."""
    mixers: tuple[str, ...] = ("hrr", "softmax", "none")
    """Names of mixers, or your own as module:Class; options follow, as in hrr:rescale=True. all, for every
    built-in mixer."""
    seeds: tuple[int, ...] = (0,)
    """Seeds; one run per mixer and seed."""
    rates: tuple[float, ...] = ()
    """Learning rates to choose from, in place of --optimizer.learning-rate: each mixer is trained at every
    rate with the first seed, and the best on validation is its rate for all seeds."""
    preset: Literal["smoke", "quick", "cpu", "small", "arena", "paper"] = "quick"
    """Settings to start from; every other flag changes one of them."""
    from_: Annotated[Path | None, tyro.conf.arg(name="from")] = None
    """Settings to start from in place of a preset: config.json of a run, as in runs/x/config.json."""
    run_dir: Path | None = None
    """Folder of the comparison. If not given, a folder in runs named after task, preset, changed settings."""
    data_dir: Path | None = None
    """Folder of all datasets. If not given: TFDS_DATA_DIR, or else ~/tensorflow_datasets."""
    mesh: Annotated[str | None, tyro.conf.arg(metavar="data=N,sequence=M")] = None
    """Devices that share the examples of a batch, and devices that share the tokens of each example. If not
    given, all devices share the examples."""
    tensorboard: bool = False
    """Write curves for TensorBoard too; show them by tensorboard --logdir RUN_DIR."""
    time_limit: float | None = None
    """Longest time of one run in seconds. A run that would take longer, judged by the mean of its steps,
    stops and is a cell "too slow" of the table."""
    print_commands: Annotated[bool, tyro.conf.arg(name="print")] = False
    """Train nothing; print one command per unfinished run, for xargs or the job array of a cluster. `lra
    report` makes the table afterwards."""

    def run(self) -> None:
        from lra_tasks.comparison import compare
        from lra_tasks.progress import Progress

        name = comparison_name(self.task, self.preset, self.settings, self.rates)
        run_dir = self.run_dir or Path("runs", name)
        if self.print_commands:
            self.print_cells(run_dir)
            return
        with Progress() as progress:
            result = compare(
                self.task, self.all_mixers(), self.settings, run_dir, **self.options(), progress=progress
            )
        print_report(result, run_dir)

    def all_mixers(self) -> tuple[str, ...]:
        """Returns the mixers, with the names of all built-in ones in place of "all"."""
        from lra_tasks.model.mixers import every_mixer

        return every_mixer(self.mixers)

    def options(self) -> dict[str, Any]:
        """Returns the arguments that a comparison on one task and on several have in common."""
        names = ("seeds", "rates", "data_dir", "mesh", "tensorboard", "time_limit")
        return {name: getattr(self, name) for name in names}

    def print_cells(self, run_dir: Path) -> None:
        """Prints one command per unfinished run."""
        from lra_tasks.comparison import commands

        flags = {"--data-dir": self.data_dir, "--mesh": self.mesh, "--time-limit": self.time_limit}
        words = [word for flag, value in flags.items() if value is not None for word in (flag, str(value))]
        words += ["--tensorboard"] * self.tensorboard
        lines = commands(
            self.task,
            self.all_mixers(),
            self.settings,
            run_dir,
            seeds=self.seeds,
            rates=self.rates,
            options=words,
        )
        for line in lines:
            print(line)


@dataclasses.dataclass
class CompareTasks:
    """`lra compare` on several tasks.

    Attributes:
      commands: One command per task, which differ in task and settings.
      label: Names of the tasks, for the folder; for `ALL`, tasks without their data are left out.
    """

    commands: Sequence[Compare]
    label: str

    def run(self) -> None:
        from lra_tasks.comparison import compare_tasks, task_folder
        from lra_tasks.progress import Progress

        first = self.commands[0]
        tasks = [(command.task, command.settings) for command in self.commands]
        run_dir = first.run_dir or Path("runs", grid_name(self.label, first.preset, tasks, first.rates))
        if first.print_commands:
            for command in self.commands:
                command.print_cells(task_folder(run_dir, command.task, command.settings))
            return
        with Progress() as progress:
            grid = compare_tasks(
                tasks,
                first.all_mixers(),
                run_dir,
                **first.options(),
                skip_missing=self.label == ALL,
                progress=progress,
            )
        print_grid(grid, run_dir)


@dataclasses.dataclass
class MakeReport:
    """Print the table of finished runs, and write it and the picture again."""

    folders: Annotated[Positional[tuple[Path, ...]], tyro.conf.arg(metavar="FOLDER ...")]
    """Folder of a comparison; or folders with comparisons below, on several tasks or from several machines,
    for one table of mixers and tasks."""
    output: Path | None = None
    """Folder for the report on several tasks. If not given, the deepest folder that contains all the others.
    """
    data_dir: Path | None = None
    """Folder of all datasets, for the baseline scores; by default TFDS_DATA_DIR, or else
    ~/tensorflow_datasets."""

    def run(self) -> None:
        from lra_tasks.progress import Progress
        from lra_tasks.reporting.report import common_folder, is_comparison, report, report_grid

        if not self.folders:
            raise UsageError("lra report requires a folder with runs, for example runs/listops-quick.")
        if len(self.folders) == 1 and self.output is None and is_comparison(self.folders[0]):
            with Progress() as progress:
                result = report(self.folders[0], data_dir=self.data_dir, progress=progress)
            print_report(result, self.folders[0])
            return
        folder = self.output or common_folder(self.folders)
        with Progress() as progress:
            grid = report_grid(self.folders, output=folder, data_dir=self.data_dir, progress=progress)
        print_grid(grid, folder)
