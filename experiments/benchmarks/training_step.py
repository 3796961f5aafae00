"""Training step of a network as in ``launch.train``, for benchmarks."""

from typing import Any

import flax.linen as nn
import jax
import numpy as np

from flaxnets.tasks.task import Task
from flaxnets.training.config import OptimizerConfig
from flaxnets.training.optimizer import make_optimizer
from flaxnets.training.state import initialize_variables, make_state
from flaxnets.training.step import make_train_step
from flaxnets.typing import PyTree


class TrainingStep:
    """Training step on one batch; each call continues from the state of the last.

    Args:
      model: the network.
      task: its loss.
      optimizer: the hyper-parameters.
      batch: the batch of all steps.
      num_steps: of the whole training, for the schedule.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        optimizer: OptimizerConfig,
        batch: dict[str, np.ndarray],
        num_steps: int = 1_000,
    ):
        variables = initialize_variables(model, task, batch, seed=0)
        update = make_optimizer(optimizer, num_steps, variables["params"])
        self._batch = jax.device_put(batch)
        self._state = make_state(variables, update, seed=0)
        self._update = jax.jit(make_train_step(model, task, update), donate_argnums=0)

    @property
    def variables(self) -> PyTree:
        """Current parameters and collections."""
        return self._state.variables

    def start_from(self, params: PyTree) -> None:
        """Sets the parameters of the next step."""
        self._state = self._state.replace(params=jax.device_put(params))

    def __call__(self) -> float:
        """Takes one step and returns its loss."""
        self._state, sums = self._update(self._state, self._batch)
        jax.block_until_ready(self._state)
        total, count = sums["loss"]
        return float(total) / float(count)

    def temporary_bytes(self) -> int:
        """Returns the bytes that XLA allocates for temporaries."""
        compiled = self._update.lower(self._state, self._batch).compile()
        analysis: Any = compiled.memory_analysis()
        return int(analysis.temp_size_in_bytes)
