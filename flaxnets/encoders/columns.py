"""Encoder over columns: lines of text and spectrograms become steps of time, exact under padding.

Text is read from left to right and a spectrogram runs over time, so their columns become the steps
of a recurrent layer. Any encoder of images does it: its rows are pooled, and each column of its
last feature maps is a step of as many columns of the input as its horizontal stride.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxnets.encoders.encoder import Encoder, normalize_pixels, take_only_endpoint
from flaxnets.layers.convolution import Conv
from flaxnets.layers.depthwise import DepthwiseConv
from flaxnets.layers.normalization import BatchNorm
from flaxnets.layers.padding import check_lengths, zero_where_masked
from flaxnets.typing import Array

ROW_POOLS = ("flatten", "mean", "max")


class ColumnEncoder(nn.Module):
    """Encoder of images whose columns become steps: (B,H,W,C) or (B,T,M) to (B,S,D).

    With the horizontal stride s of the encoder there are S = ⌈W/s⌉ steps, of which ⌈length/s⌉ are
    valid: an image counts as continued by background of value zero, after normalisation, up to a
    multiple of s. What lies in the padding beyond has no effect on the outputs, on BatchNorm's
    statistics or on any gradient, although convolutions with biases would make something of it:
    after each layer the columns beyond the length are set to zero, as the borders of a narrow image
    are.

    >>> import functools
    >>> from flaxnets.encoders.vgg import CRNNVGG
    >>> encoder = ColumnEncoder(CRNNVGG((8, 8, 8, 8), batch_norm=True), stride=4)
    >>> lines = jax.random.uniform(jax.random.key(0), (2, 32, 40, 1))
    >>> call = jax.jit(functools.partial(encoder.init_with_output, train=False))
    >>> (outputs, steps), variables = call(jax.random.key(1), lines, jnp.array([40, 18]))
    >>> outputs.shape, steps.tolist()
    ((2, 10, 8), [10, 5])
    >>> alone, _ = encoder.apply(variables, lines[1:, :, :18], jnp.array([18]), train=False)
    >>> bool(jnp.allclose(alone[0], outputs[1, :5], atol=1e-5))
    True

    Attributes:
      encoder: (N,H,W,C) to feature maps (N,h,w,D), called with ``mask`` (N,) and ``train``; made of
        the layers of ``flaxnets.layers`` and of Flax's ``Conv``, ``LayerNorm``, ``GroupNorm``.
      stride: s, columns of the input for each column of the feature maps: ``column_stride``.
      pool: of the rows of the feature maps: ``flatten`` to D·h, ``mean`` or ``max``.
      freeze_encoder: whether the encoder runs as in evaluation and gets no gradient.
    """

    encoder: nn.Module
    stride: int
    pool: str = "flatten"
    freeze_encoder: bool = False

    def __call__(
        self, inputs: Array, lengths: Array, mask: Array | None = None, *, train: bool
    ) -> tuple[Array, Array]:
        """Returns features of the steps and their numbers.

        Args:
          inputs: images (B,H,W,C) uint8 in [0,255] or float; or spectrograms (B,T,M) float, whose
            frames are the columns and whose bands the rows.
          lengths: (B,) integers in [0,W], valid columns or frames.
          mask: (B,) bool, examples that count in batch statistics; None: all.
          train: whether this is a training step.

        Returns:
          (B,S,D) float, zero at padded steps, and (B,) int32 valid steps.

        Raises:
          ValueError: inputs, lengths or mask of another rank, shape or dtype; an encoder whose
            feature maps do not have a column for each ``stride`` columns of the input.
        """
        if self.pool not in ROW_POOLS:
            raise ValueError(
                f"pool: expected one of {', '.join(ROW_POOLS)}, received {self.pool!r}"
            )
        images = as_images(inputs)
        lengths = check_lengths(lengths, images.shape[0], images.shape[2])
        if mask is not None and (mask.shape != lengths.shape or mask.dtype != bool):
            raise ValueError(
                f"mask: expected {lengths.shape} bool, received {mask.shape} {mask.dtype}"
            )
        runs_in_training = train and not self.freeze_encoder
        steps = -(-lengths // self.stride)
        images = self._normalize(images)
        width = images.shape[2]
        valid = jnp.arange(width) < lengths[:, None]  # (B,W)
        if runs_in_training and mask is not None:
            valid &= mask[:, None]
        images = jnp.where(valid[:, None, :, None], images, 0)
        images = jnp.pad(images, ((0, 0), (0, 0), (0, -width % self.stride), (0, 0)))
        counts = mask if runs_in_training else None
        with nn.intercept_methods(_mask_columns(steps, counts, self.stride, images.shape[2])):
            maps = take_only_endpoint(
                self.encoder(images, counts, train=runs_in_training), "encoder"
            )
        b, w = images.shape[0], images.shape[2] // self.stride
        if maps.ndim != 4 or maps.shape[2] != w:
            raise ValueError(
                f"encoder: expected feature maps ({b},h,{w},D), one column for {self.stride} of "
                f"the input, received {maps.shape}"
            )
        if self.freeze_encoder:
            maps = jax.lax.stop_gradient(maps)
        return zero_where_masked(_pool_rows(maps, self.pool), jnp.arange(w) < steps[:, None]), steps

    def _normalize(self, images: Array) -> Array:
        """Returns float images; those of one channel are repeated for an encoder of three."""
        channels = getattr(self.encoder, "channels", None)
        if channels is not None and images.shape[-1] == 1:
            images = jnp.repeat(images, channels, axis=-1)
        if isinstance(self.encoder, Encoder):
            return self.encoder.normalize(images)
        return normalize_pixels(images)


def as_images(inputs: Array) -> Array:
    """Returns lines (B,H,W,C) as they are, and spectrograms (B,T,M) as images (B,M,T,1).

    Raises:
      ValueError: another rank.
    """
    if inputs.ndim == 4:
        return inputs
    if inputs.ndim != 3:
        raise ValueError(f"inputs: expected (B,H,W,C) or (B,T,M), received shape {inputs.shape}")
    return jnp.swapaxes(inputs, 1, 2)[..., None]


def column_stride(encoder: nn.Module, height: int) -> int:
    """Returns the columns of the input for each column of an encoder's feature maps.

    Args:
      encoder: (N,H,W,C) to feature maps (N,h,w,D).
      height: rows of the input, pixels or bands.

    Raises:
      ValueError: feature maps whose width is no exact fraction of the input's, as behind a
        convolution without padding; or vectors.
    """
    channels = getattr(encoder, "channels", None) or 1
    widths = (256, 512)

    def encode(width: int) -> Any:
        images = jnp.zeros((1, height, width, channels))
        outputs, _ = encoder.init_with_output(jax.random.key(0), images, None, train=False)
        return take_only_endpoint(outputs, "encoder")

    narrow, wide = (jax.eval_shape(lambda width=width: encode(width)) for width in widths)
    if narrow.ndim != 4:
        raise ValueError(
            f"encoder: expected feature maps (N,h,w,D), received {narrow.shape}: choose an earlier "
            "level"
        )
    stride, rest = divmod(widths[0], narrow.shape[2])
    if rest or wide.shape[2] * stride != widths[1]:
        raise ValueError(
            f"encoder: expected feature maps with a column for every so many of the input, "
            f"received {narrow.shape[2]} and {wide.shape[2]} for {widths[0]} and {widths[1]}"
        )
    return stride


def _mask_columns(
    steps: Array, counts: Array | None, stride: int, width: int
) -> Callable[..., Any]:
    """Returns an interceptor that sets the columns beyond the lengths to zero after each layer.

    Args:
      steps: (B,) int32, valid columns of the last feature maps.
      counts: (B,) bool, examples that count in batch statistics; None: all.
      stride: columns of the input for each of the last feature maps.
      width: columns of the input, a multiple of ``stride``.
    """
    last: tuple[Array, Array] | None = None  # Outputs of a layer, with zeros and without.

    def intercept(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        nonlocal last
        layer = context.module
        if context.method_name != "__call__" or not isinstance(layer, _LAYERS):
            return call(*args, **kwargs)
        columns = args[0].shape[-2]
        valid = _valid(columns)
        if isinstance(layer, BatchNorm):
            counted = valid if counts is None else valid & counts[:, None]
            # It reads no column beyond the lengths. Without the zeros that nothing else reads XLA
            # writes the outputs of a convolution once, not twice.
            inputs = last[1] if last is not None and last[0] is args[0] else args[0]
            return _zero(call(inputs, counted, **kwargs), valid)
        if isinstance(layer, nn.GroupNorm):
            # Flax splits the channels of the mask into groups, so that it cannot broadcast.
            counted = jnp.broadcast_to(valid[:, None, :, None], args[0].shape)
            kwargs = {**kwargs, "mask": counted}
        # Overlapping windows of a pooling carry values into the padding, and a network may shift
        # its pixels: hence the inputs, too.
        outputs = call(_zero(args[0], valid), *args[1:], **kwargs)
        if outputs.shape[-2] != columns:
            valid = _valid(outputs.shape[-2])
        last = _zero(outputs, valid), outputs
        return last[0]

    def _valid(columns: int) -> Array:
        here = width // columns  # The stride so far.
        if width % columns or stride % here:
            raise ValueError(
                f"encoder: expected feature maps whose width divides {width}, the input's, with a "
                f"stride that divides {stride}, received {columns} columns"
            )
        return jnp.arange(columns) < (steps * (stride // here))[:, None]  # (B,w)

    return intercept


_LAYERS = (Conv, DepthwiseConv, BatchNorm, nn.Conv, nn.ConvLocal, nn.LayerNorm, nn.GroupNorm)


def _zero(maps: Array, valid: Array) -> Array:
    return jnp.where(valid[:, None, :, None], maps, 0)


def _pool_rows(maps: Array, pool: str) -> Array:
    """Pools (B,h,w,D) over rows to (B,w,D) or (B,w,h·D)."""
    if pool == "flatten":
        b, h, w, d = maps.shape
        return jnp.swapaxes(maps, 1, 2).reshape(b, w, h * d)
    return maps.mean(axis=1) if pool == "mean" else maps.max(axis=1)
