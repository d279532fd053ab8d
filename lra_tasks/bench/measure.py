"""What compiled functions cost: memory and operations as XLA counts them, times as a clock does."""

import dataclasses
import math
import random
import re
import statistics
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import jax

from lra_tasks.training.memory import memory_bytes

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
LEAST_ROUNDS = 3
LARGER = 4  # lengths that an exponent is fitted to


@dataclasses.dataclass(frozen=True, kw_only=True)
class Counts:
    """What XLA tells of a compiled function.

    Attributes:
      temp_bytes: temporaries, neither argument nor result.
      total_bytes: arguments, results and temporaries, on one device.
      flops: floating-point operations; None where XLA does not say, or counts too few.
      bytes_accessed: read and written by all its kernels, caches not considered; None as above.
      uncounted: why XLA's counts of these two would be too small, if they would; empty otherwise.
    """

    temp_bytes: int
    total_bytes: int
    flops: float | None
    bytes_accessed: float | None
    uncounted: str


def counts(compiled: jax.stages.Compiled) -> Counts:
    """Returns what XLA tells of a compiled function."""
    total, temporary = memory_bytes(compiled)
    analysis: Any = compiled.cost_analysis()
    analysis = analysis[0] if isinstance(analysis, list) else analysis or {}
    flops, accessed = (analysis.get(name, -1.0) for name in ("flops", "bytes accessed"))
    text = compiled.as_text() or ""
    reasons = []
    if re.search(r" while\(", text):
        reasons.append("a loop's body is counted once")
    targets = sorted(set(re.findall(r'custom_call_target="([^"]*)"', text)))
    if targets:
        reasons.append(f"what is inside of {', '.join(targets)} may not be counted")
    return Counts(
        temp_bytes=temporary,
        total_bytes=total,
        flops=flops if flops >= 0 and not reasons else None,
        bytes_accessed=accessed if accessed >= 0 and not reasons else None,
        uncounted="; ".join(reasons),
    )


def timed(call: Callable[[], Any]) -> float:
    """Returns the seconds until the result of a call is there; the result is dropped after that."""
    began = time.perf_counter()
    result = jax.block_until_ready(call())
    took = time.perf_counter() - began
    del result
    return took


class Missing(NamedTuple):
    """Why there is no time: "memory", "slow" or "refused", a sentence on it, and a time too slow."""

    kind: str
    why: str
    seconds: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """What was measured at one length.

    Attributes:
      length: T.
      temp_bytes: of the compiled function, beside arguments and results; None where there is none.
      total_bytes: with arguments and results.
      seconds: of one call, the median over the rounds; None where it was not run.
      quartiles: the first and the third.
      rounds: that they are of.
      ratio: the median over the rounds of its time over that of a reference; None where one was not run.
      slow_seconds: of the first call where that was too slow for another; None otherwise.
      missing: why there is no time: "memory", "slow", "refused"; empty where there is one.
      note: the same in words.
    """

    length: int
    temp_bytes: int | None = None
    total_bytes: int | None = None
    seconds: float | None = None
    quartiles: tuple[float, float] | None = None
    rounds: int = 0
    ratio: float | None = None
    slow_seconds: float | None = None
    missing: str = ""
    note: str = ""


R = TypeVar("R", bound=Measured)


def without_time(row: R, reason: Missing) -> R:
    """Returns the row with the reason why it has no time."""
    return dataclasses.replace(row, missing=reason.kind, note=reason.why, slow_seconds=reason.seconds)


def with_times(row: R, taken: Sequence[float], reference: Sequence[float] | None) -> R:
    """Returns the row with the times of its rounds, in proportion to those of a reference if there is one."""
    first, median, third = quartiles(taken)
    ratio = None if reference is None else median_ratio(taken, reference)
    return dataclasses.replace(row, seconds=median, quartiles=(first, third), rounds=len(taken), ratio=ratio)


def times(rows: Iterable[Measured]) -> dict[int, float]:
    """Returns T → the seconds of a call, too slow ones included."""
    known = {row.length: row.slow_seconds if row.seconds is None else row.seconds for row in rows}
    return {length: seconds for length, seconds in known.items() if seconds is not None}


def exponents(rows: Sequence[Measured]) -> dict[str, float | None]:
    """Returns the exponents p of "seconds" and "temp_bytes", as T^p; see `exponent`."""
    return {
        quantity: exponent({row.length: value for row in rows if (value := getattr(row, quantity))})
        for quantity in ("seconds", "temp_bytes")
    }


def within_memory(call: Callable[[], V], when: str = "") -> V | Missing:
    """Returns what a call returns, or that it ran out of memory.

    Args:
      call: what is called.
      when: words after "ran out of memory".
    """
    try:
        return call()
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        words = str(error).lower()
        known = isinstance(error, MemoryError) or "resource_exhausted" in words or "out of memory" in words
        if not known:
            raise
        return Missing("memory", f"ran out of memory {when}".rstrip())


def reason_not_to_run(
    total_bytes: int, free: int | None, expected: float | None, seconds: float
) -> Missing | None:
    """Returns why a compiled function is not to be run, or None.

    Args:
      total_bytes: what it needs.
      free: what there is; None where that is not known.
      expected: seconds that a call will take; None where nothing tells.
      seconds: that it may take.
    """
    if free is not None and total_bytes > free:
        return Missing("memory", f"needs {total_bytes / 1e9:,.1f} GB of memory, {free / 1e9:,.1f} are free")
    if expected is not None and expected > seconds:
        return Missing("slow", f"would take about {expected:,.2g} s a call, more than --seconds {seconds:g}")
    return None


def measure(
    calls: Mapping[K, Callable[[], Any]],
    *,
    repeats: int,
    seconds: float,
    seed: int,
    show: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[dict[K, list[float]], dict[K, Missing]]:
    """Times all calls in rounds, in each round every call once, in an order shuffled anew.

    What disturbs the machine for a while thus meets all of them, and times of one round can be compared.
    Every call is made once before the first round, which warms up and does not count.

    Args:
      calls: name → call.
      repeats: rounds at most.
      seconds: time after which no further round begins, once `LEAST_ROUNDS` are done; also the longest that
        the first of a call may take.
      seed: of the shuffling.
      show: is told the rounds done and to do.

    Returns:
      Name → seconds of each round; and name → why not, for those that ran out of memory or took too long.
    """
    order, shuffle = list(calls), random.Random(seed)
    taken: dict[K, list[float]] = {}
    lost: dict[K, Missing] = {}

    def attempt(name: K) -> float | None:
        took = within_memory(lambda: timed(calls[name]))
        if not isinstance(took, Missing):
            return took
        lost[name] = took
        order.remove(name)
        taken.pop(name, None)
        return None

    show(0, repeats)
    for name in tuple(order):
        took = attempt(name)
        if took is not None and took > seconds:
            why = f"took {took:,.2g} s a call, more than --seconds {seconds:g}"
            lost[name] = Missing("slow", why, took)
            order.remove(name)
        elif took is not None:
            taken[name] = []
    begin, done = time.perf_counter(), 0
    while order and done < repeats and (done < LEAST_ROUNDS or time.perf_counter() - begin < seconds):
        show(done, repeats)
        shuffle.shuffle(order)
        for name in tuple(order):
            took = attempt(name)
            if took is not None:
                taken[name].append(took)
        done += 1
    return taken, lost


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Returns first quartile, median and third quartile; of a single value, three times that.

    >>> quartiles([1.0, 2.0, 3.0, 4.0, 5.0])
    (2.0, 3.0, 4.0)
    """
    if len(values) < 2:
        return values[0], values[0], values[0]
    first, median, third = statistics.quantiles(values, n=4, method="inclusive")
    return first, median, third


def median_ratio(values: Sequence[float], others: Sequence[float]) -> float:
    """Returns the median of the ratios of times taken in the same rounds.

    >>> median_ratio([2.0, 8.0, 3.0], [1.0, 2.0, 1.0])
    3.0
    """
    return statistics.median(a / b for a, b in zip(values, others, strict=True))


def exponent(points: Mapping[int, float]) -> float | None:
    """Returns p of the power law c T^p nearest to values at the `LARGER` largest lengths.

    Least squares in the logarithms. None with fewer than two points.

    >>> round(exponent({1: 9.0, 1024: 3.0, 2048: 12.0, 4096: 48.0, 8192: 192.0}), 6)
    2.0
    """
    larger = sorted(points)[-LARGER:]
    if len(larger) < 2:
        return None
    x = [math.log(length) for length in larger]
    y = [math.log(points[length]) for length in larger]
    return statistics.linear_regression(x, y).slope


def expected_seconds(points: Mapping[int, float], length: int) -> float | None:
    """Returns the time to expect at a length from times at shorter ones; None without any.

    Grows as the last two did, and as T at least.
    """
    shorter = sorted(points)[-2:]
    if not shorter:
        return None
    growth = max(1.0, exponent({n: points[n] for n in shorter}) or 1.0)
    return points[shorter[-1]] * (length / shorter[-1]) ** growth
