"""Recurrent cells inside a decoder's step, whose inputs arise within the scan.

A recurrent layer projects all inputs before its scan. The context that a decoder attends to is
known only inside the scan, so ``InnerCell`` takes projected inputs step by step.
"""

import dataclasses
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from flaxnets.recurrent.cell import Cell, ProjectHidden, Weights
from flaxnets.recurrent.cells import (
    DenseCell,
    GRUCell,
    LSTMCell,
    forget_gate_bias,
    orthogonal,
    per_gate,
)
from flaxnets.typing import Array, Carry, PRNGKey


class MaxoutLSTMCell(DenseCell):
    r"""LSTM of Att2in with a maxout candidate (Rennie et al., 1612.00563, section 2).

    .. math::
        i, f, o, g_1, g_2 &= x W + h U + b \\
        c' &= σ(f) c + σ(i) \max(g_1, g_2) \\
        h' &= σ(o) \tanh c'

    Parameters ``input_kernel`` (D,5F), ``hidden_kernel`` (F,5F), ``bias`` (5F,), in that order of
    gates. The cell state stays float32 in any lower ``dtype``.

    Attributes:
      forget_bias: initial bias of f.

    >>> import jax, jax.numpy as jnp
    >>> cell, x = MaxoutLSTMCell(4), jnp.ones((2, 3))  # (B,D)
    >>> carry = cell.initialize_carry(None, x.shape)
    >>> (_, output), variables = cell.init_with_output(jax.random.key(0), carry, x)
    >>> output.shape, variables["params"]["input_kernel"].shape
    ((2, 4), (3, 20))
    """

    forget_bias: float = 1.0

    @nn.compact
    def weights(self, input_shape: tuple[int, ...]) -> Weights:
        """See ``Cell.weights``."""
        f, dtype = self.features, self.param_dtype

        def draw_bias(key: PRNGKey, shape: tuple[int], dtype: jnp.dtype) -> Array:
            first = forget_gate_bias(self.forget_bias)(key, (4 * f,), dtype)
            return jnp.concatenate([first, jnp.zeros(shape[0] - 4 * f, dtype)])

        inputs = self._input_kernel(input_shape, 5)
        kernel = self.param("hidden_kernel", per_gate(orthogonal, 5), (f, 5 * f), dtype)
        bias = self.param("bias", draw_bias, (5 * f,), dtype)
        return Weights({"hidden": inputs}, {"hidden": kernel}, {"hidden": bias}, {})

    def initialize_carry(
        self, rng: PRNGKey | None, input_shape: tuple[int, ...]
    ) -> tuple[Array, Array]:
        """Returns zeros (c, h): (B,F), at least float32, and (B,F) ``dtype``."""
        shape = (*input_shape[:-1], self.features)
        return jnp.zeros(shape, self.state_dtype), jnp.zeros(shape, self.dtype)

    def step(
        self,
        weights: dict[str, Array],
        project_hidden: ProjectHidden,
        carry: Carry,
        projected: dict[str, Array],
    ) -> tuple[Carry, Array]:
        """Runs one step; the output (B,F) is the new h."""
        cell, hidden = carry
        gates = project_hidden("hidden", hidden).astype(cell.dtype)
        sigmoids, candidates = jnp.split(gates, [3 * self.features], axis=-1)
        # σ(x) = ½ tanh(½ x) + ½, which XLA vectorises on CPUs.
        i, f, o = jnp.split(0.5 * jnp.tanh(0.5 * sigmoids) + 0.5, 3, axis=-1)
        cell = f * cell + i * jnp.maximum(*jnp.split(candidates, 2, axis=-1))
        hidden = (o * jnp.tanh(cell)).astype(self.dtype)
        return (cell, hidden), hidden


def candidate_columns(cell: Cell) -> slice:
    """Returns the columns of a cell's joined input kernel that make its candidate.

    The other columns make its gates.

    Raises:
      ValueError: a cell of another class, whose columns are not known.
    """
    f = cell.features
    if isinstance(cell, MaxoutLSTMCell):
        return slice(3 * f, 5 * f)
    if isinstance(cell, LSTMCell | GRUCell):
        return slice(2 * f, 3 * f)
    raise ValueError(
        f"make_cell: expected an LSTMCell, GRUCell or MaxoutLSTMCell, received "
        f"{type(cell).__name__}"
    )


def hidden_state(cell: Cell, carry: Carry) -> Array:
    """Returns the hidden state h of a carry, in the dtype of the matmuls."""
    # h is the last leaf: of (c, h) as of h alone.
    return jax.tree.leaves(carry)[-1].astype(cell.dtype)


def hidden_width(cell: Cell) -> int:
    """Returns the width of the hidden state: not ``features`` where the cell projects it."""
    carry = jax.eval_shape(lambda: cell.initialize_carry(None, (1, cell.features)))
    return int(jax.tree.leaves(carry)[-1].shape[-1])


@dataclasses.dataclass(frozen=True)
class InnerCell:
    """Recurrent cell as a part of a larger step.

    A prefix of the kernels' names lets several cells share one scan. Inputs that arise within the
    scan are multiplied through ``project_hidden``, by one kernel of all gates side by side.

    Attributes:
      cell: a bound cell.
      weights: its parameters.
      prefix: of the names of its kernels in the scan; not of parameters in checkpoints.
    """

    cell: Cell
    weights: Weights
    prefix: str = ""

    @property
    def input_name(self) -> str:
        """Name of the input kernel in the scan; its product is ``step``'s ``inputs``."""
        return f"{self.prefix}inputs"

    def input_kernel(self, rows: slice = slice(None)) -> Array:
        """Returns the input kernel (D,G) of all gates; of its D rows those in ``rows``."""
        return jnp.concatenate([kernel[rows] for kernel in self.weights.input.values()], axis=-1)

    def hidden_kernels(self) -> dict[str, Array]:
        """Returns the hidden kernels by their names in the scan."""
        return {self.prefix + name: kernel for name, kernel in self.weights.hidden.items()}

    def biases(self) -> dict[str, Array]:
        """Returns the biases by their names in the scan."""
        return {self.prefix + name: bias for name, bias in self.weights.bias.items()}

    def step(
        self,
        pointwise: dict[str, Array],
        project_hidden: ProjectHidden,
        carry: Carry,
        inputs: Array,
        products: Mapping[str, Array] | None = None,
    ) -> tuple[Carry, Array]:
        """Runs one time step; of ``weights`` only names and widths are read.

        Args:
          pointwise: ``weights.pointwise``.
          project_hidden: the matmuls of the whole scan.
          carry: the cell's.
          inputs: (B,...,G), the inputs times ``input_kernel``.
          products: hidden states times ``weights.hidden`` that are computed already, by name.

        Returns:
          The new carry and the output (B,...,F).
        """
        names, kernels = zip(*self.weights.input.items(), strict=True)
        ends = np.cumsum([kernel.shape[-1] for kernel in kernels])[:-1].tolist()
        projected = dict(zip(names, jnp.split(inputs, ends, axis=-1), strict=True))
        computed = products or {}

        def recur_with_inputs(name: str, hidden: Array) -> Array:
            product = (
                computed[name] if name in computed else project_hidden(self.prefix + name, hidden)
            )
            return product + projected[name] if name in projected else product

        rest = {name: x for name, x in projected.items() if name not in self.weights.hidden}
        return self.cell.step(pointwise, recur_with_inputs, carry, rest)
