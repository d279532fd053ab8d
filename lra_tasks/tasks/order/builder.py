"""The TFDS builder of Order, in a module of its own because it imports TFDS."""

from typing import ClassVar

import tensorflow_datasets as tfds

from lra_tasks.tasks.drawn import DrawnBuilder, configs
from lra_tasks.tasks.order import task as order


class Order(DrawnBuilder, skip_registration=True):
    """Order at any length, drawn by `task.example`. A variant is named by its length, "256"."""

    name = "lra_order"
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS: ClassVar = configs(order.TASK, "64", "256", "1024")
    task = order.TASK
    origin = "lra_tasks.tasks.order.task.example"
    example = staticmethod(order.example)
    sizes = "LENGTH"
