"""Runs a function in a process of its own, to learn the most memory it ever held."""

import importlib
import json
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any


class Killed(Exception):
    """The process was ended by a signal, as the system does when there is no more memory."""


def run_apart(target: str, arguments: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """Calls a function in a new Python process.

    Args:
      target: "module:function".
      arguments: keyword arguments, as JSON can hold them.

    Returns:
      What the function returned, which JSON has to hold; and the process's peak resident memory in bytes.

    Raises:
      Killed: if a signal ended the process.
      RuntimeError: if the function raised; with the end of its traceback.
    """
    command = [sys.executable, "-m", "lra_tasks.bench.peak", target, json.dumps(arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode < 0:
        raise Killed(f"ended by {signal.Signals(-done.returncode).name}, as for want of memory")
    if done.returncode:
        raise RuntimeError(f"{target} failed in its process:\n{done.stderr[-2000:]}")
    answer = json.loads(done.stdout.splitlines()[-1])
    return answer["result"], answer["peak_rss_bytes"]


def peak_rss_bytes() -> int:
    """Returns the most resident memory this process ever held.

    Linux keeps two such numbers. The one of `getrusage` includes what the parent held when this process
    began; VmHWM does not. Elsewhere there is only the first.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return held if sys.platform == "darwin" else 1024 * held


def main() -> None:
    """Calls what the command line names and prints its result and the memory."""
    module, _, function = sys.argv[1].partition(":")
    result = getattr(importlib.import_module(module), function)(**json.loads(sys.argv[2]))
    print(json.dumps({"result": result, "peak_rss_bytes": peak_rss_bytes()}))


if __name__ == "__main__":
    main()
