"""EfficientNet-Lite0: a small convolutional encoder that runs well without special operations.

Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", ICML 2019,
https://arxiv.org/abs/1905.11946, table 1; the Lite variant is described at
https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite: no
squeeze-and-excitation, ReLU6 for swish, and a stem and head of fixed width.

Deviations: no stochastic depth (the reference drops residual branches with probability up to 0.2
while training on ImageNet).
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from flax import linen as nn

from flaxnets.spatial.depthwise import DepthwiseConv
from flaxnets.typing import Array, Dtype

FEATURES = 1280
"""Channels of the maps that the encoder returns."""
STRIDE = 32
"""Pixels of the image, along each axis, for one position of the maps."""


class Stage(NamedTuple):
    """A row of table 1: blocks that share their shape; the first may halve the maps."""

    expansion: int
    features: int
    blocks: int
    strides: int
    kernel_size: int


STAGES = (
    Stage(1, 16, 1, 1, 3),
    Stage(6, 24, 2, 2, 3),
    Stage(6, 40, 2, 2, 5),
    Stage(6, 80, 3, 2, 3),
    Stage(6, 112, 3, 1, 5),
    Stage(6, 192, 4, 2, 5),
    Stage(6, 320, 1, 1, 3),
)
_STEM_FEATURES = 32
# He initialisation by the outputs of a filter, as in the reference.
_KERNEL_INIT = nn.initializers.variance_scaling(2.0, "fan_out", "truncated_normal")


def normalize_images(images: Array, dtype: Dtype = jnp.float32) -> Array:
    """Maps uint8 pixels in [0,255] to (x - 127) / 128; leaves float images as they are.

    Args:
      images: (...,3) uint8 in [0,255], or float, normalised already.
      dtype: of the result, float.

    Returns:
      Same shape, ``dtype``, about [-1,1].

    Raises:
      ValueError: images of another integer type, whose range is not known.
    """
    if images.dtype == jnp.uint8:
        return ((images.astype(jnp.float32) - 127.0) / 128.0).astype(dtype)
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"images: expected uint8 or float, received {images.dtype}")
    return images.astype(dtype)


class EfficientNetLite0(nn.Module):
    """Images to maps: (N,H,W,3) to (N, ceil(H/32), ceil(W/32), 1280); 3.4 M parameters.

    Parameters: ``stem``, ``block_00`` to ``block_15`` with ``expand``, ``depthwise``, ``project``,
    and ``head``, each a kernel followed by a normalisation of the same name with ``_norm``.

    Attributes:
      dtype: of the arithmetic and of the result; normalisation and its statistics are float32.
      param_dtype: of the parameters.
    """

    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, images: Array, mask: Array | None = None, *, train: bool) -> Array:
        """Encodes images.

        Args:
          images: (N,H,W,3) uint8 in [0,255], or float normalised as ``normalize_images`` does.
          mask: (N,) bool, the images that count in BatchNorm's statistics while training; padded
            frames must not. Without it, or where it is False throughout, all count.
          train: normalise by the statistics of this batch and update the running ones.

        Returns:
          (N, ceil(H/32), ceil(W/32), 1280) ``dtype``, in [0,6].

        Raises:
          ValueError: images or a mask of another shape or type.
        """
        if images.ndim != 4 or images.shape[-1] != 3:
            raise ValueError(f"images: expected (N,H,W,3), received shape {images.shape}")
        counted = _counted_rows(mask, images.shape[0])
        norm = _make_norm(self.dtype, self.param_dtype, train)

        x = normalize_images(images, self.dtype)
        x = nn.Conv(
            _STEM_FEATURES,
            (3, 3),
            strides=2,
            padding="SAME",
            use_bias=False,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            kernel_init=_KERNEL_INIT,
            name="stem",
        )(x)
        x = nn.relu6(norm(name="stem_norm")(x, mask=counted))
        number = 0
        for stage in STAGES:
            for i in range(stage.blocks):
                x = InvertedBottleneck(
                    features=stage.features,
                    expansion=stage.expansion,
                    kernel_size=stage.kernel_size,
                    strides=stage.strides if i == 0 else 1,
                    dtype=self.dtype,
                    param_dtype=self.param_dtype,
                    name=f"block_{number:02d}",
                )(x, counted, train=train)
                number += 1
        x = _make_pointwise(self.dtype, self.param_dtype)(FEATURES, name="head")(x)
        return nn.relu6(norm(name="head_norm")(x, mask=counted))


class InvertedBottleneck(nn.Module):
    """Widens, convolves each channel, narrows; added to the input where shapes allow.

    MBConv of the paper, without squeeze-and-excitation.

    Attributes:
      features: channels of the result.
      expansion: times the input's channels that the depthwise convolution sees.
      kernel_size: of the depthwise convolution.
      strides: of the depthwise convolution.
      dtype: of the arithmetic and of the result.
      param_dtype: of the parameters.
    """

    features: int
    expansion: int
    kernel_size: int
    strides: int
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, features: Array, mask: Array | None, *, train: bool) -> Array:
        """(N,H,W,C) to (N, ceil(H/strides), ceil(W/strides), features); mask (N,1,1,1) bool."""
        channels = features.shape[-1]
        pointwise = _make_pointwise(self.dtype, self.param_dtype)
        norm = _make_norm(self.dtype, self.param_dtype, train)
        x = features
        if self.expansion != 1:
            x = pointwise(self.expansion * channels, name="expand")(x)
            x = nn.relu6(norm(name="expand_norm")(x, mask=mask))
        x = DepthwiseConv(
            self.kernel_size,
            self.strides,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name="depthwise",
        )(x)
        x = nn.relu6(norm(name="depthwise_norm")(x, mask=mask))
        x = pointwise(self.features, name="project")(x)
        x = norm(name="project_norm")(x, mask=mask)
        if self.strides == 1 and channels == self.features:
            x += features
        return x


class EfficientNetLite0Classifier(nn.Module):
    """The encoder with the classifier it was trained with: mean over the maps, 1000 logits.

    Attributes:
      num_classes: 1000 for ImageNet's weights.
      dtype: of the encoder's arithmetic; the logits are float32.
      param_dtype: of the parameters.
    """

    num_classes: int = 1000
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, images: Array, mask: Array | None = None, *, train: bool) -> Array:
        """(N,H,W,3) images as ``EfficientNetLite0`` takes them to (N,num_classes) float32."""
        encoder = EfficientNetLite0(self.dtype, self.param_dtype, name="encoder")
        maps = encoder(images, mask, train=train)
        pooled = jnp.mean(maps, axis=(1, 2), dtype=jnp.float32)  # (N,1280)
        return nn.Dense(self.num_classes, param_dtype=self.param_dtype, name="head")(pooled)


def _counted_rows(mask: Array | None, n: int) -> Array | None:
    if mask is None:
        return None
    if mask.shape != (n,) or mask.dtype != jnp.bool_:
        raise ValueError(f"mask: expected ({n},) bool, received {mask.shape} {mask.dtype}")
    # Statistics of nothing would be NaN and stay in the running averages for ever.
    return (mask | ~jnp.any(mask))[:, None, None, None]


def _make_pointwise(dtype: Dtype, param_dtype: Dtype) -> Callable[..., nn.Dense]:
    # A convolution of one pixel is a matrix product over the channels, and faster as one.
    return functools.partial(
        nn.Dense, use_bias=False, dtype=dtype, param_dtype=param_dtype, kernel_init=_KERNEL_INIT
    )


def _make_norm(dtype: Dtype, param_dtype: Dtype, train: bool) -> Callable[..., nn.BatchNorm]:
    # Flax computes the statistics and the normalisation in float32 whatever dtype is.
    return functools.partial(
        nn.BatchNorm,
        use_running_average=not train,
        momentum=0.99,
        epsilon=1e-3,
        dtype=dtype,
        param_dtype=param_dtype,
    )
