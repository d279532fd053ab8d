"""Batches: examples padded and stacked, for training in shuffled order and for evaluation in order."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lra_tasks.errors import UsageError
from lra_tasks.task import Examples

if TYPE_CHECKING:
    import grain

Batch = dict[str, np.ndarray]
ALL = slice(None)


def read_many(source: Examples, indices: Sequence[int]) -> list[dict[str, Any]]:
    """Returns the examples with these indices, at once where the source can do that."""
    at_once = getattr(source, "__getitems__", None)
    return at_once(indices) if at_once else [source[i] for i in indices]


def _collate(examples: Sequence[dict[str, Any]], length: int) -> Batch:
    pairs = isinstance(examples[0]["tokens"], tuple)
    shape = (len(examples), 2) if pairs else (len(examples),)
    sequences = [s for example in examples for s in (example["tokens"] if pairs else (example["tokens"],))]
    tokens = np.zeros((len(sequences), length), np.int32)
    sizes = np.zeros(len(sequences), np.int64)
    for row, sequence in enumerate(sequences):
        kept = sequence[:length]
        sizes[row] = len(kept)
        tokens[row, : len(kept)] = kept
    return {
        "tokens": tokens.reshape(*shape, length),
        "mask": (np.arange(length) < sizes[:, None]).reshape(*shape, length),
        "label": np.array([example["label"] for example in examples], np.int32),
    }


def _check_positive(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise UsageError(f"{name} is {size}; it has to be at least 1.")


def training_batches(
    source: Examples,
    *,
    length: int,
    batch_size: int,
    seed: int,
    rows: slice | np.ndarray = ALL,
    num_threads: int = 2,
    prefetch: int = 8,
) -> "grain.DatasetIterator[Batch]":
    """Returns batches for ever: every epoch in an order of its own, read ahead by threads.

    Batch k is a pure function of the source, the arguments and k. A batch may hold the end of one epoch and
    the beginning of the next, so every example comes once in every `len(source)` examples.

    The iterator's state is one integer: `get_state()` is {"next_index": k}, and after `set_state` of it, in
    this process or another, batches k, k + 1, … follow exactly as if there had been no break.

    Args:
      source: A `Source`, or a list of such dicts.
      length: T; longer inputs lose their end, shorter ones are padded with 0.
      batch_size: B.
      seed: Of the order, 0 .. 2³² - 1.
      rows: The rows of each batch to read, R of them, for a process that shares the batches with others.
      num_threads: Threads that make batches.
      prefetch: Batches made ahead.

    Returns:
      Iterator of {"tokens": int32 (R, T), "mask": bool (R, T), True at a real token, from the input's
      length and not from its ids, "label": int32 (R,), "index": int64 (B,), the places in `source` of all
      examples of the batch}; R is B unless `rows` are given. Where examples are pairs, tokens and mask are
      (R, 2, T).

    Raises:
      UsageError: A size is below 1, the source is empty, or the seed is out of range.
    """
    import grain

    _check_positive(length=length, batch_size=batch_size, num_threads=num_threads, prefetch=prefetch)
    if not len(source):
        raise UsageError("There is no example to train on.")
    if not 0 <= seed < 2**32:
        raise UsageError(f"The seed is {seed}; it has to be 0 to {2**32 - 1}.")
    # Batches of indices are cheap to shuffle and to skip; only the last step reads examples.
    return iter(
        grain.MapDataset.range(len(source))
        .seed(seed)
        .shuffle()
        .repeat()
        .batch(batch_size)
        .map(lambda indices: _collate(read_many(source, indices[rows].tolist()), length) | {"index": indices})
        .to_iter_dataset(grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=prefetch))
    )


def evaluation_batches(
    source: Examples,
    *,
    length: int,
    batch_size: int,
    limit: int | None = None,
    rows: slice | np.ndarray = ALL,
) -> Iterator[Batch]:
    """Yields every example once, in order, in batches of one size.

    The last batch is filled up with repetitions of its first example (so no row is empty, and none can make
    a mean over nothing), with weight 0 and index -1.

    Args:
      source: A `Source`, or a list of such dicts.
      length: T, as in `training_batches`.
      batch_size: B.
      limit: Takes only the first so many examples; None takes all.
      rows: As in `training_batches`.

    Returns:
      Iterator of the dicts of `training_batches` with "weight" beside them: float32 (R,), 1 for an
      example, 0 for filling. The weights' sum, over all rows, is the number of examples.

    Raises:
      UsageError: A size is below 1.
    """
    _check_positive(length=length, batch_size=batch_size, limit=1 if limit is None else limit)
    stop = len(source) if limit is None else min(limit, len(source))
    return _evaluation_batches(source, length, batch_size, stop, rows)


def _evaluation_batches(
    source: Examples, length: int, batch_size: int, stop: int, rows: slice | np.ndarray
) -> Iterator[Batch]:
    for start in range(0, stop, batch_size):
        indices = np.arange(start, start + batch_size)
        real = indices < stop
        batch = _collate(read_many(source, np.where(real, indices, start)[rows].tolist()), length)
        yield batch | {"index": np.where(real, indices, -1), "weight": real[rows].astype(np.float32)}
