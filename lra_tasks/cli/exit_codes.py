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
