"""Pure functions that training compiles: one step, and the evaluation of one batch."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from flaxnets.tasks.task import Task
from flaxnets.training.optimizer import frozen_mask
from flaxnets.training.parallel import Strategy, with_axis_name
from flaxnets.training.state import TrainState
from flaxnets.typing import (
    Array,
    Batch,
    PRNGKey,
    PyTree,
    Sums,
)

TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Sums]]
"""Function of (state, batch) to the next state and the sums of the step."""

EvaluationStep = Callable[[PyTree, Batch], tuple[Sums, dict[str, Array]]]
"""Function of (variables, batch) to sums, and outputs (B,...) of each example."""

LossOf = Callable[[PyTree, PyTree, Batch, PRNGKey], tuple[Sums, PyTree]]
"""Function of (params, collections, batch, key) to sums with ``loss``, and updated collections."""


def make_train_step(
    model: nn.Module,
    task: Task,
    optimizer: optax.GradientTransformation,
    *,
    frozen: tuple[str, ...] = (),
    strategy: Strategy | None = None,
    accumulate_steps: int = 1,
    ema_decay: float = 0.0,
) -> TrainStep:
    """Returns the function of one training step: gradient, update, average, metrics.

    The gradient is that of the mean loss over the whole batch (total / count), independent of the
    devices that hold its rows and of the split into micro-batches. The task's sums are returned
    with ``gradient_norm`` (before clipping, without frozen parameters) and ``parameter_norm``
    (after the update, of all parameters).

    A batch in which no row counts, or whose loss or gradient is not finite, advances ``state.step``
    and changes nothing else; the sums show the non-finite value.

    Args:
      model: the network.
      task: its loss.
      optimizer: from ``make_optimizer``.
      frozen: paths, or prefixes of paths, of parameters without a gradient.
      strategy: compiles the step; None: plain ``jax.jit``, or no compilation.
      accumulate_steps: number of micro-batches; divides each device's rows evenly.
      ema_decay: d in the average d · ema + (1 − d) · params after each step; 0: no average. At step
        n = 0, 1, … d is at most (1 + n) / (10 + n), or the random start would stay in it for long.
    """
    axis_name = None if strategy is None else strategy.axis_name
    model = with_axis_name(model, axis_name)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Sums]:
        key = state.step_key()
        if axis_name is not None:  # Else all devices would draw the same dropout masks.
            key = jax.random.fold_in(key, jax.lax.axis_index(axis_name))
        is_frozen = frozen_mask(state.params, frozen)

        def loss_of(
            params: PyTree, collections: PyTree, rows: Batch, key: PRNGKey
        ) -> tuple[Sums, PyTree]:
            # stop_gradient lets XLA remove the backward pass of frozen parameters.
            params = jax.tree.map(
                lambda leaf, cut: jax.lax.stop_gradient(leaf) if cut else leaf, params, is_frozen
            )
            return task.loss(model, {"params": params, **collections}, rows, key, state.step)

        params = state.params if strategy is None else strategy.gather(state.params)
        gradients, sums, collections = accumulate_gradients(
            loss_of,
            params,
            state.collections,
            batch,
            key,
            num_micro=accumulate_steps,
            axis_name=axis_name,
        )
        if axis_name is not None:
            gradients, sums = jax.lax.psum((gradients, sums), axis_name)
        if strategy is not None:  # Else XLA would shard the backward pass as the state is.
            gradients = strategy.gather(gradients)
        # The division comes after all sums, so that each counted row weighs the same however the
        # rows are spread over devices and micro-batches.
        total, count = sums["loss"]
        gradients = jax.tree.map(lambda leaf: leaf / jnp.maximum(count, 1), gradients)
        norm = optax.tree.norm(gradients).astype(jnp.float32)
        updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        new_state = state.replace(
            params=params,
            collections=collections,
            optimizer=optimizer_state,
            ema=_average(state.ema, params, ema_decay, state.step),
        )
        counts = count > 0
        changes = counts & jnp.isfinite(total) & jnp.isfinite(norm)
        # jnp.where selects, so a NaN in the branch not taken does not spread.
        new_state = jax.tree.map(lambda new, old: jnp.where(changes, new, old), new_state, state)
        counted = counts.astype(jnp.float32)
        norms = {
            "gradient_norm": (jnp.where(counts, norm, 0.0), counted),
            "parameter_norm": (counted * optax.tree.norm(new_state.params), counted),
        }
        return new_state.replace(step=state.step + 1), {**sums, **norms}

    return train_step


def _average(ema: PyTree, params: PyTree, decay: float, step: Array) -> PyTree:
    if not decay:
        return ema

    def average(old: Array, new: Array) -> Array:
        kept = jnp.minimum(decay, (1 + step) / (10 + step)).astype(new.dtype)
        return kept * old + (1 - kept) * new

    return jax.tree.map(average, ema, params)


def make_evaluation_step(model: nn.Module, task: Task) -> EvaluationStep:
    """Returns the function that evaluates a batch: sums of metrics, outputs of each example."""

    def evaluation_step(variables: PyTree, batch: Batch) -> tuple[Sums, dict[str, Array]]:
        return task.evaluate(model, variables, batch)

    return evaluation_step


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
    """Returns the gradient of the total loss of a batch, summed over micro-batches.

    The caller divides by the count. Micro-batch m of M has the rows m, m + M, …: the rows of a
    micro-batch are then the same on any number of devices, and devices that hold neighbouring rows
    exchange none. Collections are passed from one micro-batch to the next; BatchNorm normalises
    with the statistics of one micro-batch. A micro-batch in which nothing counts leaves the
    collections unchanged.

    Args:
      loss_of: sums of a micro-batch.
      params: nested dict of arrays; differentiated.
      collections: Linen's other collections.
      batch: arrays (B,...), B a multiple of ``num_micro``.
      key: of the step; each of several micro-batches gets one of its own.
      num_micro: M; 1 computes all rows at once.
      axis_name: mapped axis over which the rows are sharded; None: not mapped.

    Returns:
      The gradient, the sums (both over this device's rows if ``axis_name`` is given) and the
      collections.
    """

    def total_of(
        params: PyTree, collections: PyTree, batch: Batch, key: PRNGKey
    ) -> tuple[Array, tuple[Sums, PyTree]]:
        sums, updated = loss_of(params, collections, batch, key)
        # Over no rows BatchNorm's statistics are NaN: keep the old ones.
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

    zeros = jax.tree.map(jnp.zeros_like, params)
    micros = jnp.arange(num_micro), jax.tree.map(rows_of_micro, dict(batch))
    (gradients, collections), stacked = jax.lax.scan(add_micro, (zeros, collections), micros)
    return gradients, jax.tree.map(lambda x: x.sum(0), stacked), collections


def _over_devices(count: Array, axis_name: str | None) -> Array:
    return count if axis_name is None else jax.lax.psum(count, axis_name)
