"""Tests of a trained network on sequences in another order, or cut.

How much the metric falls says how much of an answer depends on the order of the steps, and on
which part of a sequence.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

PROBES: Mapping[str, str] = {
    "shuffled": "steps in random order",
    "reversed": "steps in reverse order",
    "first_half": "the first half alone",
    "last_half": "the last half alone",
}
"""Names and descriptions."""
_STEP_KEYS = ("inputs", "tokens", "video", "features", "spectrogram", "audio")


class ProbedData:
    """Data whose sequences are changed as ``PROBES`` says.

    Args:
      data: batches with ``lengths``, (B,) or, of several views, (B,V).
      probe: a name in ``PROBES``.
      seed: of the random order.
    """

    def __init__(self, data: Any, probe: str, seed: int = 0):
        if probe not in PROBES:
            raise ValueError(f"probe: expected one of {', '.join(PROBES)}, received {probe!r}")
        self._data, self._probe, self._seed = data, probe, seed
        self.num_examples = data.num_examples
        self.batches_per_epoch = data.batches_per_epoch

    def describe(self) -> dict[str, Any]:
        """Returns what identifies the batches, for JSON."""
        return {**self._data.describe(), "probe": self._probe}

    def batches(self, start: int = 0) -> Iterator[dict[str, np.ndarray]]:
        """Yields the changed batches."""
        for number, batch in enumerate(self._data.batches(start), start):
            yield probe_batch(batch, self._probe, np.random.default_rng((self._seed, number)))


def probe_batch(
    batch: Mapping[str, np.ndarray], probe: str, generator: np.random.Generator
) -> dict[str, np.ndarray]:
    """Returns a batch whose valid steps are reordered or cut; padding stays behind them.

    >>> batch = {"tokens": np.array([[1, 2, 3, 0]]), "lengths": np.array([3])}
    >>> generator = np.random.default_rng(0)
    >>> probe_batch(batch, "reversed", generator)["tokens"].tolist()
    [[3, 2, 1, 0]]
    >>> cut = probe_batch(batch, "last_half", generator)
    >>> cut["tokens"].tolist(), cut["lengths"].tolist()
    ([[2, 3, 0, 0]], [2])

    Args:
      batch: arrays (B,...), of steps (B,T,...) or (B,V,T,...) as ``lengths`` has one axis or two.
      probe: a name in ``PROBES``.
      generator: of the random order.
    """
    lengths = np.asarray(batch["lengths"])
    rows = lengths.ravel()
    orders, kept = [], []
    steps = max(
        (x.shape[lengths.ndim] for name, x in batch.items() if name in _STEP_KEYS), default=0
    )
    for length in rows.tolist():
        order = np.arange(length)
        if probe == "shuffled":
            order = generator.permutation(length)
        elif probe == "reversed":
            order = order[::-1]
        elif probe == "first_half":
            order = order[: -(-length // 2)]
        else:
            order = order[length // 2 :]
        kept.append(len(order))
        # -1: a padded step, which is zero.
        orders.append(np.pad(order, (0, steps - len(order)), constant_values=-1))
    index = np.stack(orders)  # (B·V,T)
    changed = dict(batch)
    for name in _STEP_KEYS:
        if name not in batch:
            continue
        x = batch[name]
        flat = x.reshape(-1, *x.shape[lengths.ndim :])
        taken = np.stack([row[order] for row, order in zip(flat, index, strict=True)])
        valid = (index >= 0).reshape(*index.shape, *[1] * (taken.ndim - 2))
        changed[name] = np.where(valid, taken, 0).astype(x.dtype).reshape(x.shape)
    changed["lengths"] = np.array(kept, lengths.dtype).reshape(lengths.shape)
    return changed
