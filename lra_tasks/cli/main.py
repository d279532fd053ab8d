"""The `lra` command: finds out what was asked for, runs it, and ends with an exit code."""

import dataclasses
import os
import sys
from collections.abc import Sequence
from typing import Any

try:
    import tyro
except ModuleNotFoundError:
    print("lra: the arena is not installed; pip install 'hrrformer[lra]' brings it.", file=sys.stderr)
    sys.exit(2)

from lra_tasks.cli.bench import BENCHES, Bench
from lra_tasks.cli.commands import COMMANDS
from lra_tasks.cli.exit_codes import exit_codes
from lra_tasks.errors import UsageError, unknown_name
from lra_tasks.presets import PRESETS, preset
from lra_tasks.tasks import TASKS, get_task

GREETING = """\
lra, the Long Range Arena: HRR attention against others.

  lra list             tasks, mixers, presets; at once
  lra compare listops  makes the data, trains three mixers,
                       prints a table; some minutes
  lra doctor           what keeps this machine from
                       training; some seconds

lra --help           all commands
lra COMMAND --help   one of them, with its settings"""


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
