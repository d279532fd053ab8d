"""Presets: settings of every task, from seconds on a CPU to the sizes of the arena and of the paper.

This module imports the standard library only, so that `lra --help` answers at once.
"""

from collections.abc import Sequence

from lra_tasks.config import Settings, flat, folder_name
from lra_tasks.errors import UsageError, unknown_name
from lra_tasks.tasks import get_task, recipes

PRESETS = {
    "smoke": "seconds on a CPU: checks that everything runs, learns nothing",
    "quick": "minutes on two CPU cores: small widths, few steps; Text and Retrieval at 1,000 tokens",
    "cpu": "tens of minutes per run on two CPU cores: two layers of width 64, Text at 2,048 tokens",
    "small": "minutes on one GPU",
    "arena": "the sizes and schedule of the arena's base Transformer, with mean pooling",
    "paper": "the sizes and schedule of the Hrrformer authors' multi-layer models",
}


def preset(task: str, name: str) -> Settings:
    """Returns the settings of a task's preset; a task without presets uses those of `recipes.generic`.

    >>> preset("listops", "quick").length
    2000

    Raises:
      UsageError: If the task or the preset is unknown. The message suggests the nearest name.
    """
    if name not in PRESETS:
        raise unknown_name("preset", name, PRESETS)
    found = get_task(task)
    return (
        found.presets[name] if name in found.presets else recipes.generic(found.variant, found.length)[name]
    )


def preset_of(task: str, settings: Settings) -> str | None:
    """Returns the name of the task's preset with exactly these settings, or None.

    A user's task that cannot be imported here has no presets.

    >>> preset_of("listops", preset("listops", "arena"))
    'arena'
    """
    try:
        get_task(task)
    except UsageError:
        return None
    return next((name for name in PRESETS if preset(task, name) == settings), None)


def nearest_preset(task: str, settings: Settings) -> str:
    """Returns the name of the task's preset from which the fewest settings differ.

    >>> import dataclasses
    >>> nearest_preset("listops", dataclasses.replace(preset("listops", "smoke"), num_steps=1000))
    'smoke'
    """
    return min(PRESETS, key=lambda name: len(_changes(task, name, settings)))


def _changes(task: str, name: str, settings: Settings) -> list[str]:
    own = flat(preset(task, name))
    return [f"{key}={value}" for key, value in flat(settings).items() if value != own[key]]


def comparison_name(task: str, name: str, settings: Settings, rates: Sequence[float] = ()) -> str:
    """Returns a folder's name: the task, the preset, the settings that differ from it, and learning rates.

    Runs with other settings get another folder, so that `lra_tasks.report` finds comparable runs in each.

    >>> comparison_name("listops", "quick", preset("listops", "quick"))
    'listops-quick'
    >>> import dataclasses
    >>> comparison_name("listops", "quick", dataclasses.replace(preset("listops", "quick"), num_steps=1000))
    'listops-quick-num_steps=1000'
    """
    return grid_name(task, name, [(task, settings)], rates)


def grid_name(
    label: str, name: str, tasks: Sequence[tuple[str, Settings]], rates: Sequence[float] = ()
) -> str:
    """Returns the name of a folder for several tasks: a label, and then as `comparison_name`."""
    changes = dict.fromkeys(change for task, settings in tasks for change in _changes(task, name, settings))
    tried = [f"rates={'_'.join(map(str, rates))}"] if rates else []
    return folder_name("-".join([f"{label}-{name}", *changes, *tried]))
