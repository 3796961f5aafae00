"""Encoder interface: images in, feature maps or named endpoints out.

An encoder is a ``flax.linen`` module that lists its endpoints (``level_names``) and yields them in
order (``endpoints``). This file also holds the parts that several networks share: pooling over
positions, flattening for fully connected layers, the initialisers of PyTorch and torchvision, the
normalisation of pixels, and ``DownsampledFrames``, the encoder without parameters.
"""

import functools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer

from flaxnets.configuration import check_dtype_argument, nearest
from flaxnets.layers.normalization import images_that_count
from flaxnets.layers.padding import zero_where_masked
from flaxnets.layers.pooling import adaptive_average_pool
from flaxnets.typing import Array, Dtype, PRNGKey

TORCH_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
"""Flax names of the variables of a layer to those of PyTorch."""
REMAT: dict[str, Callable[..., Any] | None] = {
    "none": None,
    "elementwise": jax.checkpoint_policies.dots_saveable,
    "full": None,
}
"""Policies of ``jax.checkpoint`` by ``Encoder.remat``; None: its default, which stores nothing."""


class Encoder(nn.Module, kw_only=True):
    """Base class of encoders: images to feature maps, or to the endpoints that ``levels`` names.

    A subclass defines ``level_names``, ``maps_level`` and the generator ``endpoints``, which builds
    the network and yields its endpoints in order. Layers behind the deepest endpoint asked for are
    not built and have no parameters. An encoder of one's own:

    >>> class OneConv(Encoder):
    ...     level_names = ("conv", "pooled")
    ...     maps_level = "conv"
    ...
    ...     def endpoints(self, images, mask, *, train):
    ...         x = nn.relu(nn.Conv(8, (3, 3), strides=2, name="conv")(images))
    ...         yield "conv", x
    ...         yield "pooled", pool_globally(x)
    >>> images = jnp.zeros((2, 16, 16, 3), jnp.uint8)
    >>> def shapes_of(encoder):
    ...     call = functools.partial(encoder.init_with_output, train=False)
    ...     outputs, _ = jax.eval_shape(call, jax.random.key(0), images)
    ...     return jax.tree.map(lambda output: output.shape, outputs)
    >>> shapes_of(OneConv())
    (2, 8, 8, 8)
    >>> shapes_of(OneConv(levels=("pooled",)))
    {'pooled': (2, 8)}

    Attributes:
      levels: endpoints to return, out of ``level_names``; empty: the last feature maps,
        ``maps_level``, as one array.
      num_classes: K, width of the endpoint ``logits``.
      axis_name: the device axis under ``pmap`` or ``shard_map`` that BatchNorm's statistics are
        summed over; not needed under ``jit``, where they are those of the global batch.
      remat: activations inside a block or stage that are recomputed in the backward pass instead of
        stored: ``none``; ``full``: all; ``elementwise``: all but the outputs of convolutions and
        matmuls, which costs little time. AlexNet and CaffeNet, which have no blocks, ignore it.
      dtype: of the arithmetic and of the feature maps; normalisation and its statistics are
        float32.
      param_dtype: of the parameters.
    """

    levels: tuple[str, ...] = ()
    num_classes: int = 1000
    axis_name: str | None = None
    remat: str = "none"
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    channels: ClassVar[int | None] = 3
    """Channels of the images; None: any number."""
    ignored_weights: ClassVar[tuple[str, ...]] = ()
    """Prefixes of entries in weight files that are ignored: auxiliary layers that are not built."""

    def __post_init__(self) -> None:
        """Refuses the name of a dtype that does not exist."""
        check_dtype_argument(self.dtype)
        super().__post_init__()

    @property
    def level_names(self) -> tuple[str, ...]:
        """Names of all endpoints, in the order of the network."""
        raise NotImplementedError

    @property
    def maps_level(self) -> str:
        """Name of the endpoint with the last feature maps."""
        raise NotImplementedError

    @nn.compact
    def __call__(
        self, images: Array, mask: Array | None = None, *, train: bool
    ) -> Array | dict[str, Array]:
        """Encodes images of any size that is not too small for the network.

        Args:
          images: (N,H,W,3) uint8 in [0,255], or float already normalised as by ``normalize``.
          mask: (N,) bool, images that count in BatchNorm's statistics in training, which padded
            frames must not. None, or all False: all images count. Float images that do not count
            are read as zeros in training: NaN in one would make the kernels' gradients NaN.
          train: whether to normalise by the statistics of this batch, to update the running ones
            (collection ``batch_stats``) and to apply dropout (key ``dropout``).

        Returns:
          Without ``levels`` the last feature maps (N,h,w,D) in ``dtype``; with ``levels`` a
          dictionary of endpoints: feature maps (N,h,w,D) and vectors (N,D) in ``dtype``; ``pooled``
          (N,D), the mean of the last feature maps over positions, and ``logits`` (N,K) in float32.

        Raises:
          ValueError: an unknown endpoint (the error lists all and names the nearest); images or
            mask of another rank, shape or dtype; images so small that an endpoint is empty.
        """
        self._raise_on_unknown_levels()
        if images.ndim != 4 or self.channels not in (None, images.shape[-1]):
            expected = "C" if self.channels is None else self.channels
            raise ValueError(f"images: expected (N,H,W,{expected}), received shape {images.shape}")
        n = images.shape[0]
        if mask is not None and (mask.shape != (n,) or mask.dtype != jnp.bool_):
            raise ValueError(f"mask: expected ({n},) bool, received {mask.shape} {mask.dtype}")

        if train and mask is not None:
            axis_name = None if self.is_initializing() else self.axis_name
            images = zero_where_masked(images, images_that_count(mask, axis_name))
        wanted = self.levels or (self.maps_level,)
        found: dict[str, Array] = {}
        for name, value in self.endpoints(self.normalize(images), mask, train=train):
            if 0 in value.shape[1:]:
                raise ValueError(
                    f"images: expected larger ones, received {images.shape[1:3]} pixels, of which "
                    f"endpoint {name!r} has none left"
                )
            if name in wanted:
                found[name] = value
            if len(found) == len(set(wanted)):  # Stops the generator: later layers are never built.
                break
        return {name: found[name] for name in wanted} if self.levels else found[self.maps_level]

    def normalize(self, images: Array) -> Array:
        """Normalises uint8 pixels by ImageNet's mean and standard deviation; floats pass as is.

        Networks that were trained on other statistics override it.
        """
        return normalize_pixels(images, mean=IMAGENET_MEAN, scale=IMAGENET_SCALE, dtype=self.dtype)

    def endpoints(
        self, images: Array, mask: Array | None, *, train: bool
    ) -> Iterator[tuple[str, Array]]:
        """Builds the network and yields (name, value) of each endpoint, in order.

        Args:
          images: (N,H,W,C), normalised, ``dtype``.
          mask: (N,) bool or None, see ``__call__``.
          train: see ``__call__``.
        """
        raise NotImplementedError

    def run_block(self, block: nn.Module, maps: Array, mask: Array | None, *, train: bool) -> Array:
        """Applies ``block(maps, mask, train=train)``, rematerialised as ``remat`` says."""

        def call(block: Any, maps: Array, mask: Array | None) -> Array:
            return block(maps, mask, train=train)

        return self.maybe_remat(call)(block, maps, mask)

    def maybe_remat(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Wraps a function, whose first argument is a module, in ``nn.remat`` if ``remat`` is set.

        Raises:
          ValueError: an unknown ``remat``.
        """
        if self.remat not in REMAT:
            raise ValueError(f"remat: expected one of {', '.join(REMAT)}, received {self.remat!r}")
        if self.remat == "none":
            return function
        return nn.remat(function, policy=REMAT[self.remat])

    def make_layer(self, layer: Callable[..., Any], **settings: Any) -> Callable[..., Any]:
        """Returns a constructor of layers with the dtypes of this encoder."""
        return functools.partial(layer, dtype=self.dtype, param_dtype=self.param_dtype, **settings)

    def classify(
        self, vectors: Array, *, name: str, kernel_init: Initializer, bias_init: Initializer
    ) -> Array:
        """Applies the layer of the logits: (N,D) to (N,num_classes) float32."""
        return nn.Dense(
            self.num_classes,
            dtype=jnp.float32,
            param_dtype=self.param_dtype,
            kernel_init=kernel_init,
            bias_init=bias_init,
            name=name,
        )(vectors)

    @classmethod
    def weight_name(cls, path: tuple[str, ...]) -> str:
        """Returns the name of a variable in torchvision's ``state_dict``.

        Modules have torchvision's names, with ``_`` for the dot before a number.

        >>> Encoder.weight_name(("params", "layer1_0", "conv1", "kernel"))
        'layer1.0.conv1.weight'

        Args:
          path: collection, modules and leaf of the variable in Flax.
        """
        *modules, leaf = path[1:]
        names = [re.sub(r"_(\d+)", r".\1", module) for module in modules]
        return ".".join([*names, TORCH_LEAVES[leaf]])

    def _raise_on_unknown_levels(self) -> None:
        levels: Any = self.levels
        if isinstance(levels, str):
            raise ValueError(
                f"levels: expected a tuple of names, as ({levels!r},), received {levels!r}"
            )
        for name in levels:
            if name not in self.level_names:
                raise unknown_name("levels", name, self.level_names)


EncoderOutputs = Array | dict[str, Array]
"""Feature maps (N,h,w,D) or vectors (N,D), or those of several endpoints by name."""


def take_only_endpoint(outputs: EncoderOutputs, name: str) -> Array:
    """Returns the only endpoint of an encoder's outputs.

    Args:
      outputs: an array, or a dictionary with one endpoint.
      name: of the encoder, in errors.

    Raises:
      ValueError: several endpoints.
    """
    if not isinstance(outputs, Mapping):
        return outputs
    if len(outputs) != 1:
        raise ValueError(
            f"{name}: expected one endpoint, received {', '.join(outputs)}; "
            "name one in the encoder's levels"
        )
    return next(iter(outputs.values()))


def unknown_name(argument: str, name: str, known: Sequence[str]) -> ValueError:
    """Returns the error for an unknown name: it lists the known ones and suggests the nearest."""
    # All names are listed anyway, so the hint always suggests one (cutoff 0).
    hint = nearest(str(name), known, cutoff=0.0)
    return ValueError(f"{argument}: expected some of {', '.join(known)}; received {name!r}{hint}")


def pool_globally(maps: Array) -> Array:
    """Averages feature maps over positions: (N,h,w,D) to (N,D), float32 at least."""
    return jnp.mean(maps, axis=(1, 2), dtype=jnp.promote_types(maps.dtype, jnp.float32))


def flatten_channels_first(maps: Array, size: int) -> Array:
    """Averages and flattens feature maps to the input of torchvision's fully connected layers.

    Args:
      maps: (N,h,w,C) float, of any size.
      size: rows and columns to which the feature maps are averaged first.

    Returns:
      (N, C·size·size), in PyTorch's order: all positions of the first channel come first.
    """
    maps = adaptive_average_pool(maps, size)
    return maps.transpose(0, 3, 1, 2).reshape(maps.shape[0], math.prod(maps.shape[1:]))


# Initialisers of PyTorch and torchvision.

he_fan_out: Initializer = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
"""He et al., 1502.01852, with fan-out: that of torchvision's convolutions."""
torch_kernel: Initializer = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
"""Uniform within ±1/√fan_in, the default of PyTorch's layers."""


def torch_bias(fan_in: int) -> Initializer:
    """Returns PyTorch's default initialiser of biases: uniform within ±1/√fan_in.

    Args:
      fan_in: inputs that each output of the layer reads.
    """
    bound = 1 / math.sqrt(fan_in)

    def init(
        key: PRNGKey, shape: Sequence[int], dtype: Any = None, out_sharding: Any = None
    ) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound, out_sharding=out_sharding)

    return init


# Pixel normalisation, and the encoder without parameters of the RNN-only ablation.

IMAGENET_MEAN = (123.675, 116.28, 103.53)
"""Means of red, green and blue over ImageNet's training images, in [0,255]: torchvision's × 255."""
IMAGENET_SCALE = (58.395, 57.12, 57.375)
"""Standard deviations of red, green and blue, as ``IMAGENET_MEAN``."""

PerChannel = float | tuple[float, ...]
"""One number for all channels, or one for each."""


def normalize_pixels(
    images: Array,
    *,
    mean: PerChannel = 127.5,
    scale: PerChannel = 127.5,
    dtype: Dtype = jnp.float32,
) -> Array:
    """Maps uint8 pixels in [0,255] to ``(x − mean) / scale``; floats pass as is.

    >>> normalize_pixels(jnp.array([0, 255], jnp.uint8)).tolist()
    [-1.0, 1.0]

    Args:
      images: (..., C) uint8, or float that is already normalised.
      mean: subtracted, in [0,255].
      scale: divisor; with the defaults the result lies in [-1,1].
      dtype: of the result.

    Returns:
      The same shape in ``dtype``.

    Raises:
      ValueError: images of another dtype, whose range is unknown.
    """
    if images.dtype == jnp.uint8:
        wide = jnp.promote_types(dtype, jnp.float32)
        images = (images.astype(wide) - jnp.asarray(mean, wide)) / jnp.asarray(scale, wide)
    elif not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"images: expected uint8 or float, received {images.dtype}")
    return images.astype(dtype)


def average_blocks(images: Array, size: int) -> Array:
    """Averages images over blocks of pixels: (N,H,W,C) float to (N,size,size,C).

    Sums are in float32 at least, the result in the dtype of ``images``.

    Raises:
      ValueError: height or width is no multiple of ``size``.
    """
    n, h, w, c = images.shape
    if h % size or w % size:
        raise ValueError(f"images: expected sides that are multiples of {size}, received {(h, w)}")
    # Sums of slices: one reduction over both block axes takes forty times as long on a CPU.
    rows, columns = h // size, w // size
    wide = images.astype(jnp.promote_types(images.dtype, jnp.float32))
    lines = wide.reshape(n, size, rows, w, c)
    summed = functools.reduce(jnp.add, (lines[:, :, i] for i in range(rows)))
    summed = summed.reshape(n, size, size, columns, c)
    summed = functools.reduce(jnp.add, (summed[:, :, :, i] for i in range(columns)))
    return (summed / (rows * columns)).astype(images.dtype)


class DownsampledFrames(nn.Module):
    """Encoder without parameters that averages blocks of pixels, for the RNN-only ablation.

    >>> images = jnp.zeros((2, 32, 32, 3), jnp.uint8)
    >>> DownsampledFrames(8).apply({}, images, train=False).shape
    (2, 8, 8, 3)

    Attributes:
      size: height and width of the feature maps; divides those of the images.
      dtype: of the feature maps.
    """

    size: int
    dtype: Dtype = jnp.float32

    def __post_init__(self) -> None:
        """Refuses the name of a dtype that does not exist."""
        check_dtype_argument(self.dtype)
        super().__post_init__()

    @nn.compact
    def __call__(self, images: Array, mask: Array | None = None, *, train: bool) -> Array:
        """Maps (N,H,W,C) uint8 or float to (N,size,size,C) in ``dtype``, without a gradient.

        Args:
          images: (N,H,W,C) uint8 in [0,255], or float in [-1,1].
          mask: not read; part of the encoder interface.
          train: not read.

        Raises:
          ValueError: height or width is no multiple of ``size``.
        """
        x = normalize_pixels(images, dtype=self.dtype)
        return jax.lax.stop_gradient(average_blocks(x, self.size))


class RawColumns(nn.Module):
    """Encoder without parameters whose feature maps are its images, for RNN-only ablations.

    In ``ColumnEncoder`` each column of a line, or frame of a spectrogram, is a step of its own.

    >>> RawColumns().apply({}, jnp.ones((2, 32, 40, 1)), train=False).shape
    (2, 32, 40, 1)

    Attributes:
      dtype: of the feature maps.
    """

    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, images: Array, mask: Array | None = None, *, train: bool) -> Array:
        """Returns the images (N,H,W,C) in ``dtype``, uint8 mapped to [-1,1]."""
        return normalize_pixels(images, dtype=self.dtype)
