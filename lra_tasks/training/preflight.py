"""Preparation of a run: every check before the first step, and the open run that results."""

import contextlib
import dataclasses
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lra_tasks.config import Config, differences, from_json, to_json
from lra_tasks.data.batches import padded_sizes, training_batches
from lra_tasks.data.dataset import Dataset, open_dataset
from lra_tasks.data.location import DatasetDir
from lra_tasks.data.prepare import prepare
from lra_tasks.errors import OutOfMemory, UsageError
from lra_tasks.files import locked, writing
from lra_tasks.model.mixers import get_mixer
from lra_tasks.model.padding import reads_padding
from lra_tasks.progress import Progress
from lra_tasks.task import Examples
from lra_tasks.tasks import get_task
from lra_tasks.training import processes
from lra_tasks.training.checkpoint import Checkpoints
from lra_tasks.training.jax_settings import differing, numerics
from lra_tasks.training.memory import free_bytes, memory_bytes
from lra_tasks.training.metrics import Metrics
from lra_tasks.training.run_folder import LOCK, check_data, check_folder, check_place, claim, unwritable
from lra_tasks.training.signals import asked_to_end
from lra_tasks.training.step import Trainer, TrainState
from lra_tasks.training.tensorboard import Curves, check_installed


@dataclasses.dataclass(frozen=True)
class OpenRun:
    """A run with a locked folder and a compiled step, ready to train.

    Attributes:
      config: Configuration of the run.
      run_dir: Folder of the run.
      title: Name of the task in results, with the variant where that is another task.
      origin: Name, identity and metadata of the dataset.
      splits: Examples to train on, to validate on and to test on.
      trainer: Model and optimizer on the mesh.
      train_steps: Compiled training step per padded length.
      state: State before the first step.
      batches: Iterator over training batches.
      checkpoints: Checkpoints of the run.
      metrics: Rows of metrics of the run.
      asked: List that receives an entry when the user asks the run to stop.
      reads_padding: Whether the content of padding changes the mixer's results.
      time_limit: Longest time of training steps and validations in seconds; None for no limit.
      progress: Display of the progress.
    """

    config: Config
    run_dir: Path
    title: str
    origin: Mapping[str, Any]
    splits: Mapping[str, Examples]
    trainer: Trainer
    train_steps: Mapping[int, jax.stages.Compiled]
    state: TrainState
    batches: Any
    checkpoints: Checkpoints
    metrics: Metrics
    asked: list[int]
    reads_padding: bool
    time_limit: float | None
    progress: Progress

    @property
    def label(self) -> str:
        """The run's name in messages."""
        return _label(self.config, self.title)


def _label(config: Config, title: str) -> str:
    return f"{title} {config.mixer_name} seed {config.seed}"


def finished_summary(
    config: Config, run_dir: Path, *, tensorboard: bool, progress: Progress
) -> dict[str, Any] | None:
    """Returns the summary of a finished run, on all processes, or None if the run is not finished.

    Raises:
      UsageError: If the mixer is unknown, the folder belongs to another run, or tensorboardX is missing.
    """
    summary = None
    with processes.together():
        get_mixer(config.mixer_name)
        if processes.is_first():
            if tensorboard:
                check_installed()
            check_folder(run_dir, config)
            if (run_dir / "summary.json").is_file():
                summary = json.loads((run_dir / "summary.json").read_text())
                if tensorboard:
                    Curves(run_dir / "tensorboard", Metrics(run_dir / "metrics.jsonl").rows()).close()
                title = get_task(config.task).title(config.settings.variant)
                progress.say(f"{_label(config, title)}: already finished, in {run_dir}")
    return processes.from_first(summary)


@contextlib.contextmanager
def open_run(
    config: Config,
    run_dir: Path,
    *,
    dataset: Dataset | None,
    data_dir: str | os.PathLike[str] | None,
    mesh: Mapping[str, int] | str | None,
    tensorboard: bool,
    time_limit: float | None,
    progress: Progress,
) -> Iterator[OpenRun]:
    """Opens data, compiled step, folder, checkpoints and signals; arguments and errors as in `train`."""
    settings, first = config.settings, processes.is_first()
    title = get_task(config.task).title(settings.variant)
    label = _label(config, title)

    # Data, and a trainer on the devices.
    with processes.together():
        if first:
            check_place(run_dir)
        if dataset is None and processes.count() == 1:
            prepare_drawn(config, data_dir, progress)
        progress.show(f"{label}: checking the data")
        dataset = dataset or open_dataset(config.task, settings.variant, data_dir)
        _check_dataset(config, dataset)
        splits, origin = dataset.for_run(settings), dataset.origin
        if first:
            check_data(run_dir, origin)
        if "unofficial" in origin:
            progress.say(f"{label}: the data are from an unofficial source: {origin['unofficial']}")
        _check_joined()
        trainer = Trainer(config, dataset.task, mesh)
        batches = training_batches(
            splits["train"],
            length=settings.length,
            batch_size=settings.batch_size,
            seed=config.seed,
            buckets=settings.buckets,
            rows=trainer.rows,
        )
        lengths = np.unique(padded_sizes(splits["train"], settings.length, settings.buckets)).tolist()
    _check_alike(config, origin, trainer.mesh)

    # Compiled steps, which report the memory that they need.
    progress.show(f"{label}: compiling")
    state = trainer.init()
    train_steps = {length: trainer.compile_training(state, length) for length in lengths}
    trainer.compile_evaluation(state.params)
    with processes.together():
        _check_memory(train_steps[lengths[-1]], config)
    # On all processes: some compilers wait for those of the others.
    padding = not dataset.task.is_image and reads_padding(config)
    if padding:
        progress.say(f"{label}: the content of padding changes this mixer's results for real tokens")

    # The folder: locked first, then written.
    with contextlib.ExitStack() as held:
        with processes.together():
            if first:
                with unwritable(run_dir):
                    run_dir.mkdir(parents=True, exist_ok=True)
                    taken = f"Process PID is training the run in {run_dir}. Wait for it, or stop it."
                    held.enter_context(locked(run_dir / LOCK, taken))
                check_folder(run_dir, config)  # again: another process may have written it since
                check_data(run_dir, origin)
                claim(run_dir, config, origin)
        if processes.count() > 1:
            _check_shared(run_dir)
        curves = run_dir / "tensorboard" if tensorboard else None
        metrics = Metrics(run_dir / "metrics.jsonl", writes=first, tensorboard=curves)
        yield OpenRun(
            config=config,
            run_dir=run_dir,
            title=title,
            origin=origin,
            splits=splits,
            trainer=trainer,
            train_steps=train_steps,
            state=state,
            batches=batches,
            checkpoints=held.enter_context(contextlib.closing(Checkpoints(run_dir / "checkpoints"))),
            metrics=held.enter_context(contextlib.closing(metrics)),
            asked=held.enter_context(asked_to_end()),
            reads_padding=padding,
            time_limit=time_limit,
            progress=progress,
        )


def prepare_drawn(config: Config, data_dir: str | os.PathLike[str] | None, progress: Progress) -> None:
    """Prepares a missing dataset if it is drawn and does not come from files of the user."""
    task, variant = get_task(config.task), config.settings.variant
    place = DatasetDir(task, variant, data_dir)
    if place.builder_class.is_drawn(variant) and not place.folder.exists():
        progress.say(f"{task.title(variant)} is not prepared yet: it is drawn now, into {place.folder}")
        prepare(task, data_dir, variant=variant, progress=progress)


def _check_memory(compiled: jax.stages.Compiled, config: Config) -> None:
    """Refuses a step that needs more memory than is free."""
    (_, needed), free = memory_bytes(compiled), free_bytes()
    if free is not None and needed > free:
        raise OutOfMemory(
            f"A training step of {config.task} with {config.mixer_name} needs {needed / 1e9:,.1f} GB of"
            f" memory beside its parameters; {free / 1e9:,.1f} GB are free. Reduce batch_size, or length"
            " where the task allows it.",
            argument="batch_size",
        )


def _check_joined() -> None:
    """Refuses devices of other processes (a TPU slice) without `jax.distributed.initialize`."""
    seen = jax.process_count()
    if processes.count() != seen:
        raise UsageError(
            f"The devices that JAX sees belong to {seen} processes, which are not joined. Give `lra train`"
            " --distributed; in Python, call jax.distributed.initialize() before anything else uses JAX."
        )


def _check_dataset(config: Config, dataset: Dataset) -> None:
    """Refuses an open dataset of another task or variant than the run's."""
    expected, got = (config.task, config.settings.variant), (dataset.task.key, dataset.variant)
    if got != expected:
        raise UsageError(f"dataset must be that of {'/'.join(expected)}; got {'/'.join(got)}.")


def _check_alike(config: Config, origin: Mapping[str, Any], mesh: jax.sharding.Mesh) -> None:
    """Refuses a process with another configuration, mesh or other examples than process 0."""
    own = [to_json(config), origin["identity"], dict(mesh.shape), numerics()]
    (first_config, first_identity, first_mesh, first_numerics), *others = processes.gather(own)
    for number, (other_config, other_identity, other_mesh, other_numerics) in enumerate(others, 1):
        if other_mesh != first_mesh:
            raise UsageError(
                f"mesh must be equal in all processes; got {first_mesh} in process 0 and {other_mesh} in"
                f" process {number}.",
                argument="mesh",
            )
        if other_numerics != first_numerics:
            raise UsageError(
                f"Process {number} has other settings of JAX than process 0:"
                f" {differing(first_numerics, other_numerics)}. Give every process the same."
            )
        changed = differences(from_json(first_config), from_json(other_config))
        if changed:
            raise UsageError(
                f"Process {number} has another configuration than process 0. The differences (process 0,"
                f" process {number}): {'; '.join(changed)}. Give every process the same configuration."
            )
        if other_identity != first_identity:
            raise UsageError(
                f"Process {number} has other examples in {origin['dataset']} than process 0. Give every"
                " process the same dataset, as a shared folder or as a copy."
            )


def _check_shared(run_dir: Path) -> None:
    """Refuses a folder that the processes do not share: all must find a file that process 0 writes."""
    # A new name: network file systems cache for a while that a file was absent.
    token = run_dir / processes.from_first(f".shared-{secrets.token_hex(8)}")
    try:
        with processes.together():
            if processes.is_first():
                with writing(token):
                    token.touch()
        with processes.together():
            if not token.exists():
                raise UsageError(
                    f"run_dir must be one folder that all processes share; got {run_dir.absolute()}, which"
                    " does not show a file that process 0 has just written in its own.",
                    argument="run_dir",
                )
    finally:
        if processes.is_first():
            token.unlink(missing_ok=True)
