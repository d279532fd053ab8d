"""`lra bench attention`: cost of one attention layer as the sequence grows."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lra_tasks.bench import implementations, measure
from lra_tasks.bench.implementations import PASSES, REFERENCE
from lra_tasks.bench.measure import Job, Missing
from lra_tasks.bench.roofline import least_counts, least_seconds, machine_rates
from lra_tasks.bench.settings import AttentionSettings
from lra_tasks.errors import UsageError
from lra_tasks.progress import Progress, Silent
from lra_tasks.training.jax_settings import check_modes
from lra_tasks.training.memory import memory_bytes
from lra_tasks.training.metrics import environment

SHORTEST, LONGEST = 1 << 10, 1 << 26  # limits of the search for the longest T
MILLION, NARROW = 1 << 20, 64


def bench_attention(
    settings: AttentionSettings | None = None,
    *,
    memory: int | None = None,
    million: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measures time and memory of one attention layer as T grows.

    Args:
      settings: Settings; the defaults if None.
      memory: Bytes. Finds the longest T that fits into them too; that compiles programs and runs none.
      million: Measures only one layer of width 64 and one head at T = 1,048,576, in a process of its own.
        By default that is "hrr". Takes implementations, dtype and seed from the settings.
      progress: Display of the current step; None for silence.

    Returns:
      A dictionary that JSON can hold: "settings" (as used), "rows" (see `rows`), "rates" (see
      `roofline.machine_rates`, the better of two measurements), "longest" and "million" (one dictionary per
      implementation; empty unless asked for), and "environment".

    Raises:
      UsageError: Settings with which nothing can be measured, `memory` together with `million`, or a mode of
        JAX in which compiled functions do not run.
    """
    progress, settings = progress or Silent(), settings or AttentionSettings()
    settings.check()
    check_modes()
    for name in settings.implementations:
        implementations.check_name(name, ("layer",) if million else settings.levels)
    found: dict[str, Any] = {"rows": [], "rates": {}, "longest": [], "million": []}
    if million:
        if memory is not None:
            raise UsageError("memory is for the sweep over lengths: give either memory or million.")
        settings = dataclasses.replace(
            settings,
            implementations=settings.implementations or ("hrr",),
            levels=("layer",),
            lengths=(MILLION,),
            width=NARROW,
            num_heads=1,
            batch_size=1,
            repeats=1,
        )
        # The children come first: this process has not touched the device yet, and they have all of it.
        found["million"] = [in_own_process(name, settings, progress) for name in settings.implementations]
    else:
        names = settings.implementations or implementations.default_names()
        settings = dataclasses.replace(settings, implementations=names)
        for level in settings.levels:
            if not at_level(level, names):
                raise UsageError(
                    f"{', '.join(names)} cannot be measured at the level {level}: name another"
                    " implementation, or leave the level out."
                )
        progress.show("measuring the machine")
        rates = [machine_rates(settings.dtype)]
        found["rows"] = rows(settings, progress)
        rates.append(machine_rates(settings.dtype))
        found["rates"] = {
            key: max(rate[key] for rate in rates) for key in rates[0]
        }  # a busy machine shows less
        for row in found["rows"]:
            tokens, head_size = settings.batch_size * row["length"], settings.width // settings.num_heads
            least = least_counts(row["level"], row["direction"], tokens, settings.width, head_size)
            seconds = least_seconds(*least, jnp.dtype(settings.dtype).itemsize, found["rates"])
            row |= {
                "roofline_seconds": seconds,
                "roofline_share": row["seconds"] and 100 * seconds / row["seconds"],
            }
    if memory is not None:
        found["longest"] = [
            longest_length(level, name, memory, settings, progress)
            for level in settings.levels
            for name in at_level(level, settings.implementations)
        ]
    return {"settings": dataclasses.asdict(settings), **found, "environment": environment()}


def at_level(level: str, names: Sequence[str]) -> tuple[str, ...]:
    """Returns the names that are measured at a level; without projections, "projections" does nothing."""
    return tuple(name for name in names if level == "layer" or name != "projections")


def rows(
    settings: AttentionSettings, progress: Progress, directions: Sequence[str] = PASSES
) -> list[dict[str, Any]]:
    """Measures every implementation at every level, direction and length.

    Returns:
      Dictionaries, ordered by level, length, direction and implementation: these four, the fields of
      `measure.Cost`, and "temp_floats", the temporaries in units of B·T·D·4 bytes. `bench_attention` adds
      "roofline_seconds", the least time of HRR attention, see `lra_tasks.bench.roofline`, and
      "roofline_share", that time in percent of the measured one; short sequences in caches can exceed 100.
    """
    found: list[dict[str, Any]] = []
    for quadratic in (False, True):
        for level in settings.levels:
            names = at_level(level, settings.implementations)
            chosen = measure.group(names, REFERENCE[level], quadratic=quadratic)
            if chosen:
                jobs = functools.partial(_jobs, level, directions, chosen, settings)
                for (direction, name), cost in measure.sweep(jobs, settings, progress, f"{level}, "):
                    place = {"level": level, "direction": direction, "implementation": name}
                    unit = 4 * settings.batch_size * cost.length * settings.width
                    floats = None if cost.temp_bytes is None else cost.temp_bytes / unit
                    found.append(place | dataclasses.asdict(cost) | {"temp_floats": floats})
    order = [*settings.levels, *PASSES, *settings.implementations]
    keys = ("level", "length", "direction", "implementation")
    return sorted(found, key=lambda row: [order.index(row[k]) if k != "length" else row[k] for k in keys])


def _jobs(
    level: str, directions: Sequence[str], names: dict[str, bool], settings: AttentionSettings, length: int
) -> dict[tuple[str, str], Job]:
    """Returns one job per direction and implementation."""

    given = functools.cache(lambda name: _draw(level, name, length, settings))

    def start(direction: str, name: str, compiled: jax.stages.Compiled) -> functools.partial[Any]:
        return functools.partial(compiled, *(given(name) if direction == "both" else given(name)[:-1]))

    return {
        (direction, name): Job(
            functools.partial(_compile, level, direction, name, length, settings),
            functools.partial(start, direction, name),
            (direction, REFERENCE[level]),
            reported,
        )
        for direction in directions
        for name, reported in names.items()
    }


def _draw(level: str, name: str, length: int, settings: AttentionSettings) -> tuple[Any, ...]:
    """Returns the arguments of an implementation, and a cotangent of its result."""
    function, draw = implementations.subject(level, name, length, settings)
    arguments = draw()
    result = jax.eval_shape(function, *arguments)
    cotangent = jax.random.normal(jax.random.key(settings.seed + 1), result.shape, result.dtype)
    return jax.block_until_ready((*arguments, cotangent))


def _compile(
    level: str, direction: str, name: str, length: int, settings: AttentionSettings
) -> jax.stages.Compiled:
    function, draw = implementations.subject(level, name, length, settings)
    arguments = jax.eval_shape(draw)
    if direction == "both":
        arguments = (*arguments, jax.eval_shape(function, *arguments))
    program = jax.jit(implementations.program(level, direction, function))
    return measure.compiled_here(lambda: program.lower(*arguments).compile())


def longest_length(
    level: str, name: str, memory: int, settings: AttentionSettings, progress: Progress
) -> dict[str, Any]:
    """Finds the longest T whose forward and backward fit into `memory`, arguments and results included.

    Compiles without running: powers of two, and then eighths of the last one that fits.

    Returns:
      "level", "implementation", "memory" (bytes), "length" (None if the shortest T does not fit or nothing
      compiles), "total_bytes" at that length and "note", the reason if memory did not end the search.
    """
    found: dict[str, Any] = {"level": level, "implementation": name, "memory": memory, "length": None}
    found |= {"total_bytes": None, "note": ""}

    def fits(length: int) -> bool:
        progress.show(f"{level}, {name}: does T = {length:,} fit?")
        try:
            total, _ = memory_bytes(_compile(level, "both", name, length, settings))
        except Missing as reason:
            found["note"] = reason.args[1]
            return False
        if total <= memory:
            found.update(length=length, total_bytes=total)
        return total <= memory

    length = SHORTEST
    while length <= LONGEST and fits(length):
        length *= 2
    if length > LONGEST:
        found["note"] = f"the search ends at T = {LONGEST:,}"
    elif length == SHORTEST:
        found["note"] = found["note"] or f"T = {SHORTEST:,} does not fit, and the search begins there"
    else:
        for step in (length // 4, length // 8, length // 16):
            fits(found["length"] + step)
    return found


def in_own_process(name: str, settings: AttentionSettings, progress: Progress) -> dict[str, Any]:
    """Runs forward and backward of the layer at one length in a process of its own.

    Returns:
      "implementation", "length", "width", "num_heads" and the fields of `measure.in_own_process`.
    """
    settings = dataclasses.replace(settings, implementations=(name,))
    place = {"implementation": name, "length": settings.lengths[0], "width": settings.width}
    return measure.in_own_process(__name__, settings, place | {"num_heads": settings.num_heads}, progress)


def only_row(**settings: Any) -> dict[str, Any]:
    """Measures forward and backward of the layer at one length, without a time limit."""
    chosen = dataclasses.replace(AttentionSettings(**settings), levels=("layer",), repeats=1, seconds=1e9)
    return rows(chosen, Silent(), directions=("both",))[0]
