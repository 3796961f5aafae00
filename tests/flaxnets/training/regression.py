"""Linear regression with and without BatchNorm, small enough to be written in NumPy."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from flaxnets.layers.normalization import BatchNorm
from flaxnets.typing import (
    Array,
    Batch,
    PRNGKey,
    PyTree,
    Sums,
)

WIDTH = 3


class Line(nn.Module):
    """Linear model, (B,WIDTH) to (B,); ``axis_name`` is passed to BatchNorm."""

    normalizes: bool = False
    axis_name: str | None = None

    @nn.compact
    def __call__(self, inputs: Array, mask: Array | None = None, *, train: bool) -> Array:
        x = inputs
        if self.normalizes:
            norm = BatchNorm(axis_name=self.axis_name, name="norm")
            x = norm(x[:, None, None], mask, train=train)[:, 0, 0]
        return nn.Dense(1, name="line")(x)[:, 0]


class Regression:
    """Mean squared error of the rows that count."""

    def initialize(self, model: nn.Module, key: PRNGKey, batch: Batch) -> PyTree:
        return model.init(key, batch["inputs"], train=False)

    def loss(
        self,
        model: nn.Module,
        variables: PyTree,
        batch: Batch,
        key: PRNGKey,
        step: Array | int = 0,
    ) -> tuple[Sums, PyTree]:
        outputs, collections = model.apply(
            variables,
            batch["inputs"],
            batch["mask"],
            train=True,
            mutable=[name for name in variables if name != "params"],
        )
        return self._sums(outputs, batch), dict(collections)

    def evaluate(
        self, model: nn.Module, variables: PyTree, batch: Batch
    ) -> tuple[Sums, dict[str, Array]]:
        outputs: Any = model.apply(variables, batch["inputs"], train=False)
        return self._sums(outputs, batch), {"outputs": outputs}

    def describe_outputs(self, outputs: dict[str, Any], row: int) -> dict[str, Any]:
        return {"output": float(outputs["outputs"][row])}

    def _sums(self, outputs: Array, batch: Batch) -> Sums:
        errors = jnp.square(outputs - batch["target"])
        mask = batch["mask"]
        return {"loss": (jnp.where(mask, errors, 0).sum(), mask.sum(dtype=jnp.float32))}


def rows(seed: int, mask: Any) -> dict[str, np.ndarray]:
    """Returns a random batch with as many rows as ``mask``."""
    rng = np.random.default_rng(seed)
    return {
        "inputs": rng.normal(size=(len(mask), WIDTH)).astype(np.float32),
        "target": rng.normal(size=len(mask)).astype(np.float32),
        "mask": np.asarray(mask, bool),
    }


def variables_of(model: nn.Module) -> Any:
    """Returns random variables as NumPy arrays."""
    batch = rows(0, [True])
    return jax.device_get(Regression().initialize(model, jax.random.key(1), batch))


def gradient(params: Any, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the gradient of the mean over the rows that count, without BatchNorm."""
    kernel, bias = (np.asarray(params["line"][name], np.float64) for name in ("kernel", "bias"))
    inputs, target = (
        batch[name][batch["mask"]].astype(np.float64) for name in ("inputs", "target")
    )
    slope = 2 * (inputs @ kernel[:, 0] + bias - target) / len(target)
    return {"kernel": (inputs * slope[:, None]).sum(0)[:, None], "bias": slope.sum(keepdims=True)}
