"""The tasks by name: one folder per task, one line here."""

import dataclasses

from lra_tasks.errors import UsageError, unknown_name
from lra_tasks.plugins import import_object
from lra_tasks.task import SPLITS, Examples, Task
from lra_tasks.tasks.byte_files.task import TASK as BYTES
from lra_tasks.tasks.image.task import TASK as IMAGE
from lra_tasks.tasks.listops.task import TASK as LISTOPS
from lra_tasks.tasks.order.task import TASK as ORDER
from lra_tasks.tasks.pathfinder.task import PATHFINDER, PATHX
from lra_tasks.tasks.recall.task import TASK as RECALL
from lra_tasks.tasks.retrieval.task import TASK as RETRIEVAL
from lra_tasks.tasks.text.task import TASK as TEXT

__all__ = ["ARENA", "DIAGNOSTICS", "SPLITS", "TASKS", "Examples", "Task", "get_task"]

ARENA = (LISTOPS, TEXT, RETRIEVAL, IMAGE, PATHFINDER, PATHX)
DIAGNOSTICS = (RECALL, ORDER)  # drawn in seconds; not of the arena, and in none of its averages
TASKS: dict[str, Task] = {task.name: task for task in (*ARENA, *DIAGNOSTICS, BYTES)}


def get_task(name: str) -> Task:
    """Returns the task of a name in `TASKS`, or a task of the user's own, `package.module:TASK`.

    Raises:
      UsageError: If the task is unknown; the message lists the known names.

    >>> get_task("listops").num_classes
    10
    """
    if name in TASKS:
        return TASKS[name]
    if ":" not in name:
        raise unknown_name("task", name, [*TASKS, "package.module:TASK"])
    task = import_object("task", name)
    if not isinstance(task, Task):
        raise UsageError(f"The task '{name}' must be an instance of lra_tasks.tasks.Task; got {task!r}.")
    return dataclasses.replace(task, address=name)
