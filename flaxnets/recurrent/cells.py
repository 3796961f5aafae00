"""Recurrent cells: one step of time, in two parts so that a layer can hoist the first.

``project`` is all that does not depend on the carry and runs over all steps at once; ``step`` is
the rest and is scanned.
"""

from typing import Any, Protocol

import flax.linen as nn
import jax.numpy as jnp

from flaxnets.recurrent.initializers import orthogonal, per_gate
from flaxnets.typing import Array, Carry, Dtype, PRNGKey


class Cell(Protocol):
    """What a layer needs of a cell."""

    features: int

    def initialize_carry(self, batch_size: int) -> Carry:
        """The carry before the first step: zeros."""

    def project(self, inputs: Array) -> Array:
        """(..., D) inputs of any number of steps to what ``step`` takes, (..., G)."""

    def step(self, carry: Carry, projected: Array) -> tuple[Carry, Array]:
        """One step: the carry and (B,G) to the new carry and (B,features)."""


class LSTMCell(nn.Module):
    r"""Long short-term memory with a forget gate (Hochreiter 1997; Gers 2000, without peepholes).

    .. math::
        i, f, g, o &= x W + h U + b \\
        c' &= σ(f) c + σ(i) \tanh g \\
        h' &= σ(o) \tanh c'

    Gates stand in PyTorch's order i, f, g, o. The cell state c stays float32 in any ``dtype``,
    since it adds up over many steps.

    Attributes:
      features: F, width of h and c.
      forget_bias: initial bias of f (Jozefowicz et al. 2015 find 1 good).
      dtype: of the products and of the outputs.
      param_dtype: of the parameters ``input/kernel`` (D,4F), ``input/bias`` (4F,) and
        ``hidden_kernel`` (F,4F).
    """

    features: int
    forget_bias: float = 1.0
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    def setup(self) -> None:
        """Makes the parameters; the width of the inputs shows at the first call."""
        self.input = nn.Dense(
            4 * self.features,
            kernel_init=per_gate(nn.initializers.lecun_normal(), 4),
            bias_init=self._bias_init,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )
        self.hidden_kernel = self.param(
            "hidden_kernel",
            per_gate(orthogonal, 4),
            (self.features, 4 * self.features),
            self.param_dtype,
        )

    def initialize_carry(self, batch_size: int) -> tuple[Array, Array]:
        """(c, h): zeros (B,F), float32 and ``dtype``."""
        shape = (batch_size, self.features)
        return jnp.zeros(shape, jnp.float32), jnp.zeros(shape, self.dtype)

    def project(self, inputs: Array) -> Array:
        """(..., D) to the gates' share of the input, (..., 4F) ``dtype``."""
        return self.input(inputs)

    def step(self, carry: tuple[Array, Array], projected: Array) -> tuple[Carry, Array]:
        """One step; the output (B,F) is the new h."""
        cell, hidden = carry
        gates = projected + hidden @ self.hidden_kernel.astype(self.dtype)
        i, f, g, o = jnp.split(gates.astype(jnp.float32), 4, axis=-1)
        cell = nn.sigmoid(f) * cell + nn.sigmoid(i) * jnp.tanh(g)
        hidden = (nn.sigmoid(o) * jnp.tanh(cell)).astype(self.dtype)
        return (cell, hidden), hidden

    def _bias_init(self, key: PRNGKey, shape: tuple[int], dtype: Any) -> Array:
        bias = jnp.zeros((4, self.features), dtype).at[1].set(self.forget_bias)
        return bias.reshape(shape)
