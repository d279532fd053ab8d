"""The readable results of a run: rows of metrics, and the environment of the measurements."""

import json
import platform
import statistics
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lra_tasks.files import replace, writing
from lra_tasks.sources.threads import num_cores
from lra_tasks.training.jax_settings import numerics
from lra_tasks.training.tensorboard import Curves

VERSIONED = ("hrrformer", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def environment() -> dict[str, Any]:
    """Returns versions, machine, devices and settings of JAX, on which results depend too."""
    import jax

    return {
        "python": platform.python_version(),
        "versions": {name: version(name) for name in VERSIONED},
        "jax_settings": numerics(),
        "platform": platform.platform(),
        "cpus": num_cores(),
        "processes": jax.process_count(),
        "devices": [device.device_kind for device in jax.devices()],
    }


class Metrics:
    """The rows of `metrics.jsonl`: one JSON object per line, in the order of the steps.

    Args:
      path: Path of the file.
      writes: Whether this process writes the file; if not, `write` and `drop_after` do nothing.
      tensorboard: Folder for the same rows as curves, which `drop_after` opens; None for no curves.
    """

    def __init__(self, path: Path, *, writes: bool = True, tensorboard: Path | None = None) -> None:
        self._path = path
        self._writes = writes
        self._tensorboard = tensorboard
        self._curves: Curves | None = None

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yields the rows written so far, without a last line that a kill cut short."""
        if self._path.exists():
            for line in self._path.read_text().splitlines(keepends=True):
                if line.endswith("\n"):
                    yield json.loads(line)

    def write(self, row: dict[str, Any]) -> None:
        """Appends one row."""
        if not self._writes:
            return
        with writing(self._path), self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        if self._curves is not None:
            self._curves.write(row)

    def drop_after(self, step: int) -> None:
        """Removes the rows of later steps, which a killed run completed but did not save."""
        if not self._writes:
            return
        kept = [row for row in self.rows() if row["step"] <= step]
        replace(self._path, "".join(json.dumps(row) + "\n" for row in kept))
        if self._tensorboard is not None:
            self._curves = Curves(self._tensorboard, kept)

    def close(self) -> None:
        """Closes the curves for TensorBoard."""
        if self._curves is not None:
            self._curves.close()

    def median_step_seconds(self) -> float:
        """Returns the median, over all training rows, of the rows' median step times."""
        return statistics.median(row["step_seconds"] for row in self.rows() if row["split"] == "train")
