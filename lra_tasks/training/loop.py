"""The training loop, in the order of events: open, restore, step, log, validate, save, test once."""

import contextlib
import dataclasses
import math
import os
import statistics
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lra_tasks.config import Config
from lra_tasks.data.dataset import Dataset
from lra_tasks.errors import Diverged, Interrupted, OutOfMemory, RunFailed, TooSlow
from lra_tasks.files import local_path, write_json
from lra_tasks.model.encoder import num_parameters
from lra_tasks.progress import Progress, Silent, duration
from lra_tasks.training import processes
from lra_tasks.training.evaluate import evaluate_params
from lra_tasks.training.jax_settings import check_modes
from lra_tasks.training.memory import memory_bytes
from lra_tasks.training.metrics import environment
from lra_tasks.training.preflight import OpenRun, finished_summary, open_run
from lra_tasks.training.run_folder import record_failure
from lra_tasks.training.step import TrainState

JUDGED = 4  # steps after the first one of a session; fewer do not tell how long a run takes


@dataclasses.dataclass
class Counters:
    """The part of a checkpoint stored as JSON: the position in the data, and the measurements so far.

    Attributes:
      position: State of the data iterator.
      best_step: Step of the best validation so far.
      best_accuracy: Accuracy of that validation, in percent.
      best_loss: Loss of that validation.
      seconds: Time spent in training steps and validations, over all sessions of the run.
      window: Sums of loss, correct predictions and steps since the last row of metrics.jsonl.
      step_seconds: Duration of every step since the last row.
    """

    position: dict[str, int]
    best_step: int = 0
    best_accuracy: float = -1.0
    best_loss: float = math.inf
    seconds: float = 0.0
    window: dict[str, float] = dataclasses.field(
        default_factory=lambda: dict.fromkeys(("loss", "correct", "steps"), 0.0)
    )
    step_seconds: list[float] = dataclasses.field(default_factory=list[float])


def train(
    config: Config,
    run_dir: str | os.PathLike[str],
    *,
    dataset: Dataset | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    mesh: Mapping[str, int] | str | None = None,
    tensorboard: bool = False,
    time_limit: float | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Trains a model, or resumes an earlier call with the same arguments, and tests it.

    The parameters with the best validation accuracy (the lower loss decides a tie) are tested once, at the
    end. The folder of the run then contains `config.json`, `data.json`, `env.json`, `metrics.jsonl`,
    `summary.json` and `checkpoints/`. A finished run is not repeated. A run that is killed at any moment
    loses the steps since its last checkpoint. After it resumes, it reaches the same final parameters (bit for
    bit on CPU).

    After `jax.distributed.initialize` the processes train one model together. Each process makes the same
    call and reads its share of every batch; the first one writes the files and reports progress. All need the
    same folder of the run. Batches and checkpoints do not depend on the number of processes or devices: a run
    can resume on any number.

    Args:
      config: Configuration of the run.
      run_dir: Folder of this run alone; created if it is missing.
      dataset: Open dataset. None opens it, and first prepares a missing one if it is drawn (ListOps,
        Pathfinder).
      data_dir: Folder of all datasets, as in `lra_tasks.prepare`.
      mesh: Devices per axis, {"data": 2, "sequence": 2} or "data=2,sequence=2": `data` shares the examples of
        a batch, `sequence` the tokens of an example, for mixers that declare it. None shares examples only.
      tensorboard: Whether to write the rows of `metrics.jsonl` as curves too, in the folder `tensorboard` of
        the run. It is not part of the configuration; pass it again to resume the curves.
      time_limit: Longest time of training steps and validations, in seconds. A run that would take longer,
        judged by the mean of its steps, stops. A repeated call with a higher limit, or None, resumes it.
      progress: Display of the progress; None for silence.

    Returns:
      The summary: accuracies in percent, counts, seconds, bytes; see `summary.json`.

    Raises:
      UsageError: For an incomplete dataset, a folder with a run of another configuration, on other data or
        under other settings of JAX, a folder that cannot be written or has no file locks, a URL, a mode of
        JAX such as `JAX_DISABLE_JIT`, `tensorboard` without tensorboardX, a step that does not fit into
        memory, a batch or sequence that the devices cannot share, an unsuitable mixer, a loss that is not
        finite, or a full disk. With several processes, all of them raise the faults of arguments, data,
        folder and memory that one of them finds. Other faults of one process (it runs out of memory while it
        compiles, it cannot read a checkpoint, its disk is full) are raised on that process, and JAX
        terminates the others.
      Interrupted: After Ctrl-C or SIGTERM, once the run has been saved.
    """
    check_modes()
    run_dir = local_path(run_dir, "run_dir")
    progress = progress if progress is not None and processes.is_first() else Silent()
    summary = finished_summary(config, run_dir, tensorboard=tensorboard, progress=progress)
    if summary is not None:
        return summary
    # The loop itself checks every loss; JAX would raise an error that names neither step nor examples.
    with (
        _recorded(config, run_dir),
        jax.debug_nans(False),
        jax.debug_infs(False),
        open_run(
            config,
            run_dir,
            dataset=dataset,
            data_dir=data_dir,
            mesh=mesh,
            tensorboard=tensorboard,
            time_limit=time_limit,
            progress=progress,
        ) as run,
    ):
        state, best_params, counters = _restore(run)
        best_params = _train_steps(run, state, best_params, counters)

        def stop_if_asked() -> None:
            if processes.anywhere(run.asked)():
                raise _interrupted(run, config.settings.num_steps)

        accuracy, loss = evaluate_params(
            run.trainer,
            best_params,
            run.splits["test"],
            config,
            progress,
            f"{run.label}: testing",
            between=stop_if_asked,
        )
        return _finish(run, best_params, counters, accuracy, loss)


@contextlib.contextmanager
def _recorded(config: Config, run_dir: Path) -> Iterator[None]:
    """Writes the reason into the folder of a run that cannot finish, and raises its error again."""
    try:
        try:
            yield
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise OutOfMemory(
                f"{config.task} with {config.mixer_name} does not fit into the memory of its device. Reduce"
                f" batch_size, or length where the task allows it. JAX reports: {error}",
                argument="batch_size",
            ) from error
    except RunFailed as error:
        if processes.is_first():
            record_failure(run_dir, config, error)
        raise


def _restore(run: OpenRun) -> tuple[TrainState, Any, Counters]:
    """Returns state, best parameters and counters of the latest checkpoint, or the initial ones."""
    state, best_params = run.state, _copy(run.state.params)
    counters = Counters(position=dict(run.batches.get_state()))
    restored = run.checkpoints.restore({"state": state, "best_params": best_params})
    if restored is not None:
        tree, fields = restored
        state, best_params, counters = tree["state"], tree["best_params"], Counters(**fields)
        run.batches.set_state(counters.position)
        run.progress.say(f"{run.label}: resuming at step {int(state.step):,}")
    with processes.together():
        run.metrics.drop_after(int(state.step))
    return state, best_params, counters


def _train_steps(run: OpenRun, state: TrainState, best_params: Any, counters: Counters) -> Any:
    """Trains to the last step and returns the best parameters.

    While the devices compute a step, the host loads the next batch and fetches the measurements of the
    previous step. The host waits for a step that it logs, validates or saves, so that a loss that is not
    finite never reaches a checkpoint.
    """
    settings, step = run.config.settings, int(state.step)
    meter = _Meter(run, counters)
    stop_asked = processes.anywhere(run.asked)
    batch, arrays = _next_batch(run) if step < settings.num_steps else ({}, {})
    while step < settings.num_steps:
        # Step.
        run.progress.show(f"{run.label}: training", step, settings.num_steps, meter.note)
        state, measured = run.train_steps[batch["tokens"].shape[-1]](state, arrays)
        step += 1
        meter.started(step, batch["index"], measured)
        counters.position = dict(run.batches.get_state())
        last = step == settings.num_steps
        if not last:
            batch, arrays = _next_batch(run)
        due_log, due_validation, due_save = (
            last or step % every == 0
            for every in (settings.log_every, settings.eval_every, settings.save_every)
        )
        meter.fetch(keep=1)
        stop, stop_asked = stop_asked(), processes.anywhere(run.asked)
        if due_log or due_validation or due_save or stop:
            meter.fetch(keep=0)
        too_slow = meter.too_slow(step)
        if too_slow:
            meter.fetch(keep=0)

        # Log.
        if due_log:
            run.metrics.write(meter.row(step))

        # Validate.
        if due_validation:
            began = time.perf_counter()
            message = f"{run.label}: validating"
            accuracy, loss = evaluate_params(
                run.trainer,
                state.params,
                run.splits["validation"],
                run.config,
                run.progress,
                message,
                limit=settings.eval_examples,
            )
            if not math.isfinite(loss):
                raise _not_finite(run, f"The validation loss of step {step} is {loss}.")
            run.progress.say(
                f"{run.label}: step {step:,}  validation accuracy {accuracy:.2f} %  loss {loss:.4f}"
            )
            if (accuracy, -loss) > (counters.best_accuracy, -counters.best_loss):
                counters.best_step, counters.best_accuracy, counters.best_loss = step, accuracy, loss
                best_params = _copy(state.params)
            counters.seconds += time.perf_counter() - began
            row = {"accuracy": accuracy, "loss": loss, "seconds": counters.seconds}
            run.metrics.write({"step": step, "split": "validation", **row})

        # Save.
        if due_save or stop or too_slow:
            tree = {"state": state, "best_params": best_params}
            run.checkpoints.save(step, tree, dataclasses.asdict(counters))
        if stop:
            raise _interrupted(run, step)
        if too_slow:
            raise TooSlow(too_slow)
        meter.resume()
    return best_params


def _next_batch(run: OpenRun) -> tuple[Mapping[str, np.ndarray], dict[str, Any]]:
    """Returns the next batch, on the host and on the devices."""
    batch = next(run.batches)
    return batch, run.trainer.shard(batch)


class _Meter:
    """Fetches the measurements of steps, in order, and adds them to the run's counters."""

    def __init__(self, run: OpenRun, counters: Counters) -> None:
        self._run, self._counters = run, counters
        self._in_flight: list[tuple[int, np.ndarray, Any]] = []
        self._began = time.perf_counter()
        self._grad_norm = math.nan
        self._has_begun, self._steps, self._seconds = False, 0, 0.0  # this session, after its first step
        self.note = ""

    def started(self, step: int, indices: np.ndarray, measured: Any) -> None:
        """Records a step that the devices have begun, with the indices of its examples."""
        self._in_flight.append((step, indices, measured))

    def fetch(self, *, keep: int) -> None:
        """Waits for all but the latest `keep` steps; refuses a loss that is not finite."""
        while len(self._in_flight) > keep:
            step, indices, measured = self._in_flight.pop(0)
            loss, correct, self._grad_norm = (float(x) for x in jax.device_get(measured))
            if not (math.isfinite(loss) and math.isfinite(self._grad_norm)):
                raise _not_finite(
                    self._run,
                    f"The loss of step {step} is {loss} and its gradient's norm {self._grad_norm}; its batch"
                    f" contains the training examples {', '.join(map(str, indices.tolist()))}.",
                )
            now = time.perf_counter()
            took, self._began = now - self._began, now
            self._counters.seconds += took
            self._counters.step_seconds.append(took)
            if self._has_begun:
                self._steps, self._seconds = self._steps + 1, self._seconds + took
            self._has_begun = True
            for name, value in (("loss", loss), ("correct", correct), ("steps", 1)):
                self._counters.window[name] += value

    def too_slow(self, step: int) -> str:
        """Returns the fault of a run that exceeds its time limit, at the mean of its steps; empty if none."""
        limit, left = self._run.time_limit, self._run.config.settings.num_steps - step
        if limit is None or not left or self._steps < JUDGED:
            return ""
        mean = self._seconds / self._steps
        needed = self._counters.seconds + left * mean
        fault = f"The run in {self._run.run_dir} would train for {duration(needed)}; the limit is"
        fault += f" {duration(limit)}. It stopped at step {step:,}; a step takes {duration(mean)}."
        return processes.from_first(fault if needed > limit else "")

    def resume(self) -> None:
        """Restarts the clock after work that is not part of a step."""
        if not self._in_flight:
            self._began = time.perf_counter()

    def row(self, step: int) -> dict[str, Any]:
        """Returns the row for the steps since the last row, and resets the sums."""
        counters, window = self._counters, self._counters.window
        loss = window["loss"] / window["steps"]
        row = {
            "step": step,
            "split": "train",
            "accuracy": 100.0 * window["correct"] / (window["steps"] * self._run.config.settings.batch_size),
            "loss": loss,
            "grad_norm": self._grad_norm,
            "step_seconds": statistics.median(counters.step_seconds),
        }
        counters.window, counters.step_seconds = dict.fromkeys(window, 0.0), []
        self.note = f"loss {loss:.3f}"
        return row


def _finish(run: OpenRun, params: Any, counters: Counters, accuracy: float, loss: float) -> dict[str, Any]:
    """Writes the summary and returns it, on all processes."""
    config, settings, summary = run.config, run.config.settings, None
    with processes.together():
        if processes.is_first():
            summary = {
                "task": config.task,
                "title": run.title,
                "protocol": settings.protocol,
                "mixer": config.mixer_name,
                "seed": config.seed,
                "length": settings.length,
                "num_steps": settings.num_steps,
                "batch_size": settings.batch_size,
                "pooling": settings.model.pooling,
                "test_accuracy": accuracy,
                "test_loss": loss,
                "best_step": counters.best_step,
                "validation_accuracy": counters.best_accuracy,
                "num_parameters": num_parameters(params),
                "reads_padding": run.reads_padding,
                "examples_per_second": settings.batch_size / run.metrics.median_step_seconds(),
                "seconds": counters.seconds,
                "peak_bytes": memory_bytes(run.train_steps[max(run.train_steps)])[0],
                "data": run.origin,
                "environment": environment(),
            }
            write_json(run.run_dir / "summary.json", summary)
    return processes.from_first(summary)


def _copy(params: Any) -> Any:
    """Returns copies of the parameters, since the next step donates those of the state."""
    return jax.tree.map(jnp.copy, params)


def _interrupted(run: OpenRun, step: int) -> Interrupted:
    return Interrupted(
        f"Stopped at step {step:,} and saved in {run.run_dir}. Repeat the same command to resume."
    )


def _not_finite(run: OpenRun, fault: str) -> Diverged:
    saved = run.checkpoints.latest_step
    kept = f"The checkpoint of step {saved} is kept." if saved else "There is no checkpoint yet."
    return Diverged(
        f"{fault} Training stopped in {run.run_dir}. {kept} Try a lower optimizer.learning_rate or a longer"
        " optimizer.warmup_steps. That is another run and needs another folder."
    )
