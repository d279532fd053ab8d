"""Ctrl-C and SIGTERM as requests to save and stop."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any


@contextlib.contextmanager
def asked_to_end() -> Iterator[list[int]]:
    """Yields a list that receives the signal's number when the user asks the run to stop.

    The first Ctrl-C or SIGTERM is a request, which the run obeys after the current step; a second one acts at
    once. Outside the main thread Python receives no signals, and the list stays empty.
    """
    asked: list[int] = []
    earlier: dict[int, Any] = {}

    def note(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        signal.signal(number, earlier[number])

    try:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                earlier[number] = signal.getsignal(number)
                signal.signal(number, note)
        yield asked
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
