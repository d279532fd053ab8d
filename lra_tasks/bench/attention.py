"""`lra bench attention`: what one attention layer costs against the length of the sequence."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lra_tasks.bench import measure
from lra_tasks.bench.baselines import (
    LEVELS,
    PASSES,
    QUADRATIC,
    REFERENCE,
    at_level,
    contestant,
    default_names,
    draw,
    inputs,
    program,
)
from lra_tasks.bench.measure import Missing
from lra_tasks.bench.peak import Killed, run_apart
from lra_tasks.bench.roofline import floor_counts, floor_seconds, machine_rates
from lra_tasks.errors import UsageError
from lra_tasks.progress import Progress, Silent
from lra_tasks.training.memory import free_bytes
from lra_tasks.training.metrics import environment

DTYPES = ("float32", "bfloat16", "float16")
SHORTEST, LONGEST = 1 << 10, 1 << 26  # where the search for the longest T begins and gives up
MILLION, NARROW = 1 << 20, 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionSettings:
    """What is measured.

    Attributes:
      levels: of "layer", with its four projections, and "core", without.
      contestants: names, see `lra_tasks.bench.baselines.known`; empty for all that this platform runs.
      lengths: values of T.
      width: D.
      num_heads: N, which divides D.
      batch_size: B.
      dtype: of parameters and inputs.
      repeats: rounds at most, for each level and length; "softmax" has rounds of its own, after all others.
      seconds: time for the rounds, of which three are made in any case; and the longest call that is made.
      seed: of parameters, inputs and the order within each round.
    """

    levels: tuple[str, ...] = LEVELS
    contestants: tuple[str, ...] = ()
    lengths: tuple[int, ...] = tuple(1 << n for n in range(10, 18))
    width: int = 512
    num_heads: int = 8
    batch_size: int = 1
    dtype: str = "float32"
    repeats: int = 7
    seconds: float = 30.0
    seed: int = 0

    def __post_init__(self) -> None:
        for flag, value in (
            ("--width", self.width),
            ("--heads", self.num_heads),
            ("--batch-size", self.batch_size),
            ("--repeats", self.repeats),
            *(("--lengths", length) for length in self.lengths),
        ):
            if value < 1:
                raise UsageError(f"{flag} must be at least 1; got {value}.")
        if self.width % self.num_heads:
            raise UsageError(f"--heads must divide --width, {self.width}; got {self.num_heads}.")
        for flag, values in (("--lengths", self.lengths), ("--level", self.levels)):
            if not values:
                raise UsageError(f"{flag} must name at least one; got none.")
        if not self.seconds > 0:
            raise UsageError(f"--seconds must be positive; got {self.seconds:g}.")
        for flag, known, given in (("--dtype", DTYPES, (self.dtype,)), ("--level", LEVELS, self.levels)):
            for value in given:
                if value not in known:
                    raise UsageError(f"{flag} must be one of {', '.join(known)}; got '{value}'.")
        for name in self.contestants:
            contestant(name)
        for level in self.levels:
            if self.contestants and not at_level(level, self.contestants):
                raise UsageError(
                    f"--contestants {' '.join(self.contestants)} names none at --level {level}: name another,"
                    " or leave the level out."
                )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost(measure.Measured):
    """What one contestant costs at one length; `ratio` is to the level's `baselines.REFERENCE`.

    Attributes:
      level, direction, contestant: what it is of; direction is "forward" or "both".
      temp_floats: `temp_bytes` in units of B·T·D·4 bytes.
      flops, bytes_accessed: as XLA counts them; None where it does not say, or counts too few.
      uncounted: why it would count too few, if it would.
      floor_seconds: the analytic floor, see `roofline.floor_counts`; the same for all contestants.
      floor_share: floor over time in percent: 100 could not be faster, except at short sequences, which fit
        caches that are faster than the memory of the floor. Of the contestants that do something else than
        HRR attention it says only how long they take on the same scale.
    """

    level: str
    direction: str
    contestant: str
    temp_floats: float | None = None
    flops: float | None = None
    bytes_accessed: float | None = None
    uncounted: str = ""
    floor_seconds: float | None = None
    floor_share: float | None = None


def bench_attention(
    settings: AttentionSettings | None = None,
    *,
    memory: int | None = None,
    million: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measures time, memory and operations of one attention layer against T.

    Args:
      settings: what is measured; the defaults if not given.
      memory: bytes; finds the longest T that fits, too, from compiled programs of which none is run.
      million: runs only one layer of width 64 and one head at T = 1,048,576, in a process of its own, "hrr"
        if no contestants are given; this process leaves the device alone before. Of the settings, levels,
        lengths, width, num_heads, batch_size and repeats are not used.
      progress: shows what is under way; None for silence.

    Returns:
      What JSON can hold: "settings" (those used), "rows" (a `Cost` each), "rates" (see
      `roofline.machine_rates`; of the best of two measurements), "exponents" (level → direction →
      contestant → {"seconds": p, "temp_bytes": p}), "longest" and "million" (a dictionary for each
      contestant; empty where not asked for), and "environment".

    Raises:
      UsageError: for `memory` together with `million`.
    """
    progress = progress or Silent()
    settings = settings or AttentionSettings()
    rows: list[Cost] = []
    rates: dict[str, float] = {}
    apart: list[dict[str, Any]] = []
    if million:
        if memory is not None:
            raise UsageError(
                "--memory searches lengths that --million does not measure: give one of the two."
            )
        settings = dataclasses.replace(
            settings,
            contestants=settings.contestants or ("hrr",),
            levels=("layer",),
            lengths=(MILLION,),
            width=NARROW,
            num_heads=1,
            batch_size=1,
            repeats=1,
        )
        apart = [measure_apart(name, settings, progress=progress) for name in settings.contestants]
    else:
        settings = dataclasses.replace(settings, contestants=settings.contestants or default_names())
        progress.show("measuring the machine")
        before = machine_rates(settings.dtype)
        rows = _sweeps(settings, progress)
        progress.show("measuring the machine")
        after = machine_rates(settings.dtype)
        rates = {name: max(rate, after[name]) for name, rate in before.items()}  # a busy machine shows less
        rows = [_with_floor(row, settings, rates) for row in rows]
    longest = []
    if memory is not None:
        for level in settings.levels:
            for name in at_level(level, settings.contestants):
                longest.append(longest_length(level, name, memory, settings, progress))
    return {
        "settings": dataclasses.asdict(settings),
        "rows": [dataclasses.asdict(row) for row in rows],
        "rates": rates,
        "exponents": exponents(rows),
        "longest": longest,
        "million": apart,
        "environment": environment(),
    }


def _compile(
    level: str, direction: str, name: str, length: int, settings: AttentionSettings
) -> jax.stages.Compiled | Missing:
    """Returns the compiled program, or why there is none."""
    arguments = _inputs(level, direction, length, settings)
    function = program(level, direction, contestant(name), settings.num_heads)
    try:
        compiling = jax.jit(function).lower(*arguments).compile
        return measure.within_memory(compiling, "while it was compiled")
    except (NotImplementedError, ValueError, RuntimeError) as error:
        (line, *_) = str(error).splitlines() or [type(error).__name__]
        return Missing("refused", f"does not compile here: {line}")


def _inputs(level: str, direction: str, length: int, settings: AttentionSettings) -> tuple[Any, ...]:
    return inputs(
        level,
        direction,
        batch_size=settings.batch_size,
        length=length,
        width=settings.width,
        num_heads=settings.num_heads,
        dtype=settings.dtype,
    )


def _draw(level: str, length: int, settings: AttentionSettings) -> Any:
    """Returns the arguments of forward and backward, or that they do not fit."""
    shapes = _inputs(level, "both", length, settings)
    drawing = functools.partial(draw, shapes, settings.seed)
    return measure.within_memory(lambda: jax.block_until_ready(drawing()), "while inputs were drawn")


def _sweeps(settings: AttentionSettings, progress: Progress) -> list[Cost]:
    """Returns all rows, by level, length, pass and contestant.

    The contestants of `QUADRATIC` come last, in rounds with nothing but the level's reference: between the
    others, what they leave behind on CPU was seen to slow HRR attention by half.
    """
    rows: list[Cost] = []
    for last in (False, True):
        for level in settings.levels:
            names = at_level(level, settings.contestants)
            chosen = [name for name in names if (name in QUADRATIC) == last]
            beside = [REFERENCE[level]] if last and chosen and REFERENCE[level] in names else []
            rows += _sweep(level, chosen, beside, settings, progress)
    order = [*settings.levels, *PASSES, *settings.contestants]

    def place(row: Cost) -> tuple[int, int, int, int]:
        level, direction, name = map(order.index, (row.level, row.direction, row.contestant))
        return level, row.length, direction, name

    return sorted(rows, key=place)


def _sweep(
    level: str, chosen: Sequence[str], beside: Sequence[str], settings: AttentionSettings, progress: Progress
) -> list[Cost]:
    """Returns the rows of those chosen, of one level; their rounds have those beside them, too."""
    rows: list[Cost] = []
    names = [*beside, *chosen]
    for length in sorted(settings.lengths):
        earlier = {
            (direction, name): measure.times(
                row for row in rows if (row.direction, row.contestant) == (direction, name)
            )
            for direction in PASSES
            for name in names
        }
        rows += _at_length(level, chosen, length, earlier, settings, progress)
    return [row for row in rows if row.contestant in chosen]


def _at_length(
    level: str,
    chosen: Sequence[str],
    length: int,
    earlier: dict[tuple[str, str], dict[int, float]],
    settings: AttentionSettings,
    progress: Progress,
) -> list[Cost]:
    free = free_bytes()
    rows: dict[tuple[str, str], Cost] = {}
    runnable: dict[tuple[str, str], jax.stages.Compiled] = {}
    where = f"{level}, T = {length:,}"
    for direction, name in earlier:
        progress.show(f"{where}: compiling {name}", len(rows), len(earlier))
        row = Cost(level=level, direction=direction, contestant=name, length=length)
        compiled = _compile(level, direction, name, length, settings)
        if isinstance(compiled, Missing):
            rows[direction, name] = measure.without_time(row, compiled)
            continue
        counted = measure.counts(compiled)
        floats = counted.temp_bytes / (4 * settings.batch_size * length * settings.width)
        row = dataclasses.replace(row, temp_floats=floats, **vars(counted))
        expected = measure.expected_seconds(earlier[direction, name], length)
        reason = measure.reason_not_to_run(counted.total_bytes, free, expected, settings.seconds)
        if reason is None:
            runnable[direction, name] = compiled
        rows[direction, name] = row if reason is None else measure.without_time(row, reason)
    if not any(name in chosen for _, name in runnable):
        runnable = {}
    given: Any = _draw(level, length, settings) if runnable else ()
    if isinstance(given, Missing):
        rows |= {key: measure.without_time(rows[key], given) for key in runnable}
        runnable, given = {}, ()
    calls = {
        (direction, name): functools.partial(compiled, *(given if direction == "both" else given[:-1]))
        for (direction, name), compiled in runnable.items()
    }
    times, lost = measure.measure(
        calls,
        repeats=settings.repeats,
        seconds=settings.seconds,
        seed=settings.seed,
        show=lambda done, total: progress.show(f"{where}: measuring", done, total),
    )
    for key, reason in lost.items():
        rows[key] = measure.without_time(rows[key], reason)
    for (direction, name), taken in times.items():
        reference = times.get((direction, REFERENCE[level]))
        rows[direction, name] = measure.with_times(rows[direction, name], taken, reference)
    return list(rows.values())


def _with_floor(row: Cost, settings: AttentionSettings, rates: dict[str, float]) -> Cost:
    tokens, head_size = settings.batch_size * row.length, settings.width // settings.num_heads
    flops, numbers = floor_counts(row.level, row.direction, tokens, settings.width, head_size)
    floor = floor_seconds(flops, numbers, jnp.dtype(settings.dtype).itemsize, rates)
    share = None if row.seconds is None else 100 * floor / row.seconds
    return dataclasses.replace(row, floor_seconds=floor, floor_share=share)


def exponents(rows: Sequence[Cost]) -> dict[str, dict[str, dict[str, dict[str, float | None]]]]:
    """Returns level → direction → contestant → the exponents p of time and memory, as T^p.

    Fitted over the larger lengths, see `lra_tasks.bench.measure.exponent`.
    """
    result: dict[str, dict[str, dict[str, dict[str, float | None]]]] = {}
    for key in dict.fromkeys((row.level, row.direction, row.contestant) for row in rows):
        level, direction, name = key
        same = [row for row in rows if (row.level, row.direction, row.contestant) == key]
        result.setdefault(level, {}).setdefault(direction, {})[name] = measure.exponents(same)
    return result


def longest_length(
    level: str, name: str, memory: int, settings: AttentionSettings, progress: Progress
) -> dict[str, Any]:
    """Finds the longest T whose forward and backward, all arguments and results too, fit into `memory`.

    By compiling, without running: powers of two, and then to an eighth of the last one that fits.

    Returns:
      "level", "contestant", "memory" (bytes), "length" (None if not even the shortest one fits, or nothing
      compiles), "total_bytes" at that length and "note", which says so if it was not the memory that ended
      the search.
    """
    needed: dict[int, int] = {}
    note = ""

    def fits(length: int) -> bool:
        nonlocal note
        progress.show(f"{level}, {name}: does T = {length:,} fit?")
        compiled = _compile(level, "both", name, length, settings)
        if isinstance(compiled, Missing):
            note = compiled.why
            return False
        needed[length] = measure.counts(compiled).total_bytes
        return needed[length] <= memory

    length, found = SHORTEST, None
    while length <= LONGEST and fits(length):
        found, length = length, 2 * length
    if found is not None and length <= LONGEST:
        step = found // 2
        eighth = found // 8
        while step >= eighth:
            if fits(found + step):
                found += step
            step //= 2
    if length > LONGEST:
        note = f"longer than T = {found:,} was not tried"
    elif found is None and not note:
        note = f"not even T = {SHORTEST:,} fits, and shorter was not tried"
    return {
        "level": level,
        "contestant": name,
        "memory": memory,
        "length": found,
        "total_bytes": None if found is None else needed[found],
        "note": note,
    }


def measure_apart(name: str, settings: AttentionSettings, *, progress: Progress) -> dict[str, Any]:
    """Runs forward and backward of the layer at one length in a process of its own.

    Returns:
      "contestant", "length", "width", "num_heads", "seconds", "total_bytes", "peak_rss_bytes" (all that the
      process ever held, Python and JAX included) and "missing" and "note" as in `Cost`.
    """
    (length,) = settings.lengths
    progress.show(f"{name}, T = {length:,}: in a process of its own")
    row: dict[str, Any] = {
        "contestant": name,
        "length": length,
        "width": settings.width,
        "num_heads": settings.num_heads,
        "seconds": None,
        "total_bytes": None,
        "peak_rss_bytes": None,
        "missing": "",
        "note": "",
    }
    arguments = {"name": name, "settings": dataclasses.asdict(settings)}
    try:
        result, peak = run_apart("lra_tasks.bench.attention:one_call", arguments)
    except Killed as error:
        return row | {"missing": "memory", "note": str(error)}
    return row | result | {"peak_rss_bytes": peak}


def one_call(name: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Compiles and runs forward and backward of the layer; the second call is timed. For `measure_apart`."""
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}
    chosen = AttentionSettings(**fields)
    (length,) = chosen.lengths
    compiled = _compile("layer", "both", name, length, chosen)
    if isinstance(compiled, Missing):
        return {"missing": compiled.kind, "note": compiled.why}
    total = measure.counts(compiled).total_bytes
    reason = measure.reason_not_to_run(total, free_bytes(), None, chosen.seconds)
    if reason is not None:
        return {"total_bytes": total, "missing": reason.kind, "note": reason.why}
    given = _draw("layer", length, chosen)
    if isinstance(given, Missing):
        return {"total_bytes": total, "missing": given.kind, "note": given.why}
    call = functools.partial(compiled, *given)
    took = measure.within_memory(lambda: [measure.timed(call) for _ in range(2)])
    if isinstance(took, Missing):
        return {"total_bytes": total, "missing": took.kind, "note": took.why}
    return {"total_bytes": total, "seconds": took[-1]}
