"""Validation of sequence lengths, and masks of valid steps."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxnets.typing import Array


def check_lengths(lengths: Any, batch_size: int, num_steps: int) -> None:
    """Raises an error unless lengths are (B,) integers in [0,T].

    Inside a jitted function values are unknown, so only shape and dtype are checked.

    Args:
      lengths: (B,) integers, valid steps of each sequence.
      batch_size: B.
      num_steps: T.

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
    """Returns (B,T) bool, True at the valid steps of each sequence.

    >>> mask_steps(jnp.zeros((2, 3, 5)), jnp.array([3, 1])).tolist()
    [[True, True, True], [True, False, False]]

    Args:
      inputs: (B,T,...) float.
      lengths: (B,) int32 in [0,T], valid steps; None: T.

    Raises:
      ValueError: inputs of fewer than three axes or not float, or lengths as for
        ``check_lengths``.
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
