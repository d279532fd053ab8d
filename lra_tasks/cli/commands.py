"""The `lra` commands, one dataclass per command. Each imports JAX and Flax only when it runs."""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from lra_tasks.cli.bench import Bench
from lra_tasks.cli.compare import ALL, Compare, Flat, MakeReport
from lra_tasks.cli.console import (
    print_compared,
    print_definitions,
    print_findings,
    print_outcomes,
    print_paragraphs,
    print_runs,
    print_table,
)
from lra_tasks.config import Config, Settings
from lra_tasks.errors import Interrupted, UsageError
from lra_tasks.presets import PRESETS, comparison_name
from lra_tasks.tasks import ARENA, DIAGNOSTICS

Positional = tyro.conf.Positional


@dataclasses.dataclass
class ListTasks:
    """Show the tasks, mixers and presets."""

    def run(self) -> None:
        from lra_tasks.model.mixers import MIXERS

        print_table(
            ("task", "tokens", "classes", "description"),
            [
                (
                    task.name,
                    f"{task.length:,}" + (" × 2" if task.num_inputs == 2 else ""),
                    str(task.num_classes),
                    task.description,
                )
                for task in (*ARENA, *DIAGNOSTICS)
            ],
        )
        print_paragraphs("bytes: your own files, one folder per class; see `lra prepare --help`")
        print()
        print_table(("preset", "purpose"), list(PRESETS.items()))
        print()
        mixers = [(name, entry.about) for name, entry in MIXERS.items()]
        print_table(("mixer", "description"), [*mixers, ("package.module:Class", "your own")])


@dataclasses.dataclass
class Prepare:
    """Make the dataset of a task, or of all tasks."""

    task: Annotated[Positional[str], tyro.conf.arg(metavar="TASK")]
    """Name of the task, see `lra list`; or all, for the six tasks of the arena."""
    variant: str | None = None
    """Variant of the task's data; the full task if not given. smoke has a few examples. For bytes, a name of
    your choice."""
    data_dir: Path | None = None
    """Folder of all datasets. If not given: TFDS_DATA_DIR, or else ~/tensorflow_datasets."""
    manual_dir: Path | None = None
    """Folder with your files: archives or folders of the task's data."""
    unofficial: bool = False
    """Accept files of the same structure that are not the official ones; runs and reports are marked."""
    overwrite: bool = False
    """Make the dataset again even if it exists."""

    def run(self) -> None:
        if self.task == ALL:
            self._prepare_all()
        else:
            self._prepare()

    def _prepare(self) -> None:
        from lra_tasks.data.prepare import prepare
        from lra_tasks.progress import Progress

        with Progress() as progress:
            folder = prepare(
                self.task,
                self.data_dir,
                variant=self.variant,
                manual_dir=self.manual_dir,
                unofficial=self.unofficial,
                overwrite=self.overwrite,
                progress=progress,
            )
        print(folder)

    def _prepare_all(self) -> None:
        from lra_tasks.data.prepare import prepare_all
        from lra_tasks.progress import Progress

        if self.variant not in (None, "smoke"):
            raise UsageError(f"--variant must be smoke for all tasks, or be left out; got '{self.variant}'.")
        with Progress() as progress:
            outcomes = prepare_all(
                self.data_dir,
                smoke=self.variant is not None,
                manual_dir=self.manual_dir,
                unofficial=self.unofficial,
                overwrite=self.overwrite,
                progress=progress,
            )
        print_outcomes(outcomes)
        missing = [name for name, outcome in outcomes.items() if outcome.error]
        if missing:
            sys.stdout.flush()  # before the error, where both go to one place
            raise UsageError(
                f"{len(missing)} of {len(outcomes)} tasks are not prepared: {', '.join(missing)}. "
                "The missing files are named above; repeat the command when they are there."
            )


@dataclasses.dataclass
class Check:
    """Verify prepared datasets: files, counts, contents, labels."""

    tasks: Annotated[Positional[tuple[str, ...]], tyro.conf.arg(metavar="[TASK ...]")] = ()
    """Names of tasks; all prepared datasets if none is given."""
    data_dir: Path | None = None
    """Folder of all datasets. If not given: TFDS_DATA_DIR, or else ~/tensorflow_datasets."""

    def run(self) -> None:
        from lra_tasks.data.location import data_root
        from lra_tasks.data.verify import check
        from lra_tasks.progress import Progress

        with Progress() as progress:
            findings = check(self.data_dir, self.tasks or None, progress=progress)
        if not findings:
            raise UsageError(
                f"Nothing is prepared in {data_root(self.data_dir)}. `lra prepare TASK` makes a dataset."
            )
        print_findings(findings)
        wrong = [finding.dataset for finding in findings if finding.problems]
        if wrong:
            sys.stdout.flush()  # before the error, where both go to one place
            raise UsageError(f"{len(wrong)} of {len(findings)} datasets are damaged: {', '.join(wrong)}.")


@dataclasses.dataclass
class Train:
    """Train one mixer on one task, or resume an interrupted run."""

    settings: Annotated[Settings, Flat]
    task: Annotated[Positional[str], tyro.conf.arg(metavar="TASK")]
    """Name of the task, see `lra list`, or your own as module:TASK."""
    mixer: str = "hrr"
    """Name of the mixer, or your own as module:Class; options follow, as in hrr:rescale=True."""
    seed: int = 0
    """Seed of the parameters, the order of the examples and dropout."""
    preset: Literal["smoke", "quick", "cpu", "small", "arena", "paper"] = "quick"
    """Settings to start from; every other flag changes one of them."""
    from_: Annotated[Path | None, tyro.conf.arg(name="from")] = None
    """Settings to start from in place of a preset: config.json of a run, as in runs/x/config.json."""
    run_dir: Path | None = None
    """Folder of the run. If not given, a folder in runs named after task, preset, changed settings, mixer and
    seed."""
    data_dir: Path | None = None
    """Folder of all datasets. If not given: TFDS_DATA_DIR, or else ~/tensorflow_datasets."""
    mesh: Annotated[str | None, tyro.conf.arg(metavar="data=N,sequence=M")] = None
    """Devices that share the examples of a batch, and devices that share the tokens of each example. If not
    given, all devices share the examples."""
    tensorboard: bool = False
    """Write curves for TensorBoard too; show them by tensorboard --logdir RUN_DIR."""
    time_limit: float | None = None
    """Longest time of the run in seconds. A run that would take longer, judged by the mean of its steps,
    stops. A repeated command with a higher limit resumes it."""
    distributed: bool = False
    """Train one model on several processes, each started by the same command. On SLURM, Open MPI, Cloud TPU
    and Kubernetes, JAX finds them itself; elsewhere the three flags below name them."""
    coordinator: Annotated[str | None, tyro.conf.arg(metavar="HOST:PORT")] = None
    """Address and free port of process 0."""
    num_processes: int | None = None
    """Number of processes."""
    process_id: int | None = None
    """Number of this process, from 0."""

    def run(self) -> None:
        from lra_tasks.progress import Progress
        from lra_tasks.training import processes
        from lra_tasks.training.loop import train

        config = Config(settings=self.settings, task=self.task, mixer=self.mixer, seed=self.seed)
        run_dir = self.run_dir or Path(
            "runs", comparison_name(self.task, self.preset, self.settings), config.name
        )
        if self.distributed:
            processes.initialize(self.coordinator, self.num_processes, self.process_id)
        elif (self.coordinator, self.num_processes, self.process_id) != (None, None, None):
            raise UsageError("--coordinator, --num-processes and --process-id require --distributed.")
        try:
            with Progress() as progress:
                summary = train(
                    config,
                    run_dir,
                    data_dir=self.data_dir,
                    mesh=self.mesh,
                    tensorboard=self.tensorboard,
                    time_limit=self.time_limit,
                    progress=progress,
                )
        except Interrupted:
            if processes.is_first():
                raise
            return
        if not processes.is_first():
            return  # one process prints for all
        print(
            f"{run_dir}: test accuracy {summary['test_accuracy']:.2f} %"
            f" (step {summary['best_step']:,}, the best on validation)"
            + ("; unofficial source of data" if "unofficial" in summary["data"] else "")
        )


@dataclasses.dataclass
class Evaluate:
    """Evaluate the best parameters of a run."""

    run_dir: Annotated[Positional[Path], tyro.conf.arg(metavar="RUN")]
    """Folder of the run."""
    split: Literal["train", "validation", "test"] = "test"
    """Split of the data."""
    length: int | None = None
    """Number of tokens after which inputs are cut; the run's own if not given."""
    data_dir: Path | None = None
    """Folder of all datasets. If not given: TFDS_DATA_DIR, or else ~/tensorflow_datasets."""

    def run(self) -> None:
        from lra_tasks.progress import Progress
        from lra_tasks.training.evaluate import evaluate

        with Progress() as progress:
            result = evaluate(
                self.run_dir,
                split=self.split,
                length=self.length,
                data_dir=self.data_dir,
                progress=progress,
            )
        print(
            f"{self.split}: accuracy {result['accuracy']:.2f} %, loss {result['loss']:.4f}"
            f" on {result['num_examples']:,} examples (parameters of step {result['step']:,})"
        )


@dataclasses.dataclass
class Show:
    """Print examples of a dataset, or draw its pictures to a PNG."""

    task: Annotated[Positional[str], tyro.conf.arg(metavar="TASK")]
    """Name of the task, see `lra list`."""
    variant: str | None = None
    """Variant of the task's data, as in `lra prepare`; the full task if not given."""
    split: Literal["train", "validation", "test"] = "train"
    """Split of the data."""
    start: int = 0
    """Number of the first example."""
    examples: int = 8
    """Number of examples."""
    characters: int = 400
    """Characters shown of each text."""
    all: bool = False
    """Show complete texts."""
    png: Path | None = None
    """PNG file for the pictures of a task like image or pathfinder."""
    data_dir: Path | None = None
    """Folder of all datasets. If not given: TFDS_DATA_DIR, or else ~/tensorflow_datasets."""

    def run(self) -> None:
        from lra_tasks.cli.show import show

        show(
            self.task,
            variant=self.variant,
            split=self.split,
            start=self.start,
            examples=self.examples,
            characters=None if self.all else self.characters,
            png=self.png,
            data_dir=self.data_dir,
        )
        if self.png is not None:
            print(self.png)


@dataclasses.dataclass
class Runs:
    """List past runs, the latest first; or compare the settings of some."""

    folders: Annotated[Positional[tuple[Path, ...]], tyro.conf.arg(metavar="[FOLDER ...]")] = ()
    """Folders to search; runs if not given. If two or more are runs themselves, their differences and results
    are shown side by side. Repeat the command that began a "resumable" run to resume it."""

    def run(self) -> None:
        from lra_tasks.reporting.history import compared, is_run, runs

        if len(self.folders) > 1 and all(map(is_run, self.folders)):
            print_compared(self.folders, compared(self.folders))
            return
        found = runs(*self.folders)
        if not found:
            names = ", ".join(map(str, self.folders or ("runs",)))
            raise UsageError(f"No run was found in {names}. `lra train` and `lra compare` make runs.")
        print_runs(found)


@dataclasses.dataclass
class Env:
    """Show versions, devices and prepared data, for a bug report."""

    data_dir: Path | None = None
    """Folder of all datasets. If not given: TFDS_DATA_DIR, or else ~/tensorflow_datasets."""

    def run(self) -> None:
        from lra_tasks.cli.env import environment

        print_definitions((f"{name}:", text) for name, text in environment(self.data_dir).items())


COMMANDS: dict[str, type[Any]] = {
    "list": ListTasks,
    "prepare": Prepare,
    "check": Check,
    "train": Train,
    "evaluate": Evaluate,
    "compare": Compare,
    "report": MakeReport,
    "runs": Runs,
    "show": Show,
    "bench": Bench,
    "env": Env,
}
