"""Products of the vectors of all steps with a kernel, without those of padding.

Sequences of a batch differ in length, and often a third of all steps are padding. On CPUs, where a
product takes as long as it has rows, the rows that count are gathered, a number of them that is
rounded up to one of a few sizes is multiplied, and the results are put back. Where devices divide
the batch each of them multiplies all of its rows.
"""

from functools import partial

import jax
import jax.numpy as jnp

from flaxnets.divided_batches import may_merge
from flaxnets.recurrent.products import kernel_gradient, multiply
from flaxnets.typing import Array

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
    if not may_merge():
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

    if not may_merge():
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
