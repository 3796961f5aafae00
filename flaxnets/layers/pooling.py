"""Spatial pooling of feature maps, with the windows of PyTorch.

On a CPU maximum pooling is written as maxima of shifted slices; on accelerators it is XLA's
``reduce_window``. Both give the same values.
"""

import functools
import math

import jax
import jax.numpy as jnp

from flaxnets.layers.convolution import is_empty
from flaxnets.typing import Array

Pair = int | tuple[int, int]


def max_pool(
    maps: Array, window: Pair, strides: Pair, *, padding: int = 0, ceil_mode: bool = False
) -> Array:
    """Returns the maximum of each window, padded with −∞ as PyTorch's ``MaxPool2d``.

    >>> import flax.linen as nn
    >>> x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    >>> max_pool(x, 2, 2)[0, :, :, 0].tolist()
    [[5.0, 7.0], [13.0, 15.0]]
    >>> bool((max_pool(x, 2, 2) == nn.max_pool(x, (2, 2), (2, 2))).all())
    True

    Args:
      maps: (N,H,W,C) float.
      window: height and width, pixels.
      strides: vertical and horizontal, pixels.
      padding: on all four sides, pixels.
      ceil_mode: whether windows may also reach over the lower or right edge, as long as they begin
        within the image or its upper left padding.

    Returns:
      (N,h,w,C) in the dtype of ``maps``, with h or w zero where no window fits.

    Raises:
      ValueError: ``maps`` is not of rank 4.
    """
    raise_on_rank(maps)
    window, strides = _pair(window), _pair(strides)
    pads = _pads(maps.shape[1:3], window, strides, padding, ceil_mode)

    def native(maps: Array) -> Array:
        return native_max_pool(maps, window, strides, pads)

    def shifted(maps: Array) -> Array:
        return shifted_max_pool(maps, window, strides, pads)

    if is_empty(maps, window, pads):
        return native(maps)  # Slices would fail.
    return jax.lax.platform_dependent(maps, cpu=shifted, default=native)


Pads = list[tuple[int, int]]


def native_max_pool(
    maps: Array, window: tuple[int, int], strides: tuple[int, int], pads: Pads
) -> Array:
    """Computes ``max_pool`` as one ``reduce_window`` of XLA, the reference."""
    return jax.lax.reduce_window(
        maps, -jnp.inf, jax.lax.max, (1, *window, 1), (1, *strides, 1), ((0, 0), *pads, (0, 0))
    )


def shifted_max_pool(
    maps: Array, window: tuple[int, int], strides: tuple[int, int], pads: Pads
) -> Array:
    """Computes ``max_pool`` as maxima of shifted slices, one axis after the other.

    On a CPU the vjp of XLA's operation, select-and-scatter, takes several times as long. Tied
    values share the gradient here; PyTorch assigns all of it to the first. Windows that tile the
    feature maps have a custom vjp, in reverse mode only.
    """
    tiles = window == strides and not any(map(any, pads)) and 1 < math.prod(window) <= 8
    if tiles and all(n % k == 0 for n, k in zip(maps.shape[1:3], window, strict=True)):
        return _max_of_tiles(maps, window)
    x = maps
    for axis, (k, s, (before, after)) in enumerate(zip(window, strides, pads, strict=True), 1):
        if before or after:
            widths = [(0, 0)] * 4
            widths[axis] = (before, after)
            x = jnp.pad(x, widths, constant_values=-jnp.inf)
        count = (x.shape[axis] - k) // s + 1
        taps = [jax.lax.slice_in_dim(x, i, i + (count - 1) * s + 1, s, axis) for i in range(k)]
        x = functools.reduce(jnp.maximum, taps)
    return x


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _max_of_tiles(maps: Array, window: tuple[int, int]) -> Array:
    """Computes ``shifted_max_pool`` of windows that tile the feature maps.

    The vjp that JAX derives pads the gradient of each slice to the size of the maps; this one is
    a single elementwise expression, which XLA fuses with the vjp of what comes before.
    """
    return functools.reduce(jnp.maximum, _tiles(maps, window))


def _tiles(maps: Array, window: tuple[int, int]) -> list[Array]:
    """Returns the pixels (N,h,w,C) at each position of the windows, row by row."""
    rows, columns = window
    return [maps[:, i::rows, j::columns] for i in range(rows) for j in range(columns)]


def _max_forward(maps: Array, window: tuple[int, int]) -> tuple[Array, Array]:
    # A bit for each pixel that equals the maximum. It is not compared again in the backward pass:
    # XLA may recompute the maps there with other roundings, and no pixel would equal the maximum.
    tiles = _tiles(maps, window)
    largest = functools.reduce(jnp.maximum, tiles)
    bits = [jnp.uint8(1 << k) * (tile == largest) for k, tile in enumerate(tiles)]
    return largest, functools.reduce(jnp.bitwise_or, bits)


def _max_backward(window: tuple[int, int], bits: Array, gradient: Array) -> tuple[Array]:
    n, h, w, c = bits.shape
    rows, columns = window
    ties = jnp.maximum(jax.lax.population_count(bits), 1)  # None where a pixel is NaN.
    shape = (n, h, rows, w, columns, c)

    def repeat(values: Array) -> Array:
        return jax.lax.broadcast_in_dim(values, shape, (0, 1, 3, 5))

    position = jnp.arange(rows * columns, dtype=jnp.uint8).reshape(rows, 1, columns, 1)
    chosen = repeat(bits) & (jnp.uint8(1) << position)
    of_maps = jnp.where(chosen > 0, repeat(gradient / ties.astype(gradient.dtype)), 0)
    return (of_maps.reshape(n, h * rows, w * columns, c),)


_max_of_tiles.defvjp(_max_forward, _max_backward)


def average_pool(maps: Array, window: Pair, strides: Pair) -> Array:
    """Returns the mean of each window that lies within the feature maps.

    It is summed in float32 at least: in bfloat16 a sum stops growing at 256 times a value, and in
    float16 it overflows.

    >>> average_pool(jnp.arange(16.0).reshape(1, 4, 4, 1), 2, 2)[0, :, :, 0].tolist()
    [[2.5, 4.5], [10.5, 12.5]]

    Args:
      maps: (N,H,W,C) float.
      window: height and width, pixels.
      strides: vertical and horizontal, pixels.

    Returns:
      (N,h,w,C) in the dtype of ``maps``, with h or w zero where no window fits.

    Raises:
      ValueError: ``maps`` is not of rank 4.
    """
    raise_on_rank(maps)
    window, strides = _pair(window), _pair(strides)
    wide = maps.astype(jnp.promote_types(maps.dtype, jnp.float32))
    total = jax.lax.reduce_window(
        wide, 0.0, jax.lax.add, (1, *window, 1), (1, *strides, 1), "VALID"
    )
    return (total / math.prod(window)).astype(maps.dtype)


def adaptive_average_pool(maps: Array, size: Pair) -> Array:
    """Averages feature maps to a given size, as PyTorch's ``AdaptiveAvgPool2d``.

    Block i of n over H rows averages the rows ⌊i·H/n⌋ to ⌈(i+1)·H/n⌉ − 1; neighbours overlap where
    n does not divide H, and rows repeat where n > H.

    >>> adaptive_average_pool(jnp.arange(5.0).reshape(1, 5, 1, 1), (2, 1)).ravel().tolist()
    [1.0, 3.0]

    Args:
      maps: (N,H,W,C) float.
      size: rows and columns of the result.

    Returns:
      (N,*size,C) in the dtype of ``maps``.

    Raises:
      ValueError: ``maps`` is not of rank 4, or has no pixels.
    """
    raise_on_rank(maps)
    if 0 in maps.shape[1:3]:
        raise ValueError(
            f"maps: expected at least one pixel to average, received shape {maps.shape}"
        )
    # One rounding at the end, not one for each axis.
    x = maps.astype(jnp.promote_types(maps.dtype, jnp.float32))
    for axis, n in zip((1, 2), _pair(size), strict=True):
        length = x.shape[axis]
        if n == length:
            continue
        blocks = [
            jax.lax.slice_in_dim(x, i * length // n, -(-(i + 1) * length // n), axis=axis).mean(
                axis, keepdims=True
            )
            for i in range(n)
        ]
        x = jnp.concatenate(blocks, axis)
    return x.astype(maps.dtype)


def raise_on_rank(maps: Array) -> None:
    """Raises an error unless ``maps`` are (N,H,W,C)."""
    if maps.ndim != 4:
        raise ValueError(f"maps: expected (N,H,W,C), received shape {maps.shape}")


def _pair(value: Pair) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value


def _pads(
    size: tuple[int, ...],
    window: tuple[int, int],
    strides: tuple[int, int],
    padding: int,
    ceil_mode: bool,
) -> list[tuple[int, int]]:
    """Returns the padding (before, after) of both axes, in pixels."""
    pads = []
    for length, k, s in zip(size, window, strides, strict=True):
        after = padding
        if ceil_mode:
            count = -(-(length + 2 * padding - k) // s) + 1
            if (
                count - 1
            ) * s >= length + padding:  # The last window would begin in the lower padding.
                count -= 1
            after = max((count - 1) * s + k - length - padding, padding)
        pads.append((padding, after))
    return pads
