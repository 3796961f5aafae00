"""Recurrent cells on feature maps, with convolutions in place of matmuls: ConvLSTM, ConvGRU."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from flaxnets.layers.convolution import conv2d
from flaxnets.recurrent.cell import CellModule, ProjectHidden, Weights
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
    """Base class of cells on feature maps: one convolution of the inputs for all gates.

    Attributes:
      kernel_size: height and width of the kernels on inputs and hidden states, in pixels; padding
        is zero, SAME.
    """

    kernel_size: tuple[int, int] = (3, 3)

    @property
    def num_feature_axes(self) -> int:
        """3: feature maps (H,W,C)."""
        return 3

    def project(self, weights: dict[str, Array], inputs: Array) -> dict[str, Array]:
        """Returns the input projections (...,H,W,G) ``dtype`` of (B,H,W,C) or (T,B,H,W,C)."""
        return self._convolve(weights, inputs, autodiff=False)

    def project_with_autodiff(self, weights: dict[str, Array], inputs: Array) -> dict[str, Array]:
        """See ``CellModule.project_with_autodiff``."""
        return self._convolve(weights, inputs, autodiff=True)

    def _convolve(
        self, weights: dict[str, Array], inputs: Array, *, autodiff: bool
    ) -> dict[str, Array]:
        convolve = partial(conv2d, autodiff=autodiff)
        maps = inputs.astype(self.dtype)
        if maps.ndim == 4:
            return {name: convolve(maps, kernel) for name, kernel in weights.items()}
        images = merge_steps(maps)
        gates = {name: convolve(images, kernel) for name, kernel in weights.items()}
        return {name: split_steps(x, maps.shape[0]) for name, x in gates.items()}

    def _kernels(self, channels: int, gates: int) -> tuple[Array, Array]:
        """Returns the input kernel (h,w,C,gates·F) ``dtype``, the hidden one (h,w,F,gates·F)."""
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

    .. math::
        i, f, g, o &= x * W + h * U + b \\
        c' &= σ(f) ∘ c + σ(i) ∘ \tanh g \\
        h' &= σ(o) ∘ \tanh c'

    on feature maps (H,W,F), where * is a convolution. With ``peepholes`` :math:`w_i ∘ c` is added
    to i, :math:`w_f ∘ c` to f, :math:`w_o ∘ c'` to o. As in the paper's equation these are feature
    maps too, multiplied elementwise, so that the parameters fit one image size only. With
    ``shared_peepholes`` there is one for each channel, at all positions: the parameters that the
    paper's table 1 counts.

    >>> import jax, jax.numpy as jnp
    >>> from flaxnets.recurrent import ConvLSTMCell
    >>> cell, x = ConvLSTMCell(4), jnp.ones((2, 8, 6, 3))
    >>> carry = cell.initialize_carry(None, x.shape)
    >>> init = jax.jit(cell.init_with_output)
    >>> ((cell_state, hidden), output), variables = init(jax.random.key(0), carry, x)
    >>> output.shape, variables["params"]["hidden_kernel"].shape
    ((2, 8, 6, 4), (3, 3, 4, 16))

    Parameters: ``input_kernel`` W (h,w,C,4F), ``hidden_kernel`` U (h,w,F,4F), ``bias`` b (4F,),
    ``peepholes`` (3,H,W,F), shared (3,1,1,F), for i, f, o. The gates are in the order i, f, g, o.

    Deviations: the paper always has peepholes, and its forget bias starts at 0.

    Attributes:
      forget_bias: initial bias of f.
      peepholes: adds peephole connections.
      shared_peepholes: of ``peepholes``, one for each channel.
      use_bias: adds b; False: the forget gate begins without a bias, too.
    """

    forget_bias: float = 1.0
    peepholes: bool = False
    shared_peepholes: bool = False
    use_bias: bool = True

    @nn.compact
    def weights(self, input_shape: tuple[int, ...]) -> Weights:
        """See ``Cell.weights``."""
        height, width, channels = input_shape[-3:]
        f, dtype = self.features, self.param_dtype
        inputs, hidden = self._kernels(channels, 4)
        biases = {}
        if self.use_bias:
            init = forget_gate_bias(self.forget_bias)
            biases["hidden"] = self.param("bias", init, (4 * f,), dtype)
        pointwise = {}
        if self.peepholes:
            shape = (3, 1, 1, f) if self.shared_peepholes else (3, height, width, f)
            pointwise["peepholes"] = self.param("peepholes", nn.initializers.zeros, shape, dtype)
        return Weights({"hidden": inputs}, {"hidden": hidden}, biases, pointwise)

    def initialize_carry(
        self, rng: PRNGKey | None, input_shape: tuple[int, ...]
    ) -> tuple[Array, Array]:
        """Returns (c, h): zeros (B,H,W,F), at least float32, and in ``dtype``."""
        return self._zeros(input_shape, self.state_dtype), self._zeros(input_shape, self.dtype)

    def step(
        self,
        weights: dict[str, Array],
        project_hidden: ProjectHidden,
        carry: Carry,
        projected: dict[str, Array],
    ) -> tuple[Carry, Array]:
        """Returns the new (c, h), and h (B,H,W,F) as output."""
        cell, hidden = carry
        gates = project_hidden("hidden", hidden)
        cell, gate = update_cell_state(cell, gates, weights.get("peepholes"))
        hidden = (gate * jnp.tanh(cell)).astype(self.dtype)
        return (cell, hidden), hidden


class ConvGRUCell(ConvolutionalCell):
    r"""Convolutional GRU (Ballas et al., 1511.06432, section 3.1).

    .. math::
        r, z &= σ(x * W_{rz} + h * U_{rz} + b_{rz}) \\
        n &= \tanh(x * W_n + b_n + (r ∘ h) * U_n) \\
        h' &= (1 - z) ∘ n + z ∘ h

    on feature maps (H,W,F), where * is a convolution; with ``reset_after``
    :math:`n = \tanh(x * W_n + b_n + r ∘ (h * U_n + b_{hn}))`. The state is float32 in any lower
    ``dtype``.

    >>> import jax, jax.numpy as jnp
    >>> from flaxnets.recurrent import ConvGRUCell
    >>> cell, x = ConvGRUCell(4), jnp.ones((2, 8, 6, 3))
    >>> carry = cell.initialize_carry(None, x.shape)
    >>> init = jax.jit(cell.init_with_output)
    >>> (hidden, output), variables = init(jax.random.key(0), carry, x)
    >>> output.shape, variables["params"]["hidden_kernel"].shape
    ((2, 8, 6, 4), (3, 3, 4, 12))

    Parameters: ``input_kernel`` W (h,w,C,3F), ``hidden_kernel`` U (h,w,F,3F), ``bias`` b (3F,), and
    ``hidden_bias`` :math:`b_{hn}` (F,) with ``reset_after``.

    Attributes:
      reset_after: applies the reset gate after the convolution, which needs one convolution per
        step instead of two; the paper applies it before.
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
        """Returns h: zeros (B,H,W,F), at least float32."""
        return self._zeros(input_shape, self.state_dtype)

    def step(
        self,
        weights: dict[str, Array],
        project_hidden: ProjectHidden,
        carry: Array,
        projected: dict[str, Array],
    ) -> tuple[Array, Array]:
        """Returns the new h (B,H,W,F), and the same in ``dtype`` as output."""
        hidden = step_gru(weights, project_hidden, carry, projected, self.dtype)
        return hidden, hidden.astype(self.dtype)
