"""Batch normalisation with masked images, on one device or many."""

import functools
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxnets.configuration import check_dtype_argument
from flaxnets.layers.batch_sharding import (
    in_auto_axes,
    is_batch_known_sharded,
    sum_chunks,
    vary_alike,
)
from flaxnets.typing import Array, Dtype


class BatchNorm(nn.Module):
    """Batch normalisation of feature maps (Ioffe and Szegedy, 1502.03167, algorithm 1).

        y = (x − μ) / √(σ² + ε) · scale + bias

    with mean μ and variance σ² of each channel over the positions of the images that ``mask``
    counts. Parameters ``scale`` and ``bias`` (C,); running statistics ``batch_stats/mean`` and
    ``batch_stats/var`` (C,), float32 at least. Under ``jit`` the statistics are those of the global
    batch, however it is sharded; under ``pmap`` and ``shard_map`` they are if ``axis_name`` is set.
    Without a mask the layer equals ``nn.BatchNorm``:

    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(4, 3, 3, 2)).astype(np.float32)
    >>> layer, reference = BatchNorm(), nn.BatchNorm(use_running_average=False, momentum=0.9)
    >>> variables = layer.init(jax.random.key(1), x, train=False)
    >>> y, updated = layer.apply(variables, x, train=True, mutable=["batch_stats"])
    >>> expected, other = reference.apply(variables, x, mutable=["batch_stats"])
    >>> np.allclose(y, expected, atol=1e-5)
    True
    >>> np.allclose(updated["batch_stats"]["var"], other["batch_stats"]["var"])
    True

    Attributes:
      momentum: share of the old running statistics that a training step keeps; PyTorch's
        ``momentum`` is one minus this.
      epsilon: ε, added to the variance.
      unbiased: whether the running variance is divided by n − 1, as PyTorch's, and not by n, as
        TensorFlow's.
      axis_name: the mapped device axis that the statistics are summed over.
      dtype: of the outputs; None: that of the inputs. Statistics and arithmetic are at least
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

    def __post_init__(self) -> None:
        """Refuses the name of a dtype that does not exist."""
        check_dtype_argument(self.dtype)
        super().__post_init__()

    @nn.compact
    def __call__(self, inputs: Array, mask: Array | None = None, *, train: bool) -> Array:
        """Normalises (N,H,W,C) float to the same shape in ``dtype``.

        Args:
          inputs: feature maps of N images.
          mask: (N,) bool, images that count in the statistics in training, or (N,W), columns of
            them; None, or all False: all count. The values of others, NaN included, have no effect
            on the statistics and on the outputs of those that count, nor on their gradients.
            Without any pixel that counts the running statistics keep their values.
          train: whether to normalise by the statistics of this batch and to update the running
            ones.

        Raises:
          ValueError: inputs or mask of another shape or dtype.
        """
        if inputs.ndim != 4:
            raise ValueError(f"inputs: expected (N,H,W,C), received shape {inputs.shape}")
        n, _, w, c = inputs.shape
        if mask is not None and (mask.shape not in ((n,), (n, w)) or mask.dtype != jnp.bool_):
            raise ValueError(
                f"mask: expected ({n},) or ({n}, {w}) bool, received {mask.shape} {mask.dtype}"
            )
        scale = self.param("scale", self.scale_init, (c,), self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (c,), self.param_dtype)
        dtype = jnp.promote_types(self.param_dtype, jnp.float32)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (c,), dtype)
        running_var = self.variable("batch_stats", "var", jnp.ones, (c,), dtype)
        x = inputs.astype(jnp.promote_types(inputs.dtype, jnp.float32))
        if train:
            # init runs outside of pmap and shard_map, where the axis name is unbound.
            axis_name = None if self.is_initializing() else self.axis_name
            rows = jnp.ones(n, x.dtype)
            if mask is not None:
                rows = images_that_count(mask, axis_name).astype(x.dtype)
            # Cast: wider parameters would widen the outputs, and with them the maps' gradient.
            arguments = vary_alike((x, scale.astype(x.dtype), bias.astype(x.dtype), rows))
            normalize = partial(normalize_batch, epsilon=self.epsilon, axis_name=axis_name)
            normalize_here = in_auto_axes(normalize, x, results=(0, -1))
            outputs, (mean, var, count) = normalize_here(*arguments)
            if not self.is_initializing():
                old = self.momentum
                correction = count / jnp.maximum(count - 1, 1) if self.unbiased else 1.0
                new_mean = old * running_mean.value + (1 - old) * mean
                new_var = old * running_var.value + (1 - old) * var * correction
                running_mean.value = jnp.where(count > 0, new_mean, running_mean.value)
                running_var.value = jnp.where(count > 0, new_var, running_var.value)
        else:
            factor = scale * jax.lax.rsqrt(running_var.value + self.epsilon)
            outputs = (x - running_mean.value) * factor + bias
        return outputs.astype(self.dtype or inputs.dtype)


class Statistics(NamedTuple):
    """Statistics of each channel over the images that count."""

    mean: Array
    """(C,)."""
    var: Array
    """(C,), divided by the number of pixels (biased)."""
    num_pixels: Array
    """(), positions in all images that count."""


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def normalize_batch(
    maps: Array, scale: Array, bias: Array, rows: Array, epsilon: float, axis_name: str | None
) -> tuple[Array, Statistics]:
    """Normalises feature maps by their own statistics, see ``BatchNorm``.

    The sums over pixels are taken image by image, or column by column, and weighted afterwards, so
    that a mask costs nothing. The vjp is custom, since the one that JAX derives reads the feature
    maps several times more often. Reverse mode only; the statistics have no gradient of their own.

    Args:
      maps: (N,H,W,C) float32 or float64.
      scale: (C,).
      bias: (C,).
      rows: (N,) or (N,W) in the dtype of ``maps``: 1 for images or columns that count in the
        statistics, 0 for others.
      epsilon: added to the variance.
      axis_name: the mapped device axis that the sums run over; None: none.

    Returns:
      Normalised feature maps of the same shape, and the statistics of the inputs.
    """
    statistics = _measure(maps, rows, axis_name)
    factor = scale * jax.lax.rsqrt(statistics.var + epsilon)
    return (maps - statistics.mean) * factor + bias, statistics


def _measure(maps: Array, rows: Array, axis_name: str | None) -> Statistics:
    pixels = maps.shape[1] if rows.ndim == 2 else maps.shape[1] * maps.shape[2]
    count = _psum(rows.sum() * pixels, axis_name)
    divisor = jnp.maximum(count, 1)  # Empty batches have a mean and variance of zero.
    mean = _psum(_sum_pixels(rows, maps), axis_name) / divisor

    def sum_squares(maps: Array, rows: Array) -> Array:
        deviations = maps - mean
        return _sum_pixels(rows, deviations * deviations)

    # Two passes: E[x²] − μ² loses all digits of the variance where the mean is large.
    squares = _psum(_sum(sum_squares, maps, rows), axis_name)
    return Statistics(mean, squares / divisor, count)


_LARGE_SIZE = 2**22
"""Elements from which feature maps are read a few images at a time on a CPU: whole, XLA writes what
it sums to memory that it has not used yet, which takes longer than the arithmetic."""
_CHUNK_SIZE = 2**18
"""Elements of the feature maps per chunk, which fit into the L2 cache."""


def _sum(function: Callable[..., Array], *batches: Array) -> Array:
    """Returns the sum over images of batches, see ``sum_chunks``; the first are feature maps."""
    maps = batches[0]
    if not all(isinstance(size, int) for size in maps.shape) or is_batch_known_sharded():
        return function(*batches)
    if maps.size < _LARGE_SIZE:
        return function(*batches)
    limit = max(1, _CHUNK_SIZE * len(maps) // maps.size)

    def in_chunks(*batches: Array) -> Array:
        return sum_chunks(function, batches, limit)

    return jax.lax.platform_dependent(*batches, cpu=in_chunks, default=function)


def _sum_pixels(rows: Array, maps: Array) -> Array:
    """Returns the sum (C,) of the pixels that count; others may hold NaN, and 0 · NaN is."""
    if rows.ndim == 2:
        sums, rows = maps.sum(1).reshape(-1, maps.shape[-1]), rows.reshape(-1)  # (N·W,C)
    else:
        sums = maps.sum((1, 2))
    counted = jnp.where(rows[:, None] > 0, sums, 0)
    # A TPU would round to bfloat16 by default.
    return jnp.matmul(rows, counted, precision=jax.lax.Precision.HIGHEST)


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

    def sum_products(maps: Array, gradient: Array, rows: Array) -> Array:
        products = gradient * (maps - mean)
        # An image that does not count may be read by nobody, and its gradient of zero times NaN is
        # NaN.
        products = jnp.where(_of_pixels(rows) | jnp.isfinite(products), products, 0)
        return jnp.stack([gradient.sum((0, 1, 2)), products.sum((0, 1, 2))])

    of_bias, products = _sum(sum_products, maps, gradient, rows)
    of_scale = products * inverse
    # μ and σ² depend on every image that counts, on all devices: hence the psum before the gradient
    # flows back through them.
    total, covariance = _psum((of_bias, of_scale), axis_name)
    factor = scale * inverse
    divisor = jnp.maximum(count, 1)
    slope = factor * inverse * covariance / divisor
    offset = factor * total / divisor
    of_statistics = (maps - mean) * slope + offset
    of_maps = gradient * factor - jnp.where(_of_pixels(rows), of_statistics, 0)
    return of_maps, of_scale, of_bias, None


def _of_pixels(rows: Array) -> Array:
    """Returns which pixels count, bool to broadcast over (N,H,W,C)."""
    return (rows[:, None, :, None] if rows.ndim == 2 else rows[:, None, None, None]) > 0


normalize_batch.defvjp(_forward, _backward)


def _psum(sums: Any, axis_name: str | None) -> Any:
    return sums if axis_name is None else jax.lax.psum(sums, axis_name)


def images_that_count(mask: Array, axis_name: str | None) -> Array:
    """Returns (N,) bool, the images that count in statistics: all of them where the mask has none.

    Args:
      mask: bool, (N,) for images or (N,W) for their columns.
      axis_name: the mapped device axis over which they are counted; None: not mapped.
    """
    return mask | (_psum(mask.sum(), axis_name) == 0)
