"""Products of hidden states with kernels, dense or convolutional, and their two derivatives.

A kernel of rank 2 multiplies the last axis, one of rank 4 convolves maps with zero padding SAME.
One of rank 3 is a matrix for each row of the batch: what attention reads, as an image's regions.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from flaxnets.spatial.convolution import conv2d, conv2d_kernel_gradient
from flaxnets.typing import Array, PyTree


class ScanWeights(NamedTuple):
    """What a scan multiplies with and reads at every step."""

    kernels: dict[str, Array]
    """By name, of rank 2, 3 or 4: see ``products.py``."""
    biases: dict[str, Array]
    """(G,), added to the product of that name."""
    others: PyTree
    """Whatever else the step reads; their gradients are summed within the scan."""


def affine(weights: ScanWeights, addends: Mapping[str, Array], name: str, hidden: Array) -> Array:
    """``hidden`` times kernel ``name``, plus its bias and its addend where it has them."""
    product = multiply(hidden, weights.kernels[name])
    if name in weights.biases:
        product = product + weights.biases[name].astype(product.dtype)
    return product + addends[name] if name in addends else product


def split_addends(
    weights: ScanWeights, inputs: dict[str, Array]
) -> tuple[dict[str, Array], dict[str, Array]]:
    """The inputs that are added to products, and the others."""
    addends = {name: x for name, x in inputs.items() if name in weights.kernels}
    return addends, {name: x for name, x in inputs.items() if name not in addends}


def multiply(hidden: Array, kernel: Array) -> Array:
    """In the dtype of ``hidden``.

    Args:
      hidden: (B,...,F), (B,C,F) or (B,H,W,F).
      kernel: (F,G) multiplies, (B,F,G) multiplies row by row, (h,w,F,G) convolves.
    """
    kernel = kernel.astype(hidden.dtype)
    return hidden @ kernel if kernel.ndim < 4 else conv2d(hidden, kernel)


def transpose(kernel: Array) -> Array:
    """What ``multiply_transposed`` takes: as it is, or (h,w,G,F) turned by half a turn."""
    # A product reads a matrix either way; transposed, it would be a copy.
    return kernel if kernel.ndim < 4 else kernel[::-1, ::-1].swapaxes(2, 3)


def multiply_transposed(gradient: Array, transposed: Array) -> Array:
    """The gradient of ``multiply`` in the hidden states, from that of its result (B,...,G)."""
    transposed = transposed.astype(gradient.dtype)
    if transposed.ndim == 2:
        return jnp.einsum("...g,fg->...f", gradient, transposed)
    if transposed.ndim == 3:
        return jnp.einsum("bcg,bfg->bcf", gradient, transposed)
    # What SAME puts in front of an even kernel comes behind it on the way back.
    pads = [(k // 2, k - 1 - k // 2) for k in transposed.shape[:2]]
    return conv2d(gradient, transposed, padding=pads)


def kernel_gradient(hidden: Array, gradient: Array, kernel: Array) -> Array:
    """The gradient of ``multiply`` in the kernel, summed over all steps.

    Args:
      hidden: (T,B,...,F), the hidden states of all steps.
      gradient: (T,B,...,G), of the products of all steps.
      kernel: of which only rank, size and dtype are read.

    Returns:
      As ``kernel``; summed in its dtype.
    """
    if kernel.ndim == 2:
        return jax.lax.dot_general(
            hidden.reshape(-1, hidden.shape[-1]),
            gradient.reshape(-1, gradient.shape[-1]),
            (((0,), (0,)), ((), ())),
            preferred_element_type=kernel.dtype,
        )
    if kernel.ndim == 3:
        return jnp.einsum("tbcf,tbcg->bfg", hidden, gradient, preferred_element_type=kernel.dtype)
    of_kernel = conv2d_kernel_gradient(
        hidden.reshape(-1, *hidden.shape[2:]),
        gradient.reshape(-1, *gradient.shape[2:]),
        (kernel.shape[0], kernel.shape[1]),
    )
    return of_kernel.astype(kernel.dtype)
