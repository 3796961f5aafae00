"""The gradient of a batch's loss, in one piece or summed over micro-batches."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from flaxnets.typing import Array, Batch, PRNGKey, PyTree, Sums

LossOf = Callable[[PyTree, PyTree, Batch, PRNGKey], tuple[Sums, PyTree]]
"""(params, collections, batch, key) to sums with ``loss``, and the updated collections."""


def accumulate_gradients(
    loss_of: LossOf,
    params: PyTree,
    collections: PyTree,
    batch: Batch,
    key: PRNGKey,
    *,
    num_micro: int = 1,
    axis_name: str | None = None,
) -> tuple[PyTree, Sums, PyTree]:
    """The gradient of the loss's total over a batch; its quotient is for the caller.

    Totals, counts and the total's gradients of the micro-batches add up, so that a quotient taken
    after that weights every counted entry alike, however they are spread. Micro-batch m of M has
    the rows m, m + M, …: which rows lie together is the same on any number of devices, and devices
    that hold neighbouring rows need not exchange any. Collections go from one micro-batch to the
    next; statistics of BatchNorm are those of one micro-batch at a time. One in which nothing
    counts leaves them as they are.

    Args:
      loss_of: a micro-batch's sums.
      params: nested dict of arrays, differentiated.
      collections: Linen's other ones.
      batch: arrays (B,...), B a multiple of ``num_micro``.
      key: of the step; with several micro-batches each has one of its own.
      num_micro: M; one works on all rows at once.
      axis_name: the mapped axis over which rows are divided, if they are.

    Returns:
      The gradient and the sums, over this device's rows alone where they are divided, and the
      collections.
    """

    def total_of(
        params: PyTree, collections: PyTree, batch: Batch, key: PRNGKey
    ) -> tuple[Array, tuple[Sums, PyTree]]:
        sums, updated = loss_of(params, collections, batch, key)
        # Batch statistics over no rows are NaN.
        counts = _over_devices(sums["loss"][1], axis_name) > 0
        updated = {**collections, **updated}
        kept = jax.tree.map(
            lambda new, old: jnp.where(counts, new, old).astype(old.dtype), updated, collections
        )
        return sums["loss"][0], (sums, kept)

    gradient = jax.grad(total_of, has_aux=True)
    if num_micro == 1:
        gradients, (sums, collections) = gradient(params, collections, batch, key)
        return gradients, sums, collections

    def rows_of_micro(x: Array) -> Array:
        return jnp.moveaxis(x.reshape(-1, num_micro, *x.shape[1:]), 1, 0)  # (M,B/M,...)

    def add_micro(
        carry: tuple[PyTree, PyTree], micro: tuple[Array, Batch]
    ) -> tuple[tuple[PyTree, PyTree], Sums]:
        summed, collections = carry
        number, rows = micro
        of_rows, (sums, collections) = gradient(
            params, collections, rows, jax.random.fold_in(key, number)
        )
        return (jax.tree.map(jnp.add, summed, of_rows), collections), sums

    nothing = jax.tree.map(jnp.zeros_like, params)
    micros = jnp.arange(num_micro), jax.tree.map(rows_of_micro, dict(batch))
    (gradients, collections), stacked = jax.lax.scan(add_micro, (nothing, collections), micros)
    return gradients, jax.tree.map(lambda x: x.sum(0), stacked), collections


def _over_devices(count: Array, axis_name: str | None) -> Array:
    return count if axis_name is None else jax.lax.psum(count, axis_name)
