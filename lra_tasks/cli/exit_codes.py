"""Errors, signals and a closed pipe, as messages and exit codes."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

from lra_tasks.errors import Interrupted, UsageError


@contextlib.contextmanager
def exit_codes() -> Iterator[None]:
    """Turns errors and signals into a message on standard error and an exit code.

    2 for an error that the user can mend; 0 for a run that was interrupted and has saved itself; 130 and 143
    for Ctrl-C and SIGTERM at any other time; 1 if the reader of the output has left, as `| head` does.
    """

    received = [signal.SIGINT]

    def end(number: int, frame: FrameType | None) -> None:
        received[:] = [signal.Signals(number)]
        raise KeyboardInterrupt  # unlike a plain kill, this runs every `finally`

    def again(lost: Any) -> None:
        """Sends the signal again if its exception was dropped, as JAX's garbage collector callback does."""
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
            sys.stdout.flush()  # here, where a BrokenPipeError is still caught
    except UsageError as error:
        print(f"lra: {_with_flag(error)}", file=sys.stderr)
        sys.exit(2)
    except Interrupted as error:
        print(f"lra: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("lra: stopped; repeat the command to resume or restart.", file=sys.stderr)
        sys.stderr.flush()
        os._exit(128 + received[0])  # Python crashes if it exits while XLA's threads compile
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python prints an error at exit
        sys.exit(1)
    finally:
        sys.unraisablehook = otherwise
        for timer in timers:
            timer.cancel()


def _with_flag(error: UsageError) -> str:
    """The message of an error, with the flag for the setting at fault in place of its name in Python."""
    message, name = str(error), error.argument
    if name is None or not message.startswith(name):
        return message
    return f"--{name.replace('_', '-')}" + message.removeprefix(name)
