"""Metrics as (sum, count), and how the sums of many batches become figures."""

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from flaxnets.typing import Array


def top_k_accuracy(logits: Array, labels: Array, mask: Array, *, k: int = 1) -> tuple[Array, Array]:
    """How often the label is among the ``k`` highest scores.

    A class that ties with the label counts as higher, so that constant scores win nothing; nor
    do scores that are not numbers.

    Args:
      logits: (..., K) float.
      labels: (...) int32 in [0, K); not read where ``mask`` is False.
      mask: (...) bool, which entries count.
      k: at least 1; with ``k >= K`` every entry is right.

    Returns:
      The number of right entries, () float32, and of entries that count, () float32.
    """
    targets = jnp.where(mask, labels, 0)[..., None]
    score = jnp.take_along_axis(logits, targets, axis=-1)
    # Minus one: the label's own score equals itself.
    rank = jnp.sum(~(logits < score), axis=-1) - 1
    right = (rank < k) & mask
    return jnp.sum(right, dtype=jnp.float32), jnp.sum(mask, dtype=jnp.float32)


class MeanAccumulator:
    """Adds up the (sum, count) of many batches on the host, in float64.

    Host addition in a fixed order keeps the figures of a resumed run equal bit for bit.
    """

    def __init__(self) -> None:
        self._sums: dict[str, tuple[float, float]] = {}

    def add(self, sums: Mapping[str, tuple[Array | float, Array | float]]) -> None:
        """Adds one batch's sums."""
        for name, (total, count) in sums.items():
            old_total, old_count = self._sums.get(name, (0.0, 0.0))
            self._sums[name] = (
                old_total + float(np.asarray(total, np.float64)),
                old_count + float(np.asarray(count, np.float64)),
            )

    def means(self) -> dict[str, float]:
        """The quotients by name; NaN where nothing was counted."""
        return {
            name: total / count if count else float("nan")
            for name, (total, count) in self._sums.items()
        }

    def count(self, name: str) -> float:
        """The count behind a mean; zero for a name that was never added."""
        return self._sums.get(name, (0.0, 0.0))[1]
