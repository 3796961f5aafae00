"""All that changes during training: what a checkpoint holds and a step returns."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

from flaxnets.tasks.task import Task
from flaxnets.typing import Array, PyTree


class TrainState(flax.struct.PyTreeNode):
    """Arrays only: the model, the task and the optimizer are arguments of the step.

    Attributes:
      step: () int32, finished steps; also the number of the next batch.
      params: nested dict of float arrays.
      collections: Linen's other collections, as ``{"batch_stats": …}``; empty without any.
      optimizer: the optax state.
      ema: the exponential moving average of ``params``, shaped as they are; empty without any.
      key: (2,) uint32, the run's key; the step's key is ``fold_in(key, step)``.
    """

    step: Array
    params: PyTree
    collections: PyTree
    optimizer: PyTree
    ema: PyTree
    key: Array

    @property
    def variables(self) -> dict[str, Any]:
        """Linen's variables for evaluation: the averaged parameters where there are any."""
        return {"params": self.ema or self.params, **self.collections}

    def step_key(self) -> jax.Array:
        """The typed key of the step that comes next; another for each step."""
        return jax.random.fold_in(jax.random.wrap_key_data(self.key), self.step)


def initialize_variables(
    model: nn.Module, task: Task, batch: Mapping[str, Any], seed: int
) -> PyTree:
    """Random variables for one seed, made in one compiled call.

    Args:
      model: the network.
      task: knows how the network is called.
      batch: arrays, or their ``jax.ShapeDtypeStruct``.
      seed: the run's seed.
    """
    zeros = {name: jnp.zeros(x.shape, x.dtype) for name, x in batch.items()}
    initialize = jax.jit(lambda key: task.initialize(model, key, zeros))
    return initialize(jax.random.fold_in(jax.random.key(seed), 0))


def make_state(
    variables: PyTree, optimizer: optax.GradientTransformation, seed: int, *, ema: bool = False
) -> TrainState:
    """The state before the first step.

    Args:
      variables: Linen's collections.
      optimizer: whose state begins.
      seed: the run's seed.
      ema: whether the parameters are averaged; the average begins at their first values.
    """
    collections = dict(variables)
    params = collections.pop("params")
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        collections=collections,
        optimizer=jax.jit(optimizer.init)(params),
        # Copies: a step that reuses the state's memory may not be handed an array twice.
        ema=jax.tree.map(jnp.copy, params) if ema else {},
        key=jax.random.key_data(jax.random.fold_in(jax.random.key(seed), 1)),
    )


def count_parameters(params: PyTree) -> int:
    """Numbers in all arrays of ``params``."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
