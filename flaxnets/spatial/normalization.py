"""Batch normalisation over the images that count, on one device or many."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxnets.typing import Array, Dtype


class BatchNorm(nn.Module):
    """Batch normalisation (Ioffe and Szegedy, 1502.03167) of maps.

    Parameters ``scale``, ``bias`` (C,); statistics ``batch_stats/mean``, ``var`` (C,) float32.
    Under jit the statistics are those of the global batch, wherever its rows lie; under pmap and
    shard_map they are where ``axis_name`` is given.

    Attributes:
      momentum: share of the old running statistics that a training step keeps; one minus
        PyTorch's.
      epsilon: added to the variance.
      unbiased: the running variance is that of n/(n−1), as PyTorch's; TensorFlow's is not.
      axis_name: the mapped axis of devices that the statistics are summed over.
      dtype: of the result; None: that of the inputs. Statistics and arithmetic are float32.
      param_dtype: of the parameters.
      scale_init: of ``scale``.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    unbiased: bool = False
    axis_name: str | None = None
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    scale_init: Any = nn.initializers.ones

    @nn.compact
    def __call__(self, inputs: Array, mask: Array | None = None, *, train: bool) -> Array:
        """(N,H,W,C) float to the same shape, ``dtype``.

        Args:
          inputs: maps of N images.
          mask: (N,) bool, images that count in the statistics while training; None, or False
            throughout: all.
          train: normalise by the statistics of this batch and update the running ones.

        Raises:
          ValueError: inputs or a mask of another shape or type.
        """
        n, _, _, c = inputs.shape
        if mask is not None and (mask.shape != (n,) or mask.dtype != jnp.bool_):
            raise ValueError(f"mask: expected ({n},) bool, received {mask.shape} {mask.dtype}")
        scale = self.param("scale", self.scale_init, (c,), self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (c,), self.param_dtype)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (c,), jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, (c,), jnp.float32)
        x = inputs.astype(jnp.promote_types(inputs.dtype, jnp.float32))
        if train:
            mean, var, count = self._statistics(x, mask)
            if not self.is_initializing():
                old = self.momentum
                correction = count / jnp.maximum(count - 1, 1) if self.unbiased else 1.0
                running_mean.value = old * running_mean.value + (1 - old) * mean
                running_var.value = old * running_var.value + (1 - old) * var * correction
        else:
            mean, var = running_mean.value, running_var.value
        factor = scale * jax.lax.rsqrt(var + self.epsilon)
        outputs = (x - mean) * factor + bias
        return outputs.astype(self.dtype or inputs.dtype)

    def _statistics(self, x: Array, mask: Array | None) -> tuple[Array, Array, Array]:
        """Mean (C,) and variance (C,) over the pixels that count, and their number ()."""
        n, h, w, _ = x.shape
        if mask is None:
            rows = jnp.ones((n, 1, 1, 1), x.dtype)
        else:
            counted = mask.sum()
            if self.axis_name is not None and not self.is_initializing():
                counted = jax.lax.psum(counted, self.axis_name)
            # Statistics of nothing would be NaN and stay in the running averages for ever.
            rows = (mask | (counted == 0)).astype(x.dtype)[:, None, None, None]
        sums = [rows.sum() * (h * w), (x * rows).sum((0, 1, 2)), (x * x * rows).sum((0, 1, 2))]
        if self.axis_name is not None and not self.is_initializing():
            sums = jax.lax.psum(sums, self.axis_name)
        count, total, squares = sums
        mean = total / count
        return mean, jnp.maximum(squares / count - mean * mean, 0.0), count
