"""Pure functions that training compiles: one step, and the evaluation of one batch."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from flaxnets.tasks.task import CARRY, Task
from flaxnets.training.optimizer import frozen_mask, longest_prefix
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

    A collection ``carry`` holds the state of recurrent layers that goes from batch to batch, arrays
    (B,...) of all rows; of several devices each one's loss gets and returns its own rows.

    Args:
      model: the network.
      task: its loss.
      optimizer: from ``make_optimizer``.
      frozen: paths, or prefixes of paths, of parts that are not trained: their parameters get
        neither a gradient nor weight decay, their modules run as in evaluation, and their other
        variables, as BatchNorm's statistics, stay as they are. An encoder is frozen, too, where the
        model, or a part of it, has ``freeze_encoder``.
      strategy: compiles the step; None: plain ``jax.jit``, or no compilation.
      accumulate_steps: number of micro-batches; divides each device's rows evenly.
      ema_decay: d in the average d · ema + (1 − d) · params after each step, in float32 at least;
        0: no average. At step n = 0, 1, … d is at most (1 + n) / (10 + n), or the random start
        would stay in it for long.
    """
    axis_name = None if strategy is None else strategy.axis_name
    model = with_axis_name(model, axis_name)
    frozen = (*frozen, *_frozen_encoders(model))

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Sums]:
        key = state.step_key()
        if axis_name is not None:  # Else all devices would draw the same dropout masks.
            key = jax.random.fold_in(key, jax.lax.axis_index(axis_name))
        if CARRY in state.collections and accumulate_steps > 1:
            raise ValueError(
                "accumulate_steps: expected 1 where the carry goes from batch to batch, since a "
                f"micro-batch would continue the rows of another, received {accumulate_steps}"
            )
        own_collections = _own_carry(state.collections, batch, axis_name)
        is_frozen = frozen_mask(state.params, frozen)

        def loss_of(
            params: PyTree, collections: PyTree, rows: Batch, key: PRNGKey
        ) -> tuple[Sums, PyTree]:
            # stop_gradient lets XLA remove the backward pass of frozen parameters.
            params = jax.tree.map(
                lambda leaf, cut: jax.lax.stop_gradient(leaf) if cut else leaf, params, is_frozen
            )
            with nn.intercept_methods(partial(_evaluate_frozen, frozen)):
                return task.loss(model, {"params": params, **collections}, rows, key, state.step)

        params = state.params if strategy is None else strategy.gather(state.params)
        gradients, sums, collections = accumulate_gradients(
            loss_of,
            params,
            own_collections,
            batch,
            key,
            num_micro=accumulate_steps,
            axis_name=axis_name,
        )
        if axis_name is not None and CARRY in collections:
            carry = jax.lax.all_gather(collections[CARRY], axis_name, tiled=True)  # (B,...)
            collections = {**collections, CARRY: carry}
        if axis_name is not None:
            gradients, sums = jax.lax.psum((gradients, sums), axis_name)
        if strategy is not None:  # Else XLA would shard the backward pass as the state is.
            gradients = strategy.gather(gradients)
        # The division comes after all sums, so that each counted row weighs the same however the
        # rows are spread over devices and micro-batches. The count of weighed rows may be below 1.
        total, count = sums["loss"]
        divisor = jnp.where(count > 0, count, 1)
        gradients = jax.tree.map(lambda leaf: leaf / divisor.astype(leaf.dtype), gradients)
        norm = optax.tree.norm(gradients).astype(jnp.float32)
        updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.params)
        # Weight decay moves what has no gradient, too.
        updates = jax.tree.map(
            lambda leaf, cut: jnp.zeros_like(leaf) if cut else leaf, updates, is_frozen
        )
        params = optax.apply_updates(state.params, updates)
        collections = {
            name: _keep_frozen(tree, state.collections[name], frozen)
            for name, tree in collections.items()
        }
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


def _own_carry(collections: PyTree, batch: Batch, axis_name: str | None) -> PyTree:
    """Returns the collections with the rows of the carry that this device's batch has."""
    if axis_name is None or CARRY not in collections:
        return collections
    rows = len(batch["mask"])
    first = jax.lax.axis_index(axis_name) * rows
    own = jax.tree.map(
        lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, first, rows), collections[CARRY]
    )
    return {**collections, CARRY: own}


def _frozen_encoders(module: nn.Module, path: str = "") -> Iterator[str]:
    """Yields the paths of the encoders that a model's ``freeze_encoder`` freezes."""
    for field in dataclasses.fields(module):
        value = getattr(module, field.name, None)
        if field.name == "parent":
            continue
        parts = {field.name: value}
        if isinstance(value, Mapping):  # Linen calls its modules by field and key.
            parts = {f"{field.name}_{key}": part for key, part in value.items()}
        for name, part in parts.items():
            if not isinstance(part, nn.Module):
                continue
            if name == "encoder" and getattr(module, "freeze_encoder", False):
                yield path + name
            else:
                yield from _frozen_encoders(part, f"{path}{name}/")


def _evaluate_frozen(
    frozen: tuple[str, ...],
    method: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    context: nn.module.InterceptorContext,
) -> Any:
    """Calls a method of a module, with ``train=False`` where the module is frozen."""
    if (
        kwargs.get("train") is True
        and longest_prefix("/".join(context.module.path), frozen) is not None
    ):
        kwargs = {**kwargs, "train": False}
    return method(*args, **kwargs)


def _keep_frozen(new: PyTree, old: PyTree, frozen: tuple[str, ...]) -> PyTree:
    """Returns the variables of a collection, those of frozen parts as they were."""
    return jax.tree.map(
        lambda cut, new, old: old if cut else new, frozen_mask(new, frozen), new, old
    )


def _average(ema: PyTree, params: PyTree, decay: float, step: Array) -> PyTree:
    """Returns the moving average, in float32 at least: bfloat16 rounds a decay of 0.999 to 1."""
    if not decay:
        return ema

    def average(old: Array, new: Array) -> Array:
        dtype = jnp.promote_types(old.dtype, jnp.float32)
        kept = jnp.minimum(decay, (1 + step) / (10 + step)).astype(dtype)
        return kept * old.astype(dtype) + (1 - kept) * new.astype(dtype)

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

    # Summed in float32 at least, so that bfloat16 does not swallow the later micro-batches.
    zeros = jax.tree.map(
        lambda leaf: jnp.zeros_like(leaf, jnp.promote_types(leaf.dtype, jnp.float32)), params
    )
    micros = jnp.arange(num_micro), jax.tree.map(rows_of_micro, dict(batch))
    (gradients, collections), stacked = jax.lax.scan(add_micro, (zeros, collections), micros)
    gradients = jax.tree.map(lambda summed, leaf: summed.astype(leaf.dtype), gradients, params)
    return gradients, jax.tree.map(lambda x: x.sum(0), stacked), collections


def _over_devices(count: Array, axis_name: str | None) -> Array:
    return count if axis_name is None else jax.lax.psum(count, axis_name)
