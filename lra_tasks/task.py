"""`Task`: everything that the arena has to know about a task."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pkgutil import resolve_name
from typing import Any, Protocol

from lra_tasks.config import Settings

SPLITS = ("train", "validation", "test")


class Examples(Protocol):
    """Examples by number: a list of dicts, or `lra_tasks.data.dataset.Source`.

    An example is {"tokens": integers (T,), "label": int, "index": int}; where a task compares two sequences,
    "tokens" is a pair of such arrays. A method `__getitems__`, list of numbers → list of examples, reads many
    at a time where the class has one.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> dict[str, Any]: ...

    def __iter__(self) -> Iterator[dict[str, Any]]: ...


@dataclass(frozen=True)
class Task:
    """One benchmark task: its shape, its data, and the scores to compare a result with.

    A task costs nothing to import: modules that need TFDS or NumPy are named here and loaded at their first
      use.

    Attributes:
      name: Name on the command line and in results.
      description: The prediction and its input, in one sentence.
      length: Tokens T that an input is padded or cut to.
      vocab_size: Number V of token ids of the embedding, including a padding id 0 where there is padding.
      num_classes: Number of labels, 0 .. num_classes - 1; 0 where the prepared data decide it.
      num_examples: Examples of each of the `SPLITS` in the variant `variant`.
      builder: TFDS builder class as "package.module:Class", a `lra_tasks.sources.builder.ArenaBuilder`.
      references: Function of the prepared train and test sources that measures the scores of simple rules:
        name of the rule → accuracy on the test split in percent.
      disk_bytes: Free space in bytes that the preparation of `variant` takes.
      render: Function from one sequence's token ids to readable text; unused where `is_image`.
      labels: Meanings of the labels 0, 1, … for `lra show`; empty where the prepared data name the classes.
      variant: The builder's config that is the arena's task at its full size.
      equivalent_variants: Other configs that are the same task, from other files.
      num_inputs: Token sequences per example: 1, or 2 where two documents are compared.
      first_token: Token id of a stored byte 0: 1 where 0 is padding.
      is_image: Whether the tokens are the gray values of a square picture, row by row, never padded or cut.
      is_whole: Whether the label needs the whole sequence, so that a shorter `length` is an error.
      validation_from_train: Whether the validation split is our cut of the published training split, which
        the protocol "paper" gives back.
      validate: Function of one sequence's token ids and its label that returns their fault, or None.
      published: Name of a model → accuracy in percent as printed in the literature; never measured here.
      presets: Settings by names of `lra_tasks.presets.PRESETS`; generic ones replace missing presets.
      address: Import path of a task outside the tree, `package.module:TASK`; `get_task` sets it.
    """

    name: str
    description: str
    length: int
    vocab_size: int
    num_classes: int
    num_examples: Mapping[str, int]
    builder: str
    references: Callable[[Examples, Examples], dict[str, float]]
    disk_bytes: int
    render: Callable[[Any], str] = str
    labels: tuple[str, ...] = ()
    variant: str = "default"
    equivalent_variants: tuple[str, ...] = ()
    num_inputs: int = 1
    first_token: int = 0
    is_image: bool = False
    is_whole: bool = False
    validation_from_train: bool = False
    validate: Callable[[Any, int], str | None] = lambda tokens, label: None
    published: Mapping[str, float] = field(default_factory=dict)
    presets: Mapping[str, Settings] = field(default_factory=dict)
    address: str = ""

    @property
    def key(self) -> str:
        """The name by which `get_task` finds the task."""
        return self.address or self.name

    def builder_class(self) -> Any:
        """Imports TFDS and returns the task's builder class."""
        return resolve_name(self.builder)

    def is_arena(self, variant: str) -> bool:
        """Whether published numbers for the task are about the data of this variant."""
        return variant == self.variant or variant in self.equivalent_variants

    def title(self, variant: str) -> str:
        """Returns the name of a result: the task's, with the variant where that is another task.

        >>> from lra_tasks.tasks import get_task
        >>> get_task("listops").title("default"), get_task("listops").title("smoke")
        ('listops', 'listops/smoke')
        """
        return self.name if self.is_arena(variant) else f"{self.name}/{variant}"


def chance(train: Examples, test: Examples) -> dict[str, float]:
    """Measures the baseline scores of any task.

    Returns:
      "chance", one in the number of classes of `train`; "majority class", the score on `test` of the most
      frequent label of `train`. Both in percent.
    """
    counts = Counter(example["label"] for example in train)
    majority = max(sorted(counts), key=counts.__getitem__)
    hits = sum(example["label"] == majority for example in test)
    return {"chance": 100 / len(counts), "majority class": 100 * hits / len(test)}
