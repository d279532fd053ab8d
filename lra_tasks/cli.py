"""The `lra` command: one dataclass a subcommand. JAX and Flax are imported when a subcommand runs."""

import contextlib
import dataclasses
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Literal

try:
    import tyro
except ModuleNotFoundError:
    print("lra: the arena is not installed; pip install 'hrrformer[lra]' brings it.", file=sys.stderr)
    sys.exit(2)

from lra_tasks.config import PRESETS, Config, Settings, preset
from lra_tasks.errors import Interrupted, UsageError, unknown_name
from lra_tasks.tasks import TASKS, get_task

Positional = tyro.conf.Positional
Flat = tyro.conf.arg(name="")  # the fields of a nested dataclass become flags without a prefix


@dataclasses.dataclass
class ListTasks:
    """Show the tasks, mixers and presets."""

    def run(self) -> None:
        from lra_tasks.mixers import ABOUT

        print_table(
            ("task", "tokens", "classes", "train / validation / test"),
            [
                (task.name, f"{task.length:,}", str(task.num_classes), _counts(task.num_examples.values()))
                for task in TASKS.values()
            ],
        )
        print()
        print_table(("preset", "what it is for"), list(PRESETS.items()))
        print()
        print_table(("mixer", "what it is"), [*ABOUT.items(), ("package.module:Class", "your own")])


@dataclasses.dataclass
class Prepare:
    """Make a task's dataset, once; a whole one is left as it is."""

    task: Annotated[Positional[str], tyro.conf.arg(metavar="TASK")]
    """Name of the task; `lra list` shows them."""
    config: str = "default"
    """default: the whole task. smoke: a few examples. release: the arena's own files."""
    data_dir: Path | None = None
    """Folder of all datasets; TFDS_DATA_DIR, or else ~/tensorflow_datasets, if not given."""
    manual_dir: Path | None = None
    """Folder with the arena's release, for --config release."""
    overwrite: bool = False
    """Make it again even if it is there."""

    def run(self) -> None:
        from lra_tasks.preparation import prepare
        from lra_tasks.progress import Progress

        with Progress() as progress:
            folder = prepare(
                self.task,
                self.data_dir,
                config=self.config,
                manual_dir=self.manual_dir,
                overwrite=self.overwrite,
                progress=progress.show,
            )
        print(folder)


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
    """Folder of this run; runs/TASK-PRESET/MIXER-seedSEED if not given."""
    data_dir: Path | None = None
    """Folder of all datasets; TFDS_DATA_DIR, or else ~/tensorflow_datasets, if not given."""

    def run(self) -> None:
        from lra_tasks.progress import Progress
        from lra_tasks.training import train

        config = Config(task=self.task, mixer=self.mixer, seed=self.seed, **vars(self.settings))
        run_dir = self.run_dir or Path("runs", f"{self.task}-{self.preset}", config.name)
        with Progress() as progress:
            summary = train(config, run_dir, data_dir=self.data_dir, progress=progress)
        print(
            f"{run_dir}: test accuracy {summary['test_accuracy']:.2f} %"
            f" (step {summary['best_step']:,}, the best of validation)"
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
    """Folder of the comparison; runs/TASK-PRESET if not given."""
    data_dir: Path | None = None
    """Folder of all datasets; TFDS_DATA_DIR, or else ~/tensorflow_datasets, if not given."""

    def run(self) -> None:
        from lra_tasks.comparison import compare
        from lra_tasks.progress import Progress

        out_dir = self.out_dir or Path("runs", f"{self.task}-{self.preset}")
        with Progress() as progress:
            result = compare(
                self.task,
                self.mixers,
                self.settings,
                out_dir,
                seeds=self.seeds,
                data_dir=self.data_dir,
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


COMMANDS: dict[str, type[Any]] = {
    "list": ListTasks,
    "prepare": Prepare,
    "train": Train,
    "evaluate": Evaluate,
    "compare": Compare,
    "report": MakeReport,
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
        print(
            "lra: stopped; nothing half-made is kept, the same command begins there again.", file=sys.stderr
        )
        sys.stderr.flush()
        os._exit(128 + received[0])  # a Python that ends while XLA's threads compile crashes
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains at its end
        sys.exit(1)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line; for exit codes see `exit_codes`."""
    if "" not in sys.path:
        sys.path.insert(0, "")  # a mixer of the user's own may lie in the current directory
    with exit_codes():
        command = _parse(list(sys.argv[1:] if arguments is None else arguments))
        if command is not None:
            command.run()


def _parse(arguments: list[str]) -> Any:
    """Returns the subcommand, one of `COMMANDS`, or None where help was all that was asked for."""
    if not arguments or arguments[0] in ("-h", "--help"):
        _print_help()
        return None
    name, *rest = arguments
    if name not in COMMANDS:
        raise unknown_name("command", name, COMMANDS)
    default: Any = None
    if name in ("train", "compare"):
        task, chosen = _task_and_preset(rest)
        settings = preset(task or "listops", chosen)
        default = COMMANDS[name](settings=settings, task=task or tyro.MISSING, preset=chosen)
    return tyro.cli(
        COMMANDS[name],
        prog=f"lra {name}",
        args=rest,
        default=default,
        config=(tyro.conf.AvoidSubcommands, tyro.conf.HelptextFromCommentsOff),
    )


def _task_and_preset(arguments: list[str]) -> tuple[str | None, str]:
    """Finds the two values that decide the defaults of all others, before the rest is parsed."""
    words = [argument for argument in arguments if argument in TASKS]
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
        print(f"  {name:<10}{(command.__doc__ or '').splitlines()[0]}")
    print("\nStart with:  lra compare listops --mixers hrr softmax none")
    print("More on one: lra COMMAND --help")


def _counts(numbers: Any) -> str:
    return " / ".join(f"{number:,}" for number in numbers)


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: bool = False) -> None:
    """Prints a plain table that fits the terminal; with `numbers`, all columns but the first to the right."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for number, title in enumerate(header):
        table.add_column(title, justify="right" if numbers and number else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def print_report(result: Any, out_dir: Path) -> None:
    """Prints a `lra_tasks.Report`: the table, the reference lines and what was run."""
    from rich.console import Console

    from lra_tasks.reporting import COLUMNS

    print_table(COLUMNS, [row.cells() for row in result.rows], numbers=True)
    print()
    for name, accuracy in result.references.items():
        print(f"{accuracy:8.2f} %  {name}")
    published = ", ".join(f"{name} {accuracy:g}" for name, accuracy in result.published.items())
    console = Console(highlight=False)  # breaks lines between words
    for paragraph in (f"Published, not measured here: {published}.", *result.notes):
        console.print(f"\n{paragraph}", markup=False)
    print(f"\nWritten to {out_dir}: report.md, report.csv, report.json, report.png")


if __name__ == "__main__":
    main()
