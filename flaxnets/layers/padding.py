"""Validation of sequence lengths, masks of valid steps, and arrays without their padding.

Whatever lies in padding, NaN and infinity included, changes neither values nor gradients. To
select among results is not enough: the gradient of a matmul multiplies its inputs by a gradient of
zero, and 0 · NaN is NaN. So layers read zeros in place of padding, and mask their results as well.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxnets.typing import Array


def check_lengths(lengths: Any, batch_size: int, num_steps: int) -> Array:
    """Returns lengths as (B,) int32 after a check.

    Inside a jitted function values are unknown, so only shape and dtype are checked.

    >>> check_lengths([3, 1], batch_size=2, num_steps=3).tolist()
    [3, 1]

    Args:
      lengths: (B,) integers, valid steps of each sequence: an array of JAX or NumPy, or a list.
      batch_size: B.
      num_steps: T.

    Raises:
      ValueError: another shape or dtype, or a value outside [0, num_steps].
    """
    return check_counts("lengths", lengths, (batch_size,), num_steps)


def check_counts(name: str, counts: Any, shape: tuple[int, ...], largest: int) -> Array:
    """Returns counts as int32 after a check, as ``check_lengths`` does for any shape.

    Args:
      name: the argument that the error names.
      counts: integers, an array or nested lists.
      shape: expected.
      largest: largest allowed value.

    Raises:
      ValueError: another shape or dtype, or a value outside [0, largest].
    """
    if not hasattr(counts, "shape"):
        traced = any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(counts))
        counts = jnp.asarray(counts) if traced else np.asarray(counts)
        if not counts.size:  # Empty lists have no dtype of their own.
            counts = counts.astype(np.int32)
    if counts.shape != shape:
        raise ValueError(f"{name}: expected shape {shape}, received {counts.shape}")
    if not jnp.issubdtype(counts.dtype, jnp.integer):
        raise ValueError(f"{name}: expected an integer dtype, received {counts.dtype}")
    if not isinstance(counts, jax.core.Tracer) and counts.size:
        values = np.asarray(counts)
        if values.min() < 0 or values.max() > largest:
            raise ValueError(
                f"{name}: expected values in [0, {largest}], received {values.tolist()}"
            )
    return jnp.asarray(counts, jnp.int32)


def check_starts(starts: Any, batch_size: int, num_steps: int) -> Array:
    """Returns the first steps of packed sequences, (B,T) bool, after a check.

    >>> check_starts([[True, False, True]], batch_size=1, num_steps=3).shape
    (1, 3)

    Args:
      starts: an array of JAX or NumPy, or nested lists.
      batch_size: B.
      num_steps: T.

    Raises:
      ValueError: another shape or dtype.
    """
    if not hasattr(starts, "shape"):
        starts = np.asarray(starts)
    if starts.shape != (batch_size, num_steps):
        raise ValueError(
            f"starts: expected shape {(batch_size, num_steps)}, received {starts.shape}"
        )
    if starts.dtype != jnp.bool_:
        raise ValueError(f"starts: expected bool, received {starts.dtype}")
    return jnp.asarray(starts)


def mask_steps(inputs: Array, lengths: Array | None) -> Array:
    """Returns (B,T) bool, True at the valid steps of each sequence.

    >>> mask_steps(jnp.zeros((2, 3, 5)), jnp.array([3, 1])).tolist()
    [[True, True, True], [True, False, False]]

    Args:
      inputs: (B,T,...) float.
      lengths: (B,) integers in [0,T], valid steps; None: T.

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
    return jnp.arange(t) < check_lengths(lengths, b, t)[:, None]


def zero_where_masked(x: Array, mask: Array | None) -> Array:
    """Returns ``x`` with zeros where the mask is False, so that what lies there has no effect.

    >>> zero_where_masked(jnp.array([[1.0], [jnp.nan]]), jnp.array([True, False])).tolist()
    [[1.0], [0.0]]

    Args:
      x: (...,...), of any dtype; integers pass as is, since they are finite.
      mask: bool, of the leading axes of ``x``; None: ``x`` passes as is.
    """
    if mask is None or not jnp.issubdtype(x.dtype, jnp.inexact):
        return x
    return jnp.where(mask.reshape(*mask.shape, *[1] * (x.ndim - mask.ndim)), x, 0)


def zero_padding(x: Array, lengths: Array | None) -> Array:
    """Returns (B,T,...) with zeros at padded steps; integers, as pixels, pass as is.

    Args:
      x: (B,T,...).
      lengths: (B,) int32, valid steps; None: ``x`` passes as is.
    """
    if lengths is None:
        return x
    return zero_where_masked(x, jnp.arange(x.shape[1]) < lengths[:, None])
