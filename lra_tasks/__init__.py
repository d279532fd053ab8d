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

from lra_tasks.config import Config, ModelConfig, OptimizerConfig, Settings
from lra_tasks.errors import Interrupted, MissingData, UsageError
from lra_tasks.presets import preset
from lra_tasks.tasks import get_task

if TYPE_CHECKING:
    from lra_tasks.checking import Finding, check
    from lra_tasks.comparison import compare
    from lra_tasks.data import load
    from lra_tasks.history import PastRun, runs
    from lra_tasks.mixers import Mixer, MixerSpec
    from lra_tasks.model import Classifier
    from lra_tasks.preparation import Outcome, prepare, prepare_all, prepare_part
    from lra_tasks.progress import Progress
    from lra_tasks.reporting import Report, report
    from lra_tasks.training import evaluate, train

# Imported at first use: they need JAX and Flax, and `lra --help` must answer at once.
_HOMES = {
    "Classifier": "model",
    "Finding": "checking",
    "Mixer": "mixers",
    "MixerSpec": "mixers",
    "Outcome": "preparation",
    "PastRun": "history",
    "Progress": "progress",
    "Report": "reporting",
    "check": "checking",
    "compare": "comparison",
    "evaluate": "training",
    "load": "data",
    "prepare": "preparation",
    "prepare_all": "preparation",
    "prepare_part": "preparation",
    "report": "reporting",
    "runs": "history",
    "train": "training",
}

__all__ = [
    "Classifier",
    "Config",
    "Finding",
    "Interrupted",
    "MissingData",
    "Mixer",
    "MixerSpec",
    "ModelConfig",
    "OptimizerConfig",
    "Outcome",
    "PastRun",
    "Progress",
    "Report",
    "Settings",
    "UsageError",
    "check",
    "compare",
    "evaluate",
    "get_task",
    "load",
    "prepare",
    "prepare_all",
    "prepare_part",
    "preset",
    "report",
    "runs",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'lra_tasks' has no attribute {name!r}")
    return getattr(importlib.import_module(f"lra_tasks.{_HOMES[name]}"), name)
