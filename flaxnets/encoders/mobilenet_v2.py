"""MobileNetV2: inverted residuals with linear bottlenecks.

Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", 1801.04381, table 2, width
1. Reference: ``torchvision/models/mobilenetv2.py``, whose weights fit. Deviations: none known.
"""

from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import flax.linen as nn

from flaxnets.encoders.encoder import Encoder, he_fan_out, pool_globally
from flaxnets.layers.convolution import Conv
from flaxnets.layers.depthwise import DepthwiseConv
from flaxnets.layers.normalization import BatchNorm
from flaxnets.typing import Array

# Table 2: expansion t, features c, blocks n, strides s of the first block.
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class MobileNetV2(Encoder):
    """MobileNetV2: (N,H,W,3) to feature maps (N, ⌈H/32⌉, ⌈W/32⌉, 1280) in [0,6].

    Endpoints: ``stem`` (stride 2), ``stage_1`` to ``stage_7``, the rows of table 2 (strides 2, 4,
    8, 16, 16, 32, 32), ``head``, ``pooled``, ``logits``.

    >>> import functools, jax, jax.numpy as jnp
    >>> encoder = MobileNetV2(levels=("stage_3", "head", "pooled"))
    >>> images = jnp.zeros((2, 224, 224, 3), jnp.uint8)
    >>> call = functools.partial(encoder.init_with_output, train=False)
    >>> outputs, _ = jax.eval_shape(call, jax.random.key(0), images)  # shapes, no arithmetic
    >>> for name in encoder.levels:
    ...     print(name, outputs[name].shape)
    stage_3 (2, 28, 28, 32)
    head (2, 7, 7, 1280)
    pooled (2, 1280)
    """

    level_names: ClassVar[tuple[str, ...]] = (
        "stem",
        *(f"stage_{i}" for i in range(1, len(STAGES) + 1)),
        *("head", "pooled", "logits"),
    )
    maps_level: ClassVar[str] = "head"

    def endpoints(
        self, images: Array, mask: Array | None, *, train: bool
    ) -> Iterator[tuple[str, Array]]:
        """Yields the endpoints, see ``Encoder.endpoints``."""
        conv = self.make_layer(Conv, use_bias=False, kernel_init=he_fan_out)
        depthwise = self.make_layer(DepthwiseConv, kernel_init=he_fan_out)
        norm = self.make_layer(BatchNorm, unbiased=True, axis_name=self.axis_name)

        x = conv(32, (3, 3), strides=2, padding=1, name="features_0_0")(images)
        x = nn.relu6(norm(name="features_0_1")(x, mask, train=train))
        yield "stem", x
        number = 1
        for stage, (expansion, features, blocks, strides) in enumerate(STAGES, 1):
            for i in range(blocks):
                block = InvertedResidual(
                    features=features,
                    expansion=expansion,
                    strides=strides if i == 0 else 1,
                    conv=conv,
                    depthwise=depthwise,
                    norm=norm,
                    name=f"features_{number}",
                )
                x = self.run_block(block, x, mask, train=train)
                number += 1
            yield f"stage_{stage}", x
        x = conv(1280, (1, 1), name=f"features_{number}_0")(x)
        x = nn.relu6(norm(name=f"features_{number}_1")(x, mask, train=train))
        yield "head", x
        x = pool_globally(x)
        yield "pooled", x
        x = nn.Dropout(0.2, deterministic=not train)(x)
        normal, zeros = nn.initializers.normal(0.01), nn.initializers.zeros
        yield (
            "logits",
            self.classify(x, name="classifier_1", kernel_init=normal, bias_init=zeros),
        )


class InvertedResidual(nn.Module):
    """Inverted residual block (figure 4(d) of the paper).

    A 1×1 convolution widens, a depthwise one filters, a linear 1×1 one narrows; with the input
    added where it has the shape of the output.

    Attributes:
      features: channels of the outputs.
      expansion: channels of the depthwise convolution, as a multiple of the input's.
      strides: of the depthwise convolution.
      conv: constructs the 1×1 convolutions.
      depthwise: constructs the depthwise convolution.
      norm: constructs the normalisations.
    """

    features: int
    expansion: int
    strides: int
    conv: Callable[..., Any]
    depthwise: Callable[..., Any]
    norm: Callable[..., Any]

    @nn.compact
    def __call__(self, maps: Array, mask: Array | None, *, train: bool) -> Array:
        """Maps (N,H,W,C) to (N, ⌈H/strides⌉, ⌈W/strides⌉, features)."""
        channels = maps.shape[-1]
        x, i = maps, 0
        if self.expansion != 1:
            x = self.conv(self.expansion * channels, (1, 1), name="conv_0_0")(x)
            x = nn.relu6(self.norm(name="conv_0_1")(x, mask, train=train))
            i = 1
        x = self.depthwise(3, self.strides, padding=1, name=f"conv_{i}_0")(x)
        x = nn.relu6(self.norm(name=f"conv_{i}_1")(x, mask, train=train))
        x = self.conv(self.features, (1, 1), name=f"conv_{i + 1}")(x)
        x = self.norm(name=f"conv_{i + 2}")(x, mask, train=train)
        return maps + x if self.strides == 1 and channels == self.features else x
