"""What a linear recurrent cell is to the layers that scan it.

Its carry is the state h of a recurrence that is linear in it, entry by entry, and whose
coefficients depend on the inputs alone: :math:`h_t = a_t ∘ h_{t-1} + b_t`. So all products run over
all steps at once, and what is left is ``linear_recurrence``, or ``gated_average``.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from flaxnets.recurrent.cell import CellModule, check_inputs
from flaxnets.recurrent.initializers import Initializer, per_gate
from flaxnets.recurrent.linear_recurrence import (
    gated_average,
    linear_recurrence,
    plain_recurrence,
)
from flaxnets.recurrent.products import multiply
from flaxnets.typing import Array, Carry, PRNGKey

_LECUN = nn.initializers.lecun_normal()


class LinearCell(CellModule):
    """What ``scan_cell`` needs of a cell whose carry is h in :math:`h_t = a_t ∘ h_{t-1} + b_t`.

    Its counterpart for other cells is ``Cell``. Only ``weights`` touches Linen's variables.

    The attributes are those of ``CellModule``.
    """

    def weights(self, input_shape: tuple[int, ...]) -> dict[str, Array]:
        """The parameters by name, made at the first call for inputs of shape (..., D)."""
        raise NotImplementedError

    def initialize_carry(self, rng: PRNGKey | None, input_shape: tuple[int, ...]) -> Array:
        """The state before the first step: zeros (B,S) ``state_dtype``, for inputs (B,D).

        The signature is that of Flax's cells; ``rng`` is not read.
        """
        return jnp.zeros((*input_shape[:-1], self.features), self.state_dtype)

    def coefficients(self, weights: dict[str, Array], inputs: Array) -> tuple[Array, Array]:
        """The a and b, (...,S) ``state_dtype``, of inputs (...,D) of any number of steps."""
        raise NotImplementedError

    def recur(
        self,
        weights: dict[str, Array],
        carry: Array,
        inputs: Array,
        valid: Array | None,
        *,
        reverse: bool,
        autodiff: bool,
    ) -> Array:
        """The states (B,T,S) ``state_dtype`` of all steps.

        Args:
          weights: what ``weights`` gave.
          carry: (B,S), before the first step.
          inputs: (B,T,D).
          valid: (B,T) bool, the steps that change the state; None: all.
          reverse: from the last step to the first.
          autodiff: whether derivatives are left to JAX, in any mode.
        """
        coefficients, addends = self.coefficients(weights, inputs)
        if valid is not None:
            # h = 1·h + 0 leaves the state as it is.
            coefficients = jnp.where(valid[..., None], coefficients, 1)
            addends = jnp.where(valid[..., None], addends, 0)
        recurrence = plain_recurrence if autodiff else linear_recurrence
        return recurrence(coefficients, addends, carry, axis=1, reverse=reverse)

    def read(self, weights: dict[str, Array], states: Array, inputs: Array) -> Array:
        """Outputs (...,F) ``dtype`` of the states (...,S) and the same inputs (...,D)."""
        return states.astype(self.dtype)

    def __call__(self, carry: Carry, inputs: Array) -> tuple[Carry, Array]:
        """One step: the carry (B,S) and inputs (B,D) to the new carry and the output (B,F).

        Raises:
          ValueError: inputs of another rank or of integers.
        """
        check_inputs(inputs, 1 + self.num_feature_axes, "(B,D)", "(B,H,W,C)")
        weights = self.weights(inputs.shape)
        coefficients, addends = self.coefficients(weights, inputs)
        state = coefficients * carry + addends
        return state, self.read(weights, state, inputs)

    def affine(self, weights: dict[str, Array], inputs: Array) -> list[Array]:
        """The G blocks of x W + b, (...,F), made as precise as the state after the product."""
        gates = weights["bias"].shape[0] // self.features
        blocks = zip(
            jnp.split(weights["input_kernel"], gates, axis=-1),
            jnp.split(weights["bias"], gates),
            strict=True,
        )
        rows = jnp.asarray(inputs, self.dtype)
        # One product for all, split, has a slow gradient: its parts are padded and added.
        return [
            multiply(rows, kernel).astype(self.state_dtype) + bias.astype(self.state_dtype)
            for kernel, bias in blocks
        ]

    def affine_weights(self, input_shape: tuple[int, ...], biases: list[float]) -> dict[str, Array]:
        """``input_kernel`` (D,G·F) and ``bias`` (G·F,), whose G blocks begin at ``biases``."""
        shape, gates = (input_shape[-1], len(biases) * self.features), len(biases)
        kernel = self.param("input_kernel", per_gate(_LECUN, gates), shape, self.param_dtype)
        bias = self.param("bias", _blocks(biases), shape[1:], self.param_dtype)
        return {"input_kernel": kernel, "bias": bias}


class AveragingCell(LinearCell):
    r"""A linear cell whose state is an average of candidates: :math:`h_t = (1 - u) h_{t-1} + u k`.

    The attributes are those of ``CellModule``.
    """

    def gates(self, weights: dict[str, Array], inputs: Array) -> tuple[Array, Array]:
        """The z of u = σ(z) and the k, (...,F) ``state_dtype``, of inputs (...,D)."""
        raise NotImplementedError

    def coefficients(self, weights: dict[str, Array], inputs: Array) -> tuple[Array, Array]:
        """See ``LinearCell.coefficients``."""
        gate, candidate = self.gates(weights, inputs)
        kept = nn.sigmoid(-gate)
        return kept, (1 - kept) * candidate

    def recur(
        self,
        weights: dict[str, Array],
        carry: Array,
        inputs: Array,
        valid: Array | None,
        *,
        reverse: bool,
        autodiff: bool,
    ) -> Array:
        """See ``LinearCell.recur``."""
        if autodiff:
            how = {"reverse": reverse, "autodiff": True}
            return super().recur(weights, carry, inputs, valid, **how)
        gate, candidate = self.gates(weights, inputs)
        if valid is not None:
            # σ(-∞) = 0 leaves the state as it is.
            gate = jnp.where(valid[..., None], gate, -jnp.inf)
            candidate = jnp.where(valid[..., None], candidate, 0)
        return gated_average(gate, candidate, carry, axis=1, reverse=reverse)


def _blocks(values: list[float]) -> Initializer:
    """Equal blocks of one value each."""

    def draw(key: PRNGKey, shape: tuple[int], dtype: Any = jnp.float32) -> Array:
        return jnp.repeat(jnp.asarray(values, dtype), shape[0] // len(values))

    return draw
