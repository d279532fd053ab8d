"""Checkpoints of a run, through Orbax: each is written atomically, whole or not at all."""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from lra_tasks.errors import UsageError

KEPT = 2  # the latest checkpoint, and the one before it in case the latest is damaged


class Checkpoints:
    """The checkpoints in one folder.

    A checkpoint contains `state`, a tree of arrays, and `record`, a JSON object: the position in the data and
    the best validation so far. It is written under a temporary name and renamed, so a kill at any moment
    leaves the previous one intact. All processes of a run write and read checkpoints together: each process
    calls every method, and all of them need the same folder.

    Args:
      folder: Folder of the checkpoints; created if it is missing.
    """

    def __init__(self, folder: Path) -> None:
        options = ocp.CheckpointManagerOptions(
            max_to_keep=KEPT,
            create=True,
            enable_async_checkpointing=False,
            single_host_load_and_broadcast=True,  # other hosts may see a shared folder with a delay
        )
        self._folder = folder
        self._manager = ocp.CheckpointManager(
            folder.absolute(), options=options, item_names=("state", "record")
        )

    @property
    def latest_step(self) -> int | None:
        """The step of the latest complete checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any, record: dict[str, Any]) -> None:
        """Writes a checkpoint and waits until it is complete.

        Raises:
          UsageError: If the folder cannot be written, for example because the disk is full.
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
                " checkpoints are untouched. Free disk space or fix the folder, and repeat the command."
            ) from error

    def restore(self, template: Any) -> tuple[Any, dict[str, Any]] | None:
        """Returns state and record of the latest checkpoint, or None if there is none.

        Args:
          template: Tree of arrays, or of `jax.ShapeDtypeStruct` with shardings, with the state's structure.

        Raises:
          UsageError: If the checkpoint does not match the template or cannot be read.
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
        except Exception as error:  # Orbax raises a bare Exception for a damaged file
            raise UsageError(
                f"The checkpoint of step {step} in {self._folder} cannot be restored: {_brief(error)}. It may"
                f" be damaged: delete {self._folder / str(step)} to resume from the previous checkpoint."
            ) from error
        return restored["state"], restored["record"]

    def close(self) -> None:
        """Stops Orbax's threads."""
        self._manager.close()


def _brief(error: Exception) -> str:
    """Returns the first line of an error's text; TensorStore appends its whole specification."""
    return (str(error).partition("\n")[0] or type(error).__name__)[:300]


def _is_write_error(error: ValueError) -> bool:
    """Whether TensorStore reports a full disk or a refused write, which it does by a ValueError."""
    words = ("No space left", "Permission denied", "Read-only file system", "RESOURCE_EXHAUSTED")
    return any(word in str(error) for word in words)
