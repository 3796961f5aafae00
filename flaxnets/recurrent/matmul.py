"""Matmuls and convolutions of hidden states, with the derivatives that a scan defers.

The rank of a kernel selects the operation: rank 2 (F,G) is a matmul over the last axis, rank 4
(h,w,F,G) a convolution of feature maps with zero padding SAME, and rank 3 (B,F,G) a matmul with one
matrix for each row of the batch, as attention over the regions of an image needs.

``multiply_valid`` and ``valid_kernel_gradient`` skip padded steps: sequences of a batch differ in
length, and often a third of all steps are padding. On CPUs, where the time of a matmul grows with
its rows, the valid rows are gathered, padded to one of a few static sizes, multiplied, and
scattered back. Where the batch is sharded over devices each device multiplies all of its rows.
"""

import math
from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from flaxnets.layers.batch_sharding import is_batch_known_unsharded, vary_alike
from flaxnets.layers.convolution import conv2d, conv2d_kernel_gradient
from flaxnets.layers.padding import zero_where_masked
from flaxnets.typing import Array, PyTree

HiddenVjp = jax.tree_util.Partial
"""The vjp of ``multiply`` in the hidden states, as a pytree whose leaf is the kernel."""
_STEPS_WORTH_A_COPY = 16
_SHARES = (0.5, 0.625, 0.75, 0.875, 1.0)
"""Static sizes that are compiled for packed rows, as shares of all rows."""
_FEWEST_ROWS = 256
"""With fewer rows gathering costs more than it saves."""


class ScanWeights(NamedTuple):
    """Parameters that every step of a scan uses."""

    kernels: dict[str, Array]
    """Kernels of hidden projections by name, of rank 2, 3 or 4."""
    biases: dict[str, Array]
    """(G,), added to the projection of that name."""
    others: PyTree
    """All other parameters of a step; their gradients are summed within the scan."""


def affine(
    weights: ScanWeights,
    added: Mapping[str, Array],
    name: str,
    hidden: Array,
    *,
    autodiff: bool = False,
) -> Array:
    """Returns h U + b + x: a hidden projection with its bias and its projected inputs.

    Args:
      weights: the kernels U and biases b by name; a bias may be missing.
      added: projected inputs x of this step by name; may be missing.
      name: of the projection.
      hidden: h, (B,...,F).
      autodiff: see ``multiply``.
    """
    product = multiply(hidden, weights.kernels[name], autodiff=autodiff)
    if name in weights.biases:
        product = product + weights.biases[name].astype(product.dtype)
    return product + added[name] if name in added else product


def split_projected(
    weights: ScanWeights, projected: dict[str, Array]
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Returns the projected inputs that ``affine`` adds to a hidden projection, and the others."""
    added = {name: x for name, x in projected.items() if name in weights.kernels}
    return added, {name: x for name, x in projected.items() if name not in added}


def multiply(hidden: Array, kernel: Array, *, autodiff: bool = False) -> Array:
    """Returns the matmul or convolution of hidden states with a kernel, in their dtype.

    Args:
      hidden: (...,F), (B,C,F) or (B,H,W,F).
      kernel: (F,G) for a matmul, (B,F,G) for one matrix per row, (h,w,F,G) for a convolution.
      autodiff: has derivatives in any mode; else those of a convolution may be in reverse mode
        only.
    """
    kernel = kernel.astype(hidden.dtype)
    if kernel.ndim == 4:
        return conv2d(hidden, kernel, autodiff=autodiff)
    if kernel.ndim == 3 or not is_batch_known_unsharded():
        return hidden @ kernel
    # With several leading axes XLA's kernel gradient copies the product's gradient on CPUs.
    rows = hidden.reshape(math.prod(hidden.shape[:-1]), hidden.shape[-1])
    return (rows @ kernel).reshape(*hidden.shape[:-1], kernel.shape[1])


def hidden_vjp(kernel: Array, num_steps: int) -> HiddenVjp:
    """Returns the vjp of ``multiply`` in the hidden states: (B,...,G) to (B,...,F).

    Args:
      kernel: as in ``multiply``.
      num_steps: number of times that the vjp is called.
    """
    if kernel.ndim == 4:
        return HiddenVjp(_convolution_vjp, kernel[::-1, ::-1].swapaxes(2, 3))
    if kernel.ndim == 3:
        return HiddenVjp(partial(_matmul_vjp, "bcg,bfg->bcf"), kernel)
    # A transposed copy of the matrix makes each step 1.03 to 1.6 times as fast on CPUs, and costs
    # as much as 9 to 19 steps save.
    if num_steps < _STEPS_WORTH_A_COPY:
        return HiddenVjp(partial(_matmul_vjp, "...g,fg->...f"), kernel)
    return HiddenVjp(partial(_matmul_vjp, "...g,gf->...f"), kernel.T)


def _matmul_vjp(axes: str, kernel: Array, gradient: Array) -> Array:
    return jnp.einsum(axes, gradient, kernel.astype(gradient.dtype))


def _convolution_vjp(flipped: Array, gradient: Array) -> Array:
    # SAME pads an even kernel more at the end; its vjp pads more at the beginning.
    pads = [(k // 2, k - 1 - k // 2) for k in flipped.shape[:2]]
    return conv2d(gradient, flipped, padding=pads)


def kernel_gradient(hidden: Array, gradient: Array, kernel: Array) -> Array:
    """Returns the gradient of ``multiply`` in the kernel, summed over all steps.

    Args:
      hidden: (T,B,...,F), the hidden states of all steps.
      gradient: (T,B,...,G), of the projections of all steps.
      kernel: gives rank, size and dtype of the result, which is summed in that dtype.
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
    d_kernel = conv2d_kernel_gradient(
        merge_steps(hidden), merge_steps(gradient), (kernel.shape[0], kernel.shape[1])
    )
    return d_kernel.astype(kernel.dtype)


def merge_steps(maps: Array) -> Array:
    """Returns feature maps (T,B,...) as (T·B,...), or as (B·T,...) where the batch is sharded.

    A merged axis can be sharded over the batch only if the batch comes first.
    """
    maps = maps if is_batch_known_unsharded() else maps.swapaxes(0, 1)
    # Not -1, which maps of no channels leave undetermined.
    return maps.reshape(maps.shape[0] * maps.shape[1], *maps.shape[2:])


def split_steps(merged: Array, num_steps: int) -> Array:
    """Returns (T,B,...) from the result of ``merge_steps``, or from a function of each map."""
    if is_batch_known_unsharded():
        return merged.reshape(num_steps, -1, *merged.shape[1:])
    return merged.reshape(-1, num_steps, *merged.shape[1:]).swapaxes(0, 1)


def multiply_valid(x: Array, kernel: Array, valid: Array) -> Array:
    """Returns ``x`` times ``kernel`` where ``valid``, else zeros: (...,G) in the dtype of ``x``.

    Reverse mode only: there is no forward-mode derivative. Under ``vmap`` all sizes are computed.

    Args:
      x: (...,F) float; not read where not ``valid``.
      kernel: (F,G).
      valid: (...) bool.
    """
    if not is_batch_known_unsharded():
        return jnp.where(valid[..., None], multiply(zero_where_masked(x, valid), kernel), 0)
    rows, mask = x.reshape(-1, x.shape[-1]), valid.reshape(-1)
    product = _multiply_rows(*vary_alike((rows, kernel.astype(x.dtype), mask)))
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
    def vjp_packed(
        size: int, rows: Array, kernel: Array, gradient: Array, mask: Array
    ) -> tuple[Array, Array]:
        order, position = _pack(mask, size)
        packed = jnp.where(mask[order][:, None], gradient[order], 0)
        d_rows = jnp.where(mask[:, None], (packed @ kernel.T)[position], 0)
        return d_rows, rows[order].T @ packed

    def vjp_all(rows: Array, kernel: Array, gradient: Array, mask: Array) -> tuple[Array, Array]:
        gradient = jnp.where(mask[:, None], gradient, 0)
        return gradient @ kernel.T, rows.T @ gradient

    rows, kernel, mask = residuals
    rows = zero_where_masked(rows, mask)
    d_rows, d_kernel = _by_size(vjp_packed, vjp_all, mask, rows, kernel, gradient)
    return d_rows, d_kernel, None


_multiply_rows.defvjp(_multiply_rows_forward, _multiply_rows_backward)


def valid_kernel_gradient(hidden: Array, gradient: Array, kernel: Array, valid: Array) -> Array:
    """Returns the ``kernel_gradient`` (F,G) of a matrix, summed over the valid steps alone.

    Args:
      hidden: (T,B,...,F).
      gradient: (T,B,...,G), zero where not valid.
      kernel: (F,G), gives the dtype of the sum.
      valid: (T,B,...) bool.
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
    """Returns (size,) indices of rows, valid ones first, and each row's index among them, (N,)."""
    order = jnp.argsort(~mask, stable=True)[:size]
    return order, jnp.clip(jnp.cumsum(mask) - 1, 0, size - 1)


def _by_size(packed, plain, mask: Array, *arguments: Array):  # type: ignore[no-untyped-def]
    """Runs ``packed`` of the smallest size that holds all valid rows on CPUs, else ``plain``."""
    count = mask.shape[0]
    # An export for any batch size and number of steps does not know the number of rows.
    if not isinstance(count, int) or count < _FEWEST_ROWS:
        return plain(*arguments, mask)
    sizes = [round(share * count) for share in _SHARES]

    def choose(*arguments: Array):  # type: ignore[no-untyped-def]
        index = jnp.sum(jnp.sum(arguments[-1]) > jnp.asarray(sizes[:-1]))
        return jax.lax.switch(index, [partial(packed, size) for size in sizes], *arguments)

    return jax.lax.platform_dependent(*arguments, mask, cpu=choose, default=plain)
