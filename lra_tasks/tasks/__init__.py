"""The tasks by name: one module a task, one line here."""

from lra_tasks.errors import unknown_name
from lra_tasks.task import SPLITS, Examples, Task
from lra_tasks.tasks.byte_files import task as byte_files
from lra_tasks.tasks.image import task as image
from lra_tasks.tasks.listops import task as listops
from lra_tasks.tasks.pathfinder import task as pathfinder
from lra_tasks.tasks.retrieval import task as retrieval
from lra_tasks.tasks.text import task as text

__all__ = ["ARENA", "SPLITS", "TASKS", "Examples", "Task", "get_task"]

ARENA = (listops.TASK, text.TASK, retrieval.TASK, image.TASK, pathfinder.PATHFINDER, pathfinder.PATHX)
TASKS: dict[str, Task] = {task.name: task for task in (*ARENA, byte_files.TASK)}


def get_task(name: str) -> Task:
    """Returns the task the command line calls `name`.

    Raises:
      UsageError: There is no such task; the message lists those there are.

    >>> get_task("listops").num_classes
    10
    """
    if name not in TASKS:
        raise unknown_name("task", name, TASKS)
    return TASKS[name]
