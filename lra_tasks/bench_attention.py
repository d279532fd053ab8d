"""`lra bench attention`: what one attention layer costs against the length of the sequence."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lra_tasks import costing
from lra_tasks.contestants import (
    LEVELS,
    PASSES,
    REFERENCE,
    at_level,
    contestant,
    default_names,
    draw,
    inputs,
    program,
)
from lra_tasks.costing import Missing
from lra_tasks.errors import UsageError
from lra_tasks.floors import floor_counts, floor_seconds, machine_rates
from lra_tasks.metrics import environment
from lra_tasks.peak import Killed, run_apart
from lra_tasks.program import free_bytes
from lra_tasks.progress import Progress, Silent

DTYPES = ("float32", "bfloat16", "float16")
SHORTEST, LONGEST = 1 << 10, 1 << 26  # where the search for the longest T begins and gives up
MILLION, NARROW = 1 << 20, 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionSettings:
    """What is measured.

    Attributes:
      levels: of "layer", with its four projections, and "core", without.
      contestants: names, see `lra_tasks.contestants.known`; empty for all that this platform runs.
      lengths: values of T.
      width: D.
      num_heads: N, which divides D.
      batch_size: B.
      dtype: of parameters and inputs.
      repeats: rounds at most, for each level and length.
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
        if not self.lengths:
            raise UsageError("--lengths must name at least one length; got none.")
        if not self.seconds > 0:
            raise UsageError(f"--seconds must be positive; got {self.seconds:g}.")
        for flag, known, given in (("--dtype", DTYPES, (self.dtype,)), ("--level", LEVELS, self.levels)):
            for value in given:
                if value not in known:
                    raise UsageError(f"{flag} must be one of {', '.join(known)}; got '{value}'.")
        for name in self.contestants:
            contestant(name)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
    """What one contestant costs at one length.

    Attributes:
      level, direction, contestant, length: what it is of; direction is "forward" or "both".
      temp_bytes: of the compiled function, beside arguments and results.
      temp_floats: the same in units of B·T·D·4 bytes.
      total_bytes: with arguments and results.
      flops, bytes_accessed: as XLA counts them; None where it does not say, or counts too few.
      uncounted: why it would count too few, if it would.
      seconds: of one call, the median over the rounds; None where it was not run.
      quartiles: the first and the third.
      rounds: that they are of.
      ratio: the median over the rounds of its time over that of the level's reference, see
        `lra_tasks.contestants.REFERENCE`; None where one of them was not run.
      floor_seconds: the analytic floor, see `lra_tasks.floors.floor_counts`; the same for all contestants.
      floor_share: floor over time in percent: 100 could not be faster. Of the contestants that do
        something else than HRR attention it says only how long they take on the same scale.
      missing: why there is no time: "memory", "slow", "refused"; empty where there is one.
      note: the same in words.
    """

    level: str
    direction: str
    contestant: str
    length: int
    temp_bytes: int | None = None
    temp_floats: float | None = None
    total_bytes: int | None = None
    flops: float | None = None
    bytes_accessed: float | None = None
    uncounted: str = ""
    seconds: float | None = None
    quartiles: tuple[float, float] | None = None
    rounds: int = 0
    ratio: float | None = None
    floor_seconds: float | None = None
    floor_share: float | None = None
    missing: str = ""
    note: str = ""


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
      million: runs only one layer of width 64 and one head at T = 1,048,576, in a process of its own.
      progress: shows what is under way; None for silence.

    Returns:
      What JSON can hold: "settings", "rows" (a `Cost` each), "rates" (see `lra_tasks.floors.machine_rates`),
      "exponents" (level → direction → contestant → {"seconds": p, "temp_bytes": p}), "longest" and "million"
      (a dictionary for each contestant; empty where not asked for), and "environment".

    Raises:
      UsageError: for an unknown contestant.
    """
    progress = progress or Silent()
    settings = settings or AttentionSettings()
    names = settings.contestants or default_names()
    rows: list[Cost] = []
    rates: dict[str, float] = {}
    if million:
        single = dataclasses.replace(settings, lengths=(MILLION,), width=NARROW, num_heads=1, batch_size=1)
        chosen = settings.contestants or ("hrr",)
        apart = [measure_apart(name, single, progress=progress) for name in chosen]
    else:
        apart = []
        for level in settings.levels:
            rows += _sweep(level, at_level(level, names), settings, rates, progress)
        rows = [_with_floor(row, settings, rates) for row in rows]
    longest = []
    if memory is not None:
        for level in settings.levels:
            longest += [longest_length(level, n, memory, settings, progress) for n in at_level(level, names)]
    return {
        "settings": dataclasses.asdict(dataclasses.replace(settings, contestants=tuple(names))),
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
        return jax.jit(function).lower(*arguments).compile()
    except (NotImplementedError, ValueError, RuntimeError) as error:
        if isinstance(error, jax.errors.JaxRuntimeError) and costing.is_out_of_memory(error):
            return Missing("memory", "ran out of memory while it was compiled")
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


def _sweep(
    level: str, names: Sequence[str], settings: AttentionSettings, rates: dict[str, float], progress: Progress
) -> list[Cost]:
    """Returns the rows of one level, by length, pass and contestant; raises `rates` to the best seen."""
    rows: list[Cost] = []
    for length in sorted(settings.lengths):
        earlier = {
            (direction, name): {
                row.length: row.seconds
                for row in rows
                if (row.direction, row.contestant) == (direction, name) and row.seconds is not None
            }
            for direction in PASSES
            for name in names
        }
        progress.show(f"{level}, T = {length:,}: measuring the machine")
        for name, rate in machine_rates(settings.dtype).items():
            rates[name] = max(rate, rates.get(name, 0.0))  # a busy machine shows less than it can
        rows += _at_length(level, names, length, earlier, settings, progress)
    return rows


def _at_length(
    level: str,
    names: Sequence[str],
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
            rows[direction, name] = _without_time(row, compiled)
            continue
        counted = costing.counts(compiled)
        floats = counted.temp_bytes / (4 * settings.batch_size * length * settings.width)
        row = dataclasses.replace(row, temp_floats=floats, **vars(counted))
        expected = costing.expected_seconds(earlier[direction, name], length)
        reason = costing.reason_not_to_run(counted.total_bytes, free, expected, settings.seconds)
        if reason is None:
            runnable[direction, name] = compiled
        rows[direction, name] = row if reason is None else _without_time(row, reason)
    given = draw(_inputs(level, "both", length, settings), settings.seed) if runnable else ()
    calls = {
        (direction, name): functools.partial(compiled, *(given if direction == "both" else given[:-1]))
        for (direction, name), compiled in runnable.items()
    }
    times, lost = costing.measure(
        calls,
        repeats=settings.repeats,
        seconds=settings.seconds,
        seed=settings.seed,
        show=lambda done, total: progress.show(f"{where}: measuring", done, total),
    )
    for key, reason in lost.items():
        rows[key] = _without_time(rows[key], reason)
    for (direction, name), taken in times.items():
        first, median, third = costing.quartiles(taken)
        reference = times.get((direction, REFERENCE[level]))
        rows[direction, name] = dataclasses.replace(
            rows[direction, name],
            seconds=median,
            quartiles=(first, third),
            rounds=len(taken),
            ratio=costing.median_ratio(taken, reference) if reference else None,
        )
    return list(rows.values())


def _with_floor(row: Cost, settings: AttentionSettings, rates: dict[str, float]) -> Cost:
    tokens, head_size = settings.batch_size * row.length, settings.width // settings.num_heads
    flops, numbers = floor_counts(row.level, row.direction, tokens, settings.width, head_size)
    floor = floor_seconds(flops, numbers, jnp.dtype(settings.dtype).itemsize, rates)
    share = None if row.seconds is None else 100 * floor / row.seconds
    return dataclasses.replace(row, floor_seconds=floor, floor_share=share)


def _without_time(row: Cost, reason: Missing) -> Cost:
    return dataclasses.replace(row, missing=reason.kind, note=reason.why)


def exponents(rows: Sequence[Cost]) -> dict[str, dict[str, dict[str, dict[str, float | None]]]]:
    """Returns level → direction → contestant → the exponents p of time and memory, as T^p.

    Fitted over the larger lengths, see `lra_tasks.costing.exponent`.
    """
    result: dict[str, dict[str, dict[str, dict[str, float | None]]]] = {}
    for row in rows:
        of_pass = result.setdefault(row.level, {}).setdefault(row.direction, {})
        if row.contestant in of_pass:
            continue
        same = [r for r in rows if (r.level, r.direction, r.contestant) == _key(row)]
        of_pass[row.contestant] = {
            quantity: costing.exponent({r.length: value for r in same if (value := getattr(r, quantity))})
            for quantity in ("seconds", "temp_bytes")
        }
    return result


def _key(row: Cost) -> tuple[str, str, str]:
    return row.level, row.direction, row.contestant


def longest_length(
    level: str, name: str, memory: int, settings: AttentionSettings, progress: Progress
) -> dict[str, Any]:
    """Finds the longest T whose forward and backward, all arguments and results too, fit into `memory`.

    By compiling, without running: powers of two, and then to an eighth of the last one that fits.

    Returns:
      "level", "contestant", "memory" (bytes), "length" (None if not even the shortest one fits, or nothing
      compiles), "total_bytes" at that length and "note".
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
        needed[length] = costing.counts(compiled).total_bytes
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
        result, peak = run_apart("lra_tasks.bench_attention:one_call", arguments)
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
    total = costing.counts(compiled).total_bytes
    reason = costing.reason_not_to_run(total, free_bytes(), None, chosen.seconds)
    if reason is not None:
        return {"total_bytes": total, "missing": reason.kind, "note": reason.why}
    call = functools.partial(compiled, *draw(_inputs("layer", "both", length, chosen), chosen.seed))
    costing.timed(call)
    return {"total_bytes": total, "seconds": costing.timed(call)}
