"""Errors that the user can mend, and the request to stop."""

import difflib
from collections.abc import Iterable


class UsageError(ValueError):
    """Refuses something that the user gave; the message names it, what was expected and what to do.

    Every function of `lra_tasks` raises it for bad input. The `lra` command prints the message without a
    traceback and exits with code 2; in a notebook it is an ordinary `ValueError`.

    Args:
      message: Sentence or sentences for the user.
      argument: Name of the setting at fault, "model.width" for example, for which the command line shows its
        flag.
    """

    def __init__(self, message: str, *, argument: str | None = None) -> None:
        super().__init__(message)
        self.argument = argument


class MissingData(UsageError):
    """Reports missing source files of a dataset; the message names them and where to put them."""


class RunFailed(UsageError):
    """Reports a run that cannot finish with this mixer; in a comparison it is a cell of the table.

    Attributes:
      reason: Reason in two or three words, for the table.
    """

    reason = "failed"


class Diverged(RunFailed):
    """Reports a training or validation loss that is not finite."""

    reason = "diverged"


class OutOfMemory(RunFailed):
    """Reports a step that needs more memory than there is."""

    reason = "out of memory"


class TooSlow(RunFailed):
    """Reports a run that would take longer than its time limit."""

    reason = "too slow"


class Interrupted(Exception):
    """Reports that Ctrl-C or SIGTERM stopped a run, which has saved everything that it needs to resume."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UsageError:
    """Returns the error for a `name` that is not among the `known` ones, with the nearest of these."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    guess = f" Did you mean '{near[0]}'?" if near else ""
    return UsageError(f"There is no {kind} '{name}'.{guess} The {kind}s are: {', '.join(known)}.")
