"""Small convolutional encoder with every hyper-parameter an attribute."""

from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp

from flaxnets.encoders.encoder import (
    Encoder,
    average_blocks,
    normalize_pixels,
    pool_globally,
    unknown_name,
)
from flaxnets.layers.convolution import Conv
from flaxnets.layers.normalization import BatchNorm
from flaxnets.layers.pooling import average_pool, max_pool
from flaxnets.typing import Array

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": nn.relu,
    "leaky_relu": nn.leaky_relu,
    "elu": nn.elu,
    "gelu": nn.gelu,
    "silu": nn.silu,
    "tanh": jnp.tanh,
}
NORMALIZATIONS = ("none", "batch", "layer", "group")
DOWNSAMPLINGS = ("strides", "max", "average")


class SmallCNN(Encoder):
    """Stages of convolution, normalisation and activation, each optionally downsampling.

    Images (N,H,W,C) of any number of channels become feature maps (N,h,w,features[-1]), with
    h = H divided by all strides. Endpoints: ``stage_1`` to ``stage_…``, ``pooled``, ``logits``.

    >>> import functools, jax
    >>> encoder = SmallCNN((8, 16), (2, 2), normalization="group", downsampling="max")
    >>> images = jnp.zeros((2, 32, 32, 1), jnp.uint8)
    >>> call = functools.partial(encoder.init_with_output, train=False)
    >>> maps, _ = jax.eval_shape(call, jax.random.key(0), images)  # shapes, no arithmetic
    >>> maps.shape
    (2, 8, 8, 16)

    Attributes:
      features: channels of each stage.
      strides: downsampling factor of each stage.
      column_strides: downsampling factor of each stage along the columns, where it is not that of
        ``strides``; empty: the same. Of ones: each column keeps a step of its own.
      kernel_size: height and width of all kernels, pixels.
      input_size: height and width to which images are averaged first, pixels; 0: none.
      depth: convolutions in each stage; the first has the stride.
      activation: a name out of ``ACTIVATIONS``.
      normalization: ``none`` (convolutions then have a bias), ``batch`` (over the batch), ``layer``
        (over the channels of a position) or ``group`` (over a group of channels and all positions
        of an image; Wu and He, 1803.08494).
      num_groups: channel groups of ``group``; divides every number of ``features``.
      downsampling: ``strides``: the first convolution of a stage has the stride; ``max`` or
        ``average``: pooling over blocks of as many pixels after the last convolution.
      dropout: rate in [0,1) of spatial dropout after each stage, which zeroes whole channels of an
        image in training (Tompson et al., 1411.4280, section 3.2).
    """

    features: tuple[int, ...] = (32, 64, 128)
    strides: tuple[int, ...] = (2, 2, 2)
    column_strides: tuple[int, ...] = ()
    kernel_size: int = 3
    input_size: int = 0
    depth: int = 1
    activation: str = "relu"
    normalization: str = "batch"
    num_groups: int = 8
    downsampling: str = "strides"
    dropout: float = 0.0

    channels: ClassVar[int | None] = None

    @property
    def level_names(self) -> tuple[str, ...]:
        """Names of all endpoints, in the order of the network."""
        stages = (f"stage_{i}" for i in range(1, len(self.features) + 1))
        return (*stages, "pooled", "logits")

    @property
    def maps_level(self) -> str:
        """Name of the last stage."""
        return f"stage_{len(self.features)}"

    def normalize(self, images: Array) -> Array:
        """Maps uint8 pixels to [-1,1]; floats pass as is."""
        return normalize_pixels(images, dtype=self.dtype)

    def endpoints(
        self, images: Array, mask: Array | None, *, train: bool
    ) -> Iterator[tuple[str, Array]]:
        """Yields the endpoints, see ``Encoder.endpoints``; images of any number of channels.

        Raises:
          ValueError: an attribute out of its range, or height or width no multiple of
            ``input_size``.
        """
        self._raise_on_wrong_attributes()
        x = images
        if self.input_size:
            x = average_blocks(x, self.input_size)
        for stage in range(len(self.features)):

            def run_stage(cnn: SmallCNN, x: Array, mask: Array | None, stage: int = stage) -> Array:
                return cnn.run_stage(x, mask, stage, train=train)

            x = self.maybe_remat(run_stage)(self, x, mask)
            yield f"stage_{stage + 1}", x
        x = pool_globally(x)
        yield "pooled", x
        lecun, zeros = nn.initializers.lecun_normal(), nn.initializers.zeros
        yield "logits", self.classify(x, name="classifier", kernel_init=lecun, bias_init=zeros)

    def run_stage(self, x: Array, mask: Array | None, stage: int, *, train: bool) -> Array:
        """Applies stage ``stage``, counted from 0: (N,H,W,C) to (N,h,w,features[stage])."""
        conv = self.make_layer(Conv, use_bias=self.normalization == "none")
        stride = self.strides[stage], (self.column_strides or self.strides)[stage]
        for i in range(self.depth):
            suffix = f"{stage}_{i}" if i else f"{stage}"
            x = conv(
                self.features[stage],
                (self.kernel_size, self.kernel_size),
                strides=stride if i == 0 and self.downsampling == "strides" else (1, 1),
                name=f"conv_{suffix}",
            )(x)
            x = self._normalize_maps(x, mask, f"norm_{suffix}", train=train)
            x = ACTIVATIONS[self.activation](x)
        if self.downsampling == "max":
            x = max_pool(x, stride, stride)
        elif self.downsampling == "average":
            x = average_pool(x, stride, stride)
        if self.dropout:
            x = nn.Dropout(self.dropout, broadcast_dims=(1, 2), deterministic=not train)(x)
        return x

    def _normalize_maps(self, x: Array, mask: Array | None, name: str, *, train: bool) -> Array:
        layers: dict[str, Callable[[], Any]] = {
            "layer": self.make_layer(nn.LayerNorm, name=name),
            "group": self.make_layer(nn.GroupNorm, num_groups=self.num_groups, name=name),
        }
        if self.normalization == "batch":
            norm = self.make_layer(BatchNorm, axis_name=self.axis_name, name=name)
            return norm()(x, mask, train=train)
        return layers[self.normalization]()(x) if self.normalization in layers else x

    def _raise_on_wrong_attributes(self) -> None:
        if len(self.features) != len(self.strides):
            raise ValueError(
                f"strides: expected {len(self.features)}, one for each of features, "
                f"received {self.strides}"
            )
        if self.column_strides and len(self.column_strides) != len(self.features):
            raise ValueError(
                f"column_strides: expected {len(self.features)}, one for each of features, or "
                f"none, received {self.column_strides}"
            )
        if not self.features:
            raise ValueError("features: expected at least one stage, received ()")
        if self.depth < 1:
            raise ValueError(f"depth: expected at least 1, received {self.depth}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: expected a rate in [0,1), received {self.dropout}")
        for argument, known in (
            ("activation", tuple(ACTIVATIONS)),
            ("normalization", NORMALIZATIONS),
            ("downsampling", DOWNSAMPLINGS),
        ):
            if getattr(self, argument) not in known:
                raise unknown_name(argument, getattr(self, argument), known)
        if self.normalization == "group" and any(d % self.num_groups for d in self.features):
            raise ValueError(
                f"num_groups: expected a divisor of {self.features}, received {self.num_groups}"
            )
