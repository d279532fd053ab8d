"""Curves for TensorBoard: the rows of `metrics.jsonl` once more, written by tensorboardX."""

import importlib
import importlib.util
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lra_tasks.errors import UsageError
from lra_tasks.files import writing


def check_installed() -> None:
    """Refuses to go on without tensorboardX."""
    if importlib.util.find_spec("tensorboardX") is None:
        raise UsageError(
            "--tensorboard needs tensorboardX, which is not installed; pip install 'hrrformer[tensorboard]'"
            " brings it."
        )


class Curves:
    """A folder that `tensorboard --logdir` shows: a curve for each number of the rows, `train/loss` for one.

    What the folder held before is written anew, from the rows that a run keeps: a run that was killed and
    gone on with has each point once. The axis to read is the step; the wall time of a point is when it was
    written, which for points of earlier sessions is when the run was gone on with.

    Args:
      folder: made if need be; its event files are replaced.
      rows: what was measured so far, as in `lra_tasks.training.metrics.Metrics`.

    Raises:
      UsageError: if it cannot be written; so do `write` and `close`.
    """

    def __init__(self, folder: Path, rows: Iterable[dict[str, Any]]) -> None:
        # Not SummaryWriter: its thread dies on a full disk, and flushing then waits for ever.
        from tensorboardX import RecordWriter

        self._proto: Any = importlib.import_module("tensorboardX.proto.event_pb2")
        # A name of its own: TensorBoard, if it is looking, reads on where it was in a file that it knows.
        self._path = folder / f"events.out.tfevents.{time.time_ns()}"
        with writing(self._path):
            folder.mkdir(exist_ok=True)
            for earlier in folder.glob("events.out.tfevents.*"):
                earlier.unlink()
            self._file = RecordWriter(str(self._path))
        self._add(file_version="brain.Event:2")
        # Has a TensorBoard that is looking forget the points it knows.
        self._add(session_log=self._proto.SessionLog(status=self._proto.SessionLog.START))
        for row in rows:
            self.write(row)

    def write(self, row: dict[str, Any]) -> None:
        """Adds a point to the curve of each number of a row, which has no others but its step and split."""
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
