"""One run over several processes that `jax.distributed` joins: what one of them knows and all must know.

In a process that `jax.distributed` has not joined to others, every function here answers at once and touches
no device.
"""

import contextlib
import functools
import json
import os
import re
import signal
import socket
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from lra_tasks.errors import UsageError

# How long a process that has ended waits for the others to end too: they do at once, unless it failed alone.
SHUTDOWN_SECONDS = 30
# How long a process that begins waits for the others to begin too; then JAX aborts it.
START_SECONDS = 300


def initialize(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Joins this process to the others of its run; to be called before JAX is used for anything else.

    Args:
      coordinator: HOST:PORT of the process 0, the same for all of them; None, like the other two, where
        JAX finds all three itself: on SLURM, Open MPI, Cloud TPU and Kubernetes.
      num_processes: how many there are.
      process_id: which one this is, 0 to `num_processes` - 1.

    Raises:
      UsageError: if some are given and some not, or one is out of its range; if none is given and JAX finds
        no cluster; if the port is taken on the host of process 0, or JAX refuses for another reason.
    """
    given = (coordinator, num_processes, process_id)
    if coordinator is None or num_processes is None or process_id is None:
        if given != (None, None, None):
            raise UsageError(
                "--coordinator, --num-processes and --process-id go together: all three, or none where JAX"
                f" finds them itself; got {coordinator}, {num_processes} and {process_id}."
            )
    elif not re.fullmatch(r".+:[0-9]{1,5}", coordinator) or not 1 <= _port(coordinator) <= 65535:
        raise UsageError(f"--coordinator must be HOST:PORT, PORT between 1 and 65535; got {coordinator}.")
    elif num_processes < 1:
        raise UsageError(f"--num-processes must be at least 1; got {num_processes}.")
    elif not 0 <= process_id < num_processes:
        raise UsageError(f"--process-id must be between 0 and {num_processes - 1}; got {process_id}.")
    elif process_id == 0 and "JAX_COORDINATOR_BIND_ADDRESS" not in os.environ:
        _check_port(coordinator)
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            initialization_timeout=START_SECONDS,
            shutdown_timeout_seconds=SHUTDOWN_SECONDS,
        )
    except (RuntimeError, ValueError) as error:
        if coordinator is None and isinstance(error, ValueError):
            raise UsageError(
                "JAX finds no cluster to take the processes of --distributed from (SLURM, Open MPI, Cloud TPU"
                f" or Kubernetes): {error} Give --coordinator, --num-processes and --process-id."
            ) from error
        where = "" if coordinator is None else f" at --coordinator {coordinator}"
        raise UsageError(f"JAX cannot join the processes of --distributed{where}: {error}") from error
    # JAX has put a handler of its own in the place of Python's.
    signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))


def _port(coordinator: str) -> int:
    return int(coordinator.rpartition(":")[2])


def _check_port(coordinator: str) -> None:
    """Refuses a port that process 0 cannot listen at; JAX 0.12 crashes there."""
    try:
        socket.create_server(("", _port(coordinator))).close()
    except OSError as error:
        raise UsageError(
            f"--coordinator must name a port that is free on the host of process 0; got {coordinator}:"
            f" {error.strerror or error}."
        ) from error


def count() -> int:
    """Returns how many processes the run has."""
    return jax.process_count() if jax.distributed.is_initialized() else 1


def is_first() -> bool:
    """Whether this is the process that writes files and reports progress for all."""
    return count() == 1 or jax.process_index() == 0


def gather(value: Any) -> list[Any]:
    """Returns the values of all processes, in the order of their numbers; waits for all of them.

    Args:
      value: anything that JSON holds.
    """
    if count() == 1:
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(len(text)))
    padded = np.zeros(sizes.max(), np.uint8)
    padded[: len(text)] = text
    texts = multihost_utils.process_allgather(padded)
    return [json.loads(text[:size].tobytes()) for text, size in zip(texts, sizes, strict=True)]


def from_first(value: Any) -> Any:
    """Returns the value of the process 0, on all of them; the others' are ignored."""
    return gather(value if is_first() else None)[0]


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Ends a block on all processes alike: with the error of one of them, or when all have done it.

    Within the block no process may wait for another one.

    Raises:
      UsageError: if the block raised on another process; the message names it and has its error's text.
    """
    try:
        yield
    except Exception as error:
        gather(str(error) or repr(error))
        raise
    for number, error in enumerate(gather(None)):
        if error is not None:
            raise UsageError(f"Process {number} cannot go on: {error}")


def anywhere(asked: list[int]) -> Callable[[], bool]:
    """Asks all processes whether the list of any has something in it; the answer is the same on all.

    The answer is a sum over the devices that runs behind what they compute already, so that who waits for
    that does not wait for this too. With one process the list is looked at when the answer is called for.

    Returns:
      A function that returns the answer.
    """
    if count() == 1:
        return lambda: bool(asked)
    sharded, add = _sum_over_devices()
    flags = np.full(jax.local_device_count(), bool(asked), np.int32)
    total = add(jax.make_array_from_process_local_data(sharded, flags, (jax.device_count(),)))
    return lambda: bool(total)


@functools.cache
def _sum_over_devices() -> tuple[NamedSharding, Any]:
    mesh = jax.make_mesh((jax.device_count(),), ("devices",), axis_types=(AxisType.Auto,))
    replicated = NamedSharding(mesh, PartitionSpec())
    return NamedSharding(mesh, PartitionSpec("devices")), jax.jit(jnp.sum, out_shardings=replicated)
