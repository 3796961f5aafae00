"""Training order whose batches hold captions of similar length.

A recurrent decoder computes as long on padding as on words. The examples are shuffled anew in every
epoch, and the epochs are concatenated without end. All examples that fill whole batches up to the
end of an epoch are sorted into buckets of similar length and cut into batches; an incomplete batch
of a bucket is completed from the next longer one; then the batches are shuffled. Each example
occurs once per epoch, except that the remainder of an epoch's shuffle, less than a batch, moves to
the batches of the next epoch.

The order is a function of the seed and the batch number alone.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_Epoch = tuple[int, np.ndarray]
"""Number of an epoch's first batch, and its batches, (n,B) example indices."""


class LengthBuckets:
    """Order of batches of similar length, a ``Loader``'s ``order``; picklable.

    Args:
        lengths: (N,) tokens of each example (``CaptionSource.example_lengths``).
        boundaries: greatest length of each bucket, ascending; the last at least the greatest of
            all. There are at most as many batch shapes as boundaries.
        batch_size: rows of a global batch.
        seed: of the order, 0..2**32 - 1.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        boundaries: Sequence[int],
        *,
        batch_size: int,
        seed: int = 0,
    ):
        lengths = np.asarray(lengths)
        if lengths.ndim != 1 or not lengths.size or lengths.min() < 1:
            raise ValueError(
                f"lengths: expected one of at least 1 for each example, received {lengths}"
            )
        if not boundaries or list(boundaries) != sorted(set(boundaries)) or boundaries[0] < 1:
            raise ValueError(f"boundaries: expected rising lengths, received {boundaries}")
        if boundaries[-1] < lengths.max():
            raise ValueError(
                f"boundaries: expected the last to be at least the greatest length "
                f"{lengths.max()}, received {boundaries[-1]}"
            )
        if batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, received {batch_size}")
        if not 0 <= seed < 2**32:
            raise ValueError(f"seed: expected 0 <= seed < 2**32, received {seed}")
        self.boundaries = tuple(int(boundary) for boundary in boundaries)
        self.num_examples = len(lengths)
        self.batch_size = batch_size
        self.seed = seed
        self._buckets = np.searchsorted(self.boundaries, lengths).astype(np.int32)
        self._epochs: tuple[_Epoch, ...] = ()

    def __repr__(self) -> str:
        return f"LengthBuckets({self.describe()})"

    def describe(self) -> dict[str, Any]:
        """Returns the settings that fix the order besides the loader's own, for JSON."""
        return {"boundaries": list(self.boundaries), "order_seed": self.seed}

    def batch(self, number: int) -> np.ndarray:
        """Returns the example indices of batch ``number`` >= 0, (batch_size,) int64."""
        for first, batches in self._epochs:
            if first <= number < first + len(batches):
                return batches[number - first]
        first, batches = epoch = self._order_epoch(number)
        # Two epochs are cached, because prefetching runs ahead of the consumer. Concurrent threads
        # compute the same value, so no lock is needed.
        self._epochs = (epoch, *self._epochs[:1])
        return batches[number - first]

    def index(self, position: int) -> int:
        """Returns the example at ``position`` >= 0; row r of batch k is at position k·B + r."""
        number, row = divmod(position, self.batch_size)
        return int(self.batch(number)[row])

    def boundary(self, number: int) -> int:
        """Returns the boundary of the longest example in the global batch ``number``."""
        return self.boundaries[int(self._buckets[self.batch(number)].max())]

    def finish(self, number: int, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns the batch with ``tokens`` (...,L) cut to the boundary of batch ``number``."""
        tokens = batch["tokens"]
        return {**batch, "tokens": np.ascontiguousarray(tokens[..., : self.boundary(number)])}

    def _order_epoch(self, number: int) -> _Epoch:
        size, examples = self.batch_size, self.num_examples
        # The first epoch by whose end number + 1 batches are complete.
        epoch = -(-(number + 1) * size // examples) - 1
        first, end = epoch * examples // size, (epoch + 1) * examples // size
        stream = np.arange(first * size, end * size)
        earliest, latest = stream[0] // examples, stream[-1] // examples
        shuffles = np.concatenate(
            [self._generator(e, 0).permutation(examples) for e in range(earliest, latest + 1)]
        )
        pool = shuffles[stream - earliest * examples]
        pool = pool[np.argsort(self._buckets[pool], kind="stable")]
        batches = pool.reshape(-1, size)
        return first, batches[self._generator(epoch, 1).permutation(len(batches))]

    def _generator(self, epoch: int, purpose: int) -> np.random.Generator:
        return np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(epoch, purpose)))


def choose_boundaries(lengths: np.ndarray, num_buckets: int) -> tuple[int, ...]:
    """Returns the boundaries that minimise padding, each example padded to its bucket's boundary.

    Args:
        lengths: (N,) lengths of the examples, at least 1.
        num_buckets: greatest number of boundaries, at least 1.

    Returns:
        Ascending lengths out of ``lengths``, the last the greatest; fewer than ``num_buckets`` if
        fewer lengths occur.

    Raises:
        ValueError: no lengths, or no buckets.
    """
    if num_buckets < 1:
        raise ValueError(f"num_buckets: expected at least 1, received {num_buckets}")
    values, counts = np.unique(np.asarray(lengths), return_counts=True)
    if not values.size or values[0] < 1:
        raise ValueError(f"lengths: expected at least one, each at least 1, received {lengths}")
    below = np.concatenate([[0], np.cumsum(counts)])
    # Dynamic programming. cost[j]: tokens including padding of the j shortest values in the buckets
    # so far; with one more bucket of the values i to j - 1 it is cost[i] + values[j - 1] · (their
    # number of examples).
    cost = np.where(below == 0, 0.0, np.inf)
    starts = []
    for _ in range(min(num_buckets, len(values))):
        with_one_more = cost[:, None] + np.concatenate([[0], values]) * (below - below[:, None])
        with_one_more[np.tril_indices(len(cost))] = np.inf  # needs i < j
        starts.append(with_one_more.argmin(0))
        cost = with_one_more.min(0)
    boundaries, end = [], len(values)
    for start in reversed(starts):
        boundaries.append(int(values[end - 1]))
        end = int(start[end])
    return tuple(reversed(boundaries))
