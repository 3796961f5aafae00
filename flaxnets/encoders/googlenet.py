"""GoogLeNet: stages of Inception blocks.

Szegedy et al., "Going Deeper with Convolutions", 1409.4842, table 1. Reference:
``torchvision/models/googlenet.py``, whose weights fit.

Deviations, as in torchvision: BatchNorm after each convolution instead of local response
normalisation; 3×3 kernels in the branch "5×5"; dropout 0.2 before the classifier (the paper: 0.4).
Not as in torchvision: the two auxiliary classifiers are not built, and their weights in a file are
ignored.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp

from flaxnets.encoders.encoder import Encoder, pool_globally, torch_bias
from flaxnets.encoders.pixels import IMAGENET_MEAN, IMAGENET_SCALE
from flaxnets.layers.convolution import Conv
from flaxnets.layers.normalization import BatchNorm
from flaxnets.layers.pooling import max_pool
from flaxnets.typing import Array

# Channels of table 1: 1×1, 3×3 reduce, 3×3, 5×5 reduce, 5×5, pool proj.
STAGES: tuple[dict[str, tuple[int, int, int, int, int, int]], ...] = (
    {"3a": (64, 96, 128, 16, 32, 32), "3b": (128, 128, 192, 32, 96, 64)},
    {
        "4a": (192, 96, 208, 16, 48, 64),
        "4b": (160, 112, 224, 24, 64, 64),
        "4c": (128, 128, 256, 24, 64, 64),
        "4d": (112, 144, 288, 32, 64, 64),
        "4e": (256, 160, 320, 32, 128, 128),
    },
    {"5a": (256, 160, 320, 32, 128, 128), "5b": (384, 192, 384, 48, 128, 128)},
)
_INIT = nn.initializers.truncated_normal(0.01)


class GoogLeNet(Encoder):
    """GoogLeNet: images (N,H,W,3) to feature maps (N,h,w,1024), h and w about H/32 and W/32.

    Endpoints: ``conv1`` (stride 2), ``conv2`` and ``conv3`` (stride 4), ``inception3a`` and
    ``inception3b`` (stride 8), ``inception4a`` to ``inception4e`` (16), ``inception5a`` and
    ``inception5b`` (32), ``pooled``, ``logits``.

    >>> import functools, jax
    >>> encoder = GoogLeNet(levels=("inception3b", "inception5b", "pooled"))
    >>> images = jnp.zeros((2, 224, 224, 3), jnp.uint8)
    >>> call = functools.partial(encoder.init_with_output, train=False)
    >>> outputs, _ = jax.eval_shape(call, jax.random.key(0), images)  # shapes, no arithmetic
    >>> for name in encoder.levels:
    ...     print(name, outputs[name].shape)
    inception3b (2, 28, 28, 480)
    inception5b (2, 7, 7, 1024)
    pooled (2, 1024)

    Attributes:
      transform_input: whether images normalised by ImageNet's mean and standard deviation are
        converted to [-1,1] first, as torchvision's ImageNet weights expect.
    """

    transform_input: bool = True

    level_names: ClassVar[tuple[str, ...]] = (
        *("conv1", "conv2", "conv3"),
        *(f"inception{name}" for stage in STAGES for name in stage),
        *("pooled", "logits"),
    )
    maps_level: ClassVar[str] = "inception5b"
    ignored_weights: ClassVar[tuple[str, ...]] = ("aux1.", "aux2.")

    def endpoints(
        self, images: Array, mask: Array | None, *, train: bool
    ) -> Iterator[tuple[str, Array]]:
        """Yields the endpoints, see ``Encoder.endpoints``."""
        conv = self.make_layer(Conv, use_bias=False, kernel_init=_INIT)
        norm = self.make_layer(BatchNorm, epsilon=1e-3, unbiased=True, axis_name=self.axis_name)
        conv_norm = functools.partial(ConvNorm, conv=conv, norm=norm)

        x = images
        if self.transform_input:
            pixels = x * jnp.asarray(IMAGENET_SCALE) + jnp.asarray(IMAGENET_MEAN)
            x = ((pixels - 127.5) / 127.5).astype(self.dtype)
        x = conv_norm(64, 7, strides=2, name="conv1")(x, mask, train=train)
        yield "conv1", x
        x = max_pool(x, 3, 2, ceil_mode=True)
        x = conv_norm(64, 1, name="conv2")(x, mask, train=train)
        yield "conv2", x
        x = conv_norm(192, 3, name="conv3")(x, mask, train=train)
        yield "conv3", x
        for window, stage in zip((3, 3, 2), STAGES, strict=True):
            x = max_pool(x, window, 2, ceil_mode=True)
            for name, features in stage.items():
                block = Inception(features, conv, norm, name=f"inception{name}")
                x = self.run_block(block, x, mask, train=train)
                yield f"inception{name}", x
        x = pool_globally(x)
        yield "pooled", x
        x = nn.Dropout(0.2, deterministic=not train)(x)
        bias_init = torch_bias(x.shape[-1])
        yield "logits", self.classify(x, name="fc", kernel_init=_INIT, bias_init=bias_init)


class ConvNorm(nn.Module):
    """Convolution without bias, BatchNorm and ReLU.

    Attributes:
      features: channels of the outputs.
      kernel_size: height and width, odd, pixels.
      conv: constructs the convolution.
      norm: constructs the normalisation.
      strides: along both axes, pixels.
    """

    features: int
    kernel_size: int
    conv: Callable[..., Any]
    norm: Callable[..., Any]
    strides: int = 1

    @nn.compact
    def __call__(self, maps: Array, mask: Array | None, *, train: bool) -> Array:
        """Maps (N,H,W,C) to (N, ⌈H/strides⌉, ⌈W/strides⌉, features)."""
        x = self.conv(
            self.features,
            (self.kernel_size, self.kernel_size),
            strides=self.strides,
            padding=self.kernel_size // 2,
            name="conv",
        )(maps)
        return nn.relu(self.norm(name="bn")(x, mask, train=train))


class Inception(nn.Module):
    """Inception block (figure 2(b) of the paper): four branches, concatenated.

    Attributes:
      features: channels, see ``STAGES``.
      conv: constructs the convolutions.
      norm: constructs the normalisations.
    """

    features: tuple[int, int, int, int, int, int]
    conv: Callable[..., Any]
    norm: Callable[..., Any]

    @nn.compact
    def __call__(self, maps: Array, mask: Array | None, *, train: bool) -> Array:
        """Maps (N,H,W,C) to (N,H,W,D), D the sum of the branches' channels."""

        def branch(x: Array, features: int, kernel_size: int, name: str) -> Array:
            layer = ConvNorm(features, kernel_size, self.conv, self.norm, name=name)
            return layer(x, mask, train=train)

        pointwise, reduction_3, wide_3, reduction_5, wide_5, projection = self.features
        pooled = max_pool(maps, 3, 1, padding=1)
        branches = [
            branch(maps, pointwise, 1, "branch1"),
            branch(branch(maps, reduction_3, 1, "branch2_0"), wide_3, 3, "branch2_1"),
            branch(branch(maps, reduction_5, 1, "branch3_0"), wide_5, 3, "branch3_1"),
            branch(pooled, projection, 1, "branch4_1"),
        ]
        return jnp.concatenate(branches, -1)
