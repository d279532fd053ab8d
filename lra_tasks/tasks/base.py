"""What the arena has to know about a task, in one record."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pkgutil import resolve_name
from typing import Any, Protocol

SPLITS = ("train", "validation", "test")


class Examples(Protocol):
    """Examples to be had by number: a list of dicts, or `lra_tasks.data.Source`.

    An example is {"tokens": integers (T,), "label": int, "index": int}. Where the class has a method
    `__getitems__`, list of numbers → list of examples, it is used to read many at a time.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> dict[str, Any]: ...

    def __iter__(self) -> Iterator[dict[str, Any]]: ...


@dataclass(frozen=True)
class Task:
    """One benchmark task: its shape, its data and the numbers to hold a result against.

    A record costs nothing to import: what needs TFDS or NumPy is named here and loaded when it is used.

    Attributes:
      name: What the command line calls the task.
      description: What has to be predicted from what, in one sentence.
      length: Tokens an input is padded or cut to, T.
      vocab_size: Token ids of the embedding, the padding id 0 included, V.
      num_classes: Labels, 0 .. num_classes - 1.
      num_examples: Examples of each of the `SPLITS` in the builder's config "default".
      builder: The TFDS builder class as "package.module:Class"; see `builder_class`.
      references: Function of the prepared train and test sources that measures the scores a model has to
        beat: name of the line → accuracy on the test split in percent.
      render: Function from one example's token ids to text a person can read.
      disk_bytes: Free space the preparation of the config "default" takes, in bytes.
      num_inputs: Token sequences in an example: 1, or 2 where two documents are compared.
      published: Name of a model → accuracy in percent as printed in the literature; never measured here.
    """

    name: str
    description: str
    length: int
    vocab_size: int
    num_classes: int
    num_examples: Mapping[str, int]
    builder: str
    references: Callable[[Examples, Examples], dict[str, float]]
    render: Callable[[Any], str]
    disk_bytes: int
    num_inputs: int = 1
    published: Mapping[str, float] = field(default_factory=dict)

    def builder_class(self) -> Any:
        """Imports TFDS and returns the task's `tfds.core.GeneratorBasedBuilder` class.

        `lra_tasks.prepare` sets two attributes on an instance before it generates:
        `num_workers` (int, processes to spread the work over) and `report` (function of the number of
        examples finished). Every config has `num_examples`, split → count, or None where the count shows
        only in reading; the config "default" holds the task's official splits.
        """
        return resolve_name(self.builder)
