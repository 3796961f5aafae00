"""Losses and metrics as (sum, count), and their accumulation over batches.

The division comes after the sum over all devices and batches.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from flaxnets.layers.padding import zero_where_masked
from flaxnets.typing import SCAN_REPORTS, Array, PyTree, Sums


def top_k_accuracy(logits: Array, labels: Array, mask: Array, *, k: int = 1) -> tuple[Array, Array]:
    """Returns the number of entries whose label is among the ``k`` highest logits.

    A class that ties with the label counts as higher, so that constant logits score 0; so do NaNs.

    >>> logits, labels = jnp.array([[0.1, 0.9], [0.8, 0.2]]), jnp.array([1, 1])
    >>> right, count = top_k_accuracy(logits, labels, jnp.ones(2, bool))
    >>> float(right), float(count)
    (1.0, 2.0)

    Args:
      logits: (..., K) float.
      labels: (...) int32 in [0,K); not read where ``mask`` is False.
      mask: (...) bool, entries that count.
      k: at least 1; with k >= K every entry without NaN or tie is right.

    Returns:
      The number of right entries, () float32, and of entries that count, () float32.
    """
    targets = jnp.where(mask, labels, 0)[..., None]
    target = jnp.take_along_axis(logits, targets, axis=-1)
    # "Not less", so that ties and NaNs rank above the label; minus one for the label itself.
    rank = jnp.sum(~(logits < target), axis=-1) - 1
    right = (rank < k) & mask
    return jnp.sum(right, dtype=jnp.float32), jnp.sum(mask, dtype=jnp.float32)


def mutable_collections(names: Iterable[str]) -> list[str]:
    """Returns what a training step asks of ``Module.apply``: all but ``params``, and the reports.

    Args:
      names: of the collections that the variables have.
    """
    return sorted({*names, SCAN_REPORTS} - {"params"})


def split_reports(collections: Mapping[str, Any]) -> tuple[dict[str, PyTree], Sums]:
    """Takes the reports out of the collections that ``Module.apply`` returned.

    Returns:
      The other collections; and the sums of each number of the reports over all sequences of the
      batch and all cells, as ``scan_iterations`` and ``scan_fallbacks``, none without a parallel
      scan.
    """
    others = {name: tree for name, tree in collections.items() if name != SCAN_REPORTS}
    sums: Sums = {}
    kept = collections.get(SCAN_REPORTS, {})
    for report in jax.tree.leaves(kept, is_leaf=lambda node: hasattr(node, "_asdict")):
        for name, counts in report._asdict().items():
            total, count = sums.get(f"scan_{name}", (0.0, 0.0))
            total, count = total + counts.sum(dtype=jnp.float32), count + jnp.float32(counts.size)
            sums[f"scan_{name}"] = total, count
    return others, sums


class MeanAccumulator:
    """Accumulator of the (sum, count) of many batches, on the host, in float64.

    Addition on the host in a fixed order keeps the metrics of a resumed run equal bit-for-bit where
    its batches are: on CPUs, see ``flaxnets/training/loop.py``.

    >>> means = MeanAccumulator()
    >>> means.add({"loss": (3.0, 1.0)})
    >>> means.add({"loss": (1.0, 3.0)})
    >>> means.means()
    {'loss': 1.0}
    """

    def __init__(self) -> None:
        self._sums: dict[str, tuple[float, float]] = {}

    def add(self, sums: Mapping[str, tuple[Array | float, Array | float]]) -> None:
        """Adds the sums of one batch: by name, scalars (sum, count)."""
        for name, (total, count) in sums.items():
            old_total, old_count = self._sums.get(name, (0.0, 0.0))
            self._sums[name] = (
                old_total + float(np.asarray(total, np.float64)),
                old_count + float(np.asarray(count, np.float64)),
            )

    def means(self) -> dict[str, float]:
        """Returns sum / count by name; NaN where the count is zero."""
        return {
            name: total / count if count else float("nan")
            for name, (total, count) in self._sums.items()
        }

    def count(self, name: str) -> float:
        """Returns the count of a metric; zero for a name that was never added."""
        return self._sums.get(name, (0.0, 0.0))[1]


def cross_entropies(
    logits: Array, labels: Array, mask: Array | None = None, *, label_smoothing: float = 0.0
) -> Array:
    """Returns the softmax cross-entropy of integer labels, entry by entry, in nats.

    With label smoothing s (Szegedy et al., 1512.00567, section 7) the target distribution is
    (1 − s) · onehot(label) + s/K.

    Args:
      logits: (..., K) any float; computed in float32 at least.
      labels: (...) int32 in [0,K).
      mask: (...) bool, entries that count; None: all. Logits and labels of others are not read:
        their loss is zero, and so is the gradient, whatever they are.
      label_smoothing: s in [0,1).

    Returns:
      (...) float32 at least.
    """
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    if mask is not None:
        # Before the logarithm, too: its gradient at NaN is NaN, even times zero.
        logits, labels = zero_where_masked(logits, mask), jnp.where(mask, labels, 0)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    if label_smoothing:
        uniform = -jnp.mean(jax.nn.log_softmax(logits), axis=-1)
        losses = (1 - label_smoothing) * losses + label_smoothing * uniform
    return losses if mask is None else jnp.where(mask, losses, 0)


def cross_entropy(
    logits: Array, labels: Array, mask: Array, *, label_smoothing: float = 0.0
) -> tuple[Array, Array]:
    """Returns the sum of ``cross_entropies`` over the entries that count, and their number.

    >>> logits, labels, mask = jnp.zeros((3, 2)), jnp.array([0, 1, -1]), jnp.array([1, 1, 0], bool)
    >>> total, count = cross_entropy(logits, labels, mask)
    >>> round(float(total / count), 4)  # ln 2
    0.6931

    Args:
      logits: (..., K) any float; not read where ``mask`` is False.
      labels: (...) int32 in [0,K); not read where ``mask`` is False.
      mask: (...) bool, entries that count.
      label_smoothing: see ``cross_entropies``.

    Returns:
      The sum, () float32 at least, and the number of entries that count, () float32.
    """
    losses = cross_entropies(logits, labels, mask, label_smoothing=label_smoothing)
    return jnp.sum(losses), jnp.sum(mask, dtype=jnp.float32)
