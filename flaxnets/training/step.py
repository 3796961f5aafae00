"""The two compiled functions of training: one step, and the evaluation of one batch."""

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
EvaluationStep = Callable[[PyTree, Batch], tuple[Sums, dict[str, Array]]]


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
    """The pure function of one step: gradient, update, averages, metrics.

    The gradient is that of the loss's quotient over the whole batch, wherever its rows lie and
    however they are split into micro-batches. To the task's sums come ``gradient_norm``, before
    clipping, of the parameters that train, and ``parameter_norm``, after the update, of all of
    them. A batch in which no row counts, or whose loss or gradient is not finite, advances the step
    and changes nothing else; the sums say of the latter what they are.

    Args:
      model: the network.
      task: its loss.
      optimizer: as ``make_optimizer`` gives it.
      frozen: paths, or what they begin with, for which no gradient is computed.
      strategy: that compiles the step; None: ``jax.jit`` or nothing.
      accumulate_steps: micro-batches of a step, which divide each device's rows evenly.
      ema_decay: d of ``ema``, d · ema + (1 − d) · params after each step; 0: no average. At step n,
        from 0 on, d is at most (1 + n) / (10 + n): the random start would stay in it for long.
    """
    axis_name = None if strategy is None else strategy.axis_name
    model = with_axis_name(model, axis_name)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Sums]:
        key = state.step_key()
        if axis_name is not None:  # Or the rows of each device would draw the same numbers.
            key = jax.random.fold_in(key, jax.lax.axis_index(axis_name))
        is_frozen = frozen_mask(state.params, frozen)

        def loss_of(
            params: PyTree, collections: PyTree, rows: Batch, key: PRNGKey
        ) -> tuple[Sums, PyTree]:
            # Cutting frozen parameters off lets the compiler drop their backward pass.
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
        if strategy is not None:  # Or the layout of the state would reach into the backward pass.
            gradients = strategy.gather(gradients)
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
    """The pure function that evaluates one batch: sums of metrics, and each example's outputs."""

    def evaluation_step(variables: PyTree, batch: Batch) -> tuple[Sums, dict[str, Array]]:
        return task.evaluate(model, variables, batch)

    return evaluation_step


# The gradient of a batch's loss, in one piece or summed over micro-batches.

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
