"""From stored pixels to an encoder's input, and the encoder that stops there."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxnets.typing import Array, Dtype


def normalize_pixels(
    images: Array, *, mean: float = 127.5, scale: float = 127.5, dtype: Dtype = jnp.float32
) -> Array:
    """uint8 pixels in [0,255] to ``(x − mean) / scale``; floats pass as they are.

    Args:
      images: (..., C) uint8, or float that is normalised already.
      mean: subtracted.
      scale: divided by; with the defaults the result lies in [-1,1].
      dtype: of the result.
    """
    if images.dtype == jnp.uint8:
        images = (images.astype(jnp.float32) - mean) / scale
    return images.astype(dtype)


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
        n, h, w, c = images.shape
        if h % self.size or w % self.size:
            raise ValueError(
                f"images: expected sides that are multiples of {self.size}, received {(h, w)}"
            )
        x = normalize_pixels(images, dtype=self.dtype)
        blocks = x.reshape(n, self.size, h // self.size, self.size, w // self.size, c)
        return jax.lax.stop_gradient(blocks.mean(axis=(2, 4)))
