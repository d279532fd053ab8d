"""Dataclasses as command lines: readable help texts, and the flags they define."""

import dataclasses
import functools
import types
import typing
from pathlib import Path
from typing import Annotated, Any

import docstring_parser
import tyro

METAVARS = {str: "STR", int: "INT", float: "FLOAT", Path: "PATH"}


@functools.cache
def prepare_help(kind: type[Any]) -> None:
    """Adjusts how tyro shows the fields of a dataclass and of the dataclasses in it.

    The lines of a help text are joined, so that it wraps at any width. An optional value shows as the value,
    a list of values as "VALUE ...", and a default that is None or empty is left out.
    """
    texts = {
        name: " ".join(entry.description.split())
        for entry in docstring_parser.parse_from_object(kind).params
        for name in entry.arg_name.split(", ")
        if entry.description
    }
    for name, hint in _hints(kind).items():
        plain = _plain(hint)
        if dataclasses.is_dataclass(plain):
            prepare_help(typing.cast(type[Any], plain))
            continue
        shown = tyro.conf.arg(help=texts.get(name), help_behavior_hint=_default, metavar=_metavar(plain))
        given = typing.get_args(hint)[1:] if typing.get_origin(hint) is Annotated else ()
        kind.__annotations__[name] = Annotated[(plain, shown, *given)]  # those of the command come last


def flags(kind: type[Any], prefix: str = "") -> set[str]:
    """Returns the flags of a dataclass as tyro names them."""
    found: set[str] = set()
    for name, hint in _hints(kind).items():
        plain, marks = _plain(hint), typing.get_args(hint)[1:]
        renamed = next((mark.name for mark in marks if getattr(mark, "name", None)), name)
        flag = f"{prefix}{renamed}".replace("_", "-")
        if dataclasses.is_dataclass(plain):
            flat = any(getattr(mark, "name", None) == "" for mark in marks)
            found |= flags(typing.cast(type[Any], plain), prefix if flat else f"{flag}.")
        else:
            found.add(f"--{flag}")
            if plain is bool:
                found.add(f"--{prefix}no-{name}".replace("_", "-"))
    return found


def _hints(kind: type[Any]) -> dict[str, Any]:
    hints = typing.get_type_hints(kind, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _plain(hint: Any) -> Any:
    return typing.get_args(hint)[0] if typing.get_origin(hint) is Annotated else hint


def _metavar(hint: Any) -> str | None:
    """The name of a value in the help, or None for tyro's own."""
    inner = [part for part in typing.get_args(hint) if part not in (type(None), ...)]
    if typing.get_origin(hint) is types.UnionType and len(inner) == 1:
        return METAVARS.get(inner[0])
    if typing.get_origin(hint) is tuple and inner[0] in METAVARS:
        return f"{METAVARS[inner[0]]} ..."
    return None


def _default(label: str) -> str:
    return "" if label in ("", "None") else f"(default: {label})"
