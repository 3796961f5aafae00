"""Forward pass and training step of a layer in JAX."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.timing import Jitted
from flaxnets.recurrent.cells import LSTMCell
from flaxnets.recurrent.layers import Recurrent
from flaxnets.recurrent.scan import ScanOptions, scan_cell
from flaxnets.typing import Array, PyTree


class Scanned(nn.Module):
    """Our scan of a cell.

    Attributes:
      cell: the cell.
      options: unrolling, rematerialisation and gradients of the scan.
    """

    cell: Any
    options: ScanOptions = ScanOptions()

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        """Returns the outputs (B,T,...,F) of inputs (B,T,...,D)."""
        return scan_cell(self.cell, inputs, options=self.options)[1]


class OnCudnn(nn.Module):
    """Our LSTM layer with the cuDNN backend, on GPUs.

    Attributes:
      features: F, width of the LSTM.
    """

    features: int

    @nn.compact
    def __call__(self, inputs: Array) -> Any:
        """Returns the outputs (B,T,F) of inputs (B,T,D)."""
        layer = Recurrent(partial(LSTMCell, self.features), backend="cudnn")
        return layer(inputs, train=False)


def make_step(
    apply: Callable[[PyTree, Array], Array], variables: PyTree, x: Array, train: bool
) -> Jitted:
    """Returns a forward pass, or the gradients of the summed squares by variables and inputs."""

    def loss(variables: PyTree, x: Array) -> Array:
        return jnp.sum(jnp.square(apply(variables, x)))

    return Jitted(jax.grad(loss, argnums=(0, 1)) if train else apply, variables, x)


def make_module_step(make_module: Callable[[], nn.Module], x: np.ndarray, train: bool) -> Jitted:
    """Returns the step of a Linen module, initialised on inputs ``x``."""
    module, inputs = make_module(), jnp.asarray(x)
    variables = jax.jit(module.init)(jax.random.key(0), inputs)

    def apply(variables: PyTree, x: Array) -> Any:
        return module.apply(variables, x)

    return make_step(apply, variables, inputs, train)
