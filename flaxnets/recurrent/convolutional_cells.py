"""Recurrent cells on maps: convolutions in the place of products."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from flaxnets.layers.convolution import conv2d
from flaxnets.recurrent.cell import CellModule, Recur, Weights
from flaxnets.recurrent.cells import (
    forget_gate_bias,
    gru_weights,
    per_gate,
    step_gru,
    update_cell_state,
)
from flaxnets.recurrent.matmul import merge_steps, split_steps
from flaxnets.typing import Array, Carry, PRNGKey

_LECUN = nn.initializers.lecun_normal()


class ConvolutionalCell(CellModule):
    """What the cells on maps share: one convolution of the inputs, for all gates at once.

    Attributes:
      kernel_size: height and width of the kernels on inputs and hidden states; padding is zero,
        SAME.
    """

    kernel_size: tuple[int, int] = (3, 3)

    @property
    def num_feature_axes(self) -> int:
        """3: maps (H,W,C)."""
        return 3

    def project(self, weights: dict[str, Array], inputs: Array) -> dict[str, Array]:
        """(B,H,W,C) or (T,B,H,W,C) to the gates' shares of the input, (...,H,W,G) ``dtype``."""
        maps = inputs.astype(self.dtype)
        if maps.ndim == 4:
            return {name: conv2d(maps, kernel) for name, kernel in weights.items()}
        images = merge_steps(maps)
        gates = {name: conv2d(images, kernel) for name, kernel in weights.items()}
        return {name: split_steps(x, len(maps)) for name, x in gates.items()}

    def _kernels(self, channels: int, gates: int) -> tuple[Array, Array]:
        """(h,w,C,gates·F) for the inputs, ``dtype``, and (h,w,F,gates·F) for the hidden state."""
        init, outputs = per_gate(_LECUN, gates), gates * self.features
        shape = (*self.kernel_size, channels, outputs)
        inputs = self.param("input_kernel", init, shape, self.param_dtype)
        shape = (*self.kernel_size, self.features, outputs)
        hidden = self.param("hidden_kernel", init, shape, self.param_dtype)
        return inputs.astype(self.dtype), hidden

    def _zeros(self, input_shape: tuple[int, ...], dtype: Any) -> Array:
        return jnp.zeros((*input_shape[:-1], self.features), dtype)


class ConvLSTMCell(ConvolutionalCell):
    r"""Convolutional LSTM (Shi et al., 1506.04214, equation 3).

    The equations are those of ``LSTMCell`` with convolutions for products, on maps (H,W,F). The
    peepholes of the paper are maps themselves, multiplied entry by entry, which binds the
    parameters to the size of the image.

    Parameters: ``input_kernel`` (h,w,C,4F), ``hidden_kernel`` (h,w,F,4F), ``bias`` (4F,),
    ``peepholes`` (3,H,W,F) for i, f, o. Gates stand in the order i, f, g, o.

    Deviations: the paper has peepholes always, and its forget bias starts at 0.

    Attributes:
      forget_bias: initial bias of f.
      peepholes: whether the gates read the cell state.
    """

    forget_bias: float = 1.0
    peepholes: bool = False

    @nn.compact
    def weights(self, input_shape: tuple[int, ...]) -> Weights:
        """See ``Cell.weights``."""
        height, width, channels = input_shape[-3:]
        f, dtype = self.features, self.param_dtype
        inputs, hidden = self._kernels(channels, 4)
        bias = self.param("bias", forget_gate_bias(self.forget_bias), (4 * f,), dtype)
        pointwise = {}
        if self.peepholes:
            shape = (3, height, width, f)
            pointwise["peepholes"] = self.param("peepholes", nn.initializers.zeros, shape, dtype)
        return Weights({"hidden": inputs}, {"hidden": hidden}, {"hidden": bias}, pointwise)

    def initialize_carry(
        self, rng: PRNGKey | None, input_shape: tuple[int, ...]
    ) -> tuple[Array, Array]:
        """(c, h): zeros (B,H,W,F), at least float32, and ``dtype``."""
        return self._zeros(input_shape, self.state_dtype), self._zeros(input_shape, self.dtype)

    def step(
        self, weights: dict[str, Array], recur: Recur, carry: Carry, projected: dict[str, Array]
    ) -> tuple[Carry, Array]:
        """One step; the output (B,H,W,F) is the new h."""
        cell, hidden = carry
        gates = recur("hidden", hidden)
        cell, gate = update_cell_state(cell, gates, weights.get("peepholes"))
        hidden = (gate * jnp.tanh(cell)).astype(self.dtype)
        return (cell, hidden), hidden


class ConvGRUCell(ConvolutionalCell):
    """Convolutional GRU (Ballas et al., 1511.06432, section 3.1).

    The equations are those of ``GRUCell``, whose reset before the product is the paper's, with
    convolutions for products, on maps (H,W,F).

    Parameters: ``input_kernel`` (h,w,C,3F), ``hidden_kernel`` (h,w,F,3F), ``bias`` (3F,), and
    ``hidden_bias`` (F,) where the reset comes after. The state stays float32 in any lower
    ``dtype``.

    Attributes:
      reset_after: whether the reset gate acts after the convolution: one a step instead of two.
    """

    reset_after: bool = False

    @nn.compact
    def weights(self, input_shape: tuple[int, ...]) -> Weights:
        """See ``Cell.weights``."""
        f, dtype = self.features, self.param_dtype
        inputs, hidden = self._kernels(input_shape[-1], 3)
        bias = self.param("bias", nn.initializers.zeros, (3 * f,), dtype)
        hidden_bias = None
        if self.reset_after:
            hidden_bias = self.param("hidden_bias", nn.initializers.zeros, (f,), dtype)
        return gru_weights(inputs, hidden, bias, hidden_bias)

    def initialize_carry(self, rng: PRNGKey | None, input_shape: tuple[int, ...]) -> Array:
        """h: zeros (B,H,W,F), at least float32."""
        return self._zeros(input_shape, self.state_dtype)

    def step(
        self, weights: dict[str, Array], recur: Recur, carry: Array, projected: dict[str, Array]
    ) -> tuple[Array, Array]:
        """One step; the output (B,H,W,F) is the new h in ``dtype``."""
        hidden = step_gru(weights, recur, carry, projected, self.dtype)
        return hidden, hidden.astype(self.dtype)
