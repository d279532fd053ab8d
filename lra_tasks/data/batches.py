"""Batches of padded examples, in shuffled order for training and in order for evaluation."""

import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lra_tasks.errors import UsageError
from lra_tasks.task import Examples

if TYPE_CHECKING:
    import grain

Batch = dict[str, np.ndarray]
ALL = slice(None)


def read_many(source: Examples, indices: Sequence[int]) -> list[dict[str, Any]]:
    """Returns the examples with these indices, in one read where the source supports it."""
    at_once = getattr(source, "__getitems__", None)
    return at_once(indices) if at_once else [source[i] for i in indices]


def padded_lengths(length: int, buckets: int) -> tuple[int, ...]:
    """Returns the lengths that batches are padded to: `length` · i / `buckets` for i = 1 … `buckets`.

    >>> padded_lengths(2000, 3)
    (667, 1334, 2000)
    """
    return tuple(sorted({-(-length * i // buckets) for i in range(1, buckets + 1)}))


def count_tokens(examples: Examples) -> np.ndarray:
    """Returns the number of tokens of each example, int64 (N,); of a pair, that of the longer sequence."""
    sequences = (example["tokens"] for example in examples)
    return np.array([max(map(len, s)) if isinstance(s, tuple) else len(s) for s in sequences], np.int64)


def padded_sizes(source: Examples, length: int, buckets: int) -> np.ndarray:
    """Returns the length that each example is padded to, int64 (N,); one of `padded_lengths`.

    With more than one bucket it reads all examples, unless the source has their numbers of tokens as `sizes`.
    """
    if buckets == 1:
        return np.full(len(source), length)
    sizes: Any = getattr(source, "sizes", None)
    sizes = count_tokens(source) if sizes is None else sizes
    lengths = np.array(padded_lengths(length, buckets))
    return lengths[np.searchsorted(lengths, np.minimum(sizes, length))]


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
            raise UsageError(f"{name} must be at least 1; got {size}.")


def training_batches(
    source: Examples,
    *,
    length: int,
    batch_size: int,
    seed: int,
    buckets: int = 1,
    rows: slice | np.ndarray = ALL,
    num_threads: int = 2,
    prefetch: int = 8,
) -> "grain.DatasetIterator[Batch]":
    """Returns an endless iterator over batches; every epoch has its own order, and threads read ahead.

    Batch k is a pure function of the source, the arguments and k. A batch may contain the end of one epoch
    and the beginning of the next, so every run of `len(source)` examples contains each example once.

    The iterator's state is one integer: `get_state()` is {"next_index": k}. After `set_state` with it, in any
    process, batches k, k + 1, … follow exactly as without the interruption.

    Args:
      source: `Source`, or a list of dicts like its examples.
      length: Length T of the rows; longer inputs are cut at the end, shorter ones are padded with 0.
      batch_size: Number B of examples per batch.
      seed: Seed of the order, 0 .. 2³² - 1.
      buckets: Number of lengths that batches are padded to, see `padded_lengths`. With more than one, a batch
        has examples of one padded length, except a few batches per epoch. T is then that of the batch.
      rows: Rows of each batch to read, R of them, for a process that shares the batches with others.
      num_threads: Number of threads that make batches.
      prefetch: Number of batches to make ahead.

    Returns:
      Iterator over dicts: "tokens", int32 (R, T); "mask", bool (R, T), True for real tokens, from the input's
      length and not from its ids; "label", int32 (R,); and "index", int64 (B,), the positions in `source` of
      all examples of the batch. R is B unless `rows` is given. For pairs, tokens and mask are (R, 2, T).

    Raises:
      UsageError: If a size is below 1, the source is empty, or the seed is out of range.
    """
    import grain

    _check_positive(
        length=length, batch_size=batch_size, buckets=buckets, num_threads=num_threads, prefetch=prefetch
    )
    if not len(source):
        raise UsageError("The source has no examples to train on.")
    if not 0 <= seed < 2**32:
        raise UsageError(f"seed must be between 0 and {2**32 - 1}; got {seed}.")
    # Batches of indices are cheap to shuffle and to skip; only the last step reads examples.
    padded = padded_sizes(source, length, buckets)
    if buckets == 1:
        batches = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat().batch(batch_size)
    else:
        batches = grain.MapDataset.range(sys.maxsize).map(_bucketed(padded, batch_size, seed))

    def read(indices: np.ndarray) -> Batch:
        examples = read_many(source, indices[rows].tolist())
        return _collate(examples, int(padded[indices].max())) | {"index": indices}

    return iter(
        batches.map(read).to_iter_dataset(
            grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=prefetch)
        )
    )


def _bucketed(padded: np.ndarray, batch_size: int, seed: int) -> Callable[[int], np.ndarray]:
    """Returns the function k → indices of batch k; most batches have examples of one padded length.

    Every epoch is a permutation of its own. The batches that lie within it are sorted by padded length, and
    then shuffled as whole batches. A batch across two epochs stays as it is.
    """
    count = len(padded)

    @functools.lru_cache(maxsize=2)
    def order(epoch: int) -> np.ndarray:
        draw = np.random.default_rng((seed, epoch))
        indices = draw.permutation(count)
        start = -epoch * count % batch_size  # the beginning completes the last batch of the epoch before
        within = slice(start, start + max(0, count - start) // batch_size * batch_size)
        inner = indices[within]
        inner = inner[np.argsort(padded[inner], kind="stable")].reshape(-1, batch_size)
        indices[within] = draw.permutation(inner).ravel()
        return indices

    def batch(k: int) -> np.ndarray:
        places = range(k * batch_size, (k + 1) * batch_size)
        return np.array([order(place // count)[place % count] for place in places])

    return batch


def evaluation_batches(
    source: Examples,
    *,
    length: int,
    batch_size: int,
    limit: int | None = None,
    buckets: int = 1,
    rows: slice | np.ndarray = ALL,
) -> Iterator[Batch]:
    """Yields every example once, in batches of one size, in order: of the padded lengths, then of the source.

    The last batch is filled with copies of its first example, with weight 0 and index -1, so that no row is
    empty (a mean over no token is undefined).

    Args:
      source: `Source`, or a list of dicts like its examples.
      length: Length T of the rows, as in `training_batches`.
      batch_size: Number B of examples per batch.
      limit: Number of examples to take from the beginning; None takes all.
      buckets: Number of lengths that batches are padded to, as in `training_batches`.
      rows: Rows of each batch to read, as in `training_batches`.

    Returns:
      Iterator over the dicts of `training_batches` with one more entry: "weight", float32 (R,), 1 for an
      example and 0 for a copy. The sum of the weights over all rows is the number of examples.

    Raises:
      UsageError: If a size is below 1.
    """
    _check_positive(
        length=length, batch_size=batch_size, buckets=buckets, limit=1 if limit is None else limit
    )
    return _evaluation_batches(source, padded_sizes(source, length, buckets)[:limit], batch_size, rows)


def _evaluation_batches(
    source: Examples, padded: np.ndarray, batch_size: int, rows: slice | np.ndarray
) -> Iterator[Batch]:
    order = np.argsort(padded, kind="stable")
    for start in range(0, len(order), batch_size):
        places = np.arange(start, start + batch_size)
        real = places < len(order)
        indices = order[np.where(real, places, start)]
        batch = _collate(read_many(source, indices[rows].tolist()), int(padded[indices].max()))
        yield batch | {"index": np.where(real, indices, -1), "weight": real[rows].astype(np.float32)}
