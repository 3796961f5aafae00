"""Convolution by 3×3 kernels with 2.25 to 4 times fewer products.

Winograd's minimal filtering, F(4×4,3×3) of Lavin and Gray, "Fast Algorithms for Convolutional
Neural Networks", 1509.09308, section 4.2: each 4×4 tile of the result is

    y = Aᵀ [(G w Gᵀ) ∘ (Bᵀ x B)] A,

where the sum over channels is taken in the brackets: 36 matrix products over all tiles, of a fourth
of the direct convolution's work. The gradients are of the same form.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxnets.typing import Array

TILE = 4
"""Rows and columns of the result in a tile."""
# Where the polynomials of Toom and Cook are evaluated, besides infinity. With 0, ±1 and ±2, the
# points of the paper, rounding errors are 2 (root mean square) to 3 times (largest) as large.
_POINTS = (0.0, 0.5**0.5, -(0.5**0.5), 2**0.5, -(2**0.5))


def _make_matrices() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A (6,4), G (6,3) and Bᵀ (6,6), float64: products of polynomials by their values at points."""
    a, g, b = np.zeros((6, TILE)), np.zeros((6, 3)), np.zeros((6, 6))
    for row, point in enumerate(_POINTS):
        others = [other for other in _POINTS if other != point]
        a[row] = point ** np.arange(TILE)
        g[row] = point ** np.arange(3) / np.prod([point - other for other in others])
        b[row, :5] = np.poly(others)[::-1]
    a[-1, -1] = g[-1, -1] = 1
    b[-1] = np.poly(_POINTS)[::-1]
    b[np.abs(b) < 1e-12] = 0  # What rounding has left of zeros.
    return a, g, b


_A, _G, _B_TRANSPOSED = _make_matrices()
# Images at a time: their transforms stay in a CPU's caches.
_CHUNK = 8


@jax.custom_vjp
def winograd_conv(inputs: Array, kernel: Array) -> Array:
    """Convolution with stride 1 and one pixel of zero padding on all sides.

    Its rounding errors are about six times those of a direct sum: 2e-7 of the largest result in
    root mean square, in float32. Reverse mode only.

    Args:
      inputs: (N,H,W,C) float32.
      kernel: (3,3,C,D) float32.

    Returns:
      (N,H,W,D).
    """
    n, h, w, _ = inputs.shape
    rows, columns = _count_tiles(h, w)
    weights = _transform_kernel(kernel)  # (36,C,D)

    def convolve(images: Array) -> Array:
        products = jnp.einsum("kpc,kcd->kpd", _transform_inputs(images), weights)
        products = products.reshape(6, 6, len(images), rows, columns, -1)
        lines = _combine(_A.T, list(products))  # 4 × (6,n,rows,columns,D)
        tiles = [jnp.stack(_combine(_A.T, list(line)), axis=3) for line in lines]
        result = jnp.stack(tiles, axis=2)  # (n,rows,4,columns,4,D)
        result = result.reshape(len(images), TILE * rows, TILE * columns, -1)
        return result[:, :h, :w]

    chunks = _split(inputs)
    if len(chunks) == 1:
        return convolve(inputs)
    return jax.lax.map(convolve, chunks).reshape(n, h, w, -1)


def _forward(inputs: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return winograd_conv(inputs, kernel), (inputs, kernel)


def _backward(residuals: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    inputs, kernel = residuals
    of_inputs = winograd_conv(gradient, kernel[::-1, ::-1].swapaxes(2, 3))

    def add(total: Array, chunk: tuple[Array, Array]) -> tuple[Array, None]:
        images, gradient = chunk
        transformed = _transform_inputs(images), _transform_gradient(gradient)
        return total + jnp.einsum("kpc,kpd->kcd", *transformed), None

    zeros = jnp.zeros((36, *kernel.shape[2:]), inputs.dtype)
    of_weights, _ = jax.lax.scan(add, zeros, (_split(inputs), _split(gradient)))
    matrix = jnp.asarray(_G, inputs.dtype)
    of_weights = of_weights.reshape(6, 6, *kernel.shape[2:])
    return of_inputs, jnp.einsum("ai,bj,abcd->ijcd", matrix, matrix, of_weights)


winograd_conv.defvjp(_forward, _backward)


def _transform_kernel(kernel: Array) -> Array:
    """G w Gᵀ: (3,3,C,D) to (36,C,D)."""
    matrix = jnp.asarray(_G, kernel.dtype)
    weights = jnp.einsum("ai,bj,ijcd->abcd", matrix, matrix, kernel)
    return weights.reshape(36, *kernel.shape[2:])


def _transform_inputs(images: Array) -> Array:
    """Bᵀ x B of every tile, which overlap by two pixels: (n,H,W,C) to (36,tiles,C)."""
    return _transform_tiles(images, _B_TRANSPOSED, before=1, after=1)


def _transform_gradient(gradient: Array) -> Array:
    """A y Aᵀ of every tile: (n,H,W,D) to (36,tiles,D)."""
    return _transform_tiles(gradient, _A, before=0, after=0)


def _transform_tiles(maps: Array, matrix: np.ndarray, before: int, after: int) -> Array:
    _, h, w, c = maps.shape
    rows, columns = _count_tiles(h, w)
    height, width = TILE * rows, TILE * columns
    pads = ((0, 0), (before, after + height - h), (before, after + width - w), (0, 0))
    x = jnp.pad(maps, pads)
    taps = range(matrix.shape[1])
    lines = _combine(matrix, [x[:, i : i + height - TILE + 1 : TILE] for i in taps])
    pieces = [
        piece.reshape(-1, c)
        for line in lines
        for piece in _combine(matrix, [line[:, :, j : j + width - TILE + 1 : TILE] for j in taps])
    ]
    return jnp.stack(pieces)


def _combine(matrix: np.ndarray, parts: Sequence[Array]) -> list[Array]:
    """The product of a small matrix with a list of arrays, without the terms that are zero."""

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


def _split(maps: Array) -> Array:
    """(N,...) to chunks (N/n,n,...) of the largest n up to 8 that divides N."""
    n = len(maps)
    size = max(size for size in range(1, min(n, _CHUNK) + 1) if n % size == 0)
    return maps.reshape(n // size, size, *maps.shape[1:])
