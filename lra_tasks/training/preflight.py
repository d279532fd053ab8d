"""What is refused before the first step."""

import secrets
from pathlib import Path
from typing import Any

import jax

from lra_tasks.config import Config, differences, from_json, to_json
from lra_tasks.errors import UsageError
from lra_tasks.files import writing
from lra_tasks.training import processes
from lra_tasks.training.memory import free_bytes, memory_bytes


def check_memory(compiled: jax.stages.Compiled, config: Config) -> None:
    """Refuses a step that would be killed for its memory, or fail in XLA."""
    (_, needed), free = memory_bytes(compiled), free_bytes()
    if free is not None and needed > free:
        raise UsageError(
            f"A training step of {config.task} with {config.mixer} needs {needed / 1e9:,.1f} GB of memory"
            f" beside its parameters; {free / 1e9:,.1f} GB are free. It takes less with a smaller"
            " --batch-size, or --length where the task allows it."
        )


def check_joined() -> None:
    """Refuses devices of other processes, as of a TPU slice, without `jax.distributed.initialize`."""
    seen = jax.process_count()
    if processes.count() != seen:
        raise UsageError(
            f"The devices that JAX sees are those of {seen} processes, which are not joined. Give `lra train`"
            " --distributed; in Python, call jax.distributed.initialize() before anything else uses JAX."
        )


def check_alike(config: Config, origin: dict[str, Any]) -> None:
    """Refuses processes that were not given the same run, or hold other examples, than the first."""
    (first_config, first_identity), *others = processes.gather([to_json(config), origin["identity"]])
    for number, (other_config, other_identity) in enumerate(others, 1):
        changed = differences(from_json(first_config), from_json(other_config))
        if changed:
            raise UsageError(
                f"Process {number} was given another configuration than process 0; it differs in (process 0,"
                f" process {number}): {'; '.join(changed)}. Give every process the same."
            )
        if other_identity != first_identity:
            raise UsageError(
                f"Process {number} has other examples in its {origin['dataset']} than process 0. Give every"
                " process the same dataset, as a shared folder or as a copy."
            )


def check_shared(run_dir: Path) -> None:
    """Refuses folders that are not one: what process 0 writes there, the others have to find."""
    # A name that nobody has asked for: a network file system remembers for a while what was not there.
    token = run_dir / processes.from_first(f".shared-{secrets.token_hex(8)}")
    try:
        with processes.together():
            if processes.is_first():
                with writing(token):
                    token.touch()
        with processes.together():
            if not token.exists():
                raise UsageError(
                    f"--run-dir must be one folder that all processes share; got {run_dir.absolute()}, where"
                    " what process 0 has just written in its own does not show."
                )
    finally:
        if processes.is_first():
            token.unlink(missing_ok=True)
