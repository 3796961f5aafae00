"""Depthwise convolution, one filter per channel, that is fast on CPUs as well.

On a CPU, XLA's grouped convolution is 3 to 40 times slower than the same sum written as shifted
slices times weights; on accelerators the grouped convolution is faster and is used.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from flaxnets.configuration import check_dtype_argument
from flaxnets.layers.batch_sharding import in_auto_axes, vary_alike
from flaxnets.layers.convolution import Padding, is_empty, resolve_padding
from flaxnets.typing import Array, Dtype

_Pair = tuple[int, int]
_Pads = tuple[_Pair, _Pair]


def depthwise_conv(
    features: Array, kernel: Array, *, strides: int = 1, padding: Padding = "SAME"
) -> Array:
    """Convolves each channel with its own filter.

        y[n,i,j,c] = Σ_{k,l} x[n, s·i + k - p, s·j + l - q, c] · w[k,l,0,c]

    where p and q are the padding above and on the left. Of an odd ``SAME`` padding they are the
    smaller half, so that at stride 2 and an even size it differs from PyTorch's padding of (k−1)/2.

    >>> rng = np.random.default_rng(0)
    >>> x = rng.normal(size=(2, 8, 8, 4)).astype(np.float32)
    >>> kernel = rng.normal(size=(3, 3, 1, 4)).astype(np.float32)
    >>> y = depthwise_conv(x, kernel, strides=2)
    >>> y.shape, np.allclose(y, native_depthwise_conv(x, kernel, strides=2), atol=1e-5)
    ((2, 4, 4, 4), True)

    Args:
      features: (N,H,W,C) float.
      kernel: (kernel_h,kernel_w,1,C) float, in the layout of ``nn.Conv`` with C groups.
      strides: s, along both axes, >= 1, pixels.
      padding: zeros around the images, see ``Padding``.

    Returns:
      (N,h,w,C) in the dtype of ``features``, with ``SAME`` (N, ceil(H/s), ceil(W/s), C); summed in
      float32, or float64 for such features.

    Raises:
      ValueError: features or kernel of another rank, channels that do not match, or strides < 1.
    """
    if features.ndim != 4:
        raise ValueError(f"features: expected (N,H,W,C), received shape {features.shape}")
    channels = features.shape[-1]
    if kernel.ndim != 4 or kernel.shape[2:] != (1, channels):
        raise ValueError(
            f"kernel: expected (kernel_h,kernel_w,1,{channels}), received shape {kernel.shape}"
        )
    if strides < 1:
        raise ValueError(f"strides: expected at least 1, received {strides}")

    size, kernel_size = features.shape[1:3], kernel.shape[:2]
    pads = resolve_padding(
        padding, (size[0], size[1]), (kernel_size[0], kernel_size[1]), (strides, strides)
    )

    def native(features: Array, kernel: Array) -> Array:
        return native_depthwise_conv(features, kernel, strides, pads)

    def shifted(features: Array, kernel: Array) -> Array:
        return shifted_depthwise_conv(features, kernel, strides, pads)

    kernel = kernel.astype(features.dtype)
    if is_empty(features, (kernel_size[0], kernel_size[1]), pads):
        return native(features, kernel)  # Slices would fail.

    def convolve(features: Array, kernel: Array) -> Array:
        return jax.lax.platform_dependent(features, kernel, cpu=shifted, default=native)

    features, kernel = vary_alike((features, kernel))
    return in_auto_axes(convolve, features)(features, kernel)


def native_depthwise_conv(
    features: Array, kernel: Array, strides: int, padding: str | _Pads = "SAME"
) -> Array:
    """Computes ``depthwise_conv`` as one grouped convolution of XLA, the reference."""
    return jax.lax.conv_general_dilated(
        features,
        kernel,
        window_strides=(strides, strides),
        padding=padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=features.shape[-1],
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def shifted_depthwise_conv(features: Array, kernel: Array, strides: int, padding: _Pads) -> Array:
    """Computes ``depthwise_conv`` as shifted slices times weights, one term for each tap.

    The vjp is custom: the one that JAX derives from the slices and sums takes several times as long
    at stride 1 (176 instead of 21 ms for a 5×5 layer on 2 cores) and hardly less at stride 2, since
    XLA sums the weight gradient of each tap in a slow loop. Reverse mode only.
    """
    kernel_size, _, outputs = _geometry(features, kernel, strides, padding)
    dtype = jnp.promote_types(features.dtype, jnp.float32)
    padded = jnp.pad(features, ((0, 0), *padding, (0, 0)))
    total = jnp.zeros((features.shape[0], *outputs, features.shape[-1]), dtype)
    for i, j in np.ndindex(*kernel_size):
        window = _slice(padded, i, j, outputs, strides)
        total += window.astype(dtype) * kernel[i, j, 0].astype(dtype)
    return total.astype(features.dtype)


def _forward(
    features: Array, kernel: Array, strides: int, padding: _Pads
) -> tuple[Array, tuple[Array, Array]]:
    return shifted_depthwise_conv(features, kernel, strides, padding), (features, kernel)


def _backward(
    strides: int, padding: _Pads, inputs: tuple[Array, Array], gradient: Array
) -> tuple[Array, Array]:
    features, kernel = inputs
    dtype = jnp.promote_types(features.dtype, jnp.float32)
    kernel_size, size, outputs = _geometry(features, kernel, strides, padding)

    # ∂x is ∂y, dilated by the strides, convolved with the flipped kernel.
    spread = [(0, 0, 0)]
    for n, k, (before, _), m in zip(size, kernel_size, padding, outputs, strict=True):
        low = k - 1 - before
        spread.append((low, n + k - 1 - low - (strides * (m - 1) + 1), strides - 1))
    zero = jnp.zeros((), gradient.dtype)
    padded_gradient = jax.lax.pad(gradient, zero, [*spread, (0, 0, 0)])
    flipped = kernel[::-1, ::-1, 0].astype(dtype)
    of_features = jnp.zeros(features.shape, dtype)
    for i, j in np.ndindex(*kernel_size):
        window = _slice(padded_gradient, i, j, size, 1)
        of_features += window.astype(dtype) * flipped[i, j]

    # ∂w one tap at a time, in a loop: unrolled, XLA would compile each into a slow reduction.
    padded = jnp.pad(features, ((0, 0), *padding, (0, 0)))

    def sum_tap(tap: Array) -> Array:
        window = _slice(padded, tap // kernel_size[1], tap % kernel_size[1], outputs, strides)
        return jnp.sum(window.astype(dtype) * gradient.astype(dtype), axis=(0, 1, 2))

    of_kernel = jax.lax.map(sum_tap, jnp.arange(kernel_size[0] * kernel_size[1]))
    return of_features.astype(features.dtype), of_kernel.reshape(kernel.shape).astype(kernel.dtype)


shifted_depthwise_conv.defvjp(_forward, _backward)


def _geometry(
    features: Array, kernel: Array, strides: int, padding: _Pads
) -> tuple[_Pair, _Pair, _Pair]:
    """Returns the sizes (vertical, horizontal) of the kernel, the inputs and the outputs."""
    kernel_size, size = (kernel.shape[0], kernel.shape[1]), features.shape[1:3]
    rows, columns = (
        (n + before + after - k) // strides + 1
        for n, k, (before, after) in zip(size, kernel_size, padding, strict=True)
    )
    return kernel_size, (size[0], size[1]), (rows, columns)


def _slice(padded: Array, row: int | Array, column: int | Array, size: _Pair, step: int) -> Array:
    """Slices (N,H,W,C) to (N,*size,C): every ``step``-th position from (row, column) on."""
    n, _, _, c = padded.shape
    extent = (n, step * (size[0] - 1) + 1, step * (size[1] - 1) + 1, c)
    if isinstance(row, int) and isinstance(column, int):
        limits = (n, row + extent[1], column + extent[2], c)
        return jax.lax.slice(padded, (0, row, column, 0), limits, (1, step, step, 1))
    return jax.lax.dynamic_slice(padded, (0, row, column, 0), extent)[:, ::step, ::step]


class DepthwiseConv(nn.Module):
    """Depthwise convolution layer without bias; see ``depthwise_conv``.

    The parameter ``kernel`` (k,k,1,C) is that of ``nn.Conv`` with as many groups as channels.

    >>> x = np.random.default_rng(0).normal(size=(1, 6, 6, 4)).astype(np.float32)
    >>> y, variables = DepthwiseConv(3).init_with_output(jax.random.key(1), x)
    >>> reference = nn.Conv(4, (3, 3), feature_group_count=4, use_bias=False)
    >>> y.shape, np.allclose(y, reference.apply(variables, x), atol=1e-5)
    ((1, 6, 6, 4), True)

    Attributes:
      kernel_size: height and width of each filter, pixels.
      strides: along both axes, pixels.
      padding: see ``Padding``.
      dtype: of the arithmetic and the outputs; None: promoted from inputs and parameters.
      param_dtype: of the parameters.
      kernel_init: of the filters (k,k,1,C).
    """

    kernel_size: int
    strides: int = 1
    padding: Padding = "SAME"
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    kernel_init: Callable[..., Array] = nn.initializers.variance_scaling(
        2.0, "fan_out", "truncated_normal", in_axis=-2, out_axis=-2
    )

    def __post_init__(self) -> None:
        """Refuses the name of a dtype that does not exist."""
        check_dtype_argument(self.dtype)
        super().__post_init__()

    @nn.compact
    def __call__(self, features: Array) -> Array:
        """Maps (N,H,W,C) float to (N,h,w,C) in ``dtype``."""
        shape = (self.kernel_size, self.kernel_size, 1, features.shape[-1])
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        features, kernel = nn.dtypes.promote_dtype(features, kernel, dtype=self.dtype)
        return depthwise_conv(features, kernel, strides=self.strides, padding=self.padding)
