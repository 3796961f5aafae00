"""From stored pixels to an encoder's input, and the encoder that stops there."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxnets.typing import Array, Dtype

IMAGENET_MEAN = (123.675, 116.28, 103.53)
"""Of red, green, blue over ImageNet's training images, in [0,255]: torchvision's times 255."""
IMAGENET_SCALE = (58.395, 57.12, 57.375)
"""Standard deviations beside ``IMAGENET_MEAN``."""

PerChannel = float | tuple[float, ...]
"""One number for all channels, or one for each."""


def normalize_pixels(
    images: Array,
    *,
    mean: PerChannel = 127.5,
    scale: PerChannel = 127.5,
    dtype: Dtype = jnp.float32,
) -> Array:
    """uint8 pixels in [0,255] to ``(x − mean) / scale``; floats pass as they are.

    Args:
      images: (..., C) uint8, or float that is normalised already.
      mean: subtracted.
      scale: divided by; with the defaults the result lies in [-1,1].
      dtype: of the result.

    Raises:
      ValueError: images of another type, whose range is not known.
    """
    if images.dtype == jnp.uint8:
        images = (images.astype(jnp.float32) - jnp.asarray(mean)) / jnp.asarray(scale)
    elif not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"images: expected uint8 or float, received {images.dtype}")
    return images.astype(dtype)


def average_blocks(images: Array, size: int) -> Array:
    """(N,H,W,C) float to (N,size,size,C): means over blocks.

    Raises:
      ValueError: the images' sides are no multiples of ``size``.
    """
    n, h, w, c = images.shape
    if h % size or w % size:
        raise ValueError(f"images: expected sides that are multiples of {size}, received {(h, w)}")
    # Sums of slices: XLA's reduction over both axes takes forty times as long on a CPU.
    rows, columns = h // size, w // size
    lines = images.reshape(n, size, rows, w, c)
    summed = functools.reduce(jnp.add, (lines[:, :, i] for i in range(rows)))
    summed = summed.reshape(n, size, size, columns, c)
    summed = functools.reduce(jnp.add, (summed[:, :, :, i] for i in range(columns)))
    return summed / (rows * columns)


class DownsampledFrames(nn.Module):
    """Pixels averaged over blocks: no parameters, for the RNN-only ablation.

    Attributes:
      size: height and width of the result; divides those of the images.
    """

    size: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, images: Array, mask: Array | None = None, *, train: bool) -> Array:
        """(N,H,W,C) uint8 or float to (N,size,size,C) ``dtype``.

        Raises:
          ValueError: the images' sides are no multiples of ``size``.
        """
        x = normalize_pixels(images, dtype=self.dtype)
        return jax.lax.stop_gradient(average_blocks(x, self.size))
