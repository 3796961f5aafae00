"""The two compiled functions of training: one step, and the evaluation of one batch."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from flaxnets.training.optimizer import frozen_mask
from flaxnets.training.state import TrainState
from flaxnets.training.task import Task
from flaxnets.typing import Array, Batch, PyTree, Sums

TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Sums]]
EvaluationStep = Callable[[PyTree, Batch], tuple[Sums, dict[str, Array]]]


def make_train_step(
    model: nn.Module,
    task: Task,
    optimizer: optax.GradientTransformation,
    *,
    frozen: tuple[str, ...] = (),
) -> TrainStep:
    """The pure function of one step: gradient, update, metrics.

    The gradient is that of the loss's quotient over the whole batch, wherever its rows lie. To the
    task's sums comes ``gradient_norm``, before clipping, of the parameters that train. A batch in
    which no row counts advances the step and changes nothing else.

    Args:
      model: the network.
      task: its loss.
      optimizer: as ``make_optimizer`` gives it.
      frozen: first parts of paths for which no gradient is computed.
    """

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Sums]:
        key = state.step_key()
        is_frozen = frozen_mask(state.params, frozen)

        def loss_of(params: PyTree) -> tuple[Array, tuple[Sums, PyTree]]:
            # Cutting frozen parameters off lets the compiler drop their backward pass.
            params = jax.tree.map(
                lambda leaf, cut: jax.lax.stop_gradient(leaf) if cut else leaf, params, is_frozen
            )
            variables = {"params": params, **state.collections}
            sums, collections = task.loss(model, variables, batch, key, state.step)
            total, count = sums["loss"]
            return total / jnp.maximum(count, 1.0), (sums, collections)

        gradients, (sums, collections) = jax.grad(loss_of, has_aux=True)(state.params)
        updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.params)
        new_state = state.replace(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            collections={**state.collections, **collections},
            optimizer=optimizer_state,
        )
        # Batch statistics over no rows are NaN: they must not reach the state.
        counts = sums["loss"][1] > 0
        kept = state.replace(step=new_state.step)
        new_state = jax.tree.map(lambda new, old: jnp.where(counts, new, old), new_state, kept)
        norm = jnp.where(counts, optax.tree.norm(gradients), 0.0).astype(jnp.float32)
        return new_state, {**sums, "gradient_norm": (norm, counts.astype(jnp.float32))}

    return train_step


def make_evaluation_step(model: nn.Module, task: Task) -> EvaluationStep:
    """The pure function that evaluates one batch: sums of metrics, and each example's outputs."""

    def evaluation_step(variables: PyTree, batch: Batch) -> tuple[Sums, dict[str, Array]]:
        return task.evaluate(model, variables, batch)

    return evaluation_step
