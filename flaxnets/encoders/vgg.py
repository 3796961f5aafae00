"""VGG-11, -13, -16 and -19, with and without BatchNorm: five stages of 3×3 convolutions.

Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition",
1409.1556, table 1, columns A, B, D and E. Reference: ``torchvision/models/vgg.py``, whose weights
fit.

Deviations, as in torchvision: optional BatchNorm between a convolution and its ReLU; He
initialisation; for images of other sizes the last feature maps are averaged to 7×7 before fc6 (the
paper applies the layers densely over the image).
"""

from collections.abc import Iterator
from typing import ClassVar

import flax.linen as nn

from flaxnets.encoders.encoder import Encoder, flatten_channels_first, he_fan_out, pool_globally
from flaxnets.layers.convolution import Conv
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
