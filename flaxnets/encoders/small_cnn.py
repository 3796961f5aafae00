"""A small convolutional encoder whose every hyper-parameter is an attribute."""

import flax.linen as nn
import jax.numpy as jnp

from flaxnets.encoders.pixels import average_blocks, normalize_pixels
from flaxnets.typing import Array, Dtype


class SmallCNN(nn.Module):
    """Stages of convolution, BatchNorm, ReLU; each but the first halves the maps by its stride.

    Attributes:
      features: maps of each stage.
      strides: of each stage.
      kernel_size: height and width of all kernels.
      input_size: side to which frames are averaged down first, pixels; 0: as they are.
      dtype: of the convolutions; statistics and normalisation are float32.
    """

    features: tuple[int, ...] = (32, 64, 128)
    strides: tuple[int, ...] = (2, 2, 2)
    kernel_size: int = 3
    input_size: int = 0
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, images: Array, mask: Array | None = None, *, train: bool) -> Array:
        """(N,H,W,C) uint8 or float in [-1,1] to maps (N,h,w,features[-1]) ``dtype``.

        Args:
          images: N frames.
          mask: (N,) bool, frames that count in the batch statistics; None: all.
          train: whether the statistics are those of the batch.

        Raises:
          ValueError: not as many strides as features, or sides no multiples of ``input_size``.
        """
        if len(self.features) != len(self.strides):
            raise ValueError(
                f"strides: expected {len(self.features)} of them, received {self.strides}"
            )
        if mask is not None:
            mask = mask[:, None, None, None]
        x = normalize_pixels(images, dtype=self.dtype)
        if self.input_size:
            x = average_blocks(x, self.input_size)
        for stage, (features, stride) in enumerate(zip(self.features, self.strides, strict=True)):
            x = nn.Conv(
                features,
                (self.kernel_size, self.kernel_size),
                strides=stride,
                use_bias=False,
                dtype=self.dtype,
                name=f"conv_{stage}",
            )(x)
            # BatchNorm computes its statistics in float32 and returns the dtype asked for.
            x = nn.BatchNorm(
                use_running_average=not train,
                momentum=0.9,
                dtype=self.dtype,
                name=f"norm_{stage}",
            )(x, mask=mask)
            x = nn.relu(x)
        return x
