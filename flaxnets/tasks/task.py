"""What a task is to the trainer: how a model is called, its loss and its metrics."""

from typing import Any, Protocol

import flax.linen as nn

from flaxnets.typing import (
    Array,
    Batch,
    PRNGKey,
    PyTree,
    Sums,
)


class Task(Protocol):
    """Couples the keys of a batch to a model's arguments and its outputs to losses.

    ``variables`` are Linen's collections: ``{"params": …, "batch_stats": …}``.
    """

    def initialize(self, model: nn.Module, key: PRNGKey, batch: Batch) -> PyTree:
        """Random variables of ``model`` for batches shaped as ``batch``."""

    def loss(
        self,
        model: nn.Module,
        variables: PyTree,
        batch: Batch,
        key: PRNGKey,
        step: Array | int = 0,
    ) -> tuple[Sums, PyTree]:
        """The training loss and metrics as sums, and the collections that the step updates.

        Args:
          model: the network.
          variables: its variables.
          batch: its arrays.
          key: of this step alone.
          step: () int32, steps of training before this one, for what changes with time.

        Returns:
          Sums with at least ``"loss"``, whose quotient is minimised, and a dict of the mutated
          collections without ``"params"``.
        """

    def evaluate(
        self, model: nn.Module, variables: PyTree, batch: Batch
    ) -> tuple[Sums, dict[str, Array]]:
        """Metrics as sums, and outputs of each example, arrays with a leading axis B."""

    def describe_outputs(self, outputs: dict[str, Any], row: int) -> dict[str, Any]:
        """One example's outputs, NumPy arrays, as a JSON record."""
