"""Batches of examples of similar width, filled by area rather than by number of examples.

Lines of text differ tenfold in width and recordings in duration. A batch padded to its widest
example would mostly hold padding, and a new shape for each batch would compile for each batch. So
the examples are sorted into a few buckets: a batch holds examples of one bucket, padded to the
bucket's boundary, and as many of them as fill a given area. There are as many shapes as buckets.

In training each bucket has an endless stream of its own examples, shuffled anew in every pass, cut
into batches; the batches of all buckets are interleaved, so that each example occurs once per epoch
up to a remainder of less than a batch for each bucket. In evaluation each example occurs once, and
the last batch of a bucket is filled with blank rows. Which examples a batch holds is a function of
the seed and the batch number alone.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data.captions.length_buckets import choose_boundaries

BLANK = -1
"""Index of a row that holds no example."""


class WidthBuckets:
    """Order and shapes of batches of examples of similar width, a ``Loader``'s ``plan``; picklable.

    Examples are dicts of arrays as ``data.batches.TranscriptExample``: the axis that ``input_key``
    names is padded to the boundary, ``tokens`` to the most tokens of the bucket.

    Args:
        widths: (N,) upper bounds of each example's width (columns of a line, frames of a sound).
        batch_width: total width of the rows of a batch, padding included.
        num_buckets: greatest number of shapes.
        token_lengths: (N,) tokens of each example; None: examples without tokens.
        width_multiple: boundaries are multiples of it.
        row_multiple: numbers of rows are multiples of it: of devices × micro-batches.
        max_rows: greatest number of rows of a batch; None: no bound.
        narrow_first: the batches of the first epoch go from narrow to wide (SortaGrad, Amodei et
            al., 1512.02595, section 3.3), within a bucket in random order; training only.
        step_keys: further keys whose first axis is padded to the boundary, as
            ``data.series.STEP_KEYS`` of sequences.
        train: an endless shuffled order; False: one pass.
        seed: of the order, 0..2**32 - 1.

    Attributes:
        boundaries: padded width of each bucket, ascending.
        rows: rows of a batch of each bucket.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        widths: np.ndarray,
        *,
        batch_width: int,
        num_buckets: int = 6,
        token_lengths: np.ndarray | None = None,
        width_multiple: int = 32,
        row_multiple: int = 1,
        max_rows: int | None = None,
        narrow_first: bool = False,
        step_keys: Sequence[str] = (),
        train: bool,
        seed: int = 0,
    ):
        widths = np.asarray(widths)
        if widths.ndim != 1 or not widths.size or widths.min() < 1:
            raise ValueError(
                f"widths: expected one of at least 1 for each example, received {widths}"
            )
        for name, value in (
            ("batch_width", batch_width),
            ("num_buckets", num_buckets),
            ("width_multiple", width_multiple),
            ("row_multiple", row_multiple),
        ):
            if value < 1:
                raise ValueError(f"{name}: expected at least 1, received {value}")
        if not 0 <= seed < 2**32:
            raise ValueError(f"seed: expected 0 <= seed < 2**32, received {seed}")
        rounded = -(-widths // width_multiple) * width_multiple
        self.boundaries = choose_boundaries(rounded, num_buckets)
        self.train = train
        self.seed = seed
        self.num_examples = len(widths)
        self.batch_width = batch_width
        self.row_multiple = row_multiple
        self.narrow_first = narrow_first
        self.step_keys = tuple(step_keys)
        self.rows = tuple(
            _rows(batch_width // boundary, row_multiple, max_rows) for boundary in self.boundaries
        )
        bucket = np.searchsorted(self.boundaries, widths)
        self._members = [np.flatnonzero(bucket == b) for b in range(len(self.boundaries))]
        self._total_width = int(widths.sum(dtype=np.int64))
        self._tokens: tuple[int, ...] | None = None
        if token_lengths is not None:
            # A multiple of 8: the same shape for splits of similar texts.
            self._tokens = tuple(
                -(-max(1, int(np.max(token_lengths[members]))) // 8) * 8
                for members in self._members
            )
        self._epochs: tuple[tuple[int, int, list[tuple[int, int]]], ...] = ()
        self._passes: dict[tuple[int, int], np.ndarray] = {}

    def __repr__(self) -> str:
        # grain compares sources by it when it restores an iterator.
        return f"WidthBuckets({self.describe()})"

    def describe(self) -> dict[str, Any]:
        """Returns the settings that fix the order besides the loader's own, for JSON."""
        return {
            "boundaries": list(self.boundaries),
            "rows": list(self.rows),
            "order_seed": self.seed,
            **({"narrow_first": True} if self.narrow_first else {}),
        }

    @property
    def batches_per_epoch(self) -> int:
        """Number of batches that hold every example once, the last of each bucket padded."""
        return sum(
            -(-len(members) // rows) for members, rows in zip(self._members, self.rows, strict=True)
        )

    @property
    def padding(self) -> float:
        """Share of the area of an epoch's rows, blank ones aside, that is padding, in [0,1)."""
        padded = sum(
            len(members) * boundary
            for members, boundary in zip(self._members, self.boundaries, strict=True)
        )
        return 1 - self._total_width / padded

    def indices(self, number: int) -> np.ndarray:
        """Returns the examples of the global batch ``number`` >= 0, (rows,) int64, or ``BLANK``."""
        bucket, position = self._batch(number)
        rows = self.rows[bucket]
        places = np.arange(position * rows, (position + 1) * rows)
        members = self._members[bucket]
        if not self.train:
            return np.where(
                places < len(members), members[np.minimum(places, len(members) - 1)], BLANK
            )
        return np.array([self._shuffled(bucket, int(place)) for place in places])

    def stack(
        self, number: int, examples: Sequence[Mapping[str, np.ndarray]]
    ) -> dict[str, np.ndarray]:
        """Returns rows of batch ``number``, padded with zeros to the shapes of its bucket.

        Args:
            number: of the global batch.
            examples: of one process, each with ``image`` (H,W,C), ``spectrogram`` (T,M) or the
                ``step_keys`` (T,...).

        Raises:
            ValueError: an example that is wider, or has more tokens, than it was announced.
        """
        bucket, _ = self._batch(number)
        batch = {}
        for key in examples[0]:
            rows = [np.asarray(example[key]) for example in examples]
            axis, size = self._padded_axis(key, bucket)
            if axis is not None:
                rows = [_pad(row, axis, size, key) for row in rows]
            batch[key] = np.stack(rows)
        return batch

    def _padded_axis(self, key: str, bucket: int) -> tuple[int | None, int]:
        if key == "image":
            return 1, self.boundaries[bucket]
        if key == "spectrogram" or key in self.step_keys:
            return 0, self.boundaries[bucket]
        if key == "tokens" and self._tokens is not None:
            return 0, self._tokens[bucket]
        return None, 0

    def _batch(self, number: int) -> tuple[int, int]:
        """Returns the bucket of batch ``number``, and the number of the batch within the bucket."""
        if not self.train:
            for bucket, (members, rows) in enumerate(zip(self._members, self.rows, strict=True)):
                count = -(-len(members) // rows)
                if number < count:
                    return bucket, number
                number -= count
            raise IndexError(f"number: expected less than {self.batches_per_epoch}")
        for first, end, batches in self._epochs:
            if first <= number < end:
                return batches[number - first]
        epoch = self._epoch_of(number)
        first, end = self._batches_before(epoch), self._batches_before(epoch + 1)
        batches = [
            (bucket, position)
            for bucket in range(len(self.rows))
            for position in range(self._count(bucket, epoch), self._count(bucket, epoch + 1))
        ]
        order = self._generator(epoch, 0, 0).permutation(len(batches))
        if self.narrow_first and not epoch:
            order = np.arange(len(batches))  # The buckets ascend.
        # Two epochs are cached, because prefetching runs ahead of the consumer. Concurrent threads
        # compute the same value, so no lock is needed.
        found = (first, end, [batches[i] for i in order])
        self._epochs = (found, *self._epochs[:1])
        return found[2][number - first]

    def _count(self, bucket: int, epochs: int) -> int:
        """Returns the number of a bucket's batches in so many epochs."""
        return epochs * len(self._members[bucket]) // self.rows[bucket]

    def _batches_before(self, epoch: int) -> int:
        return sum(self._count(bucket, epoch) for bucket in range(len(self.rows)))

    def _epoch_of(self, number: int) -> int:
        """Returns the epoch that holds batch ``number``."""
        rate = sum(len(m) / r for m, r in zip(self._members, self.rows, strict=True))
        epoch = max(0, math.floor(number / rate) - 1)
        while self._batches_before(epoch + 1) <= number:
            epoch += 1
        return epoch

    def _shuffled(self, bucket: int, place: int) -> int:
        """Returns the example at ``place`` of a bucket's endless stream."""
        members = self._members[bucket]
        turn, offset = divmod(place, len(members))
        key = bucket, turn
        order = self._passes.get(key)
        if order is None:
            order = self._generator(turn, 1, bucket).permutation(members)
            # A batch of a small bucket may reach over several passes.
            kept = {k: v for k, v in self._passes.items() if k[0] != bucket or k[1] >= turn - 1}
            self._passes = {**kept, key: order}
        return int(order[offset])

    def _generator(self, epoch: int, purpose: int, bucket: int) -> np.random.Generator:
        return np.random.default_rng(
            np.random.SeedSequence(self.seed, spawn_key=(epoch, purpose, bucket))
        )


def _rows(wanted: int, multiple: int, most: int | None) -> int:
    if most is not None:
        wanted = min(wanted, most)
    return max(1, wanted // multiple) * multiple


def _pad(array: np.ndarray, axis: int, size: int, key: str) -> np.ndarray:
    if array.shape[axis] > size:
        raise ValueError(
            f"{key}: expected at most {size} along axis {axis}, received {array.shape}"
        )
    widths = [(0, 0)] * array.ndim
    widths[axis] = (0, size - array.shape[axis])
    return np.pad(array, widths)
