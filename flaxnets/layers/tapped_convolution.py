"""Convolution whose gradients are matrix products, tap by tap, for CPUs.

XLA turns the gradients of a convolution into convolutions of turned maps. On a CPU the turning,
with the normalisation before it fused into it, takes longer than the products: a stride-2 layer of
32 channels on 512 maps of 16² takes 93 ms for the kernel's gradient and 36 ms for the inputs'; as
products over the channels, one for each tap of the kernel and a few images at a time, 23 and 11.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from flaxnets.layers.batch_sharding import split_batch
from flaxnets.typing import Array

_Pair = tuple[int, int]
_CHUNK_SIZE = 2**18
"""Numbers of inputs and gradient at a time: they stay in a CPU's second cache."""


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def tapped_conv(inputs: Array, kernel: Array, strides: _Pair, pads: tuple[_Pair, _Pair]) -> Array:
    """XLA's convolution with gradients of its own. Reverse mode only.

    Args:
      inputs: (N,H,W,C) float.
      kernel: (kernel_h,kernel_w,C,D) of the same type.
      strides: (vertical, horizontal), pixels.
      pads: zeros ((above, below), (left, right)).

    Returns:
      (N,h,w,D).
    """
    return jax.lax.conv_general_dilated(
        inputs, kernel, strides, pads, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _forward(
    inputs: Array, kernel: Array, strides: _Pair, pads: tuple[_Pair, _Pair]
) -> tuple[Array, tuple[Array, Array]]:
    return tapped_conv(inputs, kernel, strides, pads), (inputs, kernel)


def _backward(
    strides: _Pair, pads: tuple[_Pair, _Pair], residuals: tuple[Array, Array], gradient: Array
) -> tuple[Array, Array]:
    inputs, kernel = residuals
    _, h, w, _ = inputs.shape
    kernel_size = kernel.shape[0], kernel.shape[1]
    limit = max(1, _CHUNK_SIZE * len(inputs) // (inputs.size + gradient.size))
    gradients = split_batch(gradient, limit)

    def add(total: Array, chunk: tuple[Array, Array]) -> tuple[Array, None]:
        return total + _kernel_gradient(*chunk, kernel_size, strides, pads), None

    # Two loops: XLA leaves out the one whose result nobody reads.
    zeros = jnp.zeros_like(kernel)
    of_kernel, _ = jax.lax.scan(add, zeros, (split_batch(inputs, limit), gradients))
    of_inputs = jax.lax.map(
        lambda chunk: _inputs_gradient(chunk, kernel, (h, w), strides, pads), gradients
    )
    return of_inputs.reshape(inputs.shape), of_kernel


tapped_conv.defvjp(_forward, _backward)


def _kernel_gradient(
    inputs: Array, gradient: Array, size: _Pair, strides: _Pair, pads: tuple[_Pair, _Pair]
) -> Array:
    """Of each tap the product of what it reads with the gradient, (*size,C,D)."""
    padded = jnp.pad(inputs, ((0, 0), *pads, (0, 0)))
    channels, features = inputs.shape[-1], gradient.shape[-1]
    flat = gradient.reshape(-1, features)
    products = []
    for tap in np.ndindex(*size):
        ends = [
            start + stride * (steps - 1) + 1
            for start, stride, steps in zip(tap, strides, gradient.shape[1:3], strict=True)
        ]
        limits = len(padded), *ends, channels
        window = jax.lax.slice(padded, (0, *tap, 0), limits, (1, *strides, 1))
        products.append(window.reshape(-1, channels).T @ flat)
    return jnp.stack(products).reshape(*size, channels, features)


def _inputs_gradient(
    gradient: Array, kernel: Array, size: _Pair, strides: _Pair, pads: tuple[_Pair, _Pair]
) -> Array:
    """What each tap has read of images of ``size``, spread out by the strides, (N,*size,C)."""
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
