"""Two-dimensional convolution that picks the fastest algorithm for the platform.

On accelerators, in half precision and with channel groups it is XLA's own convolution. In float32
on a CPU, 3×3 and 5×5 kernels use Winograd's algorithm where it pays (``winograd.py``), strided and
1×1 convolutions get gradients as matmuls (``tapped_convolution.py``). All agree with
``jax.lax.conv_general_dilated`` up to rounding.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxnets.layers.batch_sharding import is_batch_known_sharded
from flaxnets.layers.tapped_convolution import tapped_conv
from flaxnets.layers.winograd import KERNEL_SIZES, winograd_conv
from flaxnets.typing import Array, Dtype

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

    Returns:
      (N,h,w,D) in the dtype of ``inputs``.

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
    kernel = kernel.astype(inputs.dtype)

    def direct(inputs: Array, kernel: Array) -> Array:
        return jax.lax.conv_general_dilated(
            inputs,
            kernel,
            strides,
            pads,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )

    # The CPU algorithms loop over chunks of the batch, which a sharded batch would gather.
    if groups > 1 or inputs.dtype != jnp.float32 or is_batch_known_sharded():
        return direct(inputs, kernel)
    margin = kernel_size[0] // 2
    keeps_size = strides == (1, 1) and pads == ((margin, margin),) * 2
    if keeps_size and _suits_winograd(inputs, kernel):
        return jax.lax.platform_dependent(inputs, kernel, cpu=winograd_conv, default=direct)
    if strides != (1, 1) or kernel_size == (1, 1):
        tapped = partial(tapped_conv, strides=strides, pads=pads)
        return jax.lax.platform_dependent(inputs, kernel, cpu=tapped, default=direct)
    return direct(inputs, kernel)


def _suits_winograd(inputs: Array, kernel: Array) -> bool:
    """Returns whether Winograd's algorithm is faster than a direct convolution on a CPU.

    Measured on 2 cores: 1.3 to 1.4 times as fast for 3×3 at 28²×64 and 14²×128, 1.1 to 2.3 times
    for 5×5 at 8 images of 16². On small feature maps the tiles reach far over the edge; with few
    channels the transforms of the inputs cost more than the matmuls, with few tiles those of the
    kernel do.
    """
    n, height, width, channels = inputs.shape
    size = kernel.shape[0]
    if kernel.shape[1] != size or size not in KERNEL_SIZES:
        return False
    if size == 3:
        return min(height, width) >= 14 and min(channels, kernel.shape[3]) >= 32
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
    zeros = jnp.zeros(shape, inputs.dtype)
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
