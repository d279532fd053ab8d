"""The TFDS builder of Recall, in a module of its own because it imports TFDS."""

from typing import ClassVar

import tensorflow_datasets as tfds

from lra_tasks.tasks.drawn import DrawnBuilder, configs
from lra_tasks.tasks.recall import task as recall


class Recall(DrawnBuilder, skip_registration=True):
    """Recall of any size, drawn by `task.example`. A variant is named "LENGTH" or "LENGTH-PAIRS"."""

    name = "lra_recall"
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS: ClassVar = configs(recall.TASK, "64", "256", "1024")
    task = recall.TASK
    origin = "lra_tasks.tasks.recall.task.example"
    example = staticmethod(recall.example)
    sizes = "LENGTH-PAIRS"
