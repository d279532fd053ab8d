"""Checkpoints of a run, through Orbax: all of the state in one atomic step, or none of it."""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from lra_tasks.errors import UsageError

KEPT = 2  # the last checkpoint, and the one before it should the last be damaged


class Checkpoints:
    """The checkpoints in one folder.

    A checkpoint holds `state`, a tree of arrays, and `record`, whatever else JSON can hold: the position in
    the data, the best validation so far. It is written beside its place and renamed, so a kill at any
    moment leaves the one before it. The processes of a run write and read it together: each of them calls
    every method, and all need the same folder.

    Args:
      folder: made if need be.
    """

    def __init__(self, folder: Path) -> None:
        options = ocp.CheckpointManagerOptions(
            max_to_keep=KEPT,
            create=True,
            enable_async_checkpointing=False,
            single_host_load_and_broadcast=True,  # a shared folder may look different for a while elsewhere
        )
        self._folder = folder
        self._manager = ocp.CheckpointManager(
            folder.absolute(), options=options, item_names=("state", "record")
        )

    @property
    def latest_step(self) -> int | None:
        """The step of the newest whole checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any, record: dict[str, Any]) -> None:
        """Writes a checkpoint and waits until it is whole.

        Raises:
          UsageError: if the folder cannot be written, for want of space for example.
        """
        try:
            self._manager.save(
                step,
                args=ocp.args.Composite(state=ocp.args.StandardSave(state), record=ocp.args.JsonSave(record)),
            )
            self._manager.wait_until_finished()
        except (OSError, ValueError) as error:
            if isinstance(error, ValueError) and not _is_write_error(error):
                raise
            raise UsageError(
                f"The checkpoint of step {step} cannot be written to {self._folder}: {_brief(error)}. Earlier"
                " checkpoints are untouched; make room or mend the folder, and run the same command again."
            ) from error

    def restore(self, template: Any) -> tuple[Any, dict[str, Any]] | None:
        """Returns state and record of the newest checkpoint, or None if there is none.

        Args:
          template: a tree of arrays, or of `jax.ShapeDtypeStruct` with shardings, of the state's shape.

        Raises:
          UsageError: if the checkpoint does not fit the template or cannot be read.
        """
        step = self.latest_step
        if step is None:
            return None
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, template)
        try:
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(abstract), record=ocp.args.JsonRestore()
                ),
            )
        except Exception as error:  # of a damaged file, Orbax raises a bare Exception
            raise UsageError(
                f"The checkpoint of step {step} in {self._folder} cannot be restored: {_brief(error)}. It may"
                f" be damaged: delete {self._folder / str(step)} to go on from the one before it."
            ) from error
        return restored["state"], restored["record"]

    def close(self) -> None:
        """Ends Orbax's threads."""
        self._manager.close()


def _brief(error: Exception) -> str:
    """The first line of an error's text: TensorStore adds its whole specification."""
    return (str(error).partition("\n")[0] or type(error).__name__)[:300]


def _is_write_error(error: ValueError) -> bool:
    """TensorStore reports a full disk or a refused write as a ValueError with the system's words."""
    words = ("No space left", "Permission denied", "Read-only file system", "RESOURCE_EXHAUSTED")
    return any(word in str(error) for word in words)
