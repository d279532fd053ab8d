"""The TFDS builder of tasks that are drawn at any size, in a module of its own because it imports TFDS."""

import functools
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from lra_tasks.errors import unknown_name
from lra_tasks.sources.builder import ArenaBuilder, Example
from lra_tasks.task import Task

SMOKE = {"train": 256, "validation": 64, "test": 64}


@dataclass(kw_only=True)
class DrawnConfig(tfds.core.BuilderConfig):
    """A variant of a drawn task.

    Attributes:
      sizes: Arguments of the builder's `example` after seed and index.
      num_examples: Examples of each split, numbered from 0 in the order of `SPLITS`.
      seed: Seed of the examples.
    """

    sizes: tuple[int, ...]
    num_examples: dict[str, int]
    seed: int = 0


def configs(task: Task, *names: str) -> list[DrawnConfig]:
    """Returns the variants with these sizes, "256" or "256-8", and "smoke" with a few of the first."""
    smoke = DrawnConfig(
        name="smoke",
        description=f"A few of the kind of {names[0]} for tests.",
        sizes=_sizes(names[0]),
        num_examples=SMOKE,
    )
    return [*(_config(task, name) for name in names), smoke]


def _config(task: Task, name: str) -> DrawnConfig:
    return DrawnConfig(
        name=name,
        description=f"Sizes {name}, drawn with seed 0.",
        sizes=_sizes(name),
        num_examples=dict(task.num_examples),
    )


def _sizes(name: str) -> tuple[int, ...]:
    return tuple(map(int, name.split("-")))


class DrawnBuilder(ArenaBuilder, skip_registration=True):
    """Base class of tasks that a pure function draws at any size.

    The name of a variant is its sizes. `BUILDER_CONFIGS` has some of them; all others that `example` accepts
    exist too. Labels are balanced.

    Attributes:
      example: Function of seed, index and sizes that returns an example. It raises `UsageError` if no example
        has these sizes.
      sizes: Names of the sizes in the order of their arguments, "LENGTH-PAIRS"; only the first is required.
    """

    example: ClassVar[Callable[..., Example]]
    sizes: ClassVar[str]
    balanced = True

    @classmethod
    def config_named(cls, name: str) -> DrawnConfig:
        """Returns the config called `name`, for any sizes.

        Raises:
          UsageError: If the name is not one of sizes, or no example has them.
        """
        return super().config_named(name) or cls._sized(name)

    @classmethod
    @functools.cache  # TFDS requires one object per name
    def _sized(cls, name: str) -> DrawnConfig:
        if not re.fullmatch(r"[1-9]\d*(-[1-9]\d*)*", name) or name.count("-") > cls.sizes.count("-"):
            known = [*(config.name for config in cls.BUILDER_CONFIGS), f"any {cls.sizes}"]
            raise unknown_name(f"{cls.task.name} variant", name, known)
        config = _config(cls.task, name)
        cls.example(0, 0, *config.sizes)
        return config

    def draw(self, numbers: range) -> Iterable[Example]:
        config: Any = self.builder_config
        return (self.example(config.seed, number, *config.sizes) for number in numbers)
