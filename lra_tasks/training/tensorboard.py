"""Curves for TensorBoard: the rows of `metrics.jsonl`, written by tensorboardX."""

import importlib
import importlib.util
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lra_tasks.errors import UsageError
from lra_tasks.files import writing


def check_installed() -> None:
    """Raises `UsageError` if tensorboardX is not installed."""
    if importlib.util.find_spec("tensorboardX") is None:
        raise UsageError(
            "--tensorboard needs tensorboardX, which is not installed. Install it with"
            " pip install 'hrrformer[tensorboard]'."
        )


class Curves:
    """A folder for `tensorboard --logdir`, with one curve per number of the rows, such as `train/loss`.

    Opening it rewrites all points from the rows that the run kept, so a resumed run shows each point once.
    Read the curves by step. The wall time of a point is the time of writing: for points of earlier sessions,
    the time at which the run resumed.

    Args:
      folder: Folder of the event files; created if it is missing. Existing event files are replaced.
      rows: Rows measured so far, as in `lra_tasks.training.metrics.Metrics`.

    Raises:
      UsageError: If the folder cannot be written; `write` and `close` raise it too.
    """

    def __init__(self, folder: Path, rows: Iterable[dict[str, Any]]) -> None:
        # Not SummaryWriter: its thread dies on a full disk, and flushing then waits forever.
        from tensorboardX import RecordWriter

        self._proto: Any = importlib.import_module("tensorboardX.proto.event_pb2")
        # A new name: a running TensorBoard continues from its last position in a file that it knows.
        self._path = folder / f"events.out.tfevents.{time.time_ns()}"
        with writing(self._path):
            folder.mkdir(exist_ok=True)
            for earlier in folder.glob("events.out.tfevents.*"):
                earlier.unlink()
            self._file = RecordWriter(str(self._path))
        self._add(file_version="brain.Event:2")
        # Makes a running TensorBoard discard the points that it knows.
        self._add(session_log=self._proto.SessionLog(status=self._proto.SessionLog.START))
        for row in rows:
            self.write(row)

    def write(self, row: dict[str, Any]) -> None:
        """Adds one point per number of a row; its step and split are not curves."""
        numbers = {name: value for name, value in row.items() if name not in ("step", "split")}
        values = [{"tag": f"{row['split']}/{name}", "simple_value": value} for name, value in numbers.items()]
        self._add(step=row["step"], summary={"value": values})

    def close(self) -> None:
        """Closes the file."""
        with writing(self._path):
            self._file.close()

    def _add(self, **fields: Any) -> None:
        event = self._proto.Event(wall_time=time.time(), **fields)
        with writing(self._path):
            self._file.write(event.SerializeToString())
            self._file.flush()
