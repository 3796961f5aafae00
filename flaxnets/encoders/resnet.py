"""ResNet-18, -34, -50, -101 and -152: stages of residual blocks.

He et al., "Deep Residual Learning for Image Recognition", 1512.03385, table 1. Reference:
``torchvision/models/resnet.py``, whose weights fit.

Deviations, as in torchvision: in a bottleneck block the 3×3 convolution has the stride, not the
first 1×1 ("v1.5"); the scale of BatchNorm is initialised to 1 in every block.
"""

from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import flax.linen as nn

from flaxnets.encoders.encoder import Encoder, he_fan_out, pool_globally, torch_bias, torch_kernel
from flaxnets.layers.convolution import Conv
from flaxnets.layers.normalization import BatchNorm
from flaxnets.layers.pooling import max_pool
from flaxnets.typing import Array

BLOCKS: dict[int, tuple[int, int, int, int]] = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
"""Number of blocks in each stage, by depth; from depth 50 on they are bottlenecks."""


class ResNet(Encoder):
    """ResNet: images (N,H,W,3) to feature maps (N, ⌈H/32⌉, ⌈W/32⌉, D).

    D is 512, and 2048 from depth 50 on. Endpoints: ``stem`` (stride 2, before max pooling),
    ``stage_1`` to ``stage_4`` (strides 4, 8, 16, 32), ``pooled``, ``logits``.

    >>> import functools, jax, jax.numpy as jnp
    >>> encoder = ResNet(50, levels=("stage_3", "pooled", "logits"))
    >>> images = jnp.zeros((2, 224, 224, 3), jnp.uint8)
    >>> call = functools.partial(encoder.init_with_output, train=False)
    >>> outputs, _ = jax.eval_shape(call, jax.random.key(0), images)  # shapes, no arithmetic
    >>> for name in encoder.levels:
    ...     print(name, outputs[name].shape)
    stage_3 (2, 14, 14, 1024)
    pooled (2, 2048)
    logits (2, 1000)

    Attributes:
      depth: 18, 34, 50, 101 or 152.
    """

    depth: int = 18

    level_names: ClassVar[tuple[str, ...]] = (
        *("stem", "stage_1", "stage_2", "stage_3", "stage_4", "pooled", "logits"),
    )
    maps_level: ClassVar[str] = "stage_4"

    def endpoints(
        self, images: Array, mask: Array | None, *, train: bool
    ) -> Iterator[tuple[str, Array]]:
        """Yields the endpoints, see ``Encoder.endpoints``.

        Raises:
          ValueError: another depth.
        """
        if self.depth not in BLOCKS:
            raise ValueError(f"depth: expected one of {list(BLOCKS)}, received {self.depth}")
        conv = self.make_layer(Conv, use_bias=False, kernel_init=he_fan_out)
        norm = self.make_layer(BatchNorm, unbiased=True, axis_name=self.axis_name)
        block_type = Bottleneck if self.depth >= 50 else BasicBlock

        x = conv(64, (7, 7), strides=2, padding=3, name="conv1")(images)
        x = nn.relu(norm(name="bn1")(x, mask, train=train))
        yield "stem", x
        x = max_pool(x, 3, 2, padding=1)
        for stage, blocks in enumerate(BLOCKS[self.depth], 1):
            for i in range(blocks):
                block = block_type(
                    features=32 * 2**stage,
                    strides=2 if stage > 1 and i == 0 else 1,
                    conv=conv,
                    norm=norm,
                    name=f"layer{stage}_{i}",
                )
                x = self.run_block(block, x, mask, train=train)
            yield f"stage_{stage}", x
        x = pool_globally(x)
        yield "pooled", x
        bias_init = torch_bias(x.shape[-1])
        yield "logits", self.classify(x, name="fc", kernel_init=torch_kernel, bias_init=bias_init)


class BasicBlock(nn.Module):
    """Residual block of two 3×3 convolutions (figure 5, left).

    Attributes:
      features: channels of the convolutions and of the outputs.
      strides: of the first convolution and of the shortcut, pixels.
      conv: constructs the convolutions.
      norm: constructs the normalisations.
    """

    features: int
    strides: int
    conv: Callable[..., Any]
    norm: Callable[..., Any]

    @nn.compact
    def __call__(self, maps: Array, mask: Array | None, *, train: bool) -> Array:
        """Maps (N,H,W,C) to (N, ⌈H/strides⌉, ⌈W/strides⌉, features)."""
        x = self.conv(self.features, (3, 3), strides=self.strides, padding=1, name="conv1")(maps)
        x = nn.relu(self.norm(name="bn1")(x, mask, train=train))
        x = self.conv(self.features, (3, 3), padding=1, name="conv2")(x)
        x = self.norm(name="bn2")(x, mask, train=train)
        shortcut = _make_shortcut(
            self.conv, self.norm, maps, mask, x.shape[-1], self.strides, train
        )
        return nn.relu(x + shortcut)


class Bottleneck(nn.Module):
    """Residual block of a 1×1, a 3×3 and a four times wider 1×1 convolution (figure 5, right).

    Attributes:
      features: channels of the first two convolutions; the outputs have four times as many.
      strides: of the 3×3 convolution and of the shortcut, pixels.
      conv: constructs the convolutions.
      norm: constructs the normalisations.
    """

    features: int
    strides: int
    conv: Callable[..., Any]
    norm: Callable[..., Any]

    @nn.compact
    def __call__(self, maps: Array, mask: Array | None, *, train: bool) -> Array:
        """Maps (N,H,W,C) to (N, ⌈H/strides⌉, ⌈W/strides⌉, 4·features)."""
        x = self.conv(self.features, (1, 1), name="conv1")(maps)
        x = nn.relu(self.norm(name="bn1")(x, mask, train=train))
        x = self.conv(self.features, (3, 3), strides=self.strides, padding=1, name="conv2")(x)
        x = nn.relu(self.norm(name="bn2")(x, mask, train=train))
        x = self.conv(4 * self.features, (1, 1), name="conv3")(x)
        x = self.norm(name="bn3")(x, mask, train=train)
        shortcut = _make_shortcut(
            self.conv, self.norm, maps, mask, x.shape[-1], self.strides, train
        )
        return nn.relu(x + shortcut)


def _make_shortcut(
    conv: Callable[..., Any],
    norm: Callable[..., Any],
    maps: Array,
    mask: Array | None,
    features: int,
    strides: int,
    train: bool,
) -> Array:
    """Returns the input, projected if the block changes its shape (option B, section 3.3)."""
    if strides == 1 and maps.shape[-1] == features:
        return maps
    x = conv(features, (1, 1), strides=strides, padding=0, name="downsample_0")(maps)
    return norm(name="downsample_1")(x, mask, train=train)
