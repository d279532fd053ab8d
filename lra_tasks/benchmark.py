"""What a training step costs, read off the compiled program: the same on every run of one machine."""

import dataclasses
from collections.abc import Iterable

from lra_tasks.config import Config
from lra_tasks.program import Program, memory_bytes
from lra_tasks.progress import Progress, Silent
from lra_tasks.tasks import get_task


def compiled_temp_bytes(
    config: Config, lengths: Iterable[int], *, progress: Progress | None = None
) -> dict[int, int]:
    """Returns the temporary memory of a run's compiled training step at several lengths.

    Nothing is trained: the step is compiled for each length and asked what XLA will allocate for it beside
    arguments and outputs.

    Args:
      config: the run; its own length is ignored.
      lengths: values of T.
      progress: shows what is under way; None for silence.

    Returns:
      T → bytes on one device.
    """
    progress = progress or Silent()
    sizes = {}
    for length in lengths:
        progress.show(f"{config.mixer}: compiling for T = {length:,}")
        program = Program(dataclasses.replace(config, length=length), get_task(config.task))
        compiled = program.compile(program.init())
        _, sizes[length] = memory_bytes(compiled)
    return sizes
