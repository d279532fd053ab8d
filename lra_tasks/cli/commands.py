"""The `lra` commands, a dataclass each. JAX and Flax are imported when one runs."""

import dataclasses
import re
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from lra_tasks.cli.bench import BENCHES, Bench
from lra_tasks.cli.printing import (
    counts,
    print_compared,
    print_findings,
    print_health,
    print_outcomes,
    print_report,
    print_runs,
)
from lra_tasks.cli.tables import print_paragraphs, print_table
from lra_tasks.config import Config, Settings
from lra_tasks.errors import Interrupted, UsageError
from lra_tasks.presets import PRESETS, folder_name
from lra_tasks.tasks import ARENA

Positional = tyro.conf.Positional
Flat = tyro.conf.arg(name="")  # the fields of a nested dataclass become flags without a prefix


@dataclasses.dataclass
class ListTasks:
    """Show the tasks, mixers and presets."""

    def run(self) -> None:
        from lra_tasks.model.mixers import ABOUT

        print_table(
            ("task", "tokens", "classes", "train / validation / test"),
            [
                (
                    task.name,
                    f"{task.length:,}" + (" × 2" if task.num_inputs == 2 else ""),
                    str(task.num_classes),
                    counts(task.num_examples.values()),
                )
                for task in ARENA
            ],
        )
        print_paragraphs("bytes: your own files, a folder for each class; see `lra prepare --help`")
        print()
        print_table(("preset", "what it is for"), list(PRESETS.items()))
        print()
        print_table(("mixer", "what it is"), [*ABOUT.items(), ("package.module:Class", "your own")])


@dataclasses.dataclass
class Prepare:
    """Make a task's dataset, or all; a whole one is left as it is."""

    task: Annotated[Positional[str], tyro.conf.arg(metavar="TASK")]
    """Name of the task, `lra list` shows them; or all, for the six of the arena."""
    variant: str | None = None
    """Which dataset of the task; the arena's own if not given. smoke has a few examples. For bytes a name of
    your choice."""
    data_dir: Path | None = None
    """Folder of all datasets; TFDS_DATA_DIR, or else ~/tensorflow_datasets, if not given."""
    manual_dir: Path | None = None
    """Folder with files you have: archives or folders of the task's data."""
    unofficial: bool = False
    """Take files that are not the official ones, if they are built alike; runs and reports will say so."""
    shard: Annotated[str | None, tyro.conf.arg(metavar="I/N")] = None
    """Draw the I-th of N shares only, for ListOps and Pathfinder on many machines."""
    overwrite: bool = False
    """Make it again even if it is there."""

    def run(self) -> None:
        if self.shard is not None:
            self._draw_share(self.shard)
        elif self.task == "all":
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
                progress=progress.show,
            )
        print(folder)

    def _draw_share(self, shard: str) -> None:
        from lra_tasks.data.prepare import prepare_part
        from lra_tasks.progress import Progress

        share = re.fullmatch(r"([0-9]+)/([0-9]+)", shard)
        if share is None:
            raise UsageError(f"--shard is '{shard}'; expected I/N, for example 1/4.")
        if self.task == "all":
            raise UsageError("--shard is for one task: listops, pathfinder or pathx, which are drawn.")
        if self.manual_dir is not None or self.unofficial or self.overwrite:
            raise UsageError(
                "--shard draws examples: it goes without --manual-dir, --unofficial and --overwrite."
            )
        number, of = map(int, share.groups())
        with Progress() as progress:
            folder = prepare_part(
                self.task, (number, of), self.data_dir, variant=self.variant, progress=progress.show
            )
        print(folder)
        if not folder.name.startswith(".parts"):
            return  # the dataset is whole already
        print(
            f"This folder has share {number} of {of}. Copy the other machines' files into the folder of\n"
            "one of them, and run there the same command without --shard: it joins them."
        )

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
                progress=progress.show,
            )
        print_outcomes(outcomes)
        missing = [name for name, outcome in outcomes.items() if outcome.error]
        if missing:
            sys.stdout.flush()  # before the error, where both go to one place
            raise UsageError(
                f"{len(missing)} of {len(outcomes)} tasks are not prepared: {', '.join(missing)}. "
                "What is missing is said above; the same command goes on with these."
            )


@dataclasses.dataclass
class Check:
    """Check prepared datasets: files, counts, contents, labels."""

    tasks: Annotated[Positional[tuple[str, ...]], tyro.conf.arg(metavar="[TASK ...]")] = ()
    """Names of tasks; every dataset there is, if none is given."""
    data_dir: Path | None = None
    """Folder of all datasets; TFDS_DATA_DIR, or else ~/tensorflow_datasets, if not given."""

    def run(self) -> None:
        from lra_tasks.data.location import data_root
        from lra_tasks.data.verify import check
        from lra_tasks.progress import Progress

        with Progress() as progress:
            findings = check(self.data_dir, self.tasks or None, progress=progress.show)
        if not findings:
            raise UsageError(
                f"Nothing is prepared in {data_root(self.data_dir)}. `lra prepare TASK` makes a dataset."
            )
        print_findings(findings)
        wrong = [finding.dataset for finding in findings if finding.problems]
        if wrong:
            sys.stdout.flush()  # before the error, where both go to one place
            raise UsageError(f"{len(wrong)} of {len(findings)} datasets are wrong: {', '.join(wrong)}.")


@dataclasses.dataclass
class Train:
    """Train one mixer on one task, or go on with an interrupted run."""

    settings: Annotated[Settings, Flat]
    task: Annotated[Positional[str], tyro.conf.arg(metavar="TASK")]
    """Name of the task; `lra list` shows them."""
    mixer: str = "hrr"
    """Name of the mixer, or package.module:Class."""
    seed: int = 0
    """Of the parameters, the order of the examples and the dropout."""
    preset: Literal["smoke", "quick", "small", "lra", "paper"] = "quick"
    """Where the settings start from; every flag below changes one of them."""
    run_dir: Path | None = None
    """Folder of this run; runs/TASK-PRESET/MIXER-seedSEED if not given, with what was changed of
    the preset, as in runs/listops-quick-num_steps=1000/hrr-seed0."""
    data_dir: Path | None = None
    """Folder of all datasets; TFDS_DATA_DIR, or else ~/tensorflow_datasets, if not given."""
    tensorboard: bool = False
    """Show what is measured in TensorBoard too: tensorboard --logdir RUN_DIR."""
    distributed: bool = False
    """Train one model by several processes, each started with this same command. On SLURM, Open MPI, Cloud
    TPU and Kubernetes JAX finds them itself; elsewhere the three flags below tell."""
    coordinator: Annotated[str | None, tyro.conf.arg(metavar="HOST:PORT")] = None
    """Address of process 0, where a port is free."""
    num_processes: int | None = None
    """How many processes there are."""
    process_id: int | None = None
    """Which one this is, from 0."""

    def run(self) -> None:
        from lra_tasks.progress import Progress
        from lra_tasks.training import processes
        from lra_tasks.training.loop import train

        config = Config(task=self.task, mixer=self.mixer, seed=self.seed, **vars(self.settings))
        run_dir = self.run_dir or Path(
            "runs", folder_name(self.task, self.preset, self.settings), config.name
        )
        if self.distributed:
            processes.initialize(self.coordinator, self.num_processes, self.process_id)
        elif (self.coordinator, self.num_processes, self.process_id) != (None, None, None):
            raise UsageError(
                "--coordinator, --num-processes and --process-id are for --distributed; give it."
            )
        try:
            with Progress() as progress:
                summary = train(
                    config,
                    run_dir,
                    data_dir=self.data_dir,
                    tensorboard=self.tensorboard,
                    progress=progress,
                )
        except Interrupted:
            if processes.is_first():
                raise
            return
        if not processes.is_first():
            return  # one says it for all
        print(
            f"{run_dir}: test accuracy {summary['test_accuracy']:.2f} %"
            f" (step {summary['best_step']:,}, the best of validation)"
            + ("; unofficial source of data" if "unofficial" in summary["data"] else "")
        )


@dataclasses.dataclass
class Evaluate:
    """Evaluate the best parameters of a run on a split."""

    run_dir: Annotated[Positional[Path], tyro.conf.arg(metavar="RUN")]
    """Folder of the run."""
    split: Literal["train", "validation", "test"] = "test"
    """Which examples."""
    length: int | None = None
    """Tokens an input is cut to; the run's own if not given."""
    data_dir: Path | None = None
    """Folder of all datasets; TFDS_DATA_DIR, or else ~/tensorflow_datasets, if not given."""

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
class Compare:
    """Train several mixers on the same data and budget; print one table."""

    settings: Annotated[Settings, Flat]
    task: Annotated[Positional[str], tyro.conf.arg(metavar="TASK")]
    """Name of the task; `lra list` shows them."""
    mixers: tuple[str, ...] = ("hrr", "softmax", "none")
    """Names of mixers, or package.module:Class."""
    seeds: tuple[int, ...] = (0,)
    """One run of every mixer for each."""
    preset: Literal["smoke", "quick", "small", "lra", "paper"] = "quick"
    """Where the settings start from; every flag below changes one of them."""
    out_dir: Path | None = None
    """Folder of the comparison; runs/TASK-PRESET if not given, with what was changed of the preset."""
    data_dir: Path | None = None
    """Folder of all datasets; TFDS_DATA_DIR, or else ~/tensorflow_datasets, if not given."""
    tensorboard: bool = False
    """Show what is measured in TensorBoard too: tensorboard --logdir OUT_DIR."""

    def run(self) -> None:
        from lra_tasks.comparison import compare
        from lra_tasks.progress import Progress

        out_dir = self.out_dir or Path("runs", folder_name(self.task, self.preset, self.settings))
        with Progress() as progress:
            result = compare(
                self.task,
                self.mixers,
                self.settings,
                out_dir,
                seeds=self.seeds,
                data_dir=self.data_dir,
                tensorboard=self.tensorboard,
                progress=progress,
            )
        print_report(result, out_dir)


@dataclasses.dataclass
class MakeReport:
    """Print, and write anew, the table and picture of finished runs."""

    out_dir: Annotated[Positional[Path], tyro.conf.arg(metavar="FOLDER")]
    """Folder of a comparison, or any folder with runs in its subfolders."""
    data_dir: Path | None = None
    """Folder of all datasets, for the baseline scores; by default TFDS_DATA_DIR, or else
    ~/tensorflow_datasets."""

    def run(self) -> None:
        from lra_tasks.progress import Progress
        from lra_tasks.reporting.report import report

        with Progress() as progress:
            result = report(self.out_dir, data_dir=self.data_dir, progress=progress)
        print_report(result, self.out_dir)


@dataclasses.dataclass
class Show:
    """Show examples of a dataset, in the terminal or as a PNG."""

    task: Annotated[Positional[str], tyro.conf.arg(metavar="TASK")]
    """Name of the task; `lra list` shows them."""
    variant: str | None = None
    """As of `lra prepare`; the whole task if not given."""
    split: Literal["train", "validation", "test"] = "train"
    """Which examples."""
    start: int = 0
    """Number of the first example."""
    examples: int = 8
    """How many."""
    characters: int = 400
    """Of each text."""
    all: bool = False
    """Show texts to their end."""
    png: Path | None = None
    """Write a PNG instead of printing."""
    data_dir: Path | None = None
    """Folder of all datasets; TFDS_DATA_DIR, or else ~/tensorflow_datasets, if not given."""

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
    """List past runs, the latest first; or set some side by side.

    "resumable" is a run with which the command that began it goes on.
    """

    folders: Annotated[Positional[tuple[Path, ...]], tyro.conf.arg(metavar="[FOLDER ...]")] = ()
    """Where to look; runs if not given. Two or more that are runs themselves are set side by side: in what
    they differ, and what they reached."""

    def run(self) -> None:
        from lra_tasks.reporting.history import compared, is_run, runs

        if len(self.folders) > 1 and all(map(is_run, self.folders)):
            print_compared(self.folders, compared(self.folders))
            return
        found = runs(*self.folders)
        if not found:
            names = ", ".join(map(str, self.folders or ("runs",)))
            raise UsageError(f"There is no run in {names}. `lra train` and `lra compare` make runs.")
        print_runs(found)


@dataclasses.dataclass
class Doctor:
    """Look at packages, devices, data and disk; say what to do.

    Ends with exit status 0 if one can train, with 1 if not. Changes nothing.
    """

    data_dir: Path | None = None
    """Folder of all datasets; TFDS_DATA_DIR, or else ~/tensorflow_datasets, if not given."""
    runs_dir: Path = Path("runs")
    """Folder of all runs."""

    def run(self) -> None:
        from lra_tasks.cli.doctor import doctor
        from lra_tasks.progress import Progress

        with Progress() as progress:
            progress.show("importing every package, in processes of their own")
            lines = doctor(self.data_dir, self.runs_dir)
        print_health(lines)
        if any(line.fatal for line in lines):
            sys.exit(1)


@dataclasses.dataclass
class Completion:
    """Print what a shell needs to complete commands, flags and names.

    One line in the shell's start file reads it.

    In ~/.bashrc: eval "$(lra completion bash)"

    In ~/.zshrc: eval "$(lra completion zsh)"

    In ~/.config/fish/config.fish: lra completion fish | source
    """

    shell: Annotated[Positional[Literal["bash", "zsh", "fish"]], tyro.conf.arg(metavar="SHELL")]
    """bash, zsh or fish."""

    def run(self) -> None:
        from lra_tasks.cli.completion import script

        print(script(self.shell, COMMANDS, BENCHES), end="")


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
    "doctor": Doctor,
    "completion": Completion,
}
