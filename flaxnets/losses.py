"""Losses as (sum, count): the division comes after the sum over all devices."""

import jax
import jax.numpy as jnp
import optax

from flaxnets.typing import Array


def cross_entropies(logits: Array, labels: Array, *, label_smoothing: float = 0.0) -> Array:
    """Softmax cross-entropy of integer labels, entry by entry, in nats.

    Args:
      logits: (..., K) any float; computed in float32 at least.
      labels: (...) int32 in [0, K).
      label_smoothing: share of the target's probability spread evenly over all K classes.

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
    """The sum of ``cross_entropies`` over the entries that count.

    Args:
      logits: (..., K) any float.
      labels: (...) int32 in [0, K); what stands where ``mask`` is False is not read.
      mask: (...) bool, which entries count.
      label_smoothing: share of the target's probability spread evenly over all K classes.

    Returns:
      The sum, () float32 at least, and the number of entries that count, () float32.
    """
    labels = jnp.where(mask, labels, 0)
    losses = cross_entropies(logits, labels, label_smoothing=label_smoothing)
    return jnp.sum(jnp.where(mask, losses, 0.0)), jnp.sum(mask, dtype=jnp.float32)
