"""State of training: all arrays that a step updates and a checkpoint stores."""

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
    """Arrays that a training step updates; model, task and optimizer belong to the step.

    Attributes:
      step: () int32, finished steps; equals the number of the next batch.
      params: nested dict of float arrays.
      collections: Linen's other collections, as ``{"batch_stats": …}``; may be empty.
      optimizer: the optax state.
      ema: exponential moving average of ``params``, of the same structure, in float32 at least;
        empty if none is kept.
      key: (2,) uint32, raw key data of the run; ``step_key`` derives the key of a step.
    """

    step: Array
    params: PyTree
    collections: PyTree
    optimizer: PyTree
    ema: PyTree
    key: Array

    @property
    def variables(self) -> dict[str, Any]:
        """Linen's variables for evaluation, with averaged parameters if there are any."""
        return {"params": self.ema or self.params, **self.collections}

    def step_key(self) -> jax.Array:
        """Returns the typed key of the next step, ``fold_in(key, step)``."""
        return jax.random.fold_in(jax.random.wrap_key_data(self.key), self.step)


def initialize_variables(
    model: nn.Module, task: Task, batch: Mapping[str, Any], seed: int
) -> PyTree:
    """Returns random variables, made in one compiled call.

    Args:
      model: the network.
      task: calls the network.
      batch: arrays, or their ``jax.ShapeDtypeStruct``; only shapes and dtypes are read.
      seed: seed of the run.
    """
    zeros = {name: jnp.zeros(x.shape, x.dtype) for name, x in batch.items()}
    initialize = jax.jit(lambda key: task.initialize(model, key, zeros))
    return initialize(jax.random.fold_in(jax.random.key(seed), 0))


def make_state(
    variables: PyTree, optimizer: optax.GradientTransformation, seed: int, *, ema: bool = False
) -> TrainState:
    """Returns the state before the first step.

    Args:
      variables: Linen's collections.
      optimizer: initialises its state.
      seed: seed of the run.
      ema: keeps an average of the parameters, which starts at their initial values.
    """
    collections = dict(variables)
    params = collections.pop("params")
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        collections=collections,
        optimizer=jax.jit(optimizer.init)(params),
        # Copies: a step donates the state, and the same buffer cannot be donated twice.
        ema=jax.tree.map(_copy_wide, params) if ema else {},
        key=jax.random.key_data(jax.random.fold_in(jax.random.key(seed), 1)),
    )


def _copy_wide(x: Array) -> Array:
    return jnp.array(x, jnp.promote_types(jnp.asarray(x).dtype, jnp.float32), copy=True)


def count_parameters(params: PyTree) -> int:
    """Returns the number of elements of all arrays."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
