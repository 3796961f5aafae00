"""Pixel normalisation, and the encoder without parameters of the RNN-only ablation."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxnets.typing import Array, Dtype

IMAGENET_MEAN = (123.675, 116.28, 103.53)
"""Means of red, green and blue over ImageNet's training images, in [0,255]: torchvision's × 255."""
IMAGENET_SCALE = (58.395, 57.12, 57.375)
"""Standard deviations of red, green and blue, as ``IMAGENET_MEAN``."""

PerChannel = float | tuple[float, ...]
"""One number for all channels, or one for each."""


def normalize_pixels(
    images: Array,
    *,
    mean: PerChannel = 127.5,
    scale: PerChannel = 127.5,
    dtype: Dtype = jnp.float32,
) -> Array:
    """Maps uint8 pixels in [0,255] to ``(x − mean) / scale``; floats pass as is.

    >>> normalize_pixels(jnp.array([0, 255], jnp.uint8)).tolist()
    [-1.0, 1.0]

    Args:
      images: (..., C) uint8, or float that is already normalised.
      mean: subtracted, in [0,255].
      scale: divisor; with the defaults the result lies in [-1,1].
      dtype: of the result.

    Returns:
      The same shape in ``dtype``.

    Raises:
      ValueError: images of another dtype, whose range is unknown.
    """
    if images.dtype == jnp.uint8:
        images = (images.astype(jnp.float32) - jnp.asarray(mean)) / jnp.asarray(scale)
    elif not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"images: expected uint8 or float, received {images.dtype}")
    return images.astype(dtype)


def average_blocks(images: Array, size: int) -> Array:
    """Averages images over blocks of pixels: (N,H,W,C) float to (N,size,size,C).

    Raises:
      ValueError: height or width is no multiple of ``size``.
    """
    n, h, w, c = images.shape
    if h % size or w % size:
        raise ValueError(f"images: expected sides that are multiples of {size}, received {(h, w)}")
    # Sums of slices: one reduction over both block axes takes forty times as long on a CPU.
    rows, columns = h // size, w // size
    lines = images.reshape(n, size, rows, w, c)
    summed = functools.reduce(jnp.add, (lines[:, :, i] for i in range(rows)))
    summed = summed.reshape(n, size, size, columns, c)
    summed = functools.reduce(jnp.add, (summed[:, :, :, i] for i in range(columns)))
    return summed / (rows * columns)


class DownsampledFrames(nn.Module):
    """Encoder without parameters that averages blocks of pixels, for the RNN-only ablation.

    >>> images = jnp.zeros((2, 32, 32, 3), jnp.uint8)
    >>> DownsampledFrames(8).apply({}, images, train=False).shape
    (2, 8, 8, 3)

    Attributes:
      size: height and width of the feature maps; divides those of the images.
      dtype: of the feature maps.
    """

    size: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, images: Array, mask: Array | None = None, *, train: bool) -> Array:
        """Maps (N,H,W,C) uint8 or float to (N,size,size,C) in ``dtype``, without a gradient.

        Args:
          images: (N,H,W,C) uint8 in [0,255], or float in [-1,1].
          mask: not read; part of the encoder interface.
          train: not read.

        Raises:
          ValueError: height or width is no multiple of ``size``.
        """
        x = normalize_pixels(images, dtype=self.dtype)
        return jax.lax.stop_gradient(average_blocks(x, self.size))
