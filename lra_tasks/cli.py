"""The `lra` command: one dataclass a subcommand. JAX and Flax are imported when a subcommand runs."""

import contextlib
import dataclasses
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Literal

try:
    import tyro
except ModuleNotFoundError:
    print("lra: the arena is not installed; pip install 'hrrformer[lra]' brings it.", file=sys.stderr)
    sys.exit(2)

from lra_tasks.bench_cli import BENCHES, Bench
from lra_tasks.config import Config, Settings
from lra_tasks.errors import Interrupted, UsageError, unknown_name
from lra_tasks.presets import PRESETS, folder_name, preset
from lra_tasks.printing import (
    counts,
    print_compared,
    print_findings,
    print_health,
    print_outcomes,
    print_report,
    print_runs,
)
from lra_tasks.tables import print_paragraphs, print_table
from lra_tasks.tasks import ARENA, TASKS, get_task

Positional = tyro.conf.Positional
Flat = tyro.conf.arg(name="")  # the fields of a nested dataclass become flags without a prefix

GREETING = """\
lra, the Long Range Arena: HRR attention against others.

  lra list             tasks, mixers, presets; at once
  lra compare listops  makes the data, trains three mixers,
                       prints a table; some minutes
  lra doctor           what keeps this machine from
                       training; some seconds

lra --help           all commands
lra COMMAND --help   one of them, with its settings"""


@dataclasses.dataclass
class ListTasks:
    """Show the tasks, mixers and presets."""

    def run(self) -> None:
        from lra_tasks.mixers import ABOUT

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
    config: str | None = None
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
        from lra_tasks.preparation import prepare
        from lra_tasks.progress import Progress

        with Progress() as progress:
            folder = prepare(
                self.task,
                self.data_dir,
                config=self.config,
                manual_dir=self.manual_dir,
                unofficial=self.unofficial,
                overwrite=self.overwrite,
                progress=progress.show,
            )
        print(folder)

    def _draw_share(self, shard: str) -> None:
        from lra_tasks.preparation import prepare_part
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
                self.task, (number, of), self.data_dir, config=self.config, progress=progress.show
            )
        print(folder)
        if not folder.name.startswith(".parts"):
            return  # the dataset is whole already
        print(
            f"This folder has share {number} of {of}. Copy the other machines' files into the folder of\n"
            "one of them, and run there the same command without --shard: it joins them."
        )

    def _prepare_all(self) -> None:
        from lra_tasks.preparation import prepare_all
        from lra_tasks.progress import Progress

        if self.config not in (None, "smoke"):
            raise UsageError(
                f"--config is '{self.config}'; of all tasks there is smoke, or without it what the arena has."
            )
        with Progress() as progress:
            outcomes = prepare_all(
                self.data_dir,
                smoke=self.config is not None,
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
        from lra_tasks.checking import check
        from lra_tasks.data import data_root
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
        from lra_tasks import processes
        from lra_tasks.progress import Progress
        from lra_tasks.training import train

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
        from lra_tasks.training import evaluate

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
    """Folder of a comparison, or any folder whose subfolders are runs."""

    def run(self) -> None:
        from lra_tasks.reporting import report

        print_report(report(self.out_dir), self.out_dir)


@dataclasses.dataclass
class Show:
    """Show examples of a dataset, in the terminal or as a PNG."""

    task: Annotated[Positional[str], tyro.conf.arg(metavar="TASK")]
    """Name of the task; `lra list` shows them."""
    config: str | None = None
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
        from lra_tasks.showing import show

        show(
            self.task,
            config=self.config,
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
        from lra_tasks.history import compared, is_run, runs

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
        from lra_tasks.doctor import doctor
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
        from lra_tasks.completion import script

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


@contextlib.contextmanager
def exit_codes() -> Iterator[None]:
    """Turns what a command line may raise into a message on standard error and an exit code.

    2 for what the user can mend; 0 for a run that was asked to end and has saved itself; 130 and 143 for a
    Ctrl-C and a SIGTERM at any other time, when there is nothing to save; 1 where the reader of the output
    has left, `| head` for example.
    """

    received = [signal.SIGINT]

    def end(number: int, frame: FrameType | None) -> None:
        received[:] = [signal.Signals(number)]
        raise KeyboardInterrupt  # unlike a plain kill, this lets every `finally` tidy up

    def again(lost: Any) -> None:
        """Sends the signal once more if what it raised was dropped, as in JAX's callback of the collector."""
        if issubclass(lost.exc_type, KeyboardInterrupt):
            timer = threading.Timer(0.1, os.kill, (os.getpid(), received[0]))
            timer.daemon = True
            timer.start()
            timers.append(timer)
        else:
            otherwise(lost)

    timers: list[threading.Timer] = []
    otherwise, sys.unraisablehook = sys.unraisablehook, again
    signal.signal(signal.SIGTERM, end)
    try:
        try:
            yield
        finally:
            sys.stdout.flush()  # here, where a reader that has left can still be answered for
    except UsageError as error:
        print(f"lra: {error}", file=sys.stderr)
        sys.exit(2)
    except Interrupted as error:
        print(f"lra: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("lra: stopped; the same command begins again, or goes on where it can.", file=sys.stderr)
        sys.stderr.flush()
        os._exit(128 + received[0])  # a Python that ends while XLA's threads compile crashes
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains at its end
        sys.exit(1)
    finally:
        sys.unraisablehook = otherwise
        for timer in timers:
            timer.cancel()


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line; for exit codes see `exit_codes`."""
    if "" not in sys.path:
        sys.path.insert(0, "")  # a mixer of the user's own may lie in the current directory
    if os.environ.get("NO_COLOR") or not (sys.stdout.isatty() and sys.stderr.isatty()):
        # tyro itself looks at standard output alone, and only newer versions have this setting.
        getattr(tyro, "_experimental_options", {})["ansi_codes"] = False
    with exit_codes():
        command = _parse(list(sys.argv[1:] if arguments is None else arguments))
        if command is not None:
            command.run()


def _parse(arguments: list[str]) -> Any:
    """Returns the subcommand, one of `COMMANDS`, or None where help was all that was asked for."""
    if not arguments:
        print(GREETING)
        return None
    if arguments[0] in ("-h", "--help"):
        _print_help()
        return None
    name, *rest = arguments
    if name not in COMMANDS:
        raise unknown_name("command", name, COMMANDS)
    if name == "bench":
        return _parse_bench(rest)
    default: Any = None
    if name in ("train", "compare"):
        task, chosen = _task_and_preset(COMMANDS[name], rest)
        settings = preset(task or "listops", chosen)
        default = COMMANDS[name](settings=settings, task=task or tyro.MISSING, preset=chosen)
    return tyro.cli(
        COMMANDS[name],
        prog=f"lra {name}",
        args=rest,
        default=default,
        config=(tyro.conf.AvoidSubcommands, tyro.conf.HelptextFromCommentsOff),
    )


def _parse_bench(arguments: list[str]) -> Any:
    """Returns one of `BENCHES`, or None where help was all that was asked for."""
    if arguments and arguments[0] in ("-h", "--help"):
        print(f"usage: lra bench WHAT ...\n\n{Bench.__doc__}\n")
        for name, bench in BENCHES.items():
            print(f"  {name:<10}{(bench.__doc__ or '').splitlines()[0]}")
        print("\nMore on one: lra bench WHAT --help")
        return None
    if not arguments:
        raise UsageError(f"lra bench needs to know what to measure: {', '.join(BENCHES)}.")
    name, *rest = arguments
    if name not in BENCHES:
        raise unknown_name("benchmark", name, BENCHES)
    return tyro.cli(
        BENCHES[name],
        prog=f"lra bench {name}",
        args=rest,
        config=(tyro.conf.AvoidSubcommands, tyro.conf.HelptextFromCommentsOff),
    )


def _task_and_preset(command: type[Any], arguments: list[str]) -> tuple[str | None, str]:
    """Finds the two values that decide the defaults of all others, before the rest is parsed."""
    switches = {
        f"--{no}{field.name}"
        for field in dataclasses.fields(command)
        if field.type is bool
        for no in ("", "no-")
    }
    before = ["", *("" if argument in switches else argument for argument in arguments)]
    words = [
        argument
        for flag, argument in zip(before, arguments, strict=False)
        if argument in TASKS and (not flag.startswith("--") or "=" in flag)  # else it is that flag's value
    ]
    if not words and arguments and not arguments[0].startswith("-"):
        get_task(arguments[0])  # raises: there is no such task
    task = words[0] if words else None
    chosen = "quick"
    for number, argument in enumerate(arguments):
        flag, equals, value = argument.partition("=")
        if flag == "--preset" and (equals or number + 1 < len(arguments)):
            chosen = value if equals else arguments[number + 1]
    if chosen not in PRESETS:
        raise unknown_name("preset", chosen, PRESETS)
    return task, chosen


def _print_help() -> None:
    print("usage: lra COMMAND ...\n\nThe Long Range Arena: holographic attention against other mixers.\n")
    for name, command in COMMANDS.items():
        print(f"  {name:<12}{(command.__doc__ or '').splitlines()[0]}")
    print("\nStart with:  lra compare listops --mixers hrr softmax none")
    print("More on one: lra COMMAND --help")
