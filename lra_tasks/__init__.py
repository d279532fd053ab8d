"""The Long Range Arena: its tasks, their data, one training loop, and a fair comparison of mixers.

The main commands of `lra` are functions here:

    import lra_tasks

    lra_tasks.prepare("listops")
    test = lra_tasks.load("listops", "test")
    settings = lra_tasks.preset("listops", "quick")
    config = lra_tasks.Config(settings=settings, task="listops", mixer="hrr:rescale=True")
    summary = lra_tasks.train(config, "runs/mine")
    model, config, task = lra_tasks.restore("runs/mine")
    report = lra_tasks.compare("listops", ["hrr", "softmax", "none"], settings, "runs/quick")
    grid = lra_tasks.report_grid(["runs/quick", "runs/image"])
"""

import importlib
from typing import TYPE_CHECKING, Any

from lra_tasks.config import Config, ModelConfig, OptimizerConfig, Settings
from lra_tasks.errors import Interrupted, MissingData, UsageError
from lra_tasks.presets import preset
from lra_tasks.tasks import get_task

if TYPE_CHECKING:
    from lra_tasks.comparison import compare, compare_tasks
    from lra_tasks.data.dataset import load
    from lra_tasks.data.prepare import Outcome, prepare, prepare_all
    from lra_tasks.data.verify import Finding, check
    from lra_tasks.model.encoder import Classifier
    from lra_tasks.model.mixers import Mixer, MixerSpec
    from lra_tasks.progress import Progress
    from lra_tasks.reporting.grid import Grid
    from lra_tasks.reporting.history import PastRun, runs
    from lra_tasks.reporting.report import report, report_grid
    from lra_tasks.reporting.results import Report
    from lra_tasks.training.evaluate import evaluate, restore
    from lra_tasks.training.loop import train

# Imported at first use: they need JAX and Flax, and `lra --help` must answer at once.
_HOMES = {
    "Classifier": "model.encoder",
    "Finding": "data.verify",
    "Grid": "reporting.grid",
    "Mixer": "model.mixers",
    "MixerSpec": "model.mixers",
    "Outcome": "data.prepare",
    "PastRun": "reporting.history",
    "Progress": "progress",
    "Report": "reporting.results",
    "check": "data.verify",
    "compare": "comparison",
    "compare_tasks": "comparison",
    "evaluate": "training.evaluate",
    "load": "data.dataset",
    "prepare": "data.prepare",
    "prepare_all": "data.prepare",
    "report": "reporting.report",
    "report_grid": "reporting.report",
    "restore": "training.evaluate",
    "runs": "reporting.history",
    "train": "training.loop",
}

__all__ = [
    "Classifier",
    "Config",
    "Finding",
    "Grid",
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
    "compare_tasks",
    "evaluate",
    "get_task",
    "load",
    "prepare",
    "prepare_all",
    "preset",
    "report",
    "report_grid",
    "restore",
    "runs",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'lra_tasks' has no attribute {name!r}")
    return getattr(importlib.import_module(f"lra_tasks.{_HOMES[name]}"), name)
