"""Linear cells under test, each with a NumPy reference."""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxnets.recurrent.linear_cells import LRUCell, MinGRUCell, MinLSTMCell
from tests.flaxnets.recurrent import reference
from tests.flaxnets.recurrent.cases import (
    FLOAT64,
    B,
    D,
    F,
    T,
)

Params = Mapping[str, np.ndarray]


def positive(x: np.ndarray) -> np.ndarray:
    return np.where(x >= 0, x + 0.5, reference.sigmoid(x))


def itself(x: np.ndarray) -> np.ndarray:
    return x


def min_gru(params: Params, carry: np.ndarray, x: np.ndarray, g: Any = itself) -> Any:
    z, k = np.split(x @ params["input_kernel"] + params["bias"], 2, axis=-1)
    z = reference.sigmoid(z)
    carry = (1 - z) * carry + z * g(k)
    return carry, carry


def min_lstm(params: Params, carry: np.ndarray, x: np.ndarray, g: Any = itself) -> Any:
    f, i, k = np.split(x @ params["input_kernel"] + params["bias"], 3, axis=-1)
    f, i = reference.sigmoid(f), reference.sigmoid(i)
    carry = f / (f + i) * carry + i / (f + i) * g(k)
    return carry, carry


def lru(params: Params, carry: np.ndarray, x: np.ndarray) -> Any:
    eigenvalues = np.exp(-np.exp(params["nu"]) + 1j * np.exp(params["theta"]))
    real, imaginary = np.split(params["input_kernel"], 2, axis=-1)
    carry = eigenvalues * carry + np.exp(params["gamma"]) * (x @ (real + 1j * imaginary))
    real, minus_imaginary = np.split(params["output_kernel"], 2)
    return carry, (carry @ (real - 1j * minus_imaginary)).real + x @ params["skip_kernel"]


@dataclasses.dataclass(frozen=True)
class LinearCase:
    """A cell and its NumPy reference."""

    name: str
    make_cell: Callable[..., Any]
    step: Callable[..., Any]

    def __str__(self) -> str:
        return self.name

    def draw(self, seed: int = 0, steps: int = T, width: int = D) -> tuple[Any, Any, np.ndarray]:
        """Draws parameters, carry and inputs (B,steps,width), float64 and complex128, none 0."""
        rng = np.random.default_rng(seed)
        cell = self.make_cell(**FLOAT64)
        init = partial(cell.init, method="weights")
        shapes = jax.eval_shape(lambda: init(jax.random.key(0), (B, width))["params"])
        params = {name: rng.normal(0, 0.5, x.shape) for name, x in shapes.items()}
        zeros = jax.eval_shape(lambda: cell.initialize_carry(None, (B, width)))
        carry = rng.normal(0, 0.5, zeros.shape)
        if jnp.issubdtype(zeros.dtype, jnp.complexfloating):
            carry = carry + 1j * rng.normal(0, 0.5, zeros.shape)
        return params, carry, rng.normal(size=(B, steps, width))


LINEAR_CASES = (
    LinearCase("mingru", partial(MinGRUCell, F), min_gru),
    LinearCase(
        "mingru-positive",
        partial(MinGRUCell, F, positive_candidate=True),
        partial(min_gru, g=positive),
    ),
    LinearCase("minlstm", partial(MinLSTMCell, F), min_lstm),
    LinearCase(
        "minlstm-positive",
        partial(MinLSTMCell, F, positive_candidate=True),
        partial(min_lstm, g=positive),
    ),
    LinearCase("lru", partial(LRUCell, F), lru),
    LinearCase("lru-wide", partial(LRUCell, F, state_features=6), lru),
)


def weigh(seed: int, results: Any) -> Any:
    """Returns a scalar: the real part of carry and outputs times random numbers."""
    rng = np.random.default_rng(seed)
    total = 0.0
    for leaf in jax.tree.leaves(results):
        weights = rng.normal(size=(2, *leaf.shape))
        total += (weights[0] * leaf.real + weights[1] * leaf.imag).sum()
    return total


def draw_like(rng: np.random.Generator, x: np.ndarray) -> np.ndarray:
    """Draws a direction, complex for complex arrays."""
    direction = rng.normal(size=x.shape)
    return direction + 1j * rng.normal(size=x.shape) if np.iscomplexobj(x) else direction
