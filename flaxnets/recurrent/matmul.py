"""Products of hidden states with kernels, dense or convolutional, and their two derivatives.

A kernel of rank 2 multiplies the last axis, one of rank 4 convolves maps with zero padding SAME.
One of rank 3 is a matrix for each row of the batch: what attention reads, as an image's regions.
"""

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from flaxnets.layers.batch_sharding import is_batch_known_unsharded
from flaxnets.layers.convolution import conv2d, conv2d_kernel_gradient
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
    if kernel.ndim == 3 or not is_batch_known_unsharded():
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
        if is_batch_known_unsharded():
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
    maps = maps if is_batch_known_unsharded() else maps.swapaxes(0, 1)
    return maps.reshape(-1, *maps.shape[2:])


def split_steps(merged: Array, num_steps: int) -> Array:
    """What ``merge_steps`` made, or a function of it map by map, as (T,B,...)."""
    if is_batch_known_unsharded():
        return merged.reshape(num_steps, -1, *merged.shape[1:])
    return merged.reshape(-1, num_steps, *merged.shape[1:]).swapaxes(0, 1)


# Products of the vectors of all steps with a kernel, without those of padding.
#
# Sequences of a batch differ in length, and often a third of all steps are padding. On CPUs, where
# a product takes as long as it has rows, the rows that count are gathered, a number of them that is
# rounded up to one of a few sizes is multiplied, and the results are put back. Where devices divide
# the batch each of them multiplies all of its rows.

_SHARES = (0.5, 0.625, 0.75, 0.875, 1.0)
"""Of all rows: the sizes that are compiled."""
_FEWEST_ROWS = 256
"""Below, gathering costs more than it saves."""


def multiply_valid(x: Array, kernel: Array, valid: Array) -> Array:
    """``x`` times ``kernel`` where ``valid``, else zeros.

    Reverse mode only: it has no forward-mode derivative. Under ``vmap`` all sizes are computed.

    Args:
      x: (...,F) float.
      kernel: (F,G).
      valid: (...) bool.

    Returns:
      (...,G) in the dtype of ``x``.
    """
    if not is_batch_known_unsharded():
        return jnp.where(valid[..., None], multiply(x, kernel), 0)
    rows, mask = x.reshape(-1, x.shape[-1]), valid.reshape(-1)
    product = _multiply_rows(rows, kernel.astype(x.dtype), mask)
    return product.reshape(*x.shape[:-1], kernel.shape[-1])


@jax.custom_vjp
def _multiply_rows(rows: Array, kernel: Array, mask: Array) -> Array:
    def multiply_packed(size: int, rows: Array, kernel: Array, mask: Array) -> Array:
        order, position = _pack(mask, size)
        return jnp.where(mask[:, None], (rows[order] @ kernel)[position], 0)

    def multiply_all(rows: Array, kernel: Array, mask: Array) -> Array:
        return jnp.where(mask[:, None], rows @ kernel, 0)

    return _by_size(multiply_packed, multiply_all, mask, rows, kernel)


def _multiply_rows_forward(
    rows: Array, kernel: Array, mask: Array
) -> tuple[Array, tuple[Array, Array, Array]]:
    return _multiply_rows(rows, kernel, mask), (rows, kernel, mask)


def _multiply_rows_backward(
    residuals: tuple[Array, Array, Array], gradient: Array
) -> tuple[Array, Array, None]:
    def pull_packed(
        size: int, rows: Array, kernel: Array, gradient: Array, mask: Array
    ) -> tuple[Array, Array]:
        order, position = _pack(mask, size)
        packed = jnp.where(mask[order][:, None], gradient[order], 0)
        of_rows = jnp.where(mask[:, None], (packed @ kernel.T)[position], 0)
        return of_rows, rows[order].T @ packed

    def pull_all(rows: Array, kernel: Array, gradient: Array, mask: Array) -> tuple[Array, Array]:
        gradient = jnp.where(mask[:, None], gradient, 0)
        return gradient @ kernel.T, rows.T @ gradient

    rows, kernel, mask = residuals
    of_rows, of_kernel = _by_size(pull_packed, pull_all, mask, rows, kernel, gradient)
    return of_rows, of_kernel, None


_multiply_rows.defvjp(_multiply_rows_forward, _multiply_rows_backward)


def valid_kernel_gradient(hidden: Array, gradient: Array, kernel: Array, valid: Array) -> Array:
    """``products.kernel_gradient`` of a matrix, from the steps that are valid.

    Args:
      hidden: (T,B,...,F).
      gradient: (T,B,...,G), zero where not valid.
      kernel: (F,G), of which only the dtype is read.
      valid: (T,B,...) bool.

    Returns:
      (F,G); summed in the dtype of ``kernel``.
    """

    def sum_packed(size: int, rows: Array, gradient: Array, mask: Array) -> Array:
        order, _ = _pack(mask, size)
        return sum_all(rows[order], gradient[order], mask)

    def sum_all(rows: Array, gradient: Array, mask: Array) -> Array:
        dimensions = ((0,), (0,)), ((), ())
        return jax.lax.dot_general(rows, gradient, dimensions, preferred_element_type=kernel.dtype)

    if not is_batch_known_unsharded():
        return kernel_gradient(hidden, gradient, kernel)
    rows = hidden.reshape(-1, hidden.shape[-1])
    gradients = gradient.reshape(-1, gradient.shape[-1])
    return _by_size(sum_packed, sum_all, valid.reshape(-1), rows, gradients)


def _pack(mask: Array, size: int) -> tuple[Array, Array]:
    """Numbers (size,) of the rows, valid ones first, and each row's place among them (N,)."""
    order = jnp.argsort(~mask, stable=True)[:size]
    return order, jnp.clip(jnp.cumsum(mask) - 1, 0, size - 1)


def _by_size(packed, plain, mask: Array, *arguments: Array):  # type: ignore[no-untyped-def]
    """``packed`` of the smallest size that holds all valid rows on CPUs, ``plain`` elsewhere."""
    count = len(mask)
    if count < _FEWEST_ROWS:
        return plain(*arguments, mask)
    sizes = [round(share * count) for share in _SHARES]

    def choose(*arguments: Array):  # type: ignore[no-untyped-def]
        index = jnp.sum(jnp.sum(arguments[-1]) > jnp.asarray(sizes[:-1]))
        return jax.lax.switch(index, [partial(packed, size) for size in sizes], *arguments)

    return jax.lax.platform_dependent(*arguments, mask, cpu=choose, default=plain)
