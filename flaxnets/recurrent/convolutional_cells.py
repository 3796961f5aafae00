"""Recurrent cells on feature maps, with convolutions in place of matmuls.

ConvLSTM, ConvGRU, the ST-LSTM of PredRNN, and the linear minConvGRU and minConvLSTM.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from flaxnets.layers.convolution import conv2d
from flaxnets.recurrent.cell import (
    OUTPUT_GATE,
    PROJECTION,
    CellModule,
    ProjectHidden,
    Weights,
    check_inputs,
)
from flaxnets.recurrent.cells import (
    forget_gate_bias,
    gru_weights,
    per_gate,
    step_gru,
    update_cell_state,
)
from flaxnets.recurrent.linear_cells import AveragingCell, MinGRUCell, MinLSTMCell
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
        """Returns the input kernel (h,w,C,gates·F) ``dtype``, the hidden one (h,w,F,gates·F).

        Of inputs without channels the first is no parameter: checkpoints hold no empty arrays.
        """
        init, outputs = per_gate(_LECUN, gates), gates * self.features
        shape = (*self.kernel_size, channels, outputs)
        inputs = jnp.zeros(shape, self.param_dtype)
        if channels:
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


class STLSTMCell(ConvolutionalCell):
    r"""Spatio-temporal LSTM (Wang et al., PredRNN, NeurIPS 2017, section 3.1).

    .. math::
        i, f, g, o &= x * W + h * U \\
        c' &= σ(f + β) ∘ c + σ(i) ∘ \tanh g \\
        i', f', g' &= x * W' + m * V \\
        m' &= σ(f' + β) ∘ m + σ(i') ∘ \tanh g' \\
        h' &= σ(o + [c', m'] * O) ∘ \tanh([c', m'] * P)

    on feature maps (H,W,F), where * is a convolution, P one of 1×1 pixels, and β the constant
    ``forget_bias``. Scanned by itself the cell keeps its memory m from step to step; in
    ``st_lstm.PredRNNStack`` m goes from layer to layer.

    >>> import jax, jax.numpy as jnp
    >>> from flaxnets.recurrent import STLSTMCell
    >>> cell, x = STLSTMCell(4), jnp.ones((2, 8, 6, 3))
    >>> carry = cell.initialize_carry(None, x.shape)
    >>> init = jax.jit(cell.init_with_output)
    >>> ((cell_state, hidden, memory), output), variables = init(jax.random.key(0), carry, x)
    >>> output.shape, variables["params"]["memory_kernel"].shape
    ((2, 8, 6, 4), (3, 3, 4, 12))

    Parameters: ``input_kernel`` W, W' (h,w,C,7F) for i, f, g, o, i', f', g', ``hidden_kernel`` U
    (h,w,F,4F), ``memory_kernel`` V (h,w,F,3F), ``output_kernel`` O (h,w,2F,F),
    ``projection_kernel`` P (1,1,2F,F).

    Deviations: those of the authors' code (thuml/predrnn-pytorch, without its layer normalisation):
    no biases but β, and o reads c' and m' through one kernel.

    Attributes:
      forget_bias: β, added to f and f'; not trained.
    """

    forget_bias: float = 1.0

    @nn.compact
    def weights(self, input_shape: tuple[int, ...]) -> Weights:
        """See ``Cell.weights``."""
        f, dtype = self.features, self.param_dtype
        size = self.kernel_size

        def kernel(name: str, size: tuple[int, int], channels: int, gates: int) -> Array:
            shape = (*size, channels, gates * f)
            return self.param(f"{name}_kernel", per_gate(_LECUN, gates), shape, dtype)

        inputs = kernel("input", size, input_shape[-1], 7).astype(self.dtype)
        hidden = {
            "hidden": kernel("hidden", size, f, 4),
            "memory": kernel("memory", size, f, 3),
            OUTPUT_GATE: kernel("output", size, 2 * f, 1),
            PROJECTION: kernel("projection", (1, 1), 2 * f, 1),
        }
        # The input projections are added to those of h and m.
        by_state = {"hidden": inputs[..., : 4 * f], "memory": inputs[..., 4 * f :]}
        return Weights(by_state, hidden, {}, {})

    def initialize_carry(
        self, rng: PRNGKey | None, input_shape: tuple[int, ...]
    ) -> tuple[Array, Array, Array]:
        """Returns (c, h, m): zeros (B,H,W,F); h in ``dtype``, the others at least float32."""
        state, hidden = (
            self._zeros(input_shape, dtype) for dtype in (self.state_dtype, self.dtype)
        )
        return state, hidden, state

    def step(
        self,
        weights: dict[str, Array],
        project_hidden: ProjectHidden,
        carry: Carry,
        projected: dict[str, Array],
    ) -> tuple[Carry, Array]:
        """Returns the new (c, h, m), and h (B,H,W,F) as output."""
        carry, _ = self.update(project_hidden, carry)
        return carry, carry[1]

    def update(
        self, project_hidden: ProjectHidden, carry: Carry
    ) -> tuple[tuple[Array, Array, Array], tuple[Array, Array]]:
        """Returns the new (c, h, m), and what was added to c and to m (B,H,W,F).

        Args:
          project_hidden: as ``step`` is given it.
          carry: (c, h, m).
        """
        cell, hidden, memory = carry
        gates = project_hidden("hidden", hidden).astype(cell.dtype)
        gates, exposed = jnp.split(gates, [3 * self.features], axis=-1)
        cell, cell_increment = _update_state(cell, gates, self.forget_bias)
        gates = project_hidden("memory", memory.astype(self.dtype)).astype(memory.dtype)
        memory, memory_increment = _update_state(memory, gates, self.forget_bias)
        states = jnp.concatenate([cell, memory], axis=-1).astype(self.dtype)
        exposed = exposed + project_hidden(OUTPUT_GATE, states).astype(cell.dtype)
        content = jnp.tanh(project_hidden(PROJECTION, states).astype(cell.dtype))
        hidden = (nn.sigmoid(exposed) * content).astype(self.dtype)
        return (cell, hidden, memory), (cell_increment, memory_increment)


def _update_state(state: Array, gates: Array, forget_bias: float) -> tuple[Array, Array]:
    """Returns σ(f + β) ∘ s + σ(i) ∘ tanh g, and its last term.

    Args:
      state: s, (B,H,W,F).
      gates: i, f, g before their nonlinearities, (B,H,W,3F), in the dtype of ``state``.
      forget_bias: β.
    """
    # One tanh over the three gates, as in ``update_cell_state``.
    half, shift = (
        jnp.asarray(np.repeat(values, state.shape[-1]), state.dtype)
        for values in ([0.5, 0.5, 1.0], [0.0, 0.5 * forget_bias, 0.0])
    )
    i, f, g = jnp.split(jnp.tanh(gates * half + shift), 3, axis=-1)
    increment = (0.5 * i + 0.5) * g
    return (0.5 * f + 0.5) * state + increment, increment


class ConvolutionalAveragingCell(AveragingCell):
    """Base class of linear cells on feature maps: one convolution of the inputs for all gates.

    It replaces the matmul of a cell on vectors, which a subclass names as its second base.

    Attributes:
      kernel_size: height and width of the kernel on inputs, pixels; padding is zero, SAME.
    """

    kernel_size: tuple[int, int] = (3, 3)

    @property
    def num_feature_axes(self) -> int:
        """3: feature maps (H,W,C)."""
        return 3

    def kernel_shape(self, channels: int, outputs: int) -> tuple[int, ...]:
        """Returns the shape of ``input_kernel``, (h,w,channels,outputs)."""
        return (*self.kernel_size, channels, outputs)

    def affine(self, weights: dict[str, Array], inputs: Array) -> list[Array]:
        """Returns the G blocks (...,H,W,F) of x * W + b; inputs (...,H,W,G·F) are x * W."""
        gates = weights["bias"].shape[0] // self.features
        bias = weights["bias"].astype(self.state_dtype)
        return jnp.split(inputs.astype(self.state_dtype) + bias, gates, axis=-1)

    def run(
        self,
        weights: dict[str, Array],
        carry: Carry,
        inputs: Array,
        valid: Array | None,
        resets: Array | None = None,
        *,
        reverse: bool,
        autodiff: bool,
    ) -> tuple[Carry, Array]:
        """See ``LinearCell.run``."""
        images = inputs.reshape(-1, *inputs.shape[2:])  # Batch first: it may be sharded.
        convolved = self._convolve(weights, images, autodiff=autodiff)
        convolved = convolved.reshape(*inputs.shape[:2], *convolved.shape[1:])
        return super().run(
            weights, carry, convolved, valid, resets, reverse=reverse, autodiff=autodiff
        )

    def __call__(self, carry: Carry, inputs: Array) -> tuple[Carry, Array]:
        """Returns the new carry and the output (B,H,W,F) of one step, for inputs (B,H,W,C).

        Raises:
          ValueError: inputs of another rank or of integers.
        """
        check_inputs(inputs, "B", self.num_feature_axes)
        weights = self.weights(inputs.shape)
        convolved = self._convolve(weights, inputs, autodiff=False)
        coefficients, increments = self.coefficients(weights, convolved)
        state = coefficients * carry + increments
        return state, self.compute_outputs(weights, state, convolved)

    def _convolve(self, weights: dict[str, Array], images: Array, *, autodiff: bool) -> Array:
        return conv2d(images.astype(self.dtype), weights["input_kernel"], autodiff=autodiff)


class MinConvGRUCell(ConvolutionalAveragingCell, MinGRUCell):
    r"""Minimal GRU on feature maps: ``MinGRUCell`` with a convolution in place of its matmul.

    .. math::
        z, k &= x * W + b \\
        h' &= (1 - σ(z)) ∘ h + σ(z) ∘ g(k)

    (Feng et al., 2410.01201, on vectors.) A state thus sees no further than one kernel around its
    pixel, however many steps there are; layers above widen that.

    >>> import jax, jax.numpy as jnp
    >>> from flaxnets.recurrent import MinConvGRUCell
    >>> cell, x = MinConvGRUCell(4), jnp.ones((2, 8, 6, 3))
    >>> carry = cell.initialize_carry(None, x.shape)
    >>> init = jax.jit(cell.init_with_output)
    >>> (state, output), variables = init(jax.random.key(0), carry, x)
    >>> output.shape, variables["params"]["input_kernel"].shape
    ((2, 8, 6, 4), (3, 3, 3, 8))

    Parameters: ``input_kernel`` W (h,w,C,2F) and ``bias`` b (2F,) for z, k.

    The attributes are those of ``MinGRUCell`` and ``kernel_size``.
    """


class MinConvLSTMCell(ConvolutionalAveragingCell, MinLSTMCell):
    r"""Minimal LSTM on feature maps: ``MinLSTMCell`` with a convolution in place of its matmul.

    .. math::
        f, i, k &= x * W + b \\
        h' &= \frac{σ(f)}{σ(f) + σ(i)} ∘ h + \frac{σ(i)}{σ(f) + σ(i)} ∘ g(k)

    (Feng et al., 2410.01201, on vectors.)

    >>> import jax, jax.numpy as jnp
    >>> from flaxnets.recurrent import MinConvLSTMCell
    >>> cell, x = MinConvLSTMCell(4), jnp.ones((2, 8, 6, 3))
    >>> carry = cell.initialize_carry(None, x.shape)
    >>> init = jax.jit(cell.init_with_output)
    >>> (state, output), variables = init(jax.random.key(0), carry, x)
    >>> output.shape, variables["params"]["input_kernel"].shape
    ((2, 8, 6, 4), (3, 3, 3, 12))

    Parameters: ``input_kernel`` W (h,w,C,3F) and ``bias`` b (3F,) for f, i, k.

    The attributes are those of ``MinLSTMCell`` and ``kernel_size``.
    """
