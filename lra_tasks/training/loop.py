"""One run, read from top to bottom: build, restore or initialise, step, validate, save, test once."""

import contextlib
import dataclasses
import json
import math
import os
import statistics
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from lra_tasks.config import Config
from lra_tasks.data import dataset
from lra_tasks.data.batches import training_batches
from lra_tasks.data.location import DatasetDir, checked_manifest, identity
from lra_tasks.errors import Interrupted, UsageError
from lra_tasks.files import locked, write_json
from lra_tasks.model.encoder import num_parameters
from lra_tasks.model.mixers import get_mixer
from lra_tasks.progress import Progress, Silent
from lra_tasks.tasks import get_task
from lra_tasks.training import processes
from lra_tasks.training.checkpoint import Checkpoints
from lra_tasks.training.memory import memory_bytes
from lra_tasks.training.metrics import Metrics, environment
from lra_tasks.training.preflight import check_alike, check_joined, check_memory, check_shared
from lra_tasks.training.run_folder import LOCK, check_data, check_folder, claim, unwritable
from lra_tasks.training.signals import asked_to_end
from lra_tasks.training.step import Program
from lra_tasks.training.tensorboard import Curves, check_installed


@dataclasses.dataclass
class Record:
    """What else a checkpoint holds, as JSON: where the data stand, and what was measured so far.

    Attributes:
      position: state of the data iterator.
      best_step, best_accuracy, best_loss: of the best validation so far.
      seconds: spent in training steps and validations, over all sessions of the run.
      window: sums since the last row of metrics.jsonl: loss, correct predictions, steps.
      step_seconds: duration of every step since the last row.
    """

    position: dict[str, int]
    best_step: int = 0
    best_accuracy: float = -1.0
    best_loss: float = math.inf
    seconds: float = 0.0
    window: dict[str, float] = dataclasses.field(
        default_factory=lambda: dict.fromkeys(("loss", "correct", "steps"), 0.0)
    )
    step_seconds: list[float] = dataclasses.field(default_factory=list)


def train(
    config: Config,
    run_dir: str | os.PathLike[str],
    *,
    data_dir: str | os.PathLike[str] | None = None,
    tensorboard: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Trains a model, or goes on where an earlier call with the same arguments was ended, and tests it.

    The step with the best validation accuracy (the lower loss decides a tie) is the one tested, once, at
    the end. The folder of the run then holds `config.json`, `data.json`, `env.json`, `metrics.jsonl`,
    `summary.json` and `checkpoints/`. A run that has its summary is not run again. A run killed at any
    moment loses the steps since its last checkpoint and, gone on with, ends with the same parameters (bit
    for bit on CPU).

    After `jax.distributed.initialize` the processes train one model together: each of them makes the same
    call and reads its share of every batch, the first writes the files and reports progress. All need the
    same folder of the run. The batches do not depend on the number of processes, nor do the checkpoints: a
    run may be gone on with by more or fewer.

    Args:
      config: the run, resolved.
      run_dir: folder of this run alone; made if need be.
      data_dir: folder of all datasets, as in `lra_tasks.prepare`.
      tensorboard: show what `metrics.jsonl` holds as curves, in the folder `tensorboard` of the run; of a
        finished run too. It is no part of the run's configuration; give it again to go on with the curves.
      progress: shows what is under way; None for silence.

    Returns:
      The summary: accuracies in percent, counts, seconds, bytes; see `summary.json`.

    Raises:
      UsageError: for a dataset that is not whole, a folder that holds a run of another configuration or on
        other data, `tensorboard` without tensorboardX, a step that does not fit into memory, a batch the
        devices cannot share, a mixer that does not fit, a loss that is not finite, a full disk. Over several
        processes, what the arguments, the data, the folder and the memory of a step are refused for is raised
        on all of them if it is found on one. What else fails on one alone (it runs out of memory while it
        compiles, it cannot read a checkpoint, its disk is full) is raised there, and JAX ends the others.
      Interrupted: after Ctrl-C or SIGTERM, when the run has been saved.
    """
    run_dir = Path(run_dir)
    curves = run_dir / "tensorboard" if tensorboard else None
    title = get_task(config.task).title(config.variant)
    label = f"{title} {config.mixer} seed {config.seed}"
    finished = None
    with processes.together():
        first = processes.is_first()
        progress = progress if progress is not None and first else Silent()
        get_mixer(config.mixer)
        if first:
            if curves is not None:
                check_installed()
            check_folder(run_dir, config)
            if (run_dir / "summary.json").is_file():
                finished = json.loads((run_dir / "summary.json").read_text())
                if curves is not None:
                    Curves(curves, Metrics(run_dir / "metrics.jsonl").rows()).close()
                progress.say(f"{label}: finished already, in {run_dir}")
    finished = processes.from_first(finished)
    if finished is not None:
        return finished

    with processes.together():
        progress.show(f"{label}: checking the data")
        task = dataset.record(config.task, config.variant, data_dir)
        sources = dataset.open_splits(config, data_dir)
        manifest = checked_manifest(DatasetDir(task, config.variant, data_dir), verify=False)
        origin = {"dataset": manifest["dataset"], "identity": identity(manifest), **manifest["metadata"]}
        if first:
            check_data(run_dir, origin)
        if "unofficial" in manifest["metadata"]:
            source = manifest["metadata"]["unofficial"]
            progress.say(f"{label}: the data are from an unofficial source: {source}")
        check_joined()
        program = Program(config, task)
        batches = training_batches(
            sources["train"],
            length=config.length,
            batch_size=config.batch_size,
            seed=config.seed,
            rows=program.rows,
        )
    check_alike(config, origin)
    progress.show(f"{label}: compiling")
    state = program.init()
    compiled = program.compile(state)
    program.compile_evaluation(state.params)
    with contextlib.ExitStack() as held:
        with processes.together():
            check_memory(compiled, config)
        # On all processes: there are compilers that wait for those of the others.
        reads_padding = program.reads_padding()
        if reads_padding:
            progress.say(f"{label}: what stands in padding changes what this mixer makes of the rest")
        with processes.together():
            if first:
                with unwritable(run_dir):
                    run_dir.mkdir(parents=True, exist_ok=True)
                    taken = f"{run_dir} is being trained by process PID; wait for it, or end it."
                    held.enter_context(locked(run_dir / LOCK, taken))
                check_folder(run_dir, config)  # again: another may have taken it since
                check_data(run_dir, origin)
                claim(run_dir, config, origin)
        if processes.count() > 1:
            check_shared(run_dir)
        checkpoints = held.enter_context(contextlib.closing(Checkpoints(run_dir / "checkpoints")))
        asked = held.enter_context(asked_to_end())
        metrics = held.enter_context(
            contextlib.closing(Metrics(run_dir / "metrics.jsonl", writes=first, tensorboard=curves))
        )
        record = Record(position=dict(batches.get_state()))
        best_params = _copy(state.params)
        restored = checkpoints.restore({"state": state, "best_params": best_params})
        if restored is not None:
            tree, fields = restored
            state, best_params, record = tree["state"], tree["best_params"], Record(**fields)
            batches.set_state(record.position)
            progress.say(f"{label}: going on from step {int(state.step):,}")
        step = int(state.step)
        with processes.together():
            metrics.drop_after(step)

        def stop_if_asked() -> None:
            if processes.anywhere(asked)():
                raise interrupted()

        def interrupted() -> Interrupted:
            return Interrupted(
                f"Stopped at step {step:,}, saved in {run_dir}. The same command goes on from there."
            )

        def save() -> None:
            record.position = dict(batches.get_state())
            checkpoints.save(step, {"state": state, "best_params": best_params}, dataclasses.asdict(record))

        note = ""
        while step < config.num_steps:
            progress.show(f"{label}: training", step, config.num_steps, note)
            began = time.perf_counter()
            batch = next(batches)
            state, measured = compiled(state, program.shard(batch))
            asked_anywhere = processes.anywhere(asked)
            loss, correct, grad_norm = (float(x) for x in jax.device_get(measured))
            step += 1
            if not (math.isfinite(loss) and math.isfinite(grad_norm)):
                what = f"The loss of step {step} is {loss} and its gradient's norm {grad_norm}"
                examples = ", ".join(map(str, batch["index"].tolist()))
                raise _not_finite(
                    run_dir,
                    f"{what}; its batch holds the training examples {examples}.",
                    checkpoints.latest_step,
                )
            took = time.perf_counter() - began
            record.seconds += took
            record.step_seconds.append(took)
            for name, value in (("loss", loss), ("correct", correct), ("steps", 1)):
                record.window[name] += value
            if step % config.log_every == 0 or step == config.num_steps:
                note = f"loss {record.window['loss'] / record.window['steps']:.3f}"
                metrics.write(_training_row(step, config.batch_size, record, grad_norm))
            if step % config.eval_every == 0 or step == config.num_steps:
                began = time.perf_counter()
                accuracy, loss = program.evaluate(
                    state.params,
                    sources["validation"],
                    config.eval_examples,
                    progress,
                    f"{label}: validating",
                )
                if not math.isfinite(loss):
                    what = f"The validation loss of step {step} is {loss}."
                    raise _not_finite(run_dir, what, checkpoints.latest_step)
                progress.say(f"{label}: step {step:,}  validation accuracy {accuracy:.2f} %  loss {loss:.4f}")
                if (accuracy, -loss) > (record.best_accuracy, -record.best_loss):
                    record.best_step, record.best_accuracy, record.best_loss = step, accuracy, loss
                    best_params = _copy(state.params)
                record.seconds += time.perf_counter() - began
                metrics.write(
                    {
                        "step": step,
                        "split": "validation",
                        "accuracy": accuracy,
                        "loss": loss,
                        "seconds": record.seconds,
                    }
                )
            stop = asked_anywhere()
            if step % config.save_every == 0 or step == config.num_steps or stop:
                save()
            if stop:
                raise interrupted()

        accuracy, loss = program.evaluate(
            best_params, sources["test"], None, progress, f"{label}: testing", between=stop_if_asked
        )
    summary = None
    with processes.together():
        if first:
            summary = {
                "task": config.task,
                "title": title,
                "protocol": config.protocol,
                "mixer": config.mixer,
                "seed": config.seed,
                "length": config.length,
                "num_steps": config.num_steps,
                "batch_size": config.batch_size,
                "pooling": config.model.pooling,
                "test_accuracy": accuracy,
                "test_loss": loss,
                "best_step": record.best_step,
                "validation_accuracy": record.best_accuracy,
                "num_parameters": num_parameters(best_params),
                "reads_padding": reads_padding,
                "examples_per_second": config.batch_size / metrics.median_step_seconds(),
                "seconds": record.seconds,
                "peak_bytes": memory_bytes(compiled)[0],
                "data": origin,
                "environment": environment(),
            }
            write_json(run_dir / "summary.json", summary)
    return processes.from_first(summary)


def _copy(params: Any) -> Any:
    """Arrays of their own: the next step donates those of the state."""
    return jax.tree.map(jnp.copy, params)


def _training_row(step: int, batch_size: int, record: Record, grad_norm: float) -> dict[str, Any]:
    """Returns the row for the steps since the last one, and begins to count anew."""
    window, steps = record.window, record.window["steps"]
    row = {
        "step": step,
        "split": "train",
        "accuracy": 100.0 * window["correct"] / (steps * batch_size),
        "loss": window["loss"] / steps,
        "grad_norm": grad_norm,
        "step_seconds": statistics.median(record.step_seconds),
    }
    record.window = dict.fromkeys(window, 0.0)
    record.step_seconds = []
    return row


def _not_finite(run_dir: Path, what: str, saved: int | None) -> UsageError:
    kept = f"The checkpoint of step {saved} is kept." if saved else "No checkpoint had been saved yet."
    return UsageError(
        f"{what} Training stopped in {run_dir}. {kept} A lower --optimizer.learning-rate or a longer"
        " --optimizer.warmup-steps often helps; it makes another run, in another folder."
    )
