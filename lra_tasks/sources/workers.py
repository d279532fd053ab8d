"""Spreads pure Python work over processes, from any script or notebook.

`multiprocessing` would run the user's script again in every worker, unless it guards its main part. Here a
worker is `python -m lra_tasks.sources.workers`: it reads pickled calls from standard input, and answers each
on standard output. It imports nothing but the modules of the functions it is asked to call.
"""

import collections
import os
import pickle
import queue
import subprocess
import sys
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

Call = tuple[Callable[..., Any], tuple[Any, ...]]  # a module's function, and its arguments
AHEAD = 4  # calls a worker may be ahead of the reader: results must not pile up


def spread(calls: Sequence[Call], num_workers: int | None = None) -> Generator[Any, None, None]:
    """Makes every call in one of several processes, and yields the results in the order of the calls.

    Args:
      calls: functions that can be imported by name, with arguments that can be pickled.
      num_workers: processes; None takes one for each processor this process may use.

    Raises:
      Whatever a call raised. The workers end with the generator, and with this process if it is killed.
    """
    num_workers = min(len(calls), num_workers or _num_processors())
    if num_workers <= 1:
        yield from (function(*arguments) for function, arguments in calls)
        return
    idle: queue.SimpleQueue[subprocess.Popen[bytes]] = queue.SimpleQueue()
    workers = [_start() for _ in range(num_workers)]
    for worker in workers:
        idle.put(worker)

    def answer(call: Call) -> Any:
        worker = idle.get()
        try:
            assert worker.stdin is not None
            assert worker.stdout is not None
            pickle.dump(call, worker.stdin)
            worker.stdin.flush()
            done, result = pickle.load(worker.stdout)
        finally:
            idle.put(worker)
        if not done:
            raise result
        return result

    pool = ThreadPoolExecutor(num_workers)
    waiting: collections.deque[Future[Any]] = collections.deque()
    try:
        for call in calls:
            waiting.append(pool.submit(answer, call))
            if len(waiting) > AHEAD * num_workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for worker in workers:
            worker.kill()
        pool.shutdown(cancel_futures=True)
        for worker in workers:
            worker.communicate()


def _num_processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _start() -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-m", "lra_tasks.sources.workers"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        start_new_session=True,  # Ctrl-C is for the parent, which ends its workers
    )


def _serve() -> None:
    """Answers calls until standard input ends, as it does when the parent ends in whatever way."""
    calls, answers = sys.stdin.buffer, sys.stdout.buffer
    while True:
        try:
            function, arguments = pickle.load(calls)
        except EOFError:
            return
        try:
            answer = (True, function(*arguments))
        except Exception as error:  # noqa: BLE001 (raised again by the parent)
            answer = (False, error)
        pickle.dump(answer, answers)
        answers.flush()


if __name__ == "__main__":
    _serve()
