"""Completion of the `lra` command by bash, zsh and fish: one table of words, written as each shell has it."""

import dataclasses
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional

from lra_tasks.config import Settings
from lra_tasks.model.mixers import MIXERS
from lra_tasks.tasks import TASKS

POSITIONAL = typing.get_args(Positional[int])[1]  # tyro's mark
WORDS = {  # of arguments whose types do not tell them
    "task": (*TASKS,),
    "tasks": (*TASKS,),
    "mixer": (*MIXERS,),
    "mixers": (*MIXERS,),
}

# The shells look an entry up by command, last flag and number of words since: "train --mixer 1".
BASH = """\
_lra() {
    local word=${COMP_WORDS[COMP_CWORD]} name=${COMP_WORDS[1]} first=2 flag= at offered= files=
    COMPREPLY=()
    if [[ $name == bench && $COMP_CWORD -gt 2 ]]; then name="bench ${COMP_WORDS[2]}" first=3; fi
    if [[ $COMP_CWORD == 1 ]]; then name=lra; fi
    for ((at = COMP_CWORD - 1; at >= first; at--)); do
        if [[ ${COMP_WORDS[at]} == --* ]]; then flag=${COMP_WORDS[at]}; break; fi
    done
    case "$name $flag $((COMP_CWORD - at))" in
@CASES@
    esac
    if [[ -n $files ]]; then
        compopt -o filenames 2>/dev/null
        local IFS=$'\\n'
        COMPREPLY=($(compgen -f -- "$word"))
        IFS=$' \\t\\n'
    fi
    COMPREPLY+=($(compgen -W "$offered" -- "$word"))
}
complete -F _lra lra
"""

# zsh runs the same function; its own completion has to be there first.
ZSH = """\
if ! (( $+functions[compdef] )); then autoload -Uz compinit && compinit; fi
autoload -Uz bashcompinit && bashcompinit
"""

FISH = """\
function __lra_words
    set -l words (commandline -opc)
    set -l name $words[2]
    set -l first 3
    set -l flag ''
    set -l number (count $words)
    if test $number -eq 1
        set name lra
    else if test "$name" = bench -a $number -gt 2
        set name "bench $words[3]"
        set first 4
    end
    set -l distance 1
    if test $number -ge $first
        for at in (seq $number -1 $first)
            if string match -q -- '--*' $words[$at]
                set flag $words[$at]
                set distance (math $number - $at + 1)
                break
            end
        end
    end
    switch "$name $flag $distance"
@CASES@
    end
end
complete -c lra -f -a '(__lra_words)'
"""


@dataclasses.dataclass(frozen=True)
class Entry:
    """What is offered at one place of the command line.

    Attributes:
      pattern: the place; a star at its end stands for anything.
      words: the words.
      files: whether names of files are offered too.
    """

    pattern: str
    words: tuple[str, ...]
    files: bool = False


def script(shell: str, commands: Mapping[str, type[Any]], benches: Mapping[str, type[Any]]) -> str:
    """Returns what a shell has to read for the `lra` command's completion.

    Args:
      shell: "bash", "zsh" or "fish".
      commands: name → dataclass of the subcommand; `bench` has those of `benches` below it.
      benches: the same of `lra bench`.
    """
    entries = _entries(commands, benches)
    if shell == "fish":
        return FISH.replace("@CASES@", "\n".join(map(_fish_case, entries)))
    return (ZSH if shell == "zsh" else "") + BASH.replace("@CASES@", "\n".join(map(_bash_case, entries)))


def _bash_case(entry: Entry) -> str:
    pattern = f'"{entry.pattern.removesuffix("*")}"' + ("*" if entry.pattern.endswith("*") else "")
    return f'        {pattern}) offered="{" ".join(entry.words)}"{" files=1" if entry.files else ""} ;;'


def _fish_case(entry: Entry) -> str:
    lines = [f"        case '{entry.pattern}'"]
    if entry.words:
        lines.append(f"            printf '%s\\n' {' '.join(entry.words)}")
    if entry.files:
        lines.append("            __fish_complete_path (commandline -ct)")
    return "\n".join(lines)


def _entries(commands: Mapping[str, type[Any]], benches: Mapping[str, type[Any]]) -> list[Entry]:
    """The entries in the order they are tried in: the first that fits counts."""
    entries = [Entry("lra *", (*commands, "--help"))]
    kinds = {name: kind for name, kind in commands.items() if name != "bench"}
    for name, kind in {**kinds, **{f"bench {name}": kind for name, kind in benches.items()}}.items():
        arguments = list(_arguments(kind))
        flags = (*(argument.flag for argument in arguments if argument.flag), "--help")
        for argument in arguments:
            if argument.flag and argument.takes == "one":
                entries.append(Entry(f"{name} {argument.flag} 1", argument.words, argument.files))
            elif argument.flag and argument.takes == "many":
                entries.append(Entry(f"{name} {argument.flag} *", (*argument.words, *flags), argument.files))
        places = [argument for argument in arguments if not argument.flag]
        words = tuple(word for argument in places for word in argument.words)
        entries.append(Entry(f"{name} *", (*words, *flags), any(argument.files for argument in places)))
    entries.append(Entry("bench *", (*benches, "--help")))
    return entries


@dataclasses.dataclass(frozen=True)
class _Argument:
    """A flag with its two dashes, or "" for a place; and the values it takes."""

    flag: str
    takes: str  # "none", "one" or "many"
    words: tuple[str, ...] = ()
    files: bool = False


def _arguments(kind: type[Any], prefix: str = "") -> Iterator[_Argument]:
    """The arguments that tyro makes of a dataclass."""
    hints = typing.get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        hint, *marks = (
            typing.get_args(hints[field.name]) if _is_annotated(hints[field.name]) else [hints[field.name]]
        )
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            yield from _arguments(hint, prefix if hint is Settings else f"{prefix}{field.name}.")
            continue
        flag = "" if POSITIONAL in marks else f"--{prefix}{field.name}".replace("_", "-")
        if hint is bool:
            yield _Argument(flag, "none")
            continue
        takes = "many" if typing.get_origin(hint) is tuple else "one"
        words = WORDS.get(field.name, ()) or _choices(hint)
        yield _Argument(flag, takes, words, files=_is_path(hint))


def _choices(hint: Any) -> tuple[str, ...]:
    """The values of a Literal, or of one within."""
    if typing.get_origin(hint) is Literal:
        return tuple(map(str, typing.get_args(hint)))
    return tuple(word for inner in typing.get_args(hint) for word in _choices(inner))


def _is_path(hint: Any) -> bool:
    return hint is Path or any(_is_path(inner) for inner in typing.get_args(hint))


def _is_annotated(hint: Any) -> bool:
    return typing.get_origin(hint) is Annotated
