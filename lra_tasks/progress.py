"""Shows what is under way: a live bar in a terminal, a line every few seconds elsewhere."""

import math
import threading
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TaskID, TextColumn
from rich.progress import Progress as RichProgress
from rich.table import Column


def duration(seconds: float) -> str:
    """Returns a time a person reads at a glance: `4 s`, `2 min 05 s`, `3 h 12 min`."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"


class Progress:
    """One line on what is under way, kept alive by a thread, so that a long silent call shows too.

    Used as a context manager; `show` says what is being done, `say` leaves a line for good. In a terminal
    the line is a bar drawn by rich; elsewhere (a pipe, a log) it is printed anew every `interval` seconds.

    Args:
      interval: seconds between plain lines.
      console: where to write; None means standard error, so that tables on standard output stay clean.
    """

    def __init__(self, *, interval: float = 5.0, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, highlight=False)
        self._interval = interval
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._message, self._note = "", ""
        self._done, self._total, self._first = 0, 0, 0
        self._started = time.monotonic()
        self._printed = -math.inf  # the first line comes at once
        self._thread: threading.Thread | None = None
        self._bar: RichProgress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._bar = RichProgress(
                SpinnerColumn(),
                TextColumn(
                    "{task.description}", table_column=Column(no_wrap=True, ratio=3, overflow="ellipsis")
                ),
                BarColumn(bar_width=None, table_column=Column(ratio=1, min_width=4)),
                MofNCompleteColumn(table_column=Column(no_wrap=True)),
                TextColumn("{task.fields[status]}", table_column=Column(no_wrap=True, overflow="ellipsis")),
                console=self._console,
                expand=True,
                transient=True,
            )
            self._task = self._bar.add_task("", total=None, status="", visible=False)
            self._bar.start()
        self._thread = threading.Thread(target=self._keep_alive, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        if self._bar is not None:
            self._bar.stop()

    def show(self, message: str, done: int = 0, total: int = 0, note: str = "") -> None:
        """Says what is under way: `done` of `total` (0: unknown), with a note such as the latest loss."""
        with self._lock:
            if message != self._message:
                self._started, self._first = time.monotonic(), done
            self._message, self._done, self._total, self._note = message, done, total, note
        if self._bar is not None and self._task is not None:
            self._bar.tasks[0].total = total or None  # `update` would keep the last total
            self._bar.update(
                self._task, description=message, completed=done, status=self._status(), visible=True
            )
        else:
            self._print_if_due()

    def say(self, message: str) -> None:
        """Leaves a line for good."""
        self._console.print(message, soft_wrap=not self._console.is_terminal, markup=False)
        self._printed = time.monotonic()

    def _status(self) -> str:
        elapsed = time.monotonic() - self._started
        finished = self._done - self._first
        parts = [self._note] if self._note else []
        if finished > 0 and elapsed > 1.0:
            rate = finished / elapsed
            parts.append(f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.2g}/s")
            if self._total > self._done:
                parts.append(f"{duration((self._total - self._done) / rate)} left")
        elif elapsed > 2.0:
            parts.append(duration(elapsed))
        return "  ".join(parts)

    def _print_if_due(self) -> None:
        with self._lock:  # the thread and the caller must not both find it due
            if not self._message or time.monotonic() - self._printed < self._interval:
                return
            self._printed = time.monotonic()
            count = f"  {self._done:,}/{self._total:,}" if self._total else ""
            line = f"{self._message}{count}  {self._status()}".rstrip()
        self.say(line)

    def _keep_alive(self) -> None:
        while not self._ended.wait(0.5):
            if self._bar is not None and self._task is not None:
                self._bar.update(self._task, status=self._status())
            elif self._bar is None:
                self._print_if_due()


class Silent(Progress):
    """Shows nothing; what functions use when they are given no progress."""

    def __init__(self) -> None:
        super().__init__(console=Console(stderr=True, quiet=True))

    def __enter__(self) -> Self:
        return self

    def show(self, message: str, done: int = 0, total: int = 0, note: str = "") -> None:
        """Shows nothing."""

    def say(self, message: str) -> None:
        """Says nothing."""
