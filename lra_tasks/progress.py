"""Progress reporting: a live bar in a terminal, a line every few seconds elsewhere."""

import math
import threading
import time
from types import TracebackType
from typing import Self

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
)
from rich.progress import Progress as RichProgress
from rich.table import Column
from rich.text import Text


def duration(seconds: float) -> str:
    """Returns a time that is easy to read: `0.3 s`, `4 s`, `2 min 05 s`, `3 h 12 min`."""
    if round(seconds, 1) < 1:
        return f"{seconds:.1f} s"
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"


class _IfKnown(ProgressColumn):
    """A column that is empty as long as the total is unknown."""

    def __init__(self, column: ProgressColumn, table_column: Column) -> None:
        super().__init__(table_column)
        self._column = column

    def render(self, task: Task) -> RenderableType:
        return Text() if task.total is None else self._column.render(task)


class Progress:
    """A line about the current activity. A thread updates it, so that a long silent call is visible too.

    Used as a context manager: `show` sets the line, `say` prints a permanent one. In a terminal the line is a
    bar drawn by rich; elsewhere (a pipe, a log) it is printed every `interval` seconds.

    Args:
      interval: Seconds between plain lines.
      console: Console to write on; None uses standard error, so that standard output contains only tables.
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
                _IfKnown(BarColumn(bar_width=None), Column(ratio=1, min_width=4)),
                _IfKnown(MofNCompleteColumn(), Column(no_wrap=True)),
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
        """Shows an activity: `done` of `total` (0: unknown) steps, and a note such as the latest loss."""
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
        """Prints a permanent line."""
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
        with self._lock:  # or the thread and the caller might both print it
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
    """Shows nothing; the default of functions with an argument `progress`."""

    def __init__(self) -> None:
        super().__init__(console=Console(stderr=True, quiet=True))

    def __enter__(self) -> Self:
        return self

    def show(self, message: str, done: int = 0, total: int = 0, note: str = "") -> None:
        """Shows nothing."""

    def say(self, message: str) -> None:
        """Prints nothing."""
