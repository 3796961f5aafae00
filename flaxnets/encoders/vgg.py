"""VGG-11, -13, -16 and -19, with and without BatchNorm, and the VGG of CRNN for lines of text.

Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition",
1409.1556, table 1, columns A, B, D and E. Reference: ``torchvision/models/vgg.py``, whose weights
fit.

Deviations, as in torchvision: optional BatchNorm between a convolution and its ReLU; He
initialisation; for images of other sizes the last feature maps are averaged to 7×7 before fc6 (the
paper applies the layers densely over the image). ``CRNNVGG`` has a docstring of its own.
"""

from collections.abc import Iterator
from typing import ClassVar

import flax.linen as nn

from flaxnets.encoders.encoder import (
    Encoder,
    flatten_channels_first,
    he_fan_out,
    normalize_pixels,
    pool_globally,
)
from flaxnets.layers.convolution import Conv, Padding
from flaxnets.layers.normalization import BatchNorm
from flaxnets.layers.pooling import max_pool
from flaxnets.typing import Array

CONVOLUTIONS: dict[int, tuple[int, ...]] = {
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}
"""Number of convolutions in each stage, by depth."""
_FEATURES = (64, 128, 256, 512, 512)
_DENSE_INIT = nn.initializers.normal(0.01)


class VGG(Encoder):
    """VGG: images (N,H,W,3) to feature maps (N, ⌊H/32⌋, ⌊W/32⌋, 512).

    Endpoints: the convolutions after their ReLU, ``conv1_1`` to ``conv5_…``; after each stage
    ``pool1`` to ``pool5`` (strides 2 to 32); ``pooled``; the fully connected layers after their
    ReLU, ``fc6`` and ``fc7`` (N,4096); ``logits``.

    >>> import functools, jax, jax.numpy as jnp
    >>> encoder = VGG(16, levels=("conv3_3", "pool5", "fc7"))
    >>> images = jnp.zeros((2, 224, 224, 3), jnp.uint8)
    >>> call = functools.partial(encoder.init_with_output, train=False)
    >>> outputs, _ = jax.eval_shape(call, jax.random.key(0), images)  # shapes, no arithmetic
    >>> for name in encoder.levels:
    ...     print(name, outputs[name].shape)
    conv3_3 (2, 56, 56, 256)
    pool5 (2, 7, 7, 512)
    fc7 (2, 4096)

    Attributes:
      depth: 11, 13, 16 or 19.
      batch_norm: whether each convolution is followed by BatchNorm.
    """

    depth: int = 16
    batch_norm: bool = False

    maps_level: ClassVar[str] = "pool5"

    @property
    def level_names(self) -> tuple[str, ...]:
        """Names of all endpoints, in the order of the network."""
        names = []
        for stage, count in enumerate(self._convolutions(), 1):
            names += [f"conv{stage}_{i}" for i in range(1, count + 1)] + [f"pool{stage}"]
        return (*names, "pooled", "fc6", "fc7", "logits")

    def endpoints(
        self, images: Array, mask: Array | None, *, train: bool
    ) -> Iterator[tuple[str, Array]]:
        """Yields the endpoints, see ``Encoder.endpoints``.

        Raises:
          ValueError: another depth.
        """
        x, index = images, 0
        for stage, count in enumerate(self._convolutions(), 1):
            first, features = index, _FEATURES[stage - 1]

            def convolve(
                vgg: VGG,
                x: Array,
                mask: Array | None,
                first: int = first,
                features: int = features,
                count: int = count,
            ) -> list[Array]:
                return vgg.convolve_stage(x, mask, first, features, count, train=train)

            maps = self.maybe_remat(convolve)(self, x, mask)
            for i, x in enumerate(maps, 1):
                yield f"conv{stage}_{i}", x
            x = max_pool(x, 2, 2)
            yield f"pool{stage}", x
            index += count * self._layers_each + 1
        yield "pooled", pool_globally(x)

        dense = self.make_layer(nn.Dense, kernel_init=_DENSE_INIT)
        x = nn.relu(dense(4096, name="classifier_0")(flatten_channels_first(x, 7)))
        yield "fc6", x
        x = nn.Dropout(0.5, deterministic=not train)(x)
        x = nn.relu(dense(4096, name="classifier_3")(x))
        yield "fc7", x
        x = nn.Dropout(0.5, deterministic=not train)(x)
        yield (
            "logits",
            self.classify(
                x, name="classifier_6", kernel_init=_DENSE_INIT, bias_init=nn.initializers.zeros
            ),
        )

    def convolve_stage(
        self, x: Array, mask: Array | None, first: int, features: int, count: int, *, train: bool
    ) -> list[Array]:
        """Applies a stage and returns the feature maps after each of its convolutions.

        Args:
          x: (N,H,W,C).
          mask: as for ``__call__``.
          first: number of the first convolution in torchvision's sequence of layers.
          features: channels D of the convolutions.
          count: number of convolutions.
          train: as for ``__call__``.

        Returns:
          ``count`` times (N,H,W,D).
        """
        conv = self.make_layer(Conv, kernel_init=he_fan_out)
        norm = self.make_layer(BatchNorm, unbiased=True, axis_name=self.axis_name)
        maps = []
        for i in range(first, first + count * self._layers_each, self._layers_each):
            x = conv(features, (3, 3), padding=1, name=f"features_{i}")(x)
            if self.batch_norm:
                x = norm(name=f"features_{i + 1}")(x, mask, train=train)
            x = nn.relu(x)
            maps.append(x)
        return maps

    @property
    def _layers_each(self) -> int:
        # torchvision numbers convolutions, normalisations and ReLUs in one sequence.
        return 3 if self.batch_norm else 2

    def _convolutions(self) -> tuple[int, ...]:
        if self.depth not in CONVOLUTIONS:
            raise ValueError(f"depth: expected one of {list(CONVOLUTIONS)}, received {self.depth}")
        return CONVOLUTIONS[self.depth]


class CRNNVGG(Encoder):
    """Encoder of CRNN: lines of text (N,H,W,C) to one row of feature maps (N,1,W/4,D).

    Shi, Bai and Yao, "An End-to-End Trainable Neural Network for Image-based Sequence Recognition",
    1507.05717, table 1: convolutions of 3×3 with 64, 128, 2 × 256 and 2 × 512 channels, max pooling
    by 2×2 after the first two stages and by 2×1 (rows × columns) after the others, so that a step
    of the sequence is four columns wide; then a convolution over all rows that are left and two
    columns, which makes the sequence. The last two of 3×3 are followed by BatchNorm.

    Deviations: the last convolution is padded by a column of zeros, so that there are W/4 steps
    instead of W/4 − 1; any height of at least 16 pixels instead of 32; He initialisation.

    Endpoints: ``stage_1`` to ``stage_4``, ``columns``, ``pooled``, ``logits``.

    >>> import functools, jax, jax.numpy as jnp
    >>> encoder, lines = CRNNVGG(), jnp.zeros((2, 32, 100, 1), jnp.uint8)
    >>> call = functools.partial(encoder.init_with_output, train=False)
    >>> maps, _ = jax.eval_shape(call, jax.random.key(0), lines)  # shapes, no arithmetic
    >>> maps.shape
    (2, 1, 25, 512)

    Attributes:
      features: channels of the four stages; the last convolution has those of the last.
      batch_norm: whether every convolution is followed by BatchNorm, not only the paper's.
    """

    features: tuple[int, ...] = (64, 128, 256, 512)
    batch_norm: bool = False

    channels: ClassVar[int | None] = None
    maps_level: ClassVar[str] = "columns"
    level_names: ClassVar[tuple[str, ...]] = (
        *(f"stage_{stage}" for stage in range(1, 5)),
        "columns",
        "pooled",
        "logits",
    )

    def normalize(self, images: Array) -> Array:
        """Maps uint8 pixels to [-1,1]; floats pass as is."""
        return normalize_pixels(images, dtype=self.dtype)

    def endpoints(
        self, images: Array, mask: Array | None, *, train: bool
    ) -> Iterator[tuple[str, Array]]:
        """Yields the endpoints, see ``Encoder.endpoints``; images of any number of channels.

        Raises:
          ValueError: another number of stages than four.
        """
        if len(self.features) != 4 or min(self.features) < 1:
            raise ValueError(
                f"features: expected four positive numbers of channels, received {self.features}; "
                "features=() in an EncoderConfig takes the paper's"
            )
        x = images
        for stage in range(4):

            def run_stage(vgg: CRNNVGG, x: Array, mask: Array | None, stage: int = stage) -> Array:
                return vgg.run_stage(x, mask, stage, train=train)

            x = self.maybe_remat(run_stage)(self, x, mask)
            yield f"stage_{stage + 1}", x
        rows = x.shape[1]
        x = self._convolve(
            x, mask, self.features[-1], (rows, 2), ((0, 0), (0, 1)), "conv_4", False, train=train
        )
        yield "columns", x
        x = pool_globally(x)
        yield "pooled", x
        zeros = nn.initializers.zeros
        yield (
            "logits",
            self.classify(x, name="classifier", kernel_init=_DENSE_INIT, bias_init=zeros),
        )

    def run_stage(self, x: Array, mask: Array | None, stage: int, *, train: bool) -> Array:
        """Applies stage ``stage``, counted from 0: (N,H,W,C) to (N,⌊H/2⌋,w,features[stage])."""
        for i in range(1 if stage < 2 else 2):
            name = f"conv_{stage}_{i}"
            x = self._convolve(
                x, mask, self.features[stage], (3, 3), 1, name, stage == 3, train=train
            )
        step = 2 if stage < 2 else 1
        return max_pool(x, (2, step), (2, step))

    def _convolve(
        self,
        x: Array,
        mask: Array | None,
        features: int,
        kernel_size: tuple[int, int],
        padding: Padding,
        name: str,
        norm: bool,
        *,
        train: bool,
    ) -> Array:
        """Applies a convolution, BatchNorm where it is due, and ReLU."""
        norm = norm or self.batch_norm
        conv = self.make_layer(Conv, kernel_init=he_fan_out, use_bias=not norm)
        x = conv(features, kernel_size, padding=padding, name=name)(x)
        if norm:
            layer = self.make_layer(BatchNorm, axis_name=self.axis_name)
            x = layer(name=f"{name}_norm")(x, mask, train=train)
        return nn.relu(x)
