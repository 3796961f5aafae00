"""AlexNet as in torchvision, and CaffeNet, the encoder of LRCN.

- ``AlexNet``: Krizhevsky, "One weird trick for parallelizing convolutional neural networks",
  1404.5997: one column, no normalisation. Reference: ``torchvision/models/alexnet.py``, whose
  weights fit.
- ``CaffeNet``: Krizhevsky et al., "ImageNet Classification with Deep Convolutional Neural
  Networks", NIPS 2012, with pooling before normalisation and without PCA noise in training.
  Reference: ``models/bvlc_reference_caffenet/train_val.prototxt`` of Caffe. LRCN (Donahue et al.,
  1411.4389, section 4) uses its fc6.

Deviations: feature maps of images of other sizes are averaged to 6×6 before fc6, as in torchvision
(Caffe accepts 227² only). CaffeNet subtracts one mean for each channel, as the ``deploy`` examples
of Caffe do, not a mean image.
"""

from collections.abc import Iterator
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxnets.encoders.encoder import (
    Encoder,
    flatten_channels_first,
    normalize_pixels,
    pool_globally,
    torch_bias,
    torch_kernel,
)
from flaxnets.layers.convolution import Conv
from flaxnets.layers.pooling import max_pool
from flaxnets.typing import Array

CAFFE_MEAN = (104.00699, 116.66877, 122.67892)
"""Means of blue, green and red over ImageNet's training images, in [0,255]."""


class AlexNet(Encoder):
    """AlexNet: images (N,H,W,3), H and W >= 63, to feature maps (N,h,w,256); 6×6 for 224².

    Endpoints: ``conv1`` to ``conv5`` after their ReLU, ``pool1``, ``pool2``, ``pool5``, ``pooled``,
    ``fc6`` and ``fc7`` (N,4096) after their ReLU, ``logits``.

    >>> import functools
    >>> encoder = AlexNet(levels=("conv3", "pool5", "fc6"))
    >>> images = jnp.zeros((2, 224, 224, 3), jnp.uint8)
    >>> call = functools.partial(encoder.init_with_output, train=False)
    >>> outputs, _ = jax.eval_shape(call, jax.random.key(0), images)  # shapes, no arithmetic
    >>> for name in encoder.levels:
    ...     print(name, outputs[name].shape)
    conv3 (2, 13, 13, 384)
    pool5 (2, 6, 6, 256)
    fc6 (2, 4096)
    """

    level_names: ClassVar[tuple[str, ...]] = (
        *("conv1", "pool1", "conv2", "pool2", "conv3", "conv4", "conv5", "pool5"),
        *("pooled", "fc6", "fc7", "logits"),
    )
    maps_level: ClassVar[str] = "pool5"

    def endpoints(
        self, images: Array, mask: Array | None, *, train: bool
    ) -> Iterator[tuple[str, Array]]:
        """Yields the endpoints, see ``Encoder.endpoints``."""
        x = images
        # Number, index in torchvision's sequence, features, kernel, strides, padding, max-pooled.
        for number, index, features, size, strides, padding, pooled in (
            (1, 0, 64, 11, 4, 2, True),
            (2, 3, 192, 5, 1, 2, True),
            (3, 6, 384, 3, 1, 1, False),
            (4, 8, 256, 3, 1, 1, False),
            (5, 10, 256, 3, 1, 1, True),
        ):
            x = self.make_layer(
                Conv,
                kernel_init=torch_kernel,
                bias_init=torch_bias(size * size * x.shape[-1]),
            )(features, (size, size), strides=strides, padding=padding, name=f"features_{index}")(x)
            x = nn.relu(x)
            yield f"conv{number}", x
            if pooled:
                x = max_pool(x, 3, 2)
                yield f"pool{number}", x
        yield "pooled", pool_globally(x)

        x = flatten_channels_first(x, 6)
        for name, index in (("fc6", 1), ("fc7", 4)):
            x = nn.Dropout(0.5, deterministic=not train)(x)
            dense = self.make_layer(
                nn.Dense, kernel_init=torch_kernel, bias_init=torch_bias(x.shape[-1])
            )
            x = nn.relu(dense(4096, name=f"classifier_{index}")(x))
            yield name, x
        bias_init = torch_bias(x.shape[-1])
        yield (
            "logits",
            self.classify(x, name="classifier_6", kernel_init=torch_kernel, bias_init=bias_init),
        )


class CaffeNet(Encoder):
    """CaffeNet: images (N,H,W,3), H and W >= 67, to feature maps (N,h,w,256); 6×6 for 227².

    Parameters have the names of Caffe: ``conv1`` to ``conv5``, ``fc6`` to ``fc8``.

    Endpoints: ``conv1`` to ``conv5`` after their ReLU, ``norm1`` and ``norm2`` (pooled, then
    normalised), ``pool5``, ``pooled``, ``fc6`` and ``fc7`` (N,4096) after their ReLU, ``logits``.

    >>> import functools
    >>> encoder = CaffeNet(levels=("norm1", "pool5", "fc6"))
    >>> images = jnp.zeros((2, 227, 227, 3), jnp.uint8)
    >>> call = functools.partial(encoder.init_with_output, train=False)
    >>> outputs, _ = jax.eval_shape(call, jax.random.key(0), images)  # shapes, no arithmetic
    >>> for name in encoder.levels:
    ...     print(name, outputs[name].shape)
    norm1 (2, 27, 27, 96)
    pool5 (2, 6, 6, 256)
    fc6 (2, 4096)
    """

    level_names: ClassVar[tuple[str, ...]] = (
        *("conv1", "norm1", "conv2", "norm2", "conv3", "conv4", "conv5", "pool5"),
        *("pooled", "fc6", "fc7", "logits"),
    )
    maps_level: ClassVar[str] = "pool5"

    def normalize(self, images: Array) -> Array:
        """Maps uint8 RGB to BGR minus the mean, about [-123,151]; floats pass as is."""
        if images.dtype == jnp.uint8:
            images = images[..., ::-1]  # Caffe reads images by OpenCV, whose channels are BGR.
        return normalize_pixels(images, mean=CAFFE_MEAN, scale=1.0, dtype=self.dtype)

    def endpoints(
        self, images: Array, mask: Array | None, *, train: bool
    ) -> Iterator[tuple[str, Array]]:
        """Yields the endpoints, see ``Encoder.endpoints``."""
        normal = nn.initializers.normal

        def conv(x: Array, name: str, features: int, size: int, **settings: Any) -> Array:
            layer = self.make_layer(Conv, kernel_init=normal(0.01), **settings)
            return nn.relu(layer(features, (size, size), name=name)(x))

        ones = nn.initializers.ones
        x = conv(images, "conv1", 96, 11, strides=4, padding=0)
        yield "conv1", x
        x = local_response_norm(max_pool(x, 3, 2, ceil_mode=True))
        yield "norm1", x
        x = conv(x, "conv2", 256, 5, padding=2, groups=2, bias_init=ones)
        yield "conv2", x
        x = local_response_norm(max_pool(x, 3, 2, ceil_mode=True))
        yield "norm2", x
        x = conv(x, "conv3", 384, 3, padding=1)
        yield "conv3", x
        x = conv(x, "conv4", 384, 3, padding=1, groups=2, bias_init=ones)
        yield "conv4", x
        x = conv(x, "conv5", 256, 3, padding=1, groups=2, bias_init=ones)
        yield "conv5", x
        x = max_pool(x, 3, 2, ceil_mode=True)
        yield "pool5", x
        yield "pooled", pool_globally(x)

        x = flatten_channels_first(x, 6)
        for name in ("fc6", "fc7"):
            dense = self.make_layer(nn.Dense, kernel_init=normal(0.005), bias_init=ones)
            x = nn.relu(dense(4096, name=name)(x))
            yield name, x
            x = nn.Dropout(0.5, deterministic=not train)(x)
        yield (
            "logits",
            self.classify(x, name="fc8", kernel_init=normal(0.01), bias_init=nn.initializers.zeros),
        )


def local_response_norm(
    maps: Array, *, size: int = 5, alpha: float = 1e-4, beta: float = 0.75
) -> Array:
    """Applies local response normalisation across channels (NIPS 2012 paper, section 3.3).

        y[c] = x[c] / (1 + α/n · Σ_{|d−c| ≤ n/2} x[d]²)^β

    as Caffe computes it: the paper has k = 2 for the 1 and no division by n.

    Args:
      maps: (N,H,W,C) float.
      size: n, channels in the sum, odd; channels beyond the first and last count as zero.
      alpha: α.
      beta: β.

    Returns:
      The same shape and dtype; computed in float32 at least.
    """
    x = maps.astype(jnp.promote_types(maps.dtype, jnp.float32))
    half = size // 2
    squares = jax.lax.reduce_window(
        x * x, 0.0, jax.lax.add, (1, 1, 1, size), (1, 1, 1, 1), ((0, 0),) * 3 + ((half, half),)
    )
    return (x * (1.0 + alpha / size * squares) ** -beta).astype(maps.dtype)
