"""A layer's forward pass or training step in JAX."""

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
      cell: to be scanned.
      options: how.
    """

    cell: Any
    options: ScanOptions = ScanOptions()

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        """(B,T,...) to (B,T,...,F)."""
        return scan_cell(self.cell, inputs, options=self.options)[1]


class OnCudnn(nn.Module):
    """Our layer of an LSTM with cuDNN behind it, on GPUs.

    Attributes:
      features: of the LSTM.
    """

    features: int

    @nn.compact
    def __call__(self, inputs: Array) -> Any:
        """(B,T,D) to (B,T,F)."""
        layer = Recurrent(partial(LSTMCell, self.features), backend="cudnn")
        return layer(inputs, train=False)


def make_step(
    apply: Callable[[PyTree, Array], Array], variables: PyTree, x: Array, train: bool
) -> Jitted:
    """A forward pass, or one with gradients in variables and inputs of the sum of squares."""

    def loss(variables: PyTree, x: Array) -> Array:
        return jnp.sum(jnp.square(apply(variables, x)))

    return Jitted(jax.grad(loss, argnums=(0, 1)) if train else apply, variables, x)


def make_module_step(make_module: Callable[[], nn.Module], x: np.ndarray, train: bool) -> Jitted:
    """The step of a Linen module on inputs x, initialised."""
    module, inputs = make_module(), jnp.asarray(x)
    variables = jax.jit(module.init)(jax.random.key(0), inputs)

    def apply(variables: PyTree, x: Array) -> Any:
        return module.apply(variables, x)

    return make_step(apply, variables, inputs, train)
