"""What ends a command, an error that the user can mend or the user's own request, and its exit code."""

import difflib
from collections.abc import Iterable


class UsageError(ValueError):
    """Something the user gave cannot be used; the message names it, what was expected and what to do.

    Raised by every function of `lra_tasks` for bad input. The `lra` command prints the message
    without a traceback and exits with code 2; in a notebook it is an ordinary `ValueError`.
    """


class MissingData(UsageError):
    """Files that a dataset is made from are not there; the message names them and where to put them."""


class Interrupted(Exception):
    """A run was asked to end, by Ctrl-C or SIGTERM, and has saved all it needs to go on."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UsageError:
    """Returns the error for a `name` that is none of the `known` ones, with the nearest right name."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    guess = f" Did you mean '{near[0]}'?" if near else ""
    return UsageError(f"There is no {kind} '{name}'.{guess} The {kind}s are: {', '.join(known)}.")
