"""Evaluation of parameters on a split, and the best parameters of a run, evaluated or restored."""

import contextlib
import dataclasses
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from lra_tasks.config import Config, read_config
from lra_tasks.data.batches import evaluation_batches
from lra_tasks.data.dataset import open_dataset
from lra_tasks.errors import UsageError
from lra_tasks.files import local_path
from lra_tasks.model.encoder import Classifier
from lra_tasks.progress import Progress, Silent
from lra_tasks.task import Examples, Task
from lra_tasks.tasks import get_task
from lra_tasks.training import processes
from lra_tasks.training.checkpoint import Checkpoints
from lra_tasks.training.run_folder import check_data
from lra_tasks.training.step import Trainer


def evaluate_params(
    trainer: Trainer,
    params: Any,
    source: Examples,
    config: Config,
    progress: Progress,
    message: str,
    *,
    limit: int | None = None,
    length: int | None = None,
    between: Callable[[], None] = lambda: None,
) -> tuple[float, float]:
    """Returns accuracy in percent and mean loss over the first `limit` examples (None: all).

    `between` is called before every batch and may raise to stop the evaluation.
    """
    settings = config.settings
    length = settings.length if length is None else length
    total = len(source) if limit is None else min(limit, len(source))
    batches = evaluation_batches(
        source,
        length=length,
        batch_size=settings.batch_size,
        limit=limit,
        buckets=settings.buckets,
        rows=trainer.rows,
    )
    correct = loss = done = 0.0
    for batch in batches:
        between()
        progress.show(message, round(done), total)
        evaluation = trainer.compile_evaluation(params, batch["tokens"].shape[-1])
        batch_correct, batch_loss = jax.device_get(evaluation(params, trainer.shard(batch)))
        correct, loss = correct + float(batch_correct), loss + float(batch_loss)
        done += float((batch["index"] >= 0).sum())
    return 100.0 * correct / done, loss / done


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
      run_dir: Folder of a run that has at least one validated checkpoint.
      split: "train", "validation" or "test", as the run's protocol defines them.
      length: Tokens that an input is cut to; None means the run's own.
      data_dir: Folder of all datasets, as in `lra_tasks.prepare`.
      progress: Display of the progress; None for silence.

    Returns:
      `accuracy` in percent, `loss`, `num_examples`, and the `step` of the parameters.

    Raises:
      UsageError: If the run or its checkpoint is missing, if the data are not those of the run, if the length
        exceeds the model's positions, or if several processes are joined.
    """
    if processes.count() > 1:
        raise UsageError(
            "An evaluation is for one process. Train the run on several processes, and evaluate it on one."
        )
    run_dir = local_path(run_dir, "run_dir", flag=False)
    config = read_config(run_dir)
    dataset = open_dataset(config.task, config.settings.variant, data_dir)
    if length is not None:
        dataset.check_length(length)
    source = dataset.for_run(config.settings)[split]
    check_data(run_dir, dataset.origin)
    devices = jax.device_count()  # training may have used another number of devices
    batch_size = devices * math.ceil(config.settings.batch_size / devices)
    config = dataclasses.replace(config, settings=dataclasses.replace(config.settings, batch_size=batch_size))
    trainer = Trainer(config, dataset.task)
    params, step = _best_params(run_dir, trainer)
    accuracy, loss = evaluate_params(
        trainer, params, source, config, progress or Silent(), "evaluating", length=length
    )
    return {"accuracy": accuracy, "loss": loss, "num_examples": len(source), "step": step}


def restore(run_dir: str | os.PathLike[str]) -> tuple[Classifier, Config, Task]:
    """Returns the model of a run with its best parameters, its configuration and its task.

    The data of the run are not needed.

    Args:
      run_dir: Folder of a run that has at least one validated checkpoint.

    Raises:
      UsageError: If the run or its validated checkpoint is missing, or the checkpoint cannot be read.
    """
    run_dir = local_path(run_dir, "run_dir", flag=False)
    config = read_config(run_dir)
    task, origin = get_task(config.task), run_dir / "data.json"
    if not task.num_classes and origin.is_file():  # without it the checkpoint is missing too
        task = dataclasses.replace(task, num_classes=len(json.loads(origin.read_text())["classes"]))
    devices = jax.device_count()
    settings = dataclasses.replace(config.settings, batch_size=devices)  # the model does not depend on it
    trainer = Trainer(dataclasses.replace(config, settings=settings), task)
    params, _ = _best_params(run_dir, trainer)
    return trainer.model(params), config, task


def _best_params(run_dir: Path, trainer: Trainer) -> tuple[Any, int]:
    """Returns the parameters of the best validation, and their step."""
    state = trainer.init()
    with contextlib.closing(Checkpoints(run_dir / "checkpoints")) as checkpoints:
        restored = checkpoints.restore({"state": state, "best_params": state.params})
    if restored is None:
        raise UsageError(f"The run in {run_dir} has no checkpoint yet. `lra train` resumes it.")
    tree, counters = restored
    if not counters["best_step"]:
        raise UsageError(f"The run in {run_dir} has no validated step yet. `lra train` resumes it.")
    return tree["best_params"], counters["best_step"]
