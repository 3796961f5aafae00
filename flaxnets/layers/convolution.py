"""Two-dimensional convolution that picks the fastest algorithm for the platform.

On accelerators, in half precision and with channel groups it is XLA's own convolution. In float32
on a CPU, 3×3 and 5×5 kernels use Winograd's algorithm where it pays (``winograd_conv``), others get
gradients as matmuls (``tapped_conv``), and images of one channel are a weighted sum of shifts. All
agree with ``jax.lax.conv_general_dilated`` up to rounding.
"""

import functools
import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from flaxnets.configuration import check_dtype_argument
from flaxnets.layers.batch_sharding import (
    in_auto_axes,
    is_batch_known_sharded,
    map_chunks,
    sum_chunks,
    vary_alike,
)
from flaxnets.typing import Array, Dtype

_Pair = tuple[int, int]
Padding = str | int | Sequence[tuple[int, int]]
"""``SAME`` (TensorFlow's: uneven where the total is odd), ``VALID``, one number of pixels for all
sides (PyTorch's), or ((above, below), (left, right))."""


def resolve_padding(
    padding: Padding, size: tuple[int, int], kernel_size: tuple[int, int], strides: tuple[int, int]
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Returns the padding of an image as ((above, below), (left, right)), in pixels.

    >>> resolve_padding("SAME", (8, 7), (3, 3), (2, 2))
    ((0, 1), (1, 1))

    Args:
      padding: see ``Padding``.
      size: height and width of the image, pixels.
      kernel_size: height and width of the kernel, pixels.
      strides: (vertical, horizontal), pixels.
    """
    if isinstance(padding, int):
        return (padding, padding), (padding, padding)
    if isinstance(padding, str):
        padding = jax.lax.padtype_to_pads(size, kernel_size, strides, padding)
    (top, bottom), (left, right) = padding
    return (int(top), int(bottom)), (int(left), int(right))


def conv2d(
    inputs: Array,
    kernel: Array,
    *,
    strides: tuple[int, int] = (1, 1),
    padding: Padding = "SAME",
    groups: int = 1,
    autodiff: bool = False,
) -> Array:
    """Convolves images with a kernel (cross-correlation, as all networks call convolution).

        y[n,i,j,o] = Σ_{k,l,c} x[n, s·i + k - p, s·j + l - q, c] · w[k,l,c,o]

    with s the strides, p and q the padding above and on the left.

    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> x = rng.normal(size=(2, 8, 8, 3)).astype(np.float32)
    >>> kernel = rng.normal(size=(3, 3, 3, 4)).astype(np.float32)
    >>> y = conv2d(x, kernel, strides=(2, 2))
    >>> dimensions = ("NHWC", "HWIO", "NHWC")
    >>> reference = jax.lax.conv_general_dilated(
    ...     x, kernel, (2, 2), "SAME", dimension_numbers=dimensions
    ... )
    >>> y.shape, np.allclose(y, reference, atol=1e-4)
    ((2, 4, 4, 4), True)

    Args:
      inputs: (N,H,W,C) float.
      kernel: (kernel_h,kernel_w,C/groups,D) float.
      strides: (vertical, horizontal), pixels.
      padding: zeros around the images, see ``Padding``.
      groups: number of channel groups; each group of outputs reads one group of inputs.
      autodiff: leaves derivatives to JAX, in any mode, and uses XLA's convolution for it; False: in
        float32 on a CPU the faster algorithms, whose derivatives are in reverse mode only.

    Returns:
      (N,h,w,D) in the dtype of ``inputs``, with h or w zero where the kernel does not fit.

    Raises:
      ValueError: inputs or kernel of another rank, or channels that do not match.
    """
    if inputs.ndim != 4:
        raise ValueError(f"inputs: expected (N,H,W,C), received shape {inputs.shape}")
    if kernel.ndim != 4 or kernel.shape[2] * groups != inputs.shape[3]:
        raise ValueError(
            f"kernel: expected (h,w,{inputs.shape[3]}/{groups},D), received shape {kernel.shape}"
        )
    _, height, width, _ = inputs.shape
    kernel_size = kernel.shape[0], kernel.shape[1]
    pads = resolve_padding(padding, (height, width), kernel_size, strides)
    inputs, kernel = vary_alike((inputs, kernel.astype(inputs.dtype)))
    convolve = partial(_convolve, strides=strides, pads=pads, groups=groups, autodiff=autodiff)
    return in_auto_axes(convolve, inputs)(inputs, kernel)


def _convolve(
    inputs: Array,
    kernel: Array,
    *,
    strides: _Pair,
    pads: tuple[_Pair, _Pair],
    groups: int,
    autodiff: bool,
) -> Array:
    """Runs ``conv2d`` by the algorithm that suits the platform."""
    kernel_size = kernel.shape[0], kernel.shape[1]

    def direct(inputs: Array, kernel: Array) -> Array:
        return jax.lax.conv_general_dilated(
            inputs,
            kernel,
            strides,
            pads,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )

    if is_empty(inputs, kernel_size, pads):
        return direct(inputs, kernel)  # There are no chunks to loop over, and slices would fail.
    # The CPU algorithms loop over chunks of the batch, which a sharded batch would gather and whose
    # number the export of a program for any batch size does not know.
    loops = all(isinstance(size, int) for size in inputs.shape) and not is_batch_known_sharded()
    if autodiff or groups > 1 or inputs.dtype != jnp.float32 or not loops:
        return direct(inputs, kernel)
    margin = kernel_size[0] // 2
    keeps_size = strides == (1, 1) and pads == ((margin, margin),) * 2
    if keeps_size and _suits_winograd(inputs, kernel):
        return jax.lax.platform_dependent(inputs, kernel, cpu=winograd_conv, default=direct)
    # With few channels the matmuls of the taps would be narrow, with many taps numerous. Those of
    # one channel are a single one.
    channels, features = kernel.shape[2:]
    suits = (channels == 1 or min(channels, features) >= 16) and math.prod(kernel_size) <= 25
    if strides != (1, 1) or kernel_size == (1, 1) or suits:
        tapped = partial(tapped_conv, strides=strides, pads=pads)
        return jax.lax.platform_dependent(inputs, kernel, cpu=tapped, default=direct)
    return direct(inputs, kernel)


def is_empty(maps: Array, window: tuple[int, int], pads: Sequence[tuple[int, int]]) -> bool:
    """Returns whether a result has no elements: of empty feature maps, or no window fits.

    Args:
      maps: (N,H,W,C).
      window: height and width of the kernel or window, pixels.
      pads: padding ((above, below), (left, right)), pixels.
    """
    sizes = (n + sum(pad) for n, pad in zip(maps.shape[1:3], pads, strict=True))
    return not maps.size or any(n < k for n, k in zip(sizes, window, strict=True))


def _suits_winograd(inputs: Array, kernel: Array) -> bool:
    """Returns whether Winograd's algorithm is faster than a direct convolution on a CPU.

    Measured on 2 cores: 1.3 to 1.4 times as fast for 3×3 at 28²×64 and 14²×128, 1.1 to 2.3 times
    for 5×5 at 8 images of 16²; on one core, gradients included, 2.2 to 3.1 times for the 3×3 of
    lines of text at 12×232×64 and 1.7 to 1.9 times at 6×232×128. On small feature maps the tiles
    reach far over the edge; with few channels the transforms of the inputs cost more than the
    matmuls, with few tiles those of the kernel do.
    """
    n, height, width, channels = inputs.shape
    rows, columns = _count_tiles(height, width)
    size = kernel.shape[0]
    if kernel.shape[1] != size or size not in KERNEL_SIZES:
        return False
    if size == 3:
        # 14² has 16 tiles that are 1.3 times as large, 13² as many that are 1.5 times as large.
        fits = TILE**2 * rows * columns < 1.5 * height * width and rows * columns >= 16
        return fits and min(channels, kernel.shape[3]) >= 32
    return n * height * width >= 1024 and min(channels, kernel.shape[3]) >= 16


def conv2d_kernel_gradient(inputs: Array, gradient: Array, kernel_size: tuple[int, int]) -> Array:
    """Returns the gradient of ``conv2d`` (stride 1, SAME) with respect to its kernel.

    Args:
      inputs: (N,H,W,C) float.
      gradient: (N,H,W,D), with respect to the outputs.
      kernel_size: height and width, pixels.

    Returns:
      (kernel_h,kernel_w,C,D) in the dtype of ``inputs``; XLA chooses the dtype of the sum.
    """
    shape = (*kernel_size, inputs.shape[-1], gradient.shape[-1])
    zeros, _, _ = vary_alike((jnp.zeros(shape, inputs.dtype), inputs, gradient))
    _, pull = jax.vjp(lambda kernel: conv2d(inputs, kernel), zeros)
    return pull(gradient)[0]


class Conv(nn.Module):
    """Convolution layer with the parameters of ``nn.Conv`` and the speed of ``conv2d``.

    Parameters ``kernel`` (h,w,C/groups,D) and ``bias`` (D,).

    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(2, 9, 9, 3)).astype(np.float32)
    >>> y, variables = Conv(8, (3, 3), strides=2).init_with_output(jax.random.key(1), x)
    >>> reference = nn.Conv(8, (3, 3), strides=2).apply(variables, x)
    >>> y.shape, np.allclose(y, reference, atol=1e-5)
    ((2, 5, 5, 8), True)

    Attributes:
      features: D, channels of the outputs.
      kernel_size: height and width, pixels.
      strides: one number for both axes, or (vertical, horizontal), pixels.
      padding: see ``Padding``.
      groups: number of channel groups.
      use_bias: whether a bias is added.
      dtype: of the arithmetic and the outputs; None: promoted from inputs and parameters.
      param_dtype: of the parameters.
      kernel_init: of the kernel.
      bias_init: of the bias.
    """

    features: int
    kernel_size: tuple[int, int]
    strides: int | tuple[int, int] = 1
    padding: Padding = "SAME"
    groups: int = 1
    use_bias: bool = True
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    kernel_init: Any = nn.initializers.lecun_normal()
    bias_init: Any = nn.initializers.zeros

    def __post_init__(self) -> None:
        """Refuses the name of a dtype that does not exist."""
        check_dtype_argument(self.dtype)
        super().__post_init__()

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        """Maps (N,H,W,C) float to (N,h,w,features) in ``dtype``."""
        shape = (*self.kernel_size, inputs.shape[-1] // self.groups, self.features)
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        bias = None
        if self.use_bias:
            bias = self.param("bias", self.bias_init, (self.features,), self.param_dtype)
        inputs, kernel, bias = nn.dtypes.promote_dtype(inputs, kernel, bias, dtype=self.dtype)
        strides = (self.strides,) * 2 if isinstance(self.strides, int) else self.strides
        outputs = conv2d(inputs, kernel, strides=strides, padding=self.padding, groups=self.groups)
        return outputs if bias is None else outputs + bias


# Winograd convolution for 3×3 and 5×5 kernels, with 4 to 6.25 times fewer multiplications.
#
# Winograd's minimal filtering, F(4×4,r×r) of Lavin and Gray, "Fast Algorithms for Convolutional
# Neural Networks", 1509.09308, section 4: each 4×4 tile of the result is
#
#     y = Aᵀ [(G w Gᵀ) ∘ (Bᵀ x B)] A,
#
# where the sum over channels is taken inside the brackets, as (r + 3)² matmuls over all tiles: a
# fourth of the multiplications of the direct convolution for r = 3, and 4/25 for r = 5. The
# gradients have the same form.
#
# Deviation: for r = 3 other interpolation points than the paper's, which round better.

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
# Images and tiles per chunk, by r: their transforms fit into the caches of a CPU.
_CHUNKS = {3: 8, 5: 4}
_TILES_OF_CHUNK = 400


@jax.custom_vjp
def winograd_conv(inputs: Array, kernel: Array) -> Array:
    """Convolves with stride 1 and ``SAME`` zero padding.

    Rounding errors are six to nine times those of a direct sum: in float32 their root mean square
    is 2e-7 (3×3) or 7e-7 (5×5) of the largest output. Reverse mode only.

    The results of a tile share their errors: those next to one pixel of 10,000 would be wrong by
    1e-3 of their largest although they do not read it, and next to an infinite one they would be
    NaN. A batch in which a pixel stands out of its image is therefore convolved directly (see
    ``_has_outliers``), so that no result errs by more than about 5e-5 (3×3) or 2e-4 (5×5) of the
    largest result that does not read the pixel.

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

    def direct(inputs: Array, kernel: Array) -> Array:
        return jax.lax.conv_general_dilated(
            inputs, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    # One choice for the whole batch: made for each chunk, it costs the loop 6 to 14 % of its time.
    return jax.lax.cond(_has_outliers(inputs), direct, _convolve_tiles, inputs, kernel)


def _convolve_tiles(inputs: Array, kernel: Array) -> Array:
    """Computes ``winograd_conv`` by tiles."""
    _, h, w, _ = inputs.shape
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

    return map_chunks(convolve, inputs, _chunk_size(len(kernel), inputs))


def _forward(inputs: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return winograd_conv(inputs, kernel), (inputs, kernel)


def _backward(residuals: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    inputs, kernel = residuals
    filter = _FILTERS[len(kernel)]
    of_inputs = winograd_conv(gradient, kernel[::-1, ::-1].swapaxes(2, 3))

    def correlate(images: Array, gradient: Array) -> Array:
        transformed = _transform_inputs(filter, images), _transform_gradient(filter, gradient)
        return jnp.einsum("kpc,kpd->kcd", *transformed)

    of_weights = sum_chunks(correlate, (inputs, gradient), _chunk_size(len(kernel), inputs))
    matrix = jnp.asarray(filter.g, inputs.dtype)
    of_weights = of_weights.reshape(filter.size, filter.size, *kernel.shape[2:])
    return of_inputs, jnp.einsum("ai,bj,abcd->ijcd", matrix, matrix, of_weights)


winograd_conv.defvjp(_forward, _backward)


_LARGEST_RATIO = 512.0
"""Norm of a pixel over the typical one from which a batch is convolved directly. The error of its
neighbours is 1e-7 (3×3) or 3e-7 (5×5) times the ratio, of the largest of them. Maps of photographs
in ResNets and VGG have ratios of 2 to 7; those of small objects on an empty background, and the
gradients of the gates that it closes, have ratios up to 360."""


def _has_outliers(images: Array) -> Array:
    """Returns whether a pixel of (N,H,W,C) stands out of its image, or is not finite: () bool.

    It stands out if its norm over channels is ``_LARGEST_RATIO`` times the typical one, which is
    the squared mean of the roots of those above zero: a few outliers hardly move it, nor do the
    zeros of a ReLU. The check takes 1 to 4 % of the time of the convolution.
    """
    energies = jnp.sum(images * images, axis=3)  # Faster than a maximum, which minds NaN.
    norms = jnp.sqrt(energies)
    largest = jnp.max(norms, axis=(1, 2))
    count = jnp.maximum(jnp.sum(norms > 0, axis=(1, 2)), 1)
    typical = (jnp.sum(jnp.sqrt(norms), axis=(1, 2)) / count) ** 2
    # Not "largest >= …", which is False for NaN; infinity is not below infinity.
    return ~jnp.all((largest < _LARGEST_RATIO * typical) | (largest == 0))


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


def _chunk_size(taps: int, images: Array) -> int:
    """Returns the images per chunk for kernels of ``taps``² pixels: 8 of 28², 2 of 12×232."""
    rows, columns = _count_tiles(*images.shape[1:3])
    return max(1, min(_CHUNKS[taps], _TILES_OF_CHUNK // (rows * columns)))


def _count_tiles(height: int, width: int) -> tuple[int, int]:
    return -(-height // TILE), -(-width // TILE)


# Convolution whose gradients are one matmul per kernel tap, for CPUs.
#
# XLA computes the gradients of a convolution as convolutions of transposed feature maps. On a CPU
# the transposition, with the preceding normalisation fused into it, takes longer than the
# arithmetic. As matmuls over the channels, one for each tap of the kernel and a few images at a
# time, a stride-2 layer of 32 channels on 512 feature maps of 16² takes a fourth of the time for
# the kernel's gradient and a third for the inputs'; both gradients of a layer with stride 1 take
# half of it at 512 × 16² and 16 channels, two thirds at 32 × 24×464. The values are those of XLA's
# convolution.

_CHUNK_SIZE = 2**18
"""Elements of inputs and gradient per chunk, which fit into the L2 cache of a CPU."""


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def tapped_conv(inputs: Array, kernel: Array, strides: _Pair, pads: tuple[_Pair, _Pair]) -> Array:
    """Convolves, with a custom vjp. Reverse mode only.

    It is XLA's convolution, but for images of one channel.

    >>> rng = np.random.default_rng(0)
    >>> x = rng.normal(size=(2, 8, 8, 3)).astype(np.float32)
    >>> kernel = rng.normal(size=(3, 3, 3, 4)).astype(np.float32)
    >>> dimensions = ("NHWC", "HWIO", "NHWC")
    >>> def reference(x, kernel):
    ...     return jax.lax.conv_general_dilated(
    ...         x, kernel, (2, 2), "VALID", dimension_numbers=dimensions
    ...     )
    >>> def tapped(x, kernel):
    ...     return tapped_conv(x, kernel, (2, 2), ((0, 0), (0, 0)))
    >>> def gradient(f):
    ...     return jax.jit(jax.grad(lambda kernel: f(x, kernel).sum()))(kernel)
    >>> np.allclose(gradient(tapped), gradient(reference), atol=1e-4)
    True

    Args:
      inputs: (N,H,W,C) float.
      kernel: (kernel_h,kernel_w,C,D) in the same dtype.
      strides: (vertical, horizontal), pixels.
      pads: zeros ((above, below), (left, right)), pixels.

    Returns:
      (N,h,w,D) in the same dtype.
    """
    if inputs.shape[3] == 1 and strides == (1, 1):
        # A matmul over one channel is none: XLA fuses the sum over the taps into one loop, which
        # takes the time of writing the result, a third to a fifteenth of that of its convolution.
        padded = jnp.pad(inputs, ((0, 0), *pads, (0, 0)))
        windows = _windows(padded, (kernel.shape[0], kernel.shape[1]), strides)
        taps = kernel.reshape(-1, kernel.shape[3])
        return functools.reduce(jnp.add, map(jnp.multiply, windows, taps))
    return jax.lax.conv_general_dilated(
        inputs, kernel, strides, pads, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _windows(padded: Array, size: _Pair, strides: _Pair) -> list[Array]:
    """Returns what each tap of a kernel reads of padded images: size[0]·size[1] times (N,h,w,C)."""
    n, *lengths, channels = padded.shape
    ends = [
        (length - taps) // stride * stride + 1
        for length, taps, stride in zip(lengths, size, strides, strict=True)
    ]
    return [
        jax.lax.slice(
            padded,
            (0, i, j, 0),
            (n, i + ends[0], j + ends[1], channels),
            (1, *strides, 1),
        )
        for i, j in np.ndindex(*size)
    ]


def _tapped_forward(
    inputs: Array, kernel: Array, strides: _Pair, pads: tuple[_Pair, _Pair]
) -> tuple[Array, tuple[Array, Array]]:
    return tapped_conv(inputs, kernel, strides, pads), (inputs, kernel)


def _tapped_backward(
    strides: _Pair, pads: tuple[_Pair, _Pair], residuals: tuple[Array, Array], gradient: Array
) -> tuple[Array, Array]:
    inputs, kernel = residuals
    _, h, w, _ = inputs.shape
    kernel_size = kernel.shape[0], kernel.shape[1]
    elements = math.prod(inputs.shape[1:]) + math.prod(gradient.shape[1:])  # Of one image.
    limit = max(1, _CHUNK_SIZE // elements)
    # Two computations, so that XLA removes the one whose result is unused (the first layer needs no
    # gradient of the images).
    of_kernel = sum_chunks(
        partial(_kernel_gradient, size=kernel_size, strides=strides, pads=pads),
        (inputs, gradient),
        limit,
    )
    # A convolution of about the same size, for which nothing is transposed. Behind a kernel that
    # covers all rows of a line most of its products would be with padding.
    covered = 2 * math.prod(gradient.shape[1:3]) > h * w
    if strides == (1, 1) and kernel_size != (1, 1) and covered:
        mirrored = [
            (size - 1 - before, size - 1 - after)
            for size, (before, after) in zip(kernel_size, pads, strict=True)
        ]
        of_inputs = jax.lax.conv_general_dilated(
            gradient,
            kernel[::-1, ::-1].swapaxes(2, 3),
            (1, 1),
            mirrored,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return of_inputs, of_kernel
    of_inputs = map_chunks(
        lambda chunk: _inputs_gradient(chunk, kernel, (h, w), strides, pads), gradient, limit
    )
    return of_inputs, of_kernel


tapped_conv.defvjp(_tapped_forward, _tapped_backward)


def _kernel_gradient(
    inputs: Array, gradient: Array, size: _Pair, strides: _Pair, pads: tuple[_Pair, _Pair]
) -> Array:
    """Returns ∂w (*size,C,D): for each tap, the inputs that it reads times the gradient."""
    padded = jnp.pad(inputs, ((0, 0), *pads, (0, 0)))
    channels, features = inputs.shape[-1], gradient.shape[-1]
    flat = gradient.reshape(-1, features)
    windows = [window.reshape(-1, channels) for window in _windows(padded, size, strides)]
    if channels == 1:
        return (jnp.concatenate(windows, axis=1).T @ flat).reshape(*size, channels, features)
    products = [window.T @ flat for window in windows]
    return jnp.stack(products).reshape(*size, channels, features)


def _inputs_gradient(
    gradient: Array, kernel: Array, size: _Pair, strides: _Pair, pads: tuple[_Pair, _Pair]
) -> Array:
    """Returns ∂x (N,*size,C): the sum over taps of ∂y wᵀ, dilated by the strides and shifted."""
    taps, channels = kernel.shape[:2], kernel.shape[2]
    products = gradient.reshape(-1, kernel.shape[3]) @ kernel.reshape(-1, kernel.shape[3]).T
    products = products.reshape(*gradient.shape[:3], *taps, channels)
    rows, columns = (
        [
            (tap, length + sum(pad) - tap - stride * (steps - 1) - 1, stride - 1)
            for tap in range(count)
        ]
        for count, length, pad, stride, steps in zip(
            taps, size, pads, strides, gradient.shape[1:3], strict=True
        )
    )
    zero = jnp.zeros((), gradient.dtype)
    spread = [
        jax.lax.pad(products[:, :, :, i, j], zero, [(0, 0, 0), row, column, (0, 0, 0)])
        for i, row in enumerate(rows)
        for j, column in enumerate(columns)
    ]
    total = functools.reduce(jnp.add, spread)
    (top, _), (left, _) = pads
    return total[:, top : top + size[0], left : left + size[1]]
