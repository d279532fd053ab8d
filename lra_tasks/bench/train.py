"""`lra bench train`: cost of a training step of the whole model as the sequence grows."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from lra_tasks.bench import measure
from lra_tasks.bench.measure import Job
from lra_tasks.bench.settings import TrainSettings
from lra_tasks.config import Config
from lra_tasks.model.mixers import every_mixer, get_mixer
from lra_tasks.presets import preset
from lra_tasks.progress import Progress, Silent
from lra_tasks.tasks import get_task
from lra_tasks.training.metrics import environment
from lra_tasks.training.step import Trainer

TASK = "text"
REFERENCE = "none"  # the mixer that the ratios are to


def bench_train(settings: TrainSettings | None = None, *, progress: Progress | None = None) -> dict[str, Any]:
    """Measures training steps of the whole model as T grows, for several mixers, on random bytes.

    Args:
      settings: Settings; the defaults if None.
      progress: Display of the current step; None for silence.

    Returns:
      A dictionary that JSON can hold: "settings", "rows" (see `rows`) and "environment".

    Raises:
      UsageError: Settings with which nothing can be measured, an unknown mixer or preset, or a mixer that
        cannot be trained.
    """
    settings = settings or TrainSettings()
    settings.check()
    settings = dataclasses.replace(settings, mixers=every_mixer(settings.mixers))
    for mixer in settings.mixers:
        get_mixer(mixer)
    found = rows(settings, progress or Silent())
    return {"settings": dataclasses.asdict(settings), "rows": found, "environment": environment()}


def rows(settings: TrainSettings, progress: Progress) -> list[dict[str, Any]]:
    """Measures the training step with every mixer at every length.

    Returns:
      Dictionaries, ordered by length and mixer: "mixer", the fields of `measure.Cost`, and "steps_per_second"
      and "examples_per_second" of the median step.
    """
    found: list[dict[str, Any]] = []
    for quadratic in (False, True):
        chosen = measure.group(settings.mixers, REFERENCE, quadratic=quadratic)
        for mixer, cost in measure.sweep(functools.partial(_jobs, chosen, settings), settings, progress):
            rate = cost.seconds and 1 / cost.seconds
            rates = {"steps_per_second": rate, "examples_per_second": rate and settings.batch_size * rate}
            found.append({"mixer": mixer} | dataclasses.asdict(cost) | rates)
    return sorted(found, key=lambda row: (row["length"], settings.mixers.index(row["mixer"])))


def _jobs(mixers: dict[str, bool], settings: TrainSettings, length: int) -> dict[str, Job]:
    def job(mixer: str, reported: bool) -> Job:
        config = _config(settings, mixer, length)
        trainer = Trainer(config, get_task(TASK))
        return Job(
            lambda: trainer.compile_training(jax.eval_shape(trainer.init)),
            lambda compiled: _stepper(trainer, compiled, config),
            REFERENCE,
            reported,
        )

    return {mixer: job(mixer, reported) for mixer, reported in mixers.items()}


def _config(settings: TrainSettings, mixer: str, length: int) -> Config:
    base = preset(TASK, settings.preset)
    shared = dataclasses.replace(base, length=length, batch_size=settings.batch_size)
    return Config(settings=shared, task=TASK, mixer=mixer, seed=settings.seed)


def _stepper(trainer: Trainer, compiled: jax.stages.Compiled, config: Config) -> Callable[[], Any]:
    """Returns a call that does the next training step and returns its loss."""
    batch = trainer.shard(random_batch(config, get_task(TASK).vocab_size))
    held = [jax.block_until_ready(trainer.init())]

    def step() -> Any:
        state, measured = compiled(held.pop(), batch)  # which takes over the memory of the last state
        held.append(state)
        return measured

    return step


def random_batch(config: Config, vocab_size: int) -> dict[str, np.ndarray]:
    """Returns a batch of full length with random tokens (B, T) and labels (B,), drawn from the run's seed."""
    draw = np.random.default_rng(config.seed)
    shape = (config.settings.batch_size, config.settings.length)
    return {
        "tokens": draw.integers(1, vocab_size, shape, np.int32),
        "mask": np.ones(shape, bool),
        "label": draw.integers(0, 2, config.settings.batch_size, np.int32),
    }


def in_own_process(settings: TrainSettings, progress: Progress) -> dict[str, Any]:
    """Runs a training step of one mixer at one length in a process of its own.

    Returns:
      "mixer", "length", "width" and the fields of `measure.in_own_process`.
    """
    (mixer,), (length,) = settings.mixers, settings.lengths
    place = {"mixer": mixer, "length": length, "width": _config(settings, mixer, length).settings.model.width}
    return measure.in_own_process(__name__, settings, place, progress)


def only_row(**settings: Any) -> dict[str, Any]:
    """Measures the second training step of one mixer at one length, without a time limit."""
    chosen = dataclasses.replace(TrainSettings(**settings), repeats=1, seconds=1e9)
    return rows(chosen, Silent())[0]
