"""Recurrent cells as captioning decoders scan them: with inputs that arise within the scan."""

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
    r"""The LSTM of Att2in (1612.00563, section 2), whose candidate is the larger of two.

    .. math::
        i, f, o, g_1, g_2 &= x W + h U + b \\
        c' &= σ(f) c + σ(i) \max(g_1, g_2) \\
        h' &= σ(o) \tanh c'

    Parameters ``input_kernel`` (D,5F), ``hidden_kernel`` (F,5F), ``bias`` (5F,), in that order of
    gates. The cell state stays float32 in any lower ``dtype``.

    Attributes:
      forget_bias: initial bias of f.
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
        """(c, h): zeros (B,F), at least float32, and (B,F) ``dtype``."""
        shape = (*input_shape[:-1], self.features)
        return jnp.zeros(shape, self.state_dtype), jnp.zeros(shape, self.dtype)

    def step(
        self,
        weights: dict[str, Array],
        recur: ProjectHidden,
        carry: Carry,
        projected: dict[str, Array],
    ) -> tuple[Carry, Array]:
        """One step; the output (B,F) is the new h."""
        cell, hidden = carry
        gates = recur("hidden", hidden).astype(cell.dtype)
        sigmoids, candidates = jnp.split(gates, [3 * self.features], axis=-1)
        # σ(x) = ½ tanh(½ x) + ½ vectorises.
        i, f, o = jnp.split(0.5 * jnp.tanh(0.5 * sigmoids) + 0.5, 3, axis=-1)
        cell = f * cell + i * jnp.maximum(*jnp.split(candidates, 2, axis=-1))
        hidden = (o * jnp.tanh(cell)).astype(self.dtype)
        return (cell, hidden), hidden


def candidate_columns(cell: Cell) -> slice:
    """Those of a cell's joined input kernel that make its candidate, not its gates.

    Raises:
      ValueError: a cell of which that is not known.
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


def read_hidden(cell: Cell, carry: Carry) -> Array:
    """The hidden state within a carry, in the dtype of the products."""
    return jax.tree.leaves(carry)[-1].astype(cell.dtype)


@dataclasses.dataclass(frozen=True)
class InnerCell:
    """A cell within a larger step of a scan.

    Its kernels go by names with a prefix of their own, so that several cells fit into one scan. The
    product with its inputs is asked of ``recur`` like any other, since inputs as the attended
    regions arise within the scan: one kernel, that of all gates side by side.

    Attributes:
      cell: a bound cell.
      weights: the cell's.
      prefix: of its kernels' names.
    """

    cell: Cell
    weights: Weights
    prefix: str = ""

    @property
    def input_name(self) -> str:
        """Of the kernel whose product ``step`` takes as ``inputs``."""
        return f"{self.prefix}inputs"

    def input_kernel(self, rows: slice = slice(None)) -> Array:
        """(D,G): the columns of all gates, and of the inputs those in ``rows``."""
        return jnp.concatenate([kernel[rows] for kernel in self.weights.input.values()], axis=-1)

    def hidden_kernels(self) -> dict[str, Array]:
        """By their names in the scan."""
        return {self.prefix + name: kernel for name, kernel in self.weights.hidden.items()}

    def biases(self) -> dict[str, Array]:
        """By their names in the scan."""
        return {self.prefix + name: bias for name, bias in self.weights.bias.items()}

    def step(
        self,
        pointwise: dict[str, Array],
        recur: ProjectHidden,
        carry: Carry,
        inputs: Array,
        products: Mapping[str, Array] | None = None,
    ) -> tuple[Carry, Array]:
        """One step of time; of ``weights`` it reads names and widths alone.

        Args:
          pointwise: ``weights.pointwise``.
          recur: the products of the whole scan.
          carry: the cell's.
          inputs: (B,...,G), the product with ``input_kernel``.
          products: those with ``weights.hidden`` that have been formed already, by name.

        Returns:
          The new carry and the output (B,...,F).
        """
        names, kernels = zip(*self.weights.input.items(), strict=True)
        ends = np.cumsum([kernel.shape[-1] for kernel in kernels])[:-1].tolist()
        projected = dict(zip(names, jnp.split(inputs, ends, axis=-1), strict=True))
        formed = products or {}

        def recur_with_inputs(name: str, hidden: Array) -> Array:
            product = formed[name] if name in formed else recur(self.prefix + name, hidden)
            return product + projected[name] if name in projected else product

        rest = {name: x for name, x in projected.items() if name not in self.weights.hidden}
        return self.cell.step(pointwise, recur_with_inputs, carry, rest)
