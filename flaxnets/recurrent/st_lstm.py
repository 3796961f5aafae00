"""Stack of ST-LSTM cells with PredRNN's zig-zag memory, and its decoupling loss."""

from functools import partial

import flax.linen as nn
import jax.numpy as jnp

from flaxnets.recurrent.cell import ProjectHidden
from flaxnets.recurrent.convolutional_cells import STLSTMCell
from flaxnets.recurrent.matmul import ScanWeights, affine
from flaxnets.typing import Array, Carry, Dtype, PyTree

DECOUPLING = "decoupling"
"""Name of the auxiliary loss."""
_READS_INPUTS = ("hidden", "memory")
"""Kernels of the cell whose projections an input projection is added to."""


class PredRNNStack(nn.Module):
    r"""ST-LSTM layers through which one memory goes in a zig-zag (PredRNN, NeurIPS 2017, figure 2).

    .. math::
        c^l_t, h^l_t, m^l_t &= \mathrm{STLSTM}_l(h^{l-1}_t, c^l_{t-1}, h^l_{t-1}, m^{l-1}_t) \\
        h^0_t &= x_t, \quad m^0_t = m^L_{t-1}

    So the memory climbs from layer to layer within a step, and from the top layer at one step to
    the lowest at the next. A ``FrameStack`` of ``flaxnets.models.forecaster``.

    With ``decoupling`` each step has an auxiliary loss (2103.09504, section 3.3), the mean over
    layers l and channels k of

    .. math::
        \frac{|⟨A ΔC^l, A ΔM^l⟩_k|}{‖A ΔC^l‖_k \, ‖A ΔM^l‖_k}

    where ΔC and ΔM are what the step adds to c and m, A is a 1×1 convolution that all layers
    share, and the inner product and the norms are over the positions of a channel.

    >>> import jax
    >>> stack, x = PredRNNStack((4, 4), decoupling=True), jnp.ones((2, 8, 6, 3))
    >>> carry = stack.initialize_carry(x.shape)
    >>> init = partial(stack.init_with_output, train=False)
    >>> (_, outputs, losses), variables = jax.eval_shape(init, jax.random.key(0), carry, x)
    >>> outputs.shape, losses["decoupling"].shape, sorted(variables["params"])
    ((2, 8, 6, 4), (2,), ['adapter_kernel', 'cells_0', 'cells_1'])

    Parameters: ``cells_i`` of each layer i, from below, as ``STLSTMCell``; ``adapter_kernel`` A
    (F,F) with ``decoupling``. Their number is that of the authors' code and of OpenSTL's PredRNN
    and PredRNNv2: 23,838,720 and 23,855,104 with the 1×1 convolution that makes the frames, for
    four layers of 128, 5×5 kernels and patches of 16 values.

    Deviations: those of ``STLSTMCell``; no layer normalisation, which the authors' scripts for
    Moving MNIST switch off as well.

    Attributes:
      features: widths of the layers, from below; all the same, F, since one memory goes through
        them.
      kernel_size: height and width of the kernels, in positions; padding is zero, SAME.
      decoupling: adds the auxiliary loss.
      dtype: of the convolutions; c and m are at least float32.

    Raises:
      ValueError: no layers, or layers of different widths.
    """

    features: tuple[int, ...]
    kernel_size: tuple[int, int] = (5, 5)
    decoupling: bool = False
    dtype: Dtype = jnp.float32

    def __post_init__(self) -> None:
        """Refuses layers of different widths."""
        if len(set(self.features)) != 1:
            raise ValueError(
                "features: expected one or more layers of the same width, since one memory goes "
                f"through all of them, received {tuple(self.features)}"
            )
        super().__post_init__()

    def setup(self) -> None:
        """Creates the cells."""
        self.cells = [
            STLSTMCell(width, kernel_size=self.kernel_size, dtype=self.dtype)
            for width in self.features
        ]
        if self.decoupling:
            shape = (self.output_features, self.output_features)
            self.adapter_kernel = self.param(
                "adapter_kernel", nn.initializers.lecun_normal(), shape
            )

    @property
    def output_features(self) -> int:
        """F."""
        return self.features[-1]

    @property
    def deferrable(self) -> bool:
        """True: see ``FrameStack.deferrable``."""
        return True

    def initialize_carry(self, input_shape: tuple[int, ...]) -> Carry:
        """Returns zeros: ((c, h) of each layer, from below), and m, for inputs (B,h,w,C)."""
        cell = STLSTMCell(self.output_features, dtype=self.dtype, parent=None)
        state, hidden, memory = cell.initialize_carry(None, input_shape)
        return ((state, hidden),) * len(self.features), memory

    def __call__(
        self, carry: Carry, inputs: Array, *, train: bool
    ) -> tuple[Carry, Array, dict[str, Array]]:
        """Returns the new carry, the outputs (B,h,w,F) of the top layer, and auxiliary losses.

        Args:
          carry: as ``initialize_carry`` makes it.
          inputs: (B,h,w,C) float.
          train: has no effect.

        Returns:
          Carry, outputs and, with ``decoupling``, the loss of that name, (B,) float32 in [0,1].
        """
        weights = self.weights(inputs.shape)
        return self.step(partial(affine, weights, {}), weights.others, carry, inputs)

    def weights(self, input_shape: tuple[int, ...]) -> ScanWeights:
        """Returns the kernels for inputs (B,h,w,C), by layer and name, and the adapter.

        A kernel on inputs and the one on states whose projections are added are one, that of
        inputs above that of states.
        """
        kernels = {}
        for layer, cell in enumerate(self.cells):
            weights = cell.weights(input_shape)
            for name, kernel in weights.hidden.items():
                if name in _READS_INPUTS:
                    above = weights.input[name].astype(kernel.dtype)
                    kernel = jnp.concatenate([above, kernel], axis=-2)
                # One of 1×1 pixels is a matrix.
                kernels[f"{layer}/{name}"] = kernel[0, 0] if kernel.shape[:2] == (1, 1) else kernel
            input_shape = (*input_shape[:-1], self.features[layer])
        others = {"adapter": self.adapter_kernel} if self.decoupling else {}
        return ScanWeights(kernels, {}, others)

    def step(
        self, project: ProjectHidden, others: PyTree, carry: Carry, inputs: Array
    ) -> tuple[Carry, Array, dict[str, Array]]:
        """Returns what ``__call__`` does; a pure function of its arguments.

        Args:
          project: (name, maps) to the convolution with that kernel of ``weights``.
          others: those of ``weights``.
          carry: as ``initialize_carry`` makes it.
          inputs: (B,h,w,C) float.
        """
        states, memory = carry
        x, new_states, increments = inputs, [], []
        for layer, (cell, (state, hidden)) in enumerate(zip(self.cells, states, strict=True)):
            project_hidden = partial(_project, project, f"{layer}/", x.astype(self.dtype))
            (state, x, memory), added = cell.update(project_hidden, (state, hidden, memory))
            new_states.append((state, x))
            increments.append(added)
        losses = {}
        if self.decoupling:
            adapter = others["adapter"]
            alike = [_similarity(*added, adapter.astype(added[0].dtype)) for added in increments]
            losses[DECOUPLING] = jnp.mean(jnp.stack(alike), axis=0)
        return (tuple(new_states), memory), x, losses


def _project(project: ProjectHidden, prefix: str, inputs: Array, name: str, hidden: Array) -> Array:
    """Returns a cell's projection ``name`` of its states, with that of its inputs."""
    if name in _READS_INPUTS:
        hidden = jnp.concatenate([inputs, hidden], axis=-1)
    return project(prefix + name, hidden)


def _similarity(first: Array, second: Array, adapter: Array) -> Array:
    """Returns the mean absolute cosine similarity of adapted channels, (B,) float32.

    Args:
      first: (B,h,w,F), at least float32.
      second: the same.
      adapter: (F,F), in their dtype.
    """
    first, second = first @ adapter, second @ adapter

    def sum_positions(x: Array) -> Array:
        return jnp.sum(x, axis=(1, 2))  # (B,F)

    # The bound keeps the gradient finite where nothing was added; it is that of F.normalize.
    norms = [jnp.sqrt(jnp.maximum(sum_positions(x * x), 1e-24)) for x in (first, second)]
    similarity = jnp.abs(sum_positions(first * second)) / norms[0] / norms[1]
    return jnp.mean(similarity, axis=-1).astype(jnp.float32)
