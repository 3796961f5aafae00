"""EfficientNet-Lite0, a small convolutional encoder of standard operations.

Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", ICML 2019,
https://arxiv.org/abs/1905.11946, table 1; the Lite variant is described at
https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite: no
squeeze-and-excitation, ReLU6 instead of swish, and a stem and head of fixed width. The weights of
``EfficientNet-PyTorch`` fit (``pretrained.py``).

Deviations: no stochastic depth (the reference drops residual branches with probability up to 0.2
while training on ImageNet).
"""

import re
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn

from flaxnets.encoders.encoder import TORCH_LEAVES, Encoder, pool_globally
from flaxnets.encoders.pixels import normalize_pixels
from flaxnets.layers.convolution import Conv
from flaxnets.layers.depthwise import DepthwiseConv
from flaxnets.layers.normalization import BatchNorm
from flaxnets.typing import Array

FEATURES = 1280
"""Channels of the last feature maps."""


class Stage(NamedTuple):
    """A row of table 1: blocks of one shape, of which the first may halve the feature maps."""

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
# He initialisation with fan-out, as in the reference.
_KERNEL_INIT = nn.initializers.variance_scaling(2.0, "fan_out", "truncated_normal")

# Layer names here to those in the weight file, inside and outside of the blocks.
_NAMES_IN_BLOCK = {
    "expand": "_expand_conv",
    "expand_norm": "_bn0",
    "depthwise": "_depthwise_conv",
    "depthwise_norm": "_bn1",
    "project": "_project_conv",
    "project_norm": "_bn2",
}
_NAMES = {
    "stem": "_conv_stem",
    "stem_norm": "_bn0",
    "head": "_conv_head",
    "head_norm": "_bn1",
    "classifier": "_fc",
}


class EfficientNetLite0(Encoder):
    """EfficientNet-Lite0: (N,H,W,3) to feature maps (N, ⌈H/32⌉, ⌈W/32⌉, 1280) in [0,6].

    It has 3.4 M parameters without the classifier: ``stem``, ``block_00`` to ``block_15`` with
    ``expand``, ``depthwise``, ``project``, and ``head``, each a kernel followed by a normalisation
    of the same name with ``_norm``; and ``classifier``.

    Endpoints: ``stem`` (stride 2), ``stage_1`` to ``stage_7``, the rows of table 1 (strides 2, 4,
    8, 16, 16, 32, 32), ``head``, ``pooled``, ``logits``.

    >>> import functools, jax, jax.numpy as jnp
    >>> encoder = EfficientNetLite0(levels=("stage_3", "head", "pooled"))
    >>> images = jnp.zeros((2, 224, 224, 3), jnp.uint8)
    >>> call = functools.partial(encoder.init_with_output, train=False)
    >>> outputs, _ = jax.eval_shape(call, jax.random.key(0), images)  # shapes, no arithmetic
    >>> for name in encoder.levels:
    ...     print(name, outputs[name].shape)
    stage_3 (2, 28, 28, 40)
    head (2, 7, 7, 1280)
    pooled (2, 1280)
    """

    level_names: ClassVar[tuple[str, ...]] = (
        "stem",
        *(f"stage_{i}" for i in range(1, len(STAGES) + 1)),
        *("head", "pooled", "logits"),
    )
    maps_level: ClassVar[str] = "head"

    def normalize(self, images: Array) -> Array:
        """Maps uint8 pixels to (x − 127) / 128, about [-1,1]; floats pass as is."""
        return normalize_pixels(images, mean=127.0, scale=128.0, dtype=self.dtype)

    def endpoints(
        self, images: Array, mask: Array | None, *, train: bool
    ) -> Iterator[tuple[str, Array]]:
        """Yields the endpoints, see ``Encoder.endpoints``."""
        # A 1×1 convolution is a matmul over the channels, and faster as one.
        pointwise = self.make_layer(nn.Dense, use_bias=False, kernel_init=_KERNEL_INIT)
        norm = self.make_layer(BatchNorm, momentum=0.99, epsilon=1e-3, axis_name=self.axis_name)
        stem = self.make_layer(Conv, use_bias=False, kernel_init=_KERNEL_INIT)

        x = stem(_STEM_FEATURES, (3, 3), strides=2, name="stem")(images)
        x = nn.relu6(norm(name="stem_norm")(x, mask, train=train))
        yield "stem", x
        number = 0
        for index, stage in enumerate(STAGES, 1):
            for i in range(stage.blocks):
                block = InvertedBottleneck(
                    features=stage.features,
                    expansion=stage.expansion,
                    strides=stage.strides if i == 0 else 1,
                    pointwise=pointwise,
                    depthwise=self.make_layer(DepthwiseConv, kernel_size=stage.kernel_size),
                    norm=norm,
                    name=f"block_{number:02d}",
                )
                x = self.run_block(block, x, mask, train=train)
                number += 1
            yield f"stage_{index}", x
        x = pointwise(FEATURES, name="head")(x)
        x = nn.relu6(norm(name="head_norm")(x, mask, train=train))
        yield "head", x
        x = pool_globally(x)
        yield "pooled", x
        lecun, zeros = nn.initializers.lecun_normal(), nn.initializers.zeros
        yield "logits", self.classify(x, name="classifier", kernel_init=lecun, bias_init=zeros)

    @classmethod
    def weight_name(cls, path: tuple[str, ...]) -> str:
        """Returns the name of a variable in the weights of ``EfficientNet-PyTorch``.

        >>> EfficientNetLite0.weight_name(("params", "block_03", "depthwise_norm", "scale"))
        '_blocks.3._bn1.weight'
        """
        *scope, layer, leaf = path[1:]
        if match := re.fullmatch(r"block_(\d+)", "".join(scope)):
            return f"_blocks.{int(match[1])}.{_NAMES_IN_BLOCK[layer]}.{TORCH_LEAVES[leaf]}"
        return f"{_NAMES[layer]}.{TORCH_LEAVES[leaf]}"


class InvertedBottleneck(nn.Module):
    """Inverted bottleneck block: MBConv of the paper without squeeze-and-excitation.

    A 1×1 convolution widens, a depthwise one filters, a 1×1 one narrows; with the input added where
    it has the shape of the output.

    Attributes:
      features: channels of the outputs.
      expansion: channels of the depthwise convolution, as a multiple of the input's.
      strides: of the depthwise convolution.
      pointwise: constructs the 1×1 convolutions.
      depthwise: constructs the depthwise convolution.
      norm: constructs the normalisations.
    """

    features: int
    expansion: int
    strides: int
    pointwise: Callable[..., Any]
    depthwise: Callable[..., Any]
    norm: Callable[..., Any]

    @nn.compact
    def __call__(self, maps: Array, mask: Array | None, *, train: bool) -> Array:
        """Maps (N,H,W,C) to (N, ⌈H/strides⌉, ⌈W/strides⌉, features)."""
        channels = maps.shape[-1]
        x = maps
        if self.expansion != 1:
            x = self.pointwise(self.expansion * channels, name="expand")(x)
            x = nn.relu6(self.norm(name="expand_norm")(x, mask, train=train))
        x = self.depthwise(strides=self.strides, name="depthwise")(x)
        x = nn.relu6(self.norm(name="depthwise_norm")(x, mask, train=train))
        x = self.pointwise(self.features, name="project")(x)
        x = self.norm(name="project_norm")(x, mask, train=train)
        return maps + x if self.strides == 1 and channels == self.features else x
