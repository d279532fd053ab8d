"""Measures compiled functions: memory as XLA reports it, times in interleaved rounds."""

import contextlib
import dataclasses
import functools
import importlib
import json
import math
import random
import resource
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax

from lra_tasks.bench.settings import Settings
from lra_tasks.config import parse_mixer
from lra_tasks.errors import UsageError
from lra_tasks.model.mixers import MIXERS
from lra_tasks.progress import Progress
from lra_tasks.training.memory import free_bytes, memory_bytes

K = TypeVar("K", bound=Hashable)
LEAST_ROUNDS = 3
FITTED = 4  # the largest lengths, which an exponent is fitted to
KEPT = ("seconds", "total_bytes", "missing", "note")


class Missing(Exception):
    """Reason for a missing time: the kind, "memory", "slow" or "refused", and a sentence."""


@dataclasses.dataclass(kw_only=True)
class Cost:
    """Cost of one function at one length.

    Attributes:
      length: T.
      temp_bytes: Temporaries, neither arguments nor results; None if the function did not compile.
      total_bytes: Arguments, results and temporaries on one device.
      seconds: Median time of one call over the rounds; None if there were none.
      quartiles: First and third quartile of that time.
      rounds: Number of rounds.
      ratio: Median over the rounds of the time divided by the reference's time in the same round.
      missing: Kind of the reason for a missing time; empty if there is a time.
      note: The reason as a sentence.
    """

    length: int
    temp_bytes: int | None = None
    total_bytes: int | None = None
    seconds: float | None = None
    quartiles: tuple[float, float] | None = None
    rounds: int = 0
    ratio: float | None = None
    missing: str = ""
    note: str = ""


class Job(NamedTuple):
    """One function to measure at one length.

    Attributes:
      compile: Compiles the function.
      start: Makes the inputs of the compiled function and returns a call without arguments.
      reference: Key of the job whose times divide this job's times.
      reported: Whether the job is measured for its own sake, and not only as a reference.
    """

    compile: Callable[[], jax.stages.Compiled]
    start: Callable[[jax.stages.Compiled], Callable[[], Any]]
    reference: Any
    reported: bool = True


def group(names: Iterable[str], reference: str, *, quadratic: bool) -> dict[str, bool]:
    """Returns the names that share their rounds, and whether each one is reported.

    The quadratic ones come last, in rounds of their own with the reference, which is not reported again. They
    may hold T × T weights: gigabytes that the machine must find and clear again, which slows the next call.

    >>> group(["hrr", "softmax:rotary=True", "none"], "none", quadratic=True)
    {'none': False, 'softmax:rotary=True': True}
    """
    names = list(names)
    chosen = {name: True for name in names if _quadratic(name) == quadratic}
    return ({reference: False} if quadratic and chosen and reference in names else {}) | chosen


def _quadratic(name: str) -> bool:
    """Whether a name is that of a mixer of cost T².

    With its T × T weights it takes gigabytes that the machine must find and clear again, which slows the next
    call.
    """
    entry = MIXERS.get(parse_mixer(name)[0])
    return entry is not None and entry.cost == "T²"


def sweep(
    jobs: Callable[[int], Mapping[K, Job]], settings: Settings, progress: Progress, title: str = ""
) -> list[tuple[K, Cost]]:
    """Measures jobs at every length, the shortest first.

    A job is compiled at every length. It is not called where the memory is too small, nor after a length at
    which a call took longer than `settings.seconds`.

    Args:
      jobs: Returns the jobs at a length, by key.
      settings: Lengths, rounds, time limit and seed.
      progress: Display of the current step.
      title: Words before the length in that display.

    Returns:
      Key and cost of every reported job.
    """
    found: list[tuple[K, Cost]] = []
    here: Mapping[K, Job] = {}
    for length in sorted(settings.lengths):
        here = jobs(length)
        found += _at_length(here, length, found, settings, progress, f"{title}T = {length:,}").items()
    silent = {key for key, job in here.items() if not job.reported}
    return [(key, cost) for key, cost in found if key not in silent]


def _at_length(
    jobs: Mapping[K, Job],
    length: int,
    earlier: list[tuple[K, Cost]],
    settings: Settings,
    progress: Progress,
    where: str,
) -> dict[K, Cost]:
    costs = {key: Cost(length=length) for key in jobs}
    calls: dict[Any, Callable[[], Any]] = {}
    free = free_bytes()
    for number, (key, job) in enumerate(jobs.items()):
        progress.show(f"{where}: compiling", number, len(jobs))
        with _noted(costs[key]):
            compiled = compiled_here(job.compile)
            costs[key].total_bytes, costs[key].temp_bytes = memory_bytes(compiled)
            refuse_memory(costs[key].total_bytes or 0, free)
            slow = [cost.length for name, cost in earlier if name == key and cost.missing == "slow"]
            if slow:
                raise Missing("slow", f"a call at T = {slow[0]:,} took too long")
            with within_memory("while inputs were drawn"):
                calls[key] = job.start(compiled)
    if any(jobs[key].reported for key in calls):
        show = functools.partial(progress.show, f"{where}: measuring")
        taken = in_rounds(calls, costs, settings, show)
        for key, times in taken.items():
            several = times if len(times) > 1 else [*times, *times]
            first, median, third = statistics.quantiles(several, n=4, method="inclusive")
            others = taken.get(jobs[key].reference)
            ratios = [a / b for a, b in zip(times, others or (), strict=bool(others))]
            costs[key].seconds, costs[key].quartiles = median, (first, third)
            costs[key].rounds, costs[key].ratio = len(times), statistics.median(ratios) if ratios else None
    return costs


@contextlib.contextmanager
def _noted(cost: Cost) -> Iterator[None]:
    """Writes the reason for a missing time into the cost."""
    try:
        yield
    except Missing as reason:
        cost.missing, cost.note = reason.args


def compiled_here(compiling: Callable[[], jax.stages.Compiled]) -> jax.stages.Compiled:
    """Returns the compiled function.

    Raises:
      Missing: It does not compile here.
    """
    try:
        with within_memory("while it was compiled"):
            return compiling()
    except UsageError:
        raise
    except (NotImplementedError, ValueError, RuntimeError) as error:
        (line, *_) = str(error).splitlines() or [type(error).__name__]
        raise Missing("refused", f"does not compile here: {line}") from error


@contextlib.contextmanager
def within_memory(when: str) -> Iterator[None]:
    """Raises `Missing` in place of the errors of a lack of memory."""
    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        words = str(error).lower()
        if isinstance(error, MemoryError) or "resource_exhausted" in words or "out of memory" in words:
            raise Missing("memory", f"ran out of memory {when}".rstrip()) from error
        raise


def refuse_memory(total_bytes: int, free: int | None) -> None:
    """Raises `Missing` if a function needs more than the free memory, None if that is unknown."""
    if free is not None and total_bytes > free:
        raise Missing("memory", f"needs {total_bytes / 1e9:,.1f} GB of memory, {free / 1e9:,.1f} are free")


def timed(call: Callable[[], Any]) -> float:
    """Returns the seconds until the result of a call is ready, and drops the result."""
    began = time.perf_counter()
    result = jax.block_until_ready(call())
    took = time.perf_counter() - began
    del result
    return took


def in_rounds(
    calls: Mapping[K, Callable[[], Any]],
    costs: Mapping[K, Cost],
    settings: Settings,
    show: Callable[[int, int], None] = lambda done, total: None,
) -> dict[K, list[float]]:
    """Times calls in rounds; every round makes each call once, in random order.

    A disturbance of the machine thus affects all calls alike, and times of one round can be compared. Each
    call is made once before the first round to warm up, which is not counted.

    Args:
      calls: Calls by key.
      costs: Costs by key; those of calls that run out of memory or take too long receive the reason.
      settings: Rounds, time limit and seed.
      show: Receives the number of rounds done and the maximum.

    Returns:
      Key → seconds in each round, for the other calls.
    """
    order, shuffle, limit = list(calls), random.Random(settings.seed), settings.seconds
    taken: dict[K, list[float]] = {}
    begin, done = time.perf_counter(), -1  # round -1 warms up
    while done < settings.repeats and (done < LEAST_ROUNDS or time.perf_counter() - begin < limit):
        show(max(done, 0), settings.repeats)
        for key in tuple(order):
            with _noted(costs[key]):
                with within_memory(""):
                    took = timed(calls[key])
                if done < 0 and took > limit:
                    raise Missing("slow", f"took {took:,.2g} s per call, more than {limit:g} s")
                taken.setdefault(key, []).extend([took] if done >= 0 else [])
            if costs[key].missing:
                order.remove(key)
                taken.pop(key, None)
        begin = begin if done >= 0 else time.perf_counter()
        shuffle.shuffle(order)
        done += 1
    return taken


def exponent(points: Mapping[int, float]) -> float | None:
    """Fits a power law c T^p to the values at the `FITTED` largest lengths, and returns p.

    None with fewer points, where the noise of a single measurement would decide.

    >>> exponent({1: 9.0, 1024: 3.0, 2048: 12.0, 4096: 48.0, 8192: 192.0})
    2.0
    """
    if len(points) < FITTED:
        return None
    lengths = sorted(points)[-FITTED:]
    logarithms = [[math.log(value) for value in (length, points[length])] for length in lengths]
    return round(statistics.linear_regression(*zip(*logarithms, strict=True)).slope, 1)


def in_own_process(module: str, settings: Any, place: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Calls `only_row` of a module with the settings in a new Python process, and measures its memory.

    Returns:
      The place, which identifies the row, "seconds", "total_bytes", "missing" and "note" as in `Cost`, and
      "peak_rss_bytes", the peak resident memory of the process. If a signal ends it, memory ran out.

    Raises:
      RuntimeError: The process failed; the message has the end of its traceback.
    """
    progress.show(f"{', '.join(map(str, place.values()))}: in a process of its own")
    command = [sys.executable, "-m", "lra_tasks.bench.measure", module, json.dumps(vars(settings))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode > 0:
        raise RuntimeError(f"{module} failed in its process:\n{done.stderr[-2000:]}")
    row = dict.fromkeys((*KEPT, "peak_rss_bytes")) | place
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        return row | {"missing": "memory", "note": f"ended by {name}, as for want of memory"}
    return row | json.loads(done.stdout.splitlines()[-1])


def peak_rss_bytes() -> int:
    """Returns the peak resident memory of this process.

    Linux reports two such numbers. `getrusage` includes the memory of the parent when this process began;
    VmHWM does not. Other systems have only the first.
    """
    status = Path("/proc/self/status")
    for line in status.read_text().splitlines() if status.is_file() else ():
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return held if sys.platform == "darwin" else 1024 * held


if __name__ == "__main__":
    only = importlib.import_module(sys.argv[1]).only_row(**json.loads(sys.argv[2]))
    print(json.dumps({name: only[name] for name in KEPT} | {"peak_rss_bytes": peak_rss_bytes()}))
