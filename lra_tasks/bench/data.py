"""What a training step costs, and whether data and generators keep up with it."""

import dataclasses
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from lra_tasks.config import Config
from lra_tasks.data.batches import Batch, training_batches
from lra_tasks.data.dataset import Source, completed_task, open_dataset
from lra_tasks.data.location import DatasetDir, checked_manifest
from lra_tasks.errors import UsageError
from lra_tasks.presets import preset
from lra_tasks.progress import Progress, Silent
from lra_tasks.tasks import Task, get_task
from lra_tasks.training.memory import free_bytes, memory_bytes
from lra_tasks.training.metrics import environment
from lra_tasks.training.step import Trainer

PREFETCH = 8  # batches that `lra_tasks.data.batches.training_batches` reads ahead
LONGEST_STEP = 30.0  # seconds; a slower one is not repeated
WINDOWS, WINDOW_SECONDS = 5, 0.5


def compiled_temp_bytes(
    config: Config, lengths: Iterable[int], *, progress: Progress | None = None
) -> dict[int, int]:
    """Returns the temporary memory of a run's compiled training step at several lengths.

    Nothing is trained: the step is compiled for each length and asked what XLA will allocate for it beside
    arguments and outputs. The same on every run of one machine.

    Args:
      config: the run; its own length is ignored.
      lengths: values of T.
      progress: shows what is under way; None for silence.

    Returns:
      T → bytes on one device.
    """
    progress = progress or Silent()
    sizes = {}
    for length in lengths:
        progress.show(f"{config.mixer}: compiling for T = {length:,}")
        settings = dataclasses.replace(config.settings, length=length)
        program = Trainer(dataclasses.replace(config, settings=settings), get_task(config.task))
        compiled = program.compile_training(program.init())
        _, sizes[length] = memory_bytes(compiled)
    return sizes


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataRate:
    """How fast a task's data come, beside how fast a model takes them.

    Attributes:
      task: title, the task's name with the dataset's variant where that is another task.
      dataset: folder of the dataset within that of all datasets.
      length: tokens of an input, T.
      batch_size: examples of a batch, B.
      data: examples/s of the training pipeline by itself, the median of several windows.
      cold: the same of the first batches, when the files had been dropped from the system's memory.
      step: examples/s of the training step by itself, from the median step; None where it is not measured.
      waiting: share in percent of a training loop's time that it waits for its next batch; None as above.
      steps: steps that `step` and `waiting` are of.
      note: why they are None, or what else has to be known; empty where nothing.
    """

    task: str
    dataset: str
    length: int
    batch_size: int
    data: float
    cold: float
    step: float | None = None
    waiting: float | None = None
    steps: int = 0
    note: str = ""


def prepared_variant(
    task: Task, wanted: str, length: int, data_dir: str | os.PathLike[str] | None = None
) -> str | None:
    """Returns the variant to measure with: `wanted` if it is there, or else the largest that is whole.

    Folders that are no dataset of the task, and datasets that are not whole, do not count.

    Args:
      task: the task.
      wanted: variant of its preset.
      length: T of its preset; pictures have to have so many pixels.
      data_dir: as in `lra_tasks.prepare`.

    Returns:
      The variant, or None where nothing fit is prepared.
    """
    folder = DatasetDir(task, wanted, data_dir).folder
    if folder.exists():
        return wanted
    sizes: dict[str, int] = {}
    for other in sorted(folder.parent.parent.glob(f"[!.]*/{folder.name}")):
        variant = other.parent.name
        try:
            manifest = checked_manifest(DatasetDir(task, variant, data_dir), verify=False)
        except UsageError:
            continue
        if not task.is_image or manifest["contents"]["splits"]["train"]["lengths"] == [length, length]:
            sizes[variant] = manifest["num_examples"]["train"]
    return max(sizes, key=lambda variant: sizes[variant], default=None)


def data_rates(
    tasks: Iterable[str],
    *,
    preset_name: str = "small",
    mixer: str = "hrr",
    steps: int = 30,
    seconds: float = 30.0,
    data_dir: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> tuple[list[DataRate], dict[str, str]]:
    """Measures data pipeline and training step of several tasks, one after the other.

    The step is compiled and run as in training, on the batches that training would see. Of the steps that
    are run, the first ones use up what was read ahead while the step compiled; they do not count.

    Args:
      tasks: names.
      preset_name: where length, batch size, model and dataset come from; where that dataset is not prepared,
        the largest that is takes its place.
      mixer: of the model.
      steps: steps measured.
      seconds: time for a task's steps, the compilation left out; two are measured in any case.
      data_dir: as in `lra_tasks.prepare`.
      progress: shows what is under way; None for silence.

    Returns:
      The rates; and task → sentence, for each whose data are not prepared.

    Raises:
      UsageError: as `lra_tasks.train`.
    """
    progress = progress or Silent()
    if steps < 2:
        raise UsageError(f"--steps must be at least 2; got {steps}.")
    rates, missing = [], {}
    for name in tasks:
        task, settings = get_task(name), preset(name, preset_name)
        variant = prepared_variant(task, settings.variant, settings.length, data_dir)
        if variant is None:
            place = DatasetDir(task, settings.variant, data_dir)
            missing[name] = f"not prepared in {place.root}; {place.command()} makes it."
            continue
        settings = dataclasses.replace(settings, variant=variant)
        config = Config(settings=settings, task=name, mixer=mixer)
        rates.append(
            _rate(config, completed_task(name, variant, data_dir), steps, seconds, data_dir, progress)
        )
    return rates, missing


def bench_data(
    tasks: Sequence[str],
    *,
    preset_name: str = "small",
    mixer: str = "hrr",
    steps: int = 30,
    seconds: float = 30.0,
    data_dir: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measures `data_rates` and `generation_rates`.

    Args:
      tasks, preset_name, mixer, steps, seconds, data_dir, progress: as in `data_rates`.

    Returns:
      What JSON can hold: "preset", "mixer", "tasks" (a `DataRate` each), "not_prepared" (task → sentence),
      "generation" (generator → examples/s on one core) and "environment".

    Raises:
      UsageError: as `data_rates`.
    """
    progress = progress or Silent()
    rates, missing = data_rates(
        tasks,
        preset_name=preset_name,
        mixer=mixer,
        steps=steps,
        seconds=seconds,
        data_dir=data_dir,
        progress=progress,
    )
    progress.show("generating")
    return {
        "preset": preset_name,
        "mixer": mixer,
        "tasks": [dataclasses.asdict(rate) for rate in rates],
        "not_prepared": missing,
        "generation": generation_rates(),
        "environment": environment(),
    }


def _rate(
    config: Config,
    task: Task,
    steps: int,
    seconds: float,
    data_dir: str | os.PathLike[str] | None,
    progress: Progress,
) -> DataRate:
    title, size = task.title(config.settings.variant), config.settings.batch_size
    progress.show(f"{title}: reading")
    dataset = open_dataset(task, config.settings.variant, data_dir, verify=False)
    dataset.check_length(config.settings.length)
    source = dataset.splits["train"]
    _forget(DatasetDir(task, config.settings.variant, data_dir).folder)
    cold, warm = pipeline_rates(_batches(source, config), size, windows=WINDOWS, seconds=WINDOW_SECONDS)
    rate = DataRate(
        task=title,
        dataset=source.manifest["dataset"],
        length=config.settings.length,
        batch_size=size,
        data=warm,
        cold=cold,
    )
    progress.show(f"{title}: compiling")
    program = Trainer(config, task)
    state = program.init()
    compiled = program.compile_training(state)
    needed, free = memory_bytes(compiled)[0], free_bytes()
    if free is not None and needed > free:
        note = f"a step needs {needed / 1e9:,.1f} GB of memory, {free / 1e9:,.1f} are free"
        return dataclasses.replace(rate, note=note)
    progress.show(f"{title}: training")
    batches = _batches(source, config)

    def step() -> None:
        nonlocal state
        state, measured = compiled(state, program.shard(next_batch()))
        jax.device_get(measured)

    waited = 0.0

    def next_batch() -> Batch:
        nonlocal waited
        began = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - began
        return batch

    begin = time.perf_counter()
    step()
    took = time.perf_counter() - begin
    if took > LONGEST_STEP:
        return dataclasses.replace(rate, note=f"not measured: the first step took {took:.0f} s")
    unmeasured = 1
    while unmeasured <= PREFETCH and time.perf_counter() - begin < seconds / 2:
        step()
        unmeasured += 1
    times, waits = [], []
    while len(times) < 2 or (len(times) < steps and time.perf_counter() - begin < seconds):
        progress.show(f"{title}: training", len(times), steps)
        waited, began = 0.0, time.perf_counter()
        step()
        times.append(time.perf_counter() - began)
        waits.append(waited)
    busy = statistics.median(took - wait for took, wait in zip(times, waits, strict=True))
    early = f"after {unmeasured} steps of {PREFETCH + 1} that use up what is read ahead"
    return dataclasses.replace(
        rate,
        step=size / busy,
        waiting=100 * sum(waits) / sum(times),
        steps=len(times),
        note="" if unmeasured > PREFETCH else early,
    )


def _batches(source: Source, config: Config) -> Iterator[Batch]:
    return training_batches(
        source,
        length=config.settings.length,
        batch_size=config.settings.batch_size,
        seed=config.seed,
        prefetch=PREFETCH,
    )


def pipeline_rates(
    batches: Iterator[Batch],
    batch_size: int,
    *,
    windows: int,
    seconds: float,
) -> tuple[float, float]:
    """Returns the examples/s of the first batches, and the median over several windows of later ones."""

    def window(least: int, seconds: float) -> float:
        count, begin = 0, time.perf_counter()
        while count < least or time.perf_counter() - begin < seconds:
            next(batches)
            count += 1
        return count * batch_size / (time.perf_counter() - begin)

    first = window(PREFETCH + 1, 0.0)
    # Batches made ahead would flatter a window of few.
    return first, statistics.median(window(2 * PREFETCH, seconds) for _ in range(windows))


def generation_rates(*, seconds: float = 1.0) -> dict[str, float]:
    """Measures the generators in this process alone, after what they compile is compiled.

    Args:
      seconds: time for each.

    Returns:
      "listops", expressions/s; "pathfinder" and "pathx", pictures/s.
    """
    from lra_tasks.tasks.listops import grammar
    from lra_tasks.tasks.pathfinder import drawing

    def rate(draw: Callable[[int, int], Any], at_once: int) -> float:
        draw(0, 2)  # compiles
        done, begin = 0, time.perf_counter()
        while not done or time.perf_counter() - begin < seconds:
            draw(done, done + at_once)
            done += at_once
        return done / (time.perf_counter() - begin)

    return {
        "listops": rate(lambda start, stop: grammar.expressions(0, start, stop), 64),
        "pathfinder": rate(lambda start, stop: drawing.images(32, 14, 0, start, stop), 64),
        "pathx": rate(lambda start, stop: drawing.images(128, 14, 0, start, stop), 16),
    }


def _forget(folder: Path) -> None:
    """Asks the system to drop files from its memory, so that the next reading is from the disk."""
    if not hasattr(os, "posix_fadvise"):
        return
    for path in folder.iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
