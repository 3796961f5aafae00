"""Products of hidden states with kernels, dense or convolutional, and their two derivatives.

A kernel of rank 2 multiplies the last axis, one of rank 4 convolves maps with zero padding SAME.
One of rank 3 is a matrix for each row of the batch: what attention reads, as an image's regions.
"""

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from flaxnets.divided_batches import may_merge
from flaxnets.spatial.convolution import conv2d, conv2d_kernel_gradient
from flaxnets.typing import Array, PyTree

Pull = jax.tree_util.Partial
"""A function of the gradient of a product, and the kernel that it reads."""
_STEPS_WORTH_A_COPY = 16


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
      hidden: (...,F), (B,C,F) or (B,H,W,F).
      kernel: (F,G) multiplies, (B,F,G) multiplies row by row, (h,w,F,G) convolves.
    """
    kernel = kernel.astype(hidden.dtype)
    if kernel.ndim == 4:
        return conv2d(hidden, kernel)
    if kernel.ndim == 3 or not may_merge():
        return hidden @ kernel
    # With several axes of rows the kernel's gradient is of a copy of the product's on CPUs.
    rows = hidden.reshape(-1, hidden.shape[-1])
    return (rows @ kernel).reshape(*hidden.shape[:-1], kernel.shape[1])


def transpose(kernel: Array, num_steps: int) -> Pull:
    """What gives the gradient of ``multiply`` in the hidden states from that of its result.

    Args:
      kernel: as ``multiply``'s.
      num_steps: how often it is called.

    Returns:
      (B,...,G) to (B,...,F); a pytree whose leaf is the kernel, turned as it is read.
    """
    if kernel.ndim == 4:
        return Pull(_pull_maps, kernel[::-1, ::-1].swapaxes(2, 3))
    if kernel.ndim == 3:
        return Pull(partial(_pull, "bcg,bfg->bcf"), kernel)
    # A matrix is read as it is, or faster (1.03 to 1.6 times on CPUs) after a copy that costs as
    # much as 9 to 19 products save.
    if num_steps < _STEPS_WORTH_A_COPY:
        return Pull(partial(_pull, "...g,fg->...f"), kernel)
    return Pull(partial(_pull, "...g,gf->...f"), kernel.T)


def _pull(axes: str, kernel: Array, gradient: Array) -> Array:
    return jnp.einsum(axes, gradient, kernel.astype(gradient.dtype))


def _pull_maps(turned: Array, gradient: Array) -> Array:
    # What SAME puts in front of an even kernel comes behind it on the way back.
    pads = [(k // 2, k - 1 - k // 2) for k in turned.shape[:2]]
    return conv2d(gradient, turned, padding=pads)


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
        if may_merge():
            hidden, gradient = (x.reshape(-1, x.shape[-1]) for x in (hidden, gradient))
        rows = tuple(range(hidden.ndim - 1))
        return jax.lax.dot_general(
            hidden, gradient, ((rows, rows), ((), ())), preferred_element_type=kernel.dtype
        )
    if kernel.ndim == 3:
        return jnp.einsum("tbcf,tbcg->bfg", hidden, gradient, preferred_element_type=kernel.dtype)
    of_kernel = conv2d_kernel_gradient(
        merge_steps(hidden), merge_steps(gradient), (kernel.shape[0], kernel.shape[1])
    )
    return of_kernel.astype(kernel.dtype)


def merge_steps(maps: Array) -> Array:
    """Maps (T,B,...) of all steps as (T·B,...), or as (B·T,...) where devices divide the batch."""
    maps = maps if may_merge() else maps.swapaxes(0, 1)
    return maps.reshape(-1, *maps.shape[2:])


def split_steps(merged: Array, num_steps: int) -> Array:
    """What ``merge_steps`` made, or a function of it map by map, as (T,B,...)."""
    if may_merge():
        return merged.reshape(num_steps, -1, *merged.shape[1:])
    return merged.reshape(-1, num_steps, *merged.shape[1:]).swapaxes(0, 1)
