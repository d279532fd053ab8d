"""The presets: what every task is trained with, from seconds on a CPU to the arena's and the paper's sizes.

Importing this module costs nothing: it needs the standard library only, so `lra --help` stays quick.
"""

import hashlib

from lra_tasks.config import Config, Settings, flat
from lra_tasks.errors import unknown_name
from lra_tasks.tasks import get_task

PRESETS = {
    "smoke": "seconds on a CPU: proves that everything runs, learns nothing",
    "quick": "minutes on two CPU cores: small widths, few steps; Text and Retrieval at 1,000 tokens",
    "small": "minutes on one GPU",
    "lra": "the sizes and schedule of the arena's base Transformer, with mean pooling",
    "paper": "the sizes and schedule of the Hrrformer authors' multi-layer models",
}
LONGEST_NAME = 150  # of a folder; file systems take 255 bytes


def preset(task: str, name: str) -> Settings:
    """Returns the settings of a task's preset.

    >>> preset("listops", "quick").length
    2000

    Raises:
      UsageError: for an unknown task or preset, with the nearest right name.
    """
    presets = get_task(task).presets
    if name not in PRESETS:
        raise unknown_name("preset", name, PRESETS)
    return presets[name]


def preset_of(config: Config) -> str | None:
    """Returns the name of its task's preset whose settings a run has, every one of them, or None.

    >>> preset_of(Config(task="listops", seed=3, **vars(preset("listops", "lra"))))
    'lra'
    """
    settings = Settings(**{name: getattr(config, name) for name in Settings.__dataclass_fields__})
    return next((name for name, own in get_task(config.task).presets.items() if own == settings), None)


def folder_name(task: str, name: str, settings: Settings) -> str:
    """Returns a name for the folder of runs with a preset's settings, and what was changed of them.

    Runs with other settings get another folder, in which `lra_tasks.report` finds only what it may compare.

    >>> folder_name("listops", "quick", preset("listops", "quick"))
    'listops-quick'
    >>> import dataclasses
    >>> folder_name("listops", "quick", dataclasses.replace(preset("listops", "quick"), num_steps=1000))
    'listops-quick-num_steps=1000'
    """
    own = flat(preset(task, name))
    changed = [f"{key}={value}" for key, value in flat(settings).items() if value != own[key]]
    result = "-".join([f"{task}-{name}", *changed]).replace("/", "_")
    if len(result) > LONGEST_NAME:
        result = f"{result[:LONGEST_NAME]}-{hashlib.sha256(result.encode()).hexdigest()[:8]}"
    return result
