"""Regression of sequences: forecasts at horizons, or numbers of the whole sequence."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from flaxnets.layers.padding import zero_where_masked
from flaxnets.metrics import mutable_collections, split_reports
from flaxnets.typing import Array, Batch, PRNGKey, PyTree, Sums

LOSSES = ("squared", "absolute")


@dataclasses.dataclass(frozen=True)
class SequenceRegression:
    """Numbers for each sequence, batches as ``SequenceBatch`` with targets (B,H,C) or (B,K).

    The model returns (B,1,H·C) or (B,1,K). The loss is the mean over all targets that are not
    missing of (ŷ − y)², or of |ŷ − y|, in the scale of the targets.

    >>> import flax.linen as nn, jax
    >>> class Last(nn.Module):
    ...     @nn.compact
    ...     def __call__(self, inputs, lengths, mask=None, *, train):
    ...         return nn.Dense(2)(inputs[:, -1:])
    >>> batch = {
    ...     "inputs": jnp.ones((4, 5, 3)),
    ...     "targets": jnp.ones((4, 2, 1)),
    ...     "target_mask": jnp.ones((4, 2, 1), bool),
    ...     "lengths": jnp.full(4, 5),
    ...     "mask": jnp.array([True, True, True, False]),
    ... }
    >>> task = SequenceRegression()
    >>> variables = task.initialize(Last(), jax.random.key(0), batch)
    >>> sums, outputs = task.evaluate(Last(), variables, batch)
    >>> float(sums["loss"][1]), outputs["predictions"].shape
    (6.0, (4, 2, 1))

    Attributes:
      loss_kind: ``squared`` or ``absolute``.
    """

    loss_kind: str = "squared"

    def __post_init__(self) -> None:
        if self.loss_kind not in LOSSES:
            raise ValueError(f"loss_kind: expected one of {LOSSES}, received {self.loss_kind!r}")

    def initialize(self, model: nn.Module, key: PRNGKey, batch: Batch) -> PyTree:
        """Returns random variables, from the shapes of one example."""
        inputs, lengths = batch["inputs"][:1], batch["lengths"][:1]
        return model.init(key, inputs, lengths, train=False)

    def loss(
        self,
        model: nn.Module,
        variables: PyTree,
        batch: Batch,
        key: PRNGKey,
        step: Array | int = 0,
    ) -> tuple[Sums, PyTree]:
        """Returns the sums of ``loss``, ``squared_error``, ``absolute_error``, ``examples``."""
        outputs, collections = model.apply(
            variables,
            zero_where_masked(batch["inputs"], batch["mask"]),
            batch["lengths"],
            mask=batch["mask"],
            train=True,
            rngs={"dropout": key},
            mutable=mutable_collections(variables),
        )
        others, reports = split_reports(collections)
        return self._sums(outputs.reshape(batch["targets"].shape), batch) | reports, others

    def evaluate(
        self, model: nn.Module, variables: PyTree, batch: Batch
    ) -> tuple[Sums, dict[str, Array]]:
        """Returns the sums of ``loss``, and ``predictions`` shaped as the targets."""
        predictions = self.predict(model, variables, batch).reshape(batch["targets"].shape)
        return self._sums(predictions, batch), {"predictions": predictions}

    def predict(self, model: nn.Module, variables: PyTree, batch: Batch) -> Array:
        """Returns (B,K) float32, of which K is H·C for forecasts."""
        inputs = zero_where_masked(batch["inputs"], batch["mask"])
        outputs: Any = model.apply(variables, inputs, batch["lengths"], train=False)
        return outputs.reshape(len(outputs), -1)

    def describe_outputs(self, outputs: dict[str, Any], row: int) -> dict[str, Any]:
        """Returns the ``predictions`` of one sequence, nested lists as its targets."""
        return {"predictions": outputs["predictions"][row].tolist()}

    def _sums(self, predictions: Array, batch: Batch) -> Sums:
        mask = batch["target_mask"] & jnp.expand_dims(
            batch["mask"], tuple(range(1, batch["target_mask"].ndim))
        )
        error = jnp.where(mask, predictions - batch["targets"], 0)
        count = jnp.sum(mask, dtype=jnp.float32)
        squared = (jnp.sum(error**2), count)
        absolute = (jnp.sum(jnp.abs(error)), count)
        loss = squared if self.loss_kind == "squared" else absolute
        rows = jnp.sum(batch["mask"], dtype=jnp.float32)
        return {
            "loss": loss,
            "squared_error": squared,
            "absolute_error": absolute,
            "examples": (rows, rows),  # The counts above are of targets.
        }
