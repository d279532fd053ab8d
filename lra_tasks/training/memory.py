"""Memory that a process may use: of the machine, its container or batch job, and its device."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax


def total_and_free(root: Path = Path("/")) -> tuple[int, int | None]:
    """Returns the bytes of memory that this process may use, and the number of them that are free.

    Each number is the minimum over the machine and the limits of Linux's control groups, which containers
    (Docker, Kubernetes), batch jobs (SLURM) and services set. The limits of all enclosing groups count.
    Cached files count as free. The second number is None where the system does not report it (macOS).

    Args:
      root: Folder that contains /proc and /sys.
    """
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    lines = _read(root / "proc/meminfo").splitlines()
    available = [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    if not available:
        return total, None
    (free,) = available
    for limit, used in _limits(root):
        total, free = min(total, limit), min(free, max(0, limit - used))
    return total, free


def _limits(root: Path) -> Iterator[tuple[int, int]]:
    """Yields limit and use, in bytes without cached files, of every control group of this process."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:  # version 2
            mount = root / "sys/fs/cgroup"
            most, now, prefix = "memory.max", "memory.current", ""
        elif controllers == "memory":  # version 1
            mount = root / "sys/fs/cgroup/memory"
            most, now, prefix = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"
        else:
            continue
        # In a container the path may be the host's, which is invisible here: then the root is the group.
        folder = mount.joinpath(*(part for part in Path(path).parts if part not in ("/", "..")))
        for group in (folder, *folder.parents):
            if group.is_relative_to(mount):
                limit, used = (_read(group / name).strip() for name in (most, now))
                if limit.isdigit() and used.isdigit():  # and not "max"
                    held = dict(row.split() for row in _read(group / "memory.stat").splitlines())
                    files = (int(held.get(f"{prefix}{use}active_file", 0)) for use in ("", "in"))
                    yield int(limit), int(used) - sum(files)


def _read(path: Path) -> str:
    """Returns a file's text, or "" for a file that cannot be read: some systems do not have all of them."""
    try:
        return path.read_text()
    except OSError:
        return ""


def memory_bytes(compiled: jax.stages.Compiled) -> tuple[int, int]:
    """Returns the memory of one call of a compiled function on one device, in bytes.

    The first number is the total of arguments, results and temporaries. The second is the temporaries alone.
    """
    memory: Any = compiled.memory_analysis()
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return held + memory.temp_size_in_bytes, memory.temp_size_in_bytes


def free_bytes() -> int | None:
    """Returns the free memory of this process's first device in bytes; None if it is not known."""
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        return total_and_free()[1]
    stats = device.memory_stats() or {}
    return stats["bytes_limit"] - stats["bytes_in_use"] if "bytes_limit" in stats else None
