"""The evaluation of a run's best parameters."""

import contextlib
import dataclasses
import math
import os
from pathlib import Path
from typing import Any

import jax

from lra_tasks.config import read_config
from lra_tasks.data import dataset
from lra_tasks.data.location import DatasetDir, checked_manifest, identity
from lra_tasks.errors import UsageError
from lra_tasks.progress import Progress, Silent
from lra_tasks.training import processes
from lra_tasks.training.checkpoint import Checkpoints
from lra_tasks.training.run_folder import check_data
from lra_tasks.training.step import Program


def evaluate(
    run_dir: str | os.PathLike[str],
    *,
    split: str = "test",
    length: int | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Evaluates the best parameters of a run on all examples of a split.

    Args:
      run_dir: folder of a run that has at least one checkpoint.
      split: "train", "validation" or "test", as the run's protocol has them.
      length: tokens an input is cut to; None means the run's own.
      data_dir: folder of all datasets, as in `lra_tasks.prepare`.
      progress: shows what is under way; None for silence.

    Returns:
      `accuracy` in percent, `loss`, `num_examples`, and the `step` of the parameters.

    Raises:
      UsageError: if there is no run or no checkpoint, for other data than the run began on, for a length
        beyond the model's positions, or in one of several processes.
    """
    if processes.count() > 1:
        raise UsageError("An evaluation is for one process; several train a run, which one then evaluates.")
    run_dir = Path(run_dir)
    config = read_config(run_dir)
    task = dataset.record(config.task, config.variant, data_dir)
    if length is not None:
        dataset.check_length(
            dataset.load(task, split, data_dir, variant=config.variant, verify=False), length
        )
    source = dataset.open_splits(config, data_dir)[split]
    manifest = checked_manifest(DatasetDir(task, config.variant, data_dir), verify=False)
    check_data(run_dir, {"dataset": manifest["dataset"], "identity": identity(manifest)})
    devices = jax.device_count()  # those of training may have been others
    config = dataclasses.replace(config, batch_size=devices * math.ceil(config.batch_size / devices))
    program = Program(config, task)
    state = program.init()
    with contextlib.closing(Checkpoints(run_dir / "checkpoints")) as checkpoints:
        restored = checkpoints.restore({"state": state, "best_params": state.params})
    if restored is None:
        raise UsageError(f"The run in {run_dir} has no checkpoint yet. `lra train` goes on with it.")
    tree, record = restored
    if not record["best_step"]:
        raise UsageError(f"The run in {run_dir} has no validated step yet. `lra train` goes on with it.")
    accuracy, loss = program.evaluate(
        tree["best_params"], source, None, progress or Silent(), "evaluating", length=length
    )
    return {"accuracy": accuracy, "loss": loss, "num_examples": len(source), "step": record["best_step"]}
