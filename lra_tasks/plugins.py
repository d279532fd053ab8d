"""Imports a mixer or a task of the user's own from its address, `package.module:name`."""

import importlib
import traceback
from typing import Any

from lra_tasks.errors import UsageError


def import_object(kind: str, address: str) -> Any:
    """Imports the object at `address`, for example `my_mixers:Mine`.

    Args:
      kind: The word for the object in messages: "mixer" or "task".
      address: Module and name, with a colon between them.

    Raises:
      UsageError: If the module is missing, if its code fails, or if it lacks the name. The message tells
        these apart.
    """
    module_name, _, name = address.partition(":")
    if not name or not all(part.isidentifier() for part in module_name.split(".")):
        raise UsageError(f"The {kind} '{address}' cannot be imported: the form is package.module:NAME.")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # The code of the user's module may raise anything.
        if isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}."):
            cause = f"{error}. The module must be installed, in the current directory or on PYTHONPATH."
        elif isinstance(error, SyntaxError):  # Its text names file and line.
            cause = f"its module raised {type(error).__name__}: {error}."
        else:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{frame.filename}, line {frame.lineno}"
            cause = f"its module raised {type(error).__name__}: {error} ({place})."
        raise UsageError(f"The {kind} '{address}' cannot be imported: {cause}") from error
    try:
        return getattr(module, name)
    except AttributeError as error:
        raise UsageError(f"The {kind} '{address}' cannot be imported: {error}.") from error
