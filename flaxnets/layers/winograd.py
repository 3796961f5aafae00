"""Winograd convolution for 3×3 and 5×5 kernels, with 4 to 6.25 times fewer multiplications.

Winograd's minimal filtering, F(4×4,r×r) of Lavin and Gray, "Fast Algorithms for Convolutional
Neural Networks", 1509.09308, section 4: each 4×4 tile of the result is

    y = Aᵀ [(G w Gᵀ) ∘ (Bᵀ x B)] A,

where the sum over channels is taken inside the brackets, as (r + 3)² matmuls over all tiles: for
r = 3 a fourth, for r = 5 4/25 of the multiplications of the direct convolution. The gradients have
the same form.

Deviation: for r = 3 other interpolation points than the paper's, which round better.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flaxnets.layers.batch_sharding import split_batch
from flaxnets.typing import Array

TILE = 4
"""Rows and columns of the outputs in one tile."""


class _Filter(NamedTuple):
    """Transform matrices of F(4,r), with n = r + 3."""

    a: np.ndarray
    """A (n,4), float64."""
    g: np.ndarray
    """G (n,r)."""
    b_transposed: np.ndarray
    """Bᵀ (n,n)."""

    @property
    def size(self) -> int:
        """n, rows and columns of a transformed tile."""
        return len(self.a)

    @property
    def margin(self) -> int:
        """Pixels that the inputs of a tile extend beyond it, on each side."""
        return self.g.shape[1] // 2


def _make_filter(points: tuple[float, ...]) -> _Filter:
    """Returns the Toom–Cook transforms for interpolation at ``points`` and at infinity."""
    size = len(points) + 1
    taps = size - TILE + 1
    a, g, b = np.zeros((size, TILE)), np.zeros((size, taps)), np.zeros((size, size))
    for row, point in enumerate(points):
        others = [other for other in points if other != point]
        a[row] = point ** np.arange(TILE)
        g[row] = point ** np.arange(taps) / np.prod([point - other for other in others])
        b[row, :-1] = np.poly(others)[::-1]
    a[-1, -1] = g[-1, -1] = 1
    b[-1] = np.poly(points)[::-1]
    b[np.abs(b) < 1e-12] = 0  # Exact zeros, up to rounding: _combine then skips these terms.
    return _Filter(a, g, b)


# The points with the smallest rounding errors of those tried. For r = 3 the paper's 0, ±1 and ±2
# have errors 2 (root mean square) to 3 times (largest) as large; for r = 5 the points 0, ±1, ±√2
# and ±1/√2 have errors 3 and 2 times as large.
_FILTERS = {
    3: _make_filter((0.0, 0.5**0.5, -(0.5**0.5), 2**0.5, -(2**0.5))),
    5: _make_filter((0.0, 0.5, -0.5, 1.0, -1.0, 2.0, -2.0)),
}
KERNEL_SIZES = tuple(_FILTERS)
# Images per chunk, by r: their transforms fit into the caches of a CPU.
_CHUNKS = {3: 8, 5: 4}


@jax.custom_vjp
def winograd_conv(inputs: Array, kernel: Array) -> Array:
    """Convolves with stride 1 and ``SAME`` zero padding.

    Rounding errors are six to nine times those of a direct sum: in float32 their root mean square
    is 2e-7 (3×3) or 7e-7 (5×5) of the largest output. Reverse mode only.

    >>> rng = np.random.default_rng(0)
    >>> x = rng.normal(size=(1, 8, 8, 4)).astype(np.float32)
    >>> kernel = rng.normal(size=(3, 3, 4, 6)).astype(np.float32)
    >>> y = jax.jit(winograd_conv)(x, kernel)
    >>> dimensions = ("NHWC", "HWIO", "NHWC")
    >>> reference = jax.lax.conv_general_dilated(
    ...     x, kernel, (1, 1), "SAME", dimension_numbers=dimensions
    ... )
    >>> y.shape, np.allclose(y, reference, atol=1e-3)
    ((1, 8, 8, 6), True)

    Args:
      inputs: (N,H,W,C) float32.
      kernel: (r,r,C,D) float32, r one of ``KERNEL_SIZES``.

    Returns:
      (N,H,W,D) float32.
    """
    n, h, w, _ = inputs.shape
    rows, columns = _count_tiles(h, w)
    filter = _FILTERS[len(kernel)]
    weights = _transform_kernel(filter, kernel)  # (n²,C,D)
    lines_of = partial(_combine, filter.a.T)

    def convolve(images: Array) -> Array:
        products = jnp.einsum("kpc,kcd->kpd", _transform_inputs(filter, images), weights)
        products = products.reshape(filter.size, filter.size, len(images), rows, columns, -1)
        lines = jnp.stack(lines_of(list(products)))  # (4,n,N,rows,columns,D)
        tiles = jnp.stack(lines_of(list(jnp.moveaxis(lines, 1, 0))))  # (4,4,N,rows,columns,D)
        result = tiles.transpose(2, 3, 1, 4, 0, 5)
        result = result.reshape(len(images), TILE * rows, TILE * columns, -1)
        return result[:, :h, :w]

    chunks = split_batch(inputs, _CHUNKS[len(kernel)])
    if len(chunks) == 1:
        return convolve(inputs)
    return jax.lax.map(convolve, chunks).reshape(n, h, w, -1)


def _forward(inputs: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return winograd_conv(inputs, kernel), (inputs, kernel)


def _backward(residuals: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    inputs, kernel = residuals
    filter = _FILTERS[len(kernel)]
    of_inputs = winograd_conv(gradient, kernel[::-1, ::-1].swapaxes(2, 3))

    def add(total: Array, chunk: tuple[Array, Array]) -> tuple[Array, None]:
        images, gradient = chunk
        transformed = _transform_inputs(filter, images), _transform_gradient(filter, gradient)
        return total + jnp.einsum("kpc,kpd->kcd", *transformed), None

    size = filter.size
    zeros = jnp.zeros((size**2, *kernel.shape[2:]), inputs.dtype)
    limit = _CHUNKS[len(kernel)]
    chunks = split_batch(inputs, limit), split_batch(gradient, limit)
    of_weights, _ = jax.lax.scan(add, zeros, chunks)
    matrix = jnp.asarray(filter.g, inputs.dtype)
    of_weights = of_weights.reshape(size, size, *kernel.shape[2:])
    return of_inputs, jnp.einsum("ai,bj,abcd->ijcd", matrix, matrix, of_weights)


winograd_conv.defvjp(_forward, _backward)


def _transform_kernel(filter: _Filter, kernel: Array) -> Array:
    """Returns G w Gᵀ: (r,r,C,D) to (n²,C,D)."""
    lines = jnp.stack(_combine(filter.g, list(kernel)))  # (n,r,C,D)
    pieces = _combine(filter.g, list(jnp.moveaxis(lines, 1, 0)))  # n × (n,C,D)
    return jnp.stack(pieces, axis=1).reshape(filter.size**2, *kernel.shape[2:])


def _transform_inputs(filter: _Filter, images: Array) -> Array:
    """Returns Bᵀ x B of all tiles, which overlap by r − 1 pixels: (N,H,W,C) to (n²,tiles,C)."""
    return _transform_tiles(images, filter.b_transposed, filter.margin)


def _transform_gradient(filter: _Filter, gradient: Array) -> Array:
    """Returns A y Aᵀ of all tiles: (N,H,W,D) to (n²,tiles,D)."""
    return _transform_tiles(gradient, filter.a, 0)


def _transform_tiles(maps: Array, matrix: np.ndarray, margin: int) -> Array:
    _, h, w, c = maps.shape
    rows, columns = _count_tiles(h, w)
    height, width = TILE * rows, TILE * columns
    pads = ((0, 0), (margin, margin + height - h), (margin, margin + width - w), (0, 0))
    x = jnp.pad(maps, pads)
    taps = range(matrix.shape[1])
    lines = _combine(matrix, [x[:, i : i + height - TILE + 1 : TILE] for i in taps])
    stacked = jnp.stack(lines)  # (n,N,rows,W,C)
    pieces = _combine(matrix, [stacked[:, :, :, j : j + width - TILE + 1 : TILE] for j in taps])
    return jnp.stack(pieces, axis=1).reshape(len(matrix) ** 2, -1, c)


def _combine(matrix: np.ndarray, parts: Sequence[Array]) -> list[Array]:
    """Multiplies a list of arrays by a small constant matrix, skipping its zeros and ones."""

    def combine(row: np.ndarray) -> Any:
        terms = [
            part if factor == 1 else part * jnp.asarray(factor, part.dtype)
            for factor, part in zip(row, parts, strict=True)
            if factor
        ]
        return sum(terms[1:], terms[0])

    return [combine(row) for row in matrix]


def _count_tiles(height: int, width: int) -> tuple[int, int]:
    return -(-height // TILE), -(-width // TILE)
