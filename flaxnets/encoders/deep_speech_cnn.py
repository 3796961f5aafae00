"""Convolutions of Deep Speech 2 over time and frequency."""

from collections.abc import Iterator
from typing import ClassVar

import jax.numpy as jnp

from flaxnets.encoders.encoder import Encoder, normalize_pixels
from flaxnets.layers.convolution import Conv
from flaxnets.layers.normalization import BatchNorm
from flaxnets.typing import Array


class DeepSpeechCNN(Encoder):
    """Convolution, BatchNorm and clipped ReLU, one to three times (1512.02595, section 3.5).

    Spectrograms as images (N,H,W,1), their rows the bands and their columns the frames, become
    feature maps (N,h,w,D). The defaults are the paper's "3-layer 2D". Endpoints: ``conv_1``
    to ``conv_…``.

    >>> import functools, jax
    >>> encoder, images = DeepSpeechCNN(), jnp.zeros((1, 160, 300, 1))
    >>> call = functools.partial(encoder.init_with_output, train=False)
    >>> maps, _ = jax.eval_shape(call, jax.random.key(0), images)  # shapes, no arithmetic
    >>> maps.shape
    (1, 20, 150, 96)

    Attributes:
      features: channels of each convolution.
      kernel_rows: height of each kernel, bands.
      kernel_columns: width of each kernel, frames or steps.
      strides: of each convolution along the bands.
      column_strides: of each convolution along time.
    """

    features: tuple[int, ...] = (32, 32, 96)
    kernel_rows: tuple[int, ...] = (41, 21, 21)
    kernel_columns: tuple[int, ...] = (11, 11, 11)
    strides: tuple[int, ...] = (2, 2, 2)
    column_strides: tuple[int, ...] = (2, 1, 1)

    channels: ClassVar[int | None] = None

    def __post_init__(self) -> None:
        """Refuses attributes that do not describe the same number of convolutions."""
        if not self.features:
            raise ValueError("features: expected at least one convolution, received ()")
        for name in ("features", "kernel_rows", "kernel_columns", "strides", "column_strides"):
            values = getattr(self, name)
            if len(values) != len(self.features) or min(values) < 1:
                raise ValueError(
                    f"{name}: expected {len(self.features)} numbers of at least 1, one for each of "
                    f"features, received {values}"
                )
        super().__post_init__()

    @property
    def level_names(self) -> tuple[str, ...]:
        """Names of all endpoints, in the order of the network."""
        return tuple(f"conv_{number + 1}" for number in range(len(self.features)))

    @property
    def maps_level(self) -> str:
        """Name of the last convolution."""
        return f"conv_{len(self.features)}"

    def normalize(self, images: Array) -> Array:
        """Passes floats, which log-mel bands are, as they are."""
        return normalize_pixels(images, dtype=self.dtype)

    def endpoints(
        self, images: Array, mask: Array | None, *, train: bool
    ) -> Iterator[tuple[str, Array]]:
        """Yields the endpoints, see ``Encoder.endpoints``."""
        x = images
        for number, features in enumerate(self.features):
            conv = self.make_layer(Conv, use_bias=False)(
                features,
                (self.kernel_rows[number], self.kernel_columns[number]),
                strides=(self.strides[number], self.column_strides[number]),
                name=f"conv_{number}",
            )
            norm = self.make_layer(BatchNorm, axis_name=self.axis_name)(name=f"norm_{number}")
            x = jnp.clip(norm(conv(x), mask, train=train), 0, 20)
            yield f"conv_{number + 1}", x
