"""`lra bench train`: what a training step of the whole model costs against the length of the sequence."""

import dataclasses
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from lra_tasks.bench import measure
from lra_tasks.bench.baselines import QUADRATIC
from lra_tasks.bench.measure import Missing
from lra_tasks.bench.peak import Killed, run_apart
from lra_tasks.config import Config
from lra_tasks.errors import UsageError
from lra_tasks.model.mixers import get_mixer
from lra_tasks.presets import preset
from lra_tasks.progress import Progress, Silent
from lra_tasks.tasks import get_task
from lra_tasks.training.memory import free_bytes, memory_bytes
from lra_tasks.training.metrics import environment
from lra_tasks.training.step import Trainer

TASK = "text"
REFERENCE = "none"  # the mixer that times are put in proportion to


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """What is measured: the arena's efficiency protocol is 32 examples of 1,000 to 4,000 bytes.

    Attributes:
      mixers: names, or package.module:Class.
      lengths: values of T.
      batch_size: examples of a step.
      preset: of the task Text, where the model comes from.
      repeats: rounds at most, a step of each mixer a round.
      seconds: time for a length's rounds, of which three are made in any case; and the longest step made.
      seed: of parameters, tokens and the order within each round.
    """

    mixers: tuple[str, ...] = ("hrr", "softmax", "none")
    lengths: tuple[int, ...] = (1024, 2048, 4096)
    batch_size: int = 32
    preset: str = "quick"
    repeats: int = 10
    seconds: float = 30.0
    seed: int = 0

    def __post_init__(self) -> None:
        for flag, value in (
            ("--batch-size", self.batch_size),
            ("--repeats", self.repeats),
            *(("--lengths", length) for length in self.lengths),
        ):
            if value < 1:
                raise UsageError(f"{flag} must be at least 1; got {value}.")
        if not self.seconds > 0:
            raise UsageError(f"--seconds must be positive; got {self.seconds:g}.")
        for flag, values in (("--lengths", self.lengths), ("--mixers", self.mixers)):
            if not values:
                raise UsageError(f"{flag} must name at least one; got none.")

    def config(self, mixer: str, length: int) -> Config:
        """Returns the run whose step is measured."""
        settings = dataclasses.replace(preset(TASK, self.preset), length=length, batch_size=self.batch_size)
        return Config(settings=settings, task=TASK, mixer=mixer, seed=self.seed)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepCost(measure.Measured):
    """What a training step with one mixer costs at one length; `ratio` is to that with the mixer none.

    Attributes:
      mixer: what it is of.
      steps_per_second, examples_per_second: from the median step.
    """

    mixer: str
    steps_per_second: float | None = None
    examples_per_second: float | None = None


def bench_train(settings: TrainSettings | None = None, *, progress: Progress | None = None) -> dict[str, Any]:
    """Measures training steps of the whole model against T, for several mixers, on random bytes.

    Args:
      settings: what is measured; the defaults if not given.
      progress: shows what is under way; None for silence.

    Returns:
      What JSON can hold: "settings", "rows" (a `StepCost` each), "exponents" (mixer → {"seconds": p,
      "temp_bytes": p}, as T^p) and "environment".

    Raises:
      UsageError: as `lra_tasks.training.step.Trainer`, and for an unknown mixer or preset.
    """
    progress = progress or Silent()
    settings = settings or TrainSettings()
    for mixer in settings.mixers:
        get_mixer(mixer)
    rows: list[StepCost] = []
    for length in sorted(settings.lengths):
        earlier = {
            mixer: measure.times(row for row in rows if row.mixer == mixer) for mixer in settings.mixers
        }
        rows += _at_length(length, earlier, settings, progress)
    return {
        "settings": dataclasses.asdict(settings),
        "rows": [dataclasses.asdict(row) for row in rows],
        "exponents": exponents(rows),
        "environment": environment(),
    }


def exponents(rows: Sequence[StepCost]) -> dict[str, dict[str, float | None]]:
    """Returns mixer → the exponents p of time and memory, as T^p; see `lra_tasks.bench.measure.exponent`."""
    return {
        mixer: measure.exponents([row for row in rows if row.mixer == mixer])
        for mixer in dict.fromkeys(row.mixer for row in rows)
    }


def random_batch(config: Config, vocab_size: int) -> dict[str, np.ndarray]:
    """Returns a batch of full length whose tokens (B, T) and labels (B,) are drawn from the run's seed."""
    draw = np.random.default_rng(config.seed)
    shape = (config.settings.batch_size, config.settings.length)
    return {
        "tokens": draw.integers(1, vocab_size, shape, np.int32),
        "mask": np.ones(shape, bool),
        "label": draw.integers(0, 2, config.settings.batch_size, np.int32),
    }


def _compile(program: Trainer) -> jax.stages.Compiled | Missing:
    """Returns the compiled training step, or that there was too little memory for compiling it."""
    state = jax.eval_shape(program.init)
    return measure.within_memory(lambda: program.compile_training(state), "while it was compiled")


def _stepper(program: Trainer, compiled: jax.stages.Compiled, config: Config) -> Callable[[], Any] | Missing:
    """Returns a call that does the next training step and returns its measurements, or why there is none."""

    def begin() -> Any:
        batch = random_batch(config, get_task(TASK).vocab_size)
        return jax.block_until_ready((program.init(), program.shard(batch)))

    began = measure.within_memory(begin, "while parameters were drawn")
    if isinstance(began, Missing):
        return began
    held, batch = [began[0]], began[1]
    del began  # the step takes the parameters' memory

    def step() -> Any:
        state, measured = compiled(held.pop(), batch)
        held.append(state)
        return measured

    return step


def _at_length(
    length: int, earlier: dict[str, dict[int, float]], settings: TrainSettings, progress: Progress
) -> list[StepCost]:
    rows: dict[str, StepCost] = {}
    calls: dict[str, Callable[[], Any]] = {}
    free = free_bytes()
    for mixer in settings.mixers:
        progress.show(f"T = {length:,}: compiling {mixer}", len(rows), len(settings.mixers))
        config = settings.config(mixer, length)
        program = Trainer(config, get_task(TASK))
        compiled = _compile(program)
        if isinstance(compiled, Missing):
            rows[mixer] = measure.without_time(StepCost(mixer=mixer, length=length), compiled)
            continue
        total, temporary = memory_bytes(compiled)
        rows[mixer] = StepCost(mixer=mixer, length=length, temp_bytes=temporary, total_bytes=total)
        expected = measure.expected_seconds(earlier[mixer], length)
        step = measure.reason_not_to_run(total, free, expected, settings.seconds)
        step = step or _stepper(program, compiled, config)
        if isinstance(step, Missing):
            rows[mixer] = measure.without_time(rows[mixer], step)
        else:
            calls[mixer] = step
    for last in (False, True):  # see `lra_tasks.bench.baselines.QUADRATIC`
        chosen = {mixer for mixer in calls if (mixer in QUADRATIC) == last}
        times, lost = measure.measure(
            {
                mixer: call
                for mixer, call in calls.items()
                if mixer in chosen or (chosen and mixer == REFERENCE)
            },
            repeats=settings.repeats,
            seconds=settings.seconds,
            seed=settings.seed,
            show=lambda done, total: progress.show(f"T = {length:,}: training", done, total),
        )
        for mixer in chosen & lost.keys():
            rows[mixer] = measure.without_time(rows[mixer], lost[mixer])
        for mixer in chosen & times.keys():
            row = measure.with_times(rows[mixer], times[mixer], times.get(REFERENCE))
            rate = 1 / statistics.median(times[mixer])
            rows[mixer] = dataclasses.replace(
                row, steps_per_second=rate, examples_per_second=settings.batch_size * rate
            )
    return list(rows.values())


def measure_apart(settings: TrainSettings, *, progress: Progress) -> dict[str, Any]:
    """Runs a training step of one mixer at one length in a process of its own.

    Returns:
      "mixer", "length", "width", "seconds", "total_bytes", "peak_rss_bytes" (all that the process ever held)
      and "missing" and "note" as in `StepCost`.
    """
    (mixer,), (length,) = settings.mixers, settings.lengths
    progress.show(f"{mixer}, T = {length:,}: a training step in a process of its own")
    row: dict[str, Any] = {"mixer": mixer, "length": length, "seconds": None, "total_bytes": None}
    row |= {"width": settings.config(mixer, length).settings.model.width, "peak_rss_bytes": None}
    row |= {"missing": "", "note": ""}
    arguments = {"settings": dataclasses.asdict(settings)}
    try:
        result, peak = run_apart("lra_tasks.bench.train:one_step", arguments)
    except Killed as error:
        return row | {"missing": "memory", "note": str(error)}
    return row | result | {"peak_rss_bytes": peak}


def one_step(settings: dict[str, Any]) -> dict[str, Any]:
    """Compiles and runs two training steps, of which the second is timed. For `measure_apart`."""
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}
    chosen = TrainSettings(**fields)
    (mixer,), (length,) = chosen.mixers, chosen.lengths
    config = chosen.config(mixer, length)
    program = Trainer(config, get_task(TASK))
    compiled = _compile(program)
    if isinstance(compiled, Missing):
        return {"missing": compiled.kind, "note": compiled.why}
    total, _ = memory_bytes(compiled)
    step = measure.reason_not_to_run(total, free_bytes(), None, chosen.seconds)
    step = step or _stepper(program, compiled, config)
    if isinstance(step, Missing):
        return {"total_bytes": total, "missing": step.kind, "note": step.why}
    took = measure.within_memory(lambda: [measure.timed(step) for _ in range(2)])
    if isinstance(took, Missing):
        return {"total_bytes": total, "missing": took.kind, "note": took.why}
    return {"total_bytes": total, "seconds": took[-1]}
