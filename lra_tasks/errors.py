"""The one error a user can mend: its message is a whole paragraph, and the command line exits with 2."""

import difflib
from collections.abc import Iterable


class UsageError(ValueError):
    """Something the user gave cannot be used; the message names it, what was expected and what to do.

    Raised by every function of `lra_tasks` for bad input. The `lra` command prints the message
    without a traceback and exits with code 2; in a notebook it is an ordinary `ValueError`.
    """


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UsageError:
    """Returns the error for a `name` that is none of the `known` ones, with the nearest right name."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    guess = f" Did you mean '{near[0]}'?" if near else ""
    return UsageError(f"There is no {kind} '{name}'.{guess} The {kind}s are: {', '.join(known)}.")
