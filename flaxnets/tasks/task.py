"""Task interface: how a model is called, its loss and its metrics."""

from typing import Any, Protocol

import flax.linen as nn

from flaxnets.typing import (
    Array,
    Batch,
    PRNGKey,
    PyTree,
    Sums,
)

CARRY = "carry"
"""Collection of what goes from one training batch to the next, a dict of arrays (B,...) by name."""


class Task(Protocol):
    """Couples the arrays of a batch to a model's arguments, and its outputs to loss and metrics.

    ``variables`` are Linen's collections, as ``{"params": …, "batch_stats": …}``. All methods but
    ``describe_outputs`` are pure and traced by JAX.

    A task whose batches continue each other, as windows of a stream, keeps the state between them
    in a collection ``CARRY``, whose rows are those of the global batch, and has a method
    ``first_carry(model, variables, batch)`` for evaluations (``StepPrediction``).
    """

    def initialize(self, model: nn.Module, key: PRNGKey, batch: Batch) -> PyTree:
        """Returns random variables of ``model`` for batches shaped as ``batch``."""

    def loss(
        self,
        model: nn.Module,
        variables: PyTree,
        batch: Batch,
        key: PRNGKey,
        step: Array | int = 0,
    ) -> tuple[Sums, PyTree]:
        """Returns the training loss and metrics as (sum, count), and the updated collections.

        Args:
          model: the network.
          variables: its variables.
          batch: arrays (B,...) of one batch, or of a micro-batch of it.
          key: random key of this step.
          step: () int32, finished training steps, for schedules.

        Returns:
          Sums with at least ``"loss"``, whose quotient is minimised; and a dict of the mutated
          collections without ``"params"``.
        """

    def evaluate(
        self, model: nn.Module, variables: PyTree, batch: Batch
    ) -> tuple[Sums, dict[str, Array]]:
        """Returns metrics as (sum, count), and the outputs of each example, arrays (B,...)."""

    def describe_outputs(self, outputs: dict[str, Any], row: int) -> dict[str, Any]:
        """Returns one example's outputs as a JSON record, from NumPy arrays (B,...)."""
