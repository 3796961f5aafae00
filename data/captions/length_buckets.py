"""A training order whose batches hold captions of similar length.

Padding costs a recurrent decoder as much as words do. The order begins as the loader's own: the
examples are shuffled anew in every epoch, and the epochs follow each other without end. What fills
whole batches up to the end of an epoch is sorted into buckets of similar length, cut into batches,
and the batches are shuffled; an incomplete batch of a bucket is filled up from the next longer
one. So an epoch's examples are drawn once each, in its own batches but for the last of its shuffle,
fewer than a batch, which go among the batches of the next epoch.

Everything is a function of the seed and the number of the batch alone.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_Epoch = tuple[int, np.ndarray]
"""The number of an epoch's first batch, and its batches (n,B)."""


class LengthBuckets:
    """Batches of examples of similar length: a ``Loader``'s ``order``; picklable.

    Args:
        lengths: (N,) of each example of the source, tokens (``CaptionSource.example_lengths``).
        boundaries: greatest length in each bucket, rising; the last at least the greatest of all.
            Batches have at most as many different shapes.
        batch_size: rows of a batch of all processes together.
        seed: fixes the order, 0..2**32 - 1.

    Raises:
        ValueError: an argument is not as described.
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
        """What fixes the order besides the loader's own settings, for JSON."""
        return {"boundaries": list(self.boundaries), "order_seed": self.seed}

    def batch(self, number: int) -> np.ndarray:
        """(batch_size,) int64: the examples of the batch ``number``, from 0 on."""
        for first, batches in self._epochs:
            if first <= number < first + len(batches):
                return batches[number - first]
        first, batches = epoch = self._order_epoch(number)
        # Two are kept, as readers run ahead of the consumer. Several threads may come here at
        # once; each computes the same.
        self._epochs = (epoch, *self._epochs[:1])
        return batches[number - first]

    def index(self, position: int) -> int:
        """The example at ``position``, from 0 on, of the order: row r of batch k is k·B + r."""
        number, row = divmod(position, self.batch_size)
        return int(self.batch(number)[row])

    def boundary(self, number: int) -> int:
        """The boundary of the longest example in the batch ``number``, of all processes' rows."""
        return self.boundaries[int(self._buckets[self.batch(number)].max())]

    def finish(self, number: int, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Cuts ``tokens`` (...,L) of the batch ``number`` to its boundary, on every process."""
        tokens = batch["tokens"]
        return {**batch, "tokens": np.ascontiguousarray(tokens[..., : self.boundary(number)])}

    def _order_epoch(self, number: int) -> _Epoch:
        size, examples = self.batch_size, self.num_examples
        # The first epoch at whose end number + 1 batches are complete.
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
    """Chooses the boundaries that cause least padding when each example is padded to its own.

    Args:
        lengths: (N,) of the examples, at least 1.
        num_buckets: most boundaries, at least 1.

    Returns:
        Rising lengths that occur, the last the greatest; fewer where fewer lengths occur.

    Raises:
        ValueError: no lengths, or no buckets.
    """
    if num_buckets < 1:
        raise ValueError(f"num_buckets: expected at least 1, received {num_buckets}")
    values, counts = np.unique(np.asarray(lengths), return_counts=True)
    if not values.size or values[0] < 1:
        raise ValueError(f"lengths: expected at least one, each at least 1, received {lengths}")
    below = np.concatenate([[0], np.cumsum(counts)])
    # cost[j]: tokens, padding included, of the j shortest values in the buckets so far. With one
    # more bucket that holds values i to j - 1 it is cost[i] + values[j - 1] · (their number).
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
