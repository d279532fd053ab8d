"""The `lra` command: parses the arguments, runs the command, and exits with a code."""

import dataclasses
import difflib
import os
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

try:
    import tyro

    from lra_tasks.files import local_path
except ImportError as error:
    missing = "the arena is not installed. Run: pip install 'hrrformer[lra]'"
    print(f"lra: {missing if isinstance(error, ModuleNotFoundError) else error}", file=sys.stderr)
    sys.exit(2)

from lra_tasks.cli.arguments import flags, prepare_help
from lra_tasks.cli.bench import BENCHES, Bench
from lra_tasks.cli.commands import COMMANDS
from lra_tasks.cli.compare import ALL, Compare, CompareTasks
from lra_tasks.cli.console import print_definitions, print_paragraphs, print_text
from lra_tasks.cli.exit_codes import exit_codes
from lra_tasks.config import read_config
from lra_tasks.errors import UsageError, unknown_name
from lra_tasks.presets import nearest_preset, preset
from lra_tasks.tasks import ARENA

START = {
    "lra list": "show tasks, mixers and presets",
    "lra compare listops": "prepare the data, train three mixers, print a table (a few minutes)",
    "lra env": "show versions and devices for a bug report",
}
HELP = ("-h", "--help")
OTHER_NAMES = {  # flags that a command does not have → the one it may have
    "--config": "--variant",
    "--dataset": "--variant",
    "--out-dir": "--run-dir",
    "--output-dir": "--run-dir",
    "--steps": "--num-steps",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line; see `exit_codes` for the exit codes."""
    if "" not in sys.path:
        sys.path.insert(0, "")  # the current directory may contain the user's mixer
    if os.environ.get("NO_COLOR") or not (sys.stdout.isatty() and sys.stderr.isatty()):
        # tyro itself looks at standard output alone, and only newer versions have this setting.
        getattr(tyro, "_experimental_options", {})["ansi_codes"] = False
    with exit_codes():
        command = _parse(list(sys.argv[1:] if arguments is None else arguments))
        if command is not None:
            command.run()


def _parse(arguments: list[str]) -> Any:
    """Returns the subcommand, one of `COMMANDS`, or None if the answer is already printed."""
    name, *rest = arguments or ["start"]
    if name == "help":
        name, rest = (rest[0], ["--help"]) if rest else ("--help", [])
    if name == "start":
        print_text("lra, the Long Range Arena: compares HRR attention with other mixers.\n")
        print_definitions(START.items())
        print_paragraphs("All commands: lra --help")
    elif name in HELP:
        print("usage: lra COMMAND ...\n")
        print_definitions(_summaries(COMMANDS))
        print_paragraphs("All settings of a command: lra COMMAND --help")
    elif name == "--version":
        print(f"lra, of hrrformer {version('hrrformer')}")
    elif name.startswith("--tyro-"):  # completion of a shell
        kinds = {name: kind for name, kind in COMMANDS.items() if kind is not Bench}
        tyro.extras.subcommand_cli_from_dict(kinds, prog="lra", args=arguments)
    elif name not in COMMANDS:
        raise unknown_name("command", name, COMMANDS)
    elif name == "bench":
        return _parse_bench(rest)
    else:
        if name in ("train", "compare"):
            return _parse_run(COMMANDS[name], f"lra {name}", rest)
        return _command(COMMANDS[name], f"lra {name}", rest, None)
    return None


def _parse_bench(arguments: list[str]) -> Any:
    """Returns one of `BENCHES`, or None if help was requested."""
    if arguments and arguments[0] in HELP:
        print_text(f"usage: lra bench BENCHMARK ...\n\n{' '.join((Bench.__doc__ or '').split())}\n")
        print_definitions(_summaries(BENCHES))
        print_paragraphs("All settings of a benchmark: lra bench BENCHMARK --help")
        return None
    if not arguments:
        raise UsageError(f"lra bench requires the name of a benchmark: {', '.join(BENCHES)}.")
    name, *rest = arguments
    if name not in BENCHES:
        raise unknown_name("benchmark", name, BENCHES)
    return _command(BENCHES[name], f"lra bench {name}", rest, None)


def _summaries(commands: Mapping[str, type[Any]]) -> list[tuple[str, str]]:
    return [(name, (kind.__doc__ or "").partition("\n\n")[0]) for name, kind in commands.items()]


def _command(kind: type[Any], prog: str, arguments: Sequence[str], default: Any) -> Any:
    """Parses the arguments of one command into its dataclass."""
    known = flags(kind) | {"--help"}
    for argument in arguments:
        flag = argument.partition("=")[0].replace("_", "-")
        if flag.startswith("--") and flag not in known:
            other = OTHER_NAMES.get(flag)
            near = [other] if other in known else difflib.get_close_matches(flag, sorted(known), n=1)
            guess = f" Did you mean {near[0]}?" if near else ""
            raise UsageError(f"{prog} has no flag {flag}.{guess} `{prog} --help` lists all flags.")
    prepare_help(kind)
    indent = 2 * " "  # tyro joins lines that begin with a letter, and does not wrap a description
    text, width = " ".join((kind.__doc__ or "").split()), shutil.get_terminal_size().columns
    return tyro.cli(
        kind,
        prog=prog,
        description=textwrap.fill(text, width, initial_indent=indent, subsequent_indent=indent),
        args=arguments,
        default=default,
        config=(tyro.conf.AvoidSubcommands, tyro.conf.HelptextFromCommentsOff),
    )


def _parse_run(kind: type[Any], prog: str, arguments: Sequence[str]) -> Any:
    """Parses the arguments of `train` or `compare` twice, since some of them choose the defaults of others.

    These are the task, and the preset or the file.
    """
    asked = [argument for argument in arguments if argument not in HELP]
    chosen = _command(kind, prog, asked, kind(settings=preset("listops", "quick"), task=""))
    several = kind is Compare and (chosen.task == ALL or "," in chosen.task)
    if chosen.from_ is not None:
        if several:
            raise UsageError("--from has the settings of one run, for one task; got several tasks.")
        if any(argument.partition("=")[0] == "--preset" for argument in arguments):
            raise UsageError("--from and --preset both choose the settings to start from; give one of them.")
        config = read_config(local_path(chosen.from_, "from"))
        run: dict[str, Any] = (
            {"mixer": config.mixer_name, "seed": config.seed} if kind is COMMANDS["train"] else {}
        )
        task = chosen.task or config.task
        run["preset"] = nearest_preset(task, config.settings)  # names the folder
        positional = tyro.MISSING if chosen.task else task
        default = kind(settings=config.settings, task=positional, **run)
    elif several:
        return _parse_tasks(chosen, prog, list(arguments))
    elif chosen.task or asked != list(arguments):
        settings = preset(chosen.task or "listops", chosen.preset)
        default = kind(settings=settings, task=tyro.MISSING, preset=chosen.preset)
    else:
        raise UsageError(f"{prog} requires the name of a task, see `lra list`.")
    return _command(kind, prog, arguments, default)


def _parse_tasks(chosen: Compare, prog: str, arguments: list[str]) -> CompareTasks:
    """Parses the arguments of `compare` once per task, since each has defaults of its own."""
    listed = [name for name in chosen.task.split(",") if name]
    if not listed or len(set(listed)) < len(listed) or (ALL in listed and len(listed) > 1):
        raise UsageError(
            f"{prog} requires names of different tasks, separated by commas, or all; got '{chosen.task}'."
        )
    names = [task.name for task in ARENA] if listed == [ALL] else listed
    commands: list[Compare] = []
    for name in names:
        default = Compare(settings=preset(name, chosen.preset), task=tyro.MISSING, preset=chosen.preset)
        commands.append(dataclasses.replace(_command(Compare, prog, arguments, default), task=name))
    return CompareTasks(commands, label="+".join(listed))
