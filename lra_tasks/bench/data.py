"""`lra bench data`: rate of the data pipeline beside that of the training step."""

import statistics
import time
from collections.abc import Iterator
from typing import Any

import jax

from lra_tasks.bench import measure
from lra_tasks.bench.settings import DataSettings
from lra_tasks.config import Config
from lra_tasks.data.batches import Batch, training_batches
from lra_tasks.data.dataset import open_dataset
from lra_tasks.data.location import DatasetDir
from lra_tasks.errors import UsageError
from lra_tasks.presets import preset
from lra_tasks.progress import Progress, Silent
from lra_tasks.tasks import TASKS, get_task
from lra_tasks.training.memory import free_bytes, memory_bytes
from lra_tasks.training.metrics import environment
from lra_tasks.training.step import Trainer

PREFETCH = 8  # batches that `training_batches` reads ahead
LONGEST_STEP = 30.0  # seconds; a slower one is not repeated
WINDOWS, WINDOW_SECONDS = 5, 0.5


def bench_data(settings: DataSettings, *, progress: Progress | None = None) -> dict[str, Any]:
    """Measures data pipeline and training step of several tasks.

    The step is compiled and run as in training, on the batches of a training run.

    Args:
      settings: Settings.
      progress: Display of the current step; None for silence.

    Returns:
      A dictionary that JSON can hold: "preset", "mixer", "not_prepared" (task → sentence), "environment" and
      "tasks". Each of these has "task" (title), "dataset", "length", "batch_size", "data" (examples/s
      of the pipeline alone), "step" (examples/s of the training step alone, from its median time), "waiting"
      (percent of a training loop's time spent on the next batch), the number of "steps" behind these two,
      None if there are none, and a "note" with the reason.

    Raises:
      UsageError: As in `lra_tasks.train`, or too few steps.
    """
    progress, chosen = progress or Silent(), settings
    if chosen.steps < 2:
        raise UsageError(f"steps must be at least 2; got {chosen.steps}.")
    rates, missing = list[dict[str, Any]](), dict[str, str]()
    for name in chosen.tasks or tuple(TASKS):
        shared = preset(name, chosen.preset)
        place = DatasetDir(get_task(name), shared.variant, chosen.data_dir)
        if place.folder.exists():
            config = Config(settings=shared, task=name, mixer=chosen.mixer)
            rates.append(_task_rates(config, chosen, progress))
        else:
            missing[name] = f"not prepared in {place.root}. Run {place.command()}."
    result = {"preset": chosen.preset, "mixer": chosen.mixer, "tasks": rates, "not_prepared": missing}
    return result | {"environment": environment()}


def _task_rates(config: Config, settings: DataSettings, progress: Progress) -> dict[str, Any]:
    data_dir, seconds, steps = settings.data_dir, settings.seconds, settings.steps
    chosen, size = config.settings, config.settings.batch_size
    title = get_task(config.task).title(chosen.variant)
    progress.show(f"{title}: reading")
    dataset = open_dataset(config.task, chosen.variant, data_dir, verify=False)
    dataset.check_length(chosen.length)
    source = dataset.splits["train"]

    order: Any = {"length": chosen.length, "batch_size": size, "seed": config.seed, "prefetch": PREFETCH}
    rates: dict[str, Any] = {"task": title, "dataset": source.manifest["dataset"], "length": chosen.length}
    rates |= {"batch_size": size, "data": pipeline_rate(training_batches(source, **order), size)}
    rates |= {"step": None, "waiting": None, "steps": 0, "note": ""}
    progress.show(f"{title}: compiling")
    trainer = Trainer(config, dataset.task)
    state = trainer.init()
    compiled = trainer.compile_training(state)
    try:
        measure.refuse_memory(memory_bytes(compiled)[0], free_bytes())
    except measure.Missing as reason:
        return rates | {"note": f"a step {reason.args[1]}"}
    batches = training_batches(source, **order)

    def step() -> tuple[float, float]:
        """Trains a step, and returns the seconds of its wait for the batch and of all."""
        nonlocal state
        began = time.perf_counter()
        batch = next(batches)
        waited = time.perf_counter() - began
        state, measured = compiled(state, trainer.shard(batch))
        jax.device_get(measured)
        return waited, time.perf_counter() - began

    begin = time.perf_counter()
    _, took = step()
    if took > LONGEST_STEP:
        return rates | {"note": f"the first step took {took:.0f} s, more than {LONGEST_STEP:.0f} s"}
    for number in range(PREFETCH):  # these use batches that were read ahead during compilation
        if time.perf_counter() - begin > seconds / 2:
            rates["note"] = f"some of its batches were read ahead: only {number + 1} steps were left out"
            break
        step()
    measured: list[tuple[float, float]] = []
    while len(measured) < 2 or (len(measured) < steps and time.perf_counter() - begin < seconds):
        progress.show(f"{title}: training", len(measured), steps)
        measured.append(step())
    waits, times = zip(*measured, strict=True)
    busy = statistics.median(took - wait for wait, took in measured)
    return rates | {"step": size / busy, "waiting": 100 * sum(waits) / sum(times), "steps": len(measured)}


def pipeline_rate(batches: Iterator[Batch], batch_size: int) -> float:
    """Returns the examples per second of a pipeline, the median over several windows."""

    def window(least: int, seconds: float) -> float:
        count, begin = 0, time.perf_counter()
        while count < least or time.perf_counter() - begin < seconds:
            next(batches)
            count += 1
        return count * batch_size / (time.perf_counter() - begin)

    window(PREFETCH + 1, 0.0)  # fills the caches
    # In a window of few batches, those that were read ahead would count too much.
    return statistics.median(window(2 * PREFETCH, WINDOW_SECONDS) for _ in range(WINDOWS))
