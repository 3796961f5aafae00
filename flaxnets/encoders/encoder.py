"""What all encoders share: the contract, the levels of a network, and the names of its weights."""

import difflib
import functools
import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer

from flaxnets.encoders.pixels import IMAGENET_MEAN, IMAGENET_SCALE, normalize_pixels
from flaxnets.layers.pooling import adaptive_average_pool
from flaxnets.typing import Array, Dtype, PRNGKey

TORCH_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
"""The variables of a layer to their names in PyTorch."""
REMAT: dict[str, Callable[..., Any] | None] = {
    "none": None,
    "elementwise": jax.checkpoint_policies.dots_saveable,
    "full": None,
}
"""What ``Encoder.remat`` may be, to what ``jax.checkpoint`` keeps; None: nothing, or all."""


class Encoder(nn.Module, kw_only=True):
    """Images to maps, or to the levels of the network that are asked for.

    A network derives from this and yields its levels in order from ``endpoints``. Layers behind the
    deepest level that is asked for are not built and have no parameters.

    Attributes:
      levels: names out of ``level_names``; empty: the last maps, ``maps_level``.
      num_classes: length of the level ``logits``.
      axis_name: the axis of devices under ``pmap`` or ``shard_map`` that BatchNorm's statistics are
        summed over; under ``jit`` they are those of the global batch without it.
      remat: which maps inside of a block or stage are computed again for the gradient instead of
        kept: ``none``; ``full``: all; ``elementwise``: all but what convolutions and products give,
        which costs little time. AlexNet and CaffeNet, which have no blocks, ignore it.
      dtype: of the arithmetic and of the maps; normalisation and its statistics are float32.
      param_dtype: of the parameters.
    """

    levels: tuple[str, ...] = ()
    num_classes: int = 1000
    axis_name: str | None = None
    remat: str = "none"
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    channels: ClassVar[int | None] = 3
    """Of the images; None: any number."""
    ignored_weights: ClassVar[tuple[str, ...]] = ()
    """How names in weight files begin whose layers only training needs; they are not built."""

    @property
    def level_names(self) -> tuple[str, ...]:
        """All levels, in the order of the network."""
        raise NotImplementedError

    @property
    def maps_level(self) -> str:
        """The level of the last maps."""
        raise NotImplementedError

    @nn.compact
    def __call__(
        self, images: Array, mask: Array | None = None, *, train: bool
    ) -> Array | dict[str, Array]:
        """Encodes images of any size that leaves something of the maps.

        Args:
          images: (N,H,W,3) uint8 in [0,255], or float that is normalised as ``normalize`` does.
          mask: (N,) bool, the images that count in BatchNorm's statistics while training; padded
            frames must not. Without it, or where it is False throughout, all count.
          train: normalise by the statistics of this batch, update the running ones (collection
            ``batch_stats``) and drop out (key ``dropout``).

        Returns:
          The last maps (N,h,w,D) ``dtype``; with ``levels`` a dictionary of them: maps
          (N,h,w,D) and vectors (N,D) in ``dtype``, but ``pooled``, the mean over the last maps'
          positions, and ``logits`` (N,num_classes) in float32.

        Raises:
          ValueError: an unknown level; images or a mask of another rank, shape or type; images so
            small that nothing is left of them.
        """
        self._raise_on_unknown_levels()
        if images.ndim != 4 or self.channels not in (None, images.shape[-1]):
            expected = "C" if self.channels is None else self.channels
            raise ValueError(f"images: expected (N,H,W,{expected}), received shape {images.shape}")
        n = images.shape[0]
        if mask is not None and (mask.shape != (n,) or mask.dtype != jnp.bool_):
            raise ValueError(f"mask: expected ({n},) bool, received {mask.shape} {mask.dtype}")

        wanted = self.levels or (self.maps_level,)
        found: dict[str, Array] = {}
        for name, value in self.endpoints(self.normalize(images), mask, train=train):
            if 0 in value.shape[1:]:
                raise ValueError(
                    f"images: expected larger ones, of {images.shape[1:3]} nothing is left at "
                    f"{name!r}"
                )
            if name in wanted:
                found[name] = value
            if len(found) == len(set(wanted)):  # Nothing behind this is built.
                break
        return {name: found[name] for name in wanted} if self.levels else found[self.maps_level]

    def normalize(self, images: Array) -> Array:
        """uint8 pixels to what the network was trained with: ImageNet's mean and deviation."""
        return normalize_pixels(images, mean=IMAGENET_MEAN, scale=IMAGENET_SCALE, dtype=self.dtype)

    def endpoints(
        self, images: Array, mask: Array | None, *, train: bool
    ) -> Iterator[tuple[str, Array]]:
        """Yields (name, value) of each level in order; the layers between are made on the way."""
        raise NotImplementedError

    def run_block(self, block: nn.Module, maps: Array, mask: Array | None, *, train: bool) -> Array:
        """``block(maps, mask, train=train)``, kept or computed again as ``remat`` says."""

        def call(block: Any, maps: Array, mask: Array | None) -> Array:
            return block(maps, mask, train=train)

        return self.maybe_remat(call)(block, maps, mask)

    def maybe_remat(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function whose first argument is a module, under ``remat`` where that is set.

        Raises:
          ValueError: another ``remat``.
        """
        if self.remat not in REMAT:
            raise ValueError(f"remat: expected one of {', '.join(REMAT)}, received {self.remat!r}")
        if self.remat == "none":
            return function
        return nn.remat(function, policy=REMAT[self.remat])

    def make_layer(self, layer: Callable[..., Any], **settings: Any) -> Callable[..., Any]:
        """A constructor of layers that compute in this network's types."""
        return functools.partial(layer, dtype=self.dtype, param_dtype=self.param_dtype, **settings)

    def classify(
        self, vectors: Array, *, name: str, kernel_init: Initializer, bias_init: Initializer
    ) -> Array:
        """The layer of the logits: (N,D) to (N,num_classes) float32."""
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
        """What torchvision's ``state_dict`` calls a variable.

        Modules are called as there, with ``_`` for the point before a number:
        ('params','layer1_0','conv1','kernel') is ``layer1.0.conv1.weight``.
        """
        *modules, leaf = path[1:]
        names = [re.sub(r"_(\d+)", r".\1", module) for module in modules]
        return ".".join([*names, TORCH_LEAVES[leaf]])

    def _raise_on_unknown_levels(self) -> None:
        levels: Any = self.levels
        if isinstance(levels, str):
            raise ValueError(f"levels: expected a tuple of names, received {levels!r}")
        for name in levels:
            if name not in self.level_names:
                raise unknown_name("levels", name, self.level_names)


def unknown_name(argument: str, name: str, known: Sequence[str]) -> ValueError:
    """The error for a name that is none of the known ones; says which is the nearest."""
    nearest = difflib.get_close_matches(str(name), known, 1, cutoff=0.0)[0]
    return ValueError(
        f"{argument}: expected some of {', '.join(known)}; received {name!r}; "
        f"did you mean {nearest!r}?"
    )


def pool_globally(maps: Array) -> Array:
    """The mean over positions: (N,h,w,D) to (N,D) float32."""
    return jnp.mean(maps, axis=(1, 2), dtype=jnp.float32)


def flatten_channels_first(maps: Array, size: int) -> Array:
    """Maps of any size as the vectors that torchvision's fully connected layers see.

    Args:
      maps: (N,h,w,C).
      size: rows and columns to which the maps are averaged first.

    Returns:
      (N, C·size·size), in PyTorch's order: all positions of the first channel come first.
    """
    maps = adaptive_average_pool(maps, size)
    return maps.transpose(0, 3, 1, 2).reshape(maps.shape[0], -1)


# Initial weights as PyTorch and torchvision draw them.

he_fan_out: Initializer = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
"""He et al., 1502.01852, by the outputs of a filter: of torchvision's convolutions."""
torch_kernel: Initializer = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
"""Uniform within ±1/√fan_in: what PyTorch's layers begin with if nothing else is said."""


def torch_bias(fan_in: int) -> Initializer:
    """Uniform within ±1/√fan_in, for the bias of a layer whose outputs see ``fan_in`` inputs."""
    bound = 1 / math.sqrt(fan_in)

    def init(
        key: PRNGKey, shape: Sequence[int], dtype: Any = None, out_sharding: Any = None
    ) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound, out_sharding=out_sharding)

    return init
