"""The Long Range Arena: its tasks, their data, one training loop and a fair comparison of mixers.

What the `lra` command does is one call away here:

    import lra_tasks

    lra_tasks.prepare("listops")
    test = lra_tasks.load("listops", "test")
    settings = lra_tasks.preset("listops", "quick")
    summary = lra_tasks.train(lra_tasks.Config(task="listops", mixer="hrr", **vars(settings)), "runs/mine")
    report = lra_tasks.compare("listops", ["hrr", "softmax", "none"], settings, "runs/quick")
"""

import importlib
from typing import TYPE_CHECKING, Any

from lra_tasks.config import Config, ModelConfig, OptimizerConfig, Settings, preset
from lra_tasks.errors import Interrupted, UsageError
from lra_tasks.tasks import get_task

if TYPE_CHECKING:
    from lra_tasks.comparison import compare
    from lra_tasks.data import load
    from lra_tasks.mixers import Mixer, MixerSpec
    from lra_tasks.model import Classifier
    from lra_tasks.preparation import prepare
    from lra_tasks.progress import Progress
    from lra_tasks.reporting import Report, report
    from lra_tasks.training import evaluate, train

# Imported at first use: they need JAX and Flax, and `lra --help` must answer at once.
_HOMES = {
    "Classifier": "model",
    "Mixer": "mixers",
    "MixerSpec": "mixers",
    "Progress": "progress",
    "Report": "reporting",
    "compare": "comparison",
    "evaluate": "training",
    "load": "data",
    "prepare": "preparation",
    "report": "reporting",
    "train": "training",
}

__all__ = [
    "Classifier",
    "Config",
    "Interrupted",
    "Mixer",
    "MixerSpec",
    "ModelConfig",
    "OptimizerConfig",
    "Progress",
    "Report",
    "Settings",
    "UsageError",
    "compare",
    "evaluate",
    "get_task",
    "load",
    "prepare",
    "preset",
    "report",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'lra_tasks' has no attribute {name!r}")
    return getattr(importlib.import_module(f"lra_tasks.{_HOMES[name]}"), name)
