"""Batch normalisation over the images that count, on one device or many."""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxnets.typing import Array, Dtype


class BatchNorm(nn.Module):
    """Batch normalisation (Ioffe and Szegedy, 1502.03167) of maps.

    Parameters ``scale``, ``bias`` (C,); statistics ``batch_stats/mean``, ``var`` (C,),
    float32 at least.
    Under jit the statistics are those of the global batch, wherever its rows lie; under pmap and
    shard_map they are where ``axis_name`` is given.

    Attributes:
      momentum: share of the old running statistics that a training step keeps; one minus
        PyTorch's.
      epsilon: added to the variance.
      unbiased: the running variance is that of n/(n−1), as PyTorch's; TensorFlow's is not.
      axis_name: the mapped axis of devices that the statistics are summed over.
      dtype: of the result; None: that of the inputs. Statistics and arithmetic are at least
        float32.
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
        if inputs.ndim != 4:
            raise ValueError(f"inputs: expected (N,H,W,C), received shape {inputs.shape}")
        n, _, _, c = inputs.shape
        if mask is not None and (mask.shape != (n,) or mask.dtype != jnp.bool_):
            raise ValueError(f"mask: expected ({n},) bool, received {mask.shape} {mask.dtype}")
        scale = self.param("scale", self.scale_init, (c,), self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (c,), self.param_dtype)
        dtype = jnp.promote_types(self.param_dtype, jnp.float32)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (c,), dtype)
        running_var = self.variable("batch_stats", "var", jnp.ones, (c,), dtype)
        x = inputs.astype(jnp.promote_types(inputs.dtype, jnp.float32))
        if train:
            axis_name = None if self.is_initializing() else self.axis_name
            rows = _count_rows(mask, n, axis_name, x.dtype)
            outputs, (mean, var, count) = normalize_batch(
                x, scale, bias, rows, self.epsilon, axis_name
            )
            if not self.is_initializing():
                old = self.momentum
                correction = count / jnp.maximum(count - 1, 1) if self.unbiased else 1.0
                running_mean.value = old * running_mean.value + (1 - old) * mean
                running_var.value = old * running_var.value + (1 - old) * var * correction
        else:
            factor = scale * jax.lax.rsqrt(running_var.value + self.epsilon)
            outputs = (x - running_mean.value) * factor + bias
        return outputs.astype(self.dtype or inputs.dtype)


class Statistics(NamedTuple):
    """Of the pixels that count."""

    mean: Array
    """(C,)."""
    var: Array
    """(C,), biased."""
    num_pixels: Array
    """()."""


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def normalize_batch(
    maps: Array, scale: Array, bias: Array, rows: Array, epsilon: float, axis_name: str | None
) -> tuple[Array, Statistics]:
    """Maps minus their mean over their standard deviation, times ``scale``, plus ``bias``.

    The sums over pixels are taken image by image and weighted after that, so that a mask costs
    nothing; the gradient is written out, since JAX's own reads the maps several times more often.
    Reverse mode only; the statistics have no gradient of their own.

    Args:
      maps: (N,H,W,C) float32 or float64.
      scale: γ (C,).
      bias: β (C,).
      rows: (N,) of the type of ``maps``: 1 for images that count in the statistics, 0 for others.
      epsilon: added to the variance.
      axis_name: the mapped axis of devices that the sums run over.

    Returns:
      Maps of the same shape, and their statistics before.
    """
    statistics = _measure(maps, rows, axis_name)
    factor = scale * jax.lax.rsqrt(statistics.var + epsilon)
    return (maps - statistics.mean) * factor + bias, statistics


def _measure(maps: Array, rows: Array, axis_name: str | None) -> Statistics:
    _, h, w, _ = maps.shape
    count = _psum(rows.sum() * (h * w), axis_name)
    mean = _psum(rows @ maps.sum((1, 2)), axis_name) / count
    # A second pass: the mean of the squares would lose the variance beside a large mean.
    deviations = maps - mean
    squares = _psum(rows @ (deviations * deviations).sum((1, 2)), axis_name)
    return Statistics(mean, squares / count, count)


def _forward(
    maps: Array, scale: Array, bias: Array, rows: Array, epsilon: float, axis_name: str | None
) -> tuple[tuple[Array, Statistics], Any]:
    outputs, statistics = normalize_batch(maps, scale, bias, rows, epsilon, axis_name)
    return (outputs, statistics), (maps, scale, rows, statistics)


def _backward(
    epsilon: float, axis_name: str | None, residuals: Any, gradients: tuple[Array, Statistics]
) -> tuple[Array, Array, Array, None]:
    maps, scale, rows, (mean, var, count) = residuals
    gradient, _ = gradients
    inverse = jax.lax.rsqrt(var + epsilon)
    of_bias = gradient.sum((0, 1, 2))
    of_scale = (gradient * (maps - mean)).sum((0, 1, 2)) * inverse
    # Through the statistics, to the images that count: ∂μ and ∂σ² of all pixels.
    total, covariance = _psum((of_bias, of_scale), axis_name)
    factor = scale * inverse
    slope = factor * inverse * covariance / count
    offset = factor * total / count
    of_statistics = (maps - mean) * slope + offset
    of_maps = gradient * factor - rows[:, None, None, None] * of_statistics
    return of_maps, of_scale, of_bias, None


normalize_batch.defvjp(_forward, _backward)


def _psum(sums: Any, axis_name: str | None) -> Any:
    return sums if axis_name is None else jax.lax.psum(sums, axis_name)


def _count_rows(mask: Array | None, n: int, axis_name: str | None, dtype: Any) -> Array:
    """(N,): 1 for images that count; all do where none does."""
    if mask is None:
        return jnp.ones(n, dtype)
    # Statistics of nothing would be NaN and stay in the running averages for ever.
    counted = _psum(mask.sum(), axis_name)
    return (mask | (counted == 0)).astype(dtype)
