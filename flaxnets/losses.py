"""Losses as (sum, count); the division comes after the sum over all devices."""

import jax
import jax.numpy as jnp
import optax

from flaxnets.typing import Array


def cross_entropies(logits: Array, labels: Array, *, label_smoothing: float = 0.0) -> Array:
    """Returns the softmax cross-entropy of integer labels, entry by entry, in nats.

    With label smoothing s (Szegedy et al., 1512.00567, section 7) the target distribution is
    (1 − s) · onehot(label) + s/K.

    Args:
      logits: (..., K) any float; computed in float32 at least.
      labels: (...) int32 in [0,K).
      label_smoothing: s in [0,1).

    Returns:
      (...) float32 at least.
    """
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    if label_smoothing:
        uniform = -jnp.mean(jax.nn.log_softmax(logits), axis=-1)
        losses = (1 - label_smoothing) * losses + label_smoothing * uniform
    return losses


def cross_entropy(
    logits: Array, labels: Array, mask: Array, *, label_smoothing: float = 0.0
) -> tuple[Array, Array]:
    """Returns the sum of ``cross_entropies`` over the entries that count, and their number.

    >>> logits, labels, mask = jnp.zeros((3, 2)), jnp.array([0, 1, -1]), jnp.array([1, 1, 0], bool)
    >>> total, count = cross_entropy(logits, labels, mask)
    >>> round(float(total / count), 4)  # ln 2
    0.6931

    Args:
      logits: (..., K) any float.
      labels: (...) int32 in [0,K); not read where ``mask`` is False.
      mask: (...) bool, entries that count.
      label_smoothing: see ``cross_entropies``.

    Returns:
      The sum, () float32 at least, and the number of entries that count, () float32.
    """
    labels = jnp.where(mask, labels, 0)
    losses = cross_entropies(logits, labels, label_smoothing=label_smoothing)
    return jnp.sum(jnp.where(mask, losses, 0.0)), jnp.sum(mask, dtype=jnp.float32)
