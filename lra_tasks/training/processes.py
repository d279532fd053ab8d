"""Communication between the processes of one run, which `jax.distributed` joins.

In a process that has not joined others, every function returns at once and uses no device.
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

# Time that a process waits at its end for the others to end: they do at once, unless it failed alone.
SHUTDOWN_SECONDS = 30
# Time that a process waits at its start for the others to start; then JAX aborts it.
START_SECONDS = 300


def initialize(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Joins this process to the others of its run. Call it before any other use of JAX.

    Args:
      coordinator: HOST:PORT of process 0, the same for all processes. None, like the other two arguments,
        where JAX finds all three: on SLURM, Open MPI, Cloud TPU and Kubernetes.
      num_processes: Number of processes.
      process_id: Number of this process, 0 to `num_processes` - 1.

    Raises:
      UsageError: If only some arguments are given, or one is out of range; if none is given and JAX finds no
        cluster; if the port is in use on the host of process 0; or if JAX refuses for another reason.
    """
    given = (coordinator, num_processes, process_id)
    if coordinator is None or num_processes is None or process_id is None:
        if given != (None, None, None):
            raise UsageError(
                "--coordinator, --num-processes and --process-id go together: give all three, or none where"
                f" JAX finds them itself; got {coordinator}, {num_processes} and {process_id}."
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
                "JAX finds no cluster that lists the processes of --distributed (SLURM, Open MPI, Cloud TPU"
                f" or Kubernetes): {error} Give --coordinator, --num-processes and --process-id."
            ) from error
        where = "" if coordinator is None else f" at --coordinator {coordinator}"
        raise UsageError(f"JAX cannot join the processes of --distributed{where}: {error}") from error
    # JAX has replaced Python's handler by one of its own.
    signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))


def _port(coordinator: str) -> int:
    return int(coordinator.rpartition(":")[2])


def _check_port(coordinator: str) -> None:
    """Refuses a port on which process 0 cannot listen; JAX 0.12 would crash."""
    try:
        socket.create_server(("", _port(coordinator))).close()
    except OSError as error:
        raise UsageError(
            f"--coordinator must name a port that is free on the host of process 0; got {coordinator}:"
            f" {error.strerror or error}."
        ) from error


def count() -> int:
    """Returns the number of processes of the run."""
    return jax.process_count() if jax.distributed.is_initialized() else 1


def is_first() -> bool:
    """Whether this process writes files and reports progress for all processes."""
    return count() == 1 or jax.process_index() == 0


def gather(value: Any) -> list[Any]:
    """Returns the values of all processes, in the order of their numbers, after all have called it.

    Args:
      value: Value of this process, of a type that JSON supports.
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
    """Returns the value of process 0 on all processes; the values of the others are ignored."""
    return gather(value if is_first() else None)[0]


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Runs a block on all processes with one outcome: all complete it, or all raise.

    No process may wait for another one inside the block.

    Raises:
      UsageError: If the block raised on another process. The message names the process and its error.
    """
    try:
        yield
    except Exception as error:
        gather(str(error) or repr(error))
        raise
    for number, error in enumerate(gather(None)):
        if error is not None:
            raise UsageError(f"Process {number} failed: {error}")


def anywhere(asked: list[int]) -> Callable[[], bool]:
    """Asks all processes whether any of their lists is not empty; the answer is the same on all.

    The answer is a sum over the devices, queued behind their current work, so that the host need not wait for
    it. With one process, the list is read when the answer is requested.

    Returns:
      Function that returns the answer.
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
