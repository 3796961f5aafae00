"""Padded steps of sequences: checks of lengths and masks."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxnets.typing import Array


def check_lengths(lengths: Any, batch_size: int, num_steps: int) -> None:
    """Refuses lengths that are not (B,) integers or, where they are concrete, not in [0,T].

    Inside a jitted function the values are unknown and pass.

    Raises:
      ValueError: another shape or dtype, or a value outside [0, num_steps].
    """
    if lengths.shape != (batch_size,):
        raise ValueError(f"lengths: expected shape {(batch_size,)}, received {lengths.shape}")
    if not jnp.issubdtype(lengths.dtype, jnp.integer):
        raise ValueError(f"lengths: expected an integer dtype, received {lengths.dtype}")
    if isinstance(lengths, jax.core.Tracer) or not batch_size:
        return
    values = np.asarray(lengths)
    if values.min() < 0 or values.max() > num_steps:
        raise ValueError(
            f"lengths: expected values in [0, {num_steps}], received {values.tolist()}"
        )


def mask_steps(inputs: Array, lengths: Array | None) -> Array:
    """Returns (B,T) bool, True at steps before ``lengths``.

    Args:
      inputs: (B,T,...) float.
      lengths: (B,) int32 in [0,T], valid steps; None: all.

    Raises:
      ValueError: inputs of fewer than three axes or not float, or as ``check_lengths``.
    """
    if inputs.ndim < 3:
        raise ValueError(f"inputs: expected (B,T,...,F), received shape {inputs.shape}")
    if not jnp.issubdtype(inputs.dtype, jnp.floating):
        raise ValueError(f"inputs: expected a float dtype, received {inputs.dtype}")
    b, t = inputs.shape[:2]
    if lengths is None:
        return jnp.ones((b, t), bool)
    check_lengths(lengths, b, t)
    return jnp.arange(t) < jnp.asarray(lengths)[:, None]
