"""Recurrent layers with sequence-wise BatchNorm, and the lookahead convolution (Deep Speech 2)."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from flaxnets.configuration import check_dtype_argument
from flaxnets.layers.depthwise import depthwise_conv
from flaxnets.layers.normalization import BatchNorm
from flaxnets.layers.padding import check_lengths, mask_steps, zero_padding
from flaxnets.recurrent.cell import Weights, check_inputs
from flaxnets.recurrent.cells import ElmanCell, GRUCell, orthogonal, per_gate
from flaxnets.recurrent.scan import ScanOptions, scan_cell
from flaxnets.typing import Array, Carry, Dtype

CEILING = 20.0
"""Greatest output of the clipped ReLU."""


def clipped_relu(x: Array) -> Array:
    """Returns min(max(x, 0), 20) (Amodei et al., 1512.02595, section 3.1)."""
    return jnp.clip(x, 0, CEILING)


class SequenceNormElmanCell(ElmanCell):
    r"""Elman's cell on inputs that are projected and normalised already.

    .. math::
        h' = \min(\max(x + h U, 0), 20)

    Parameters: ``hidden_kernel`` U (F,F). The bias is that of the normalisation.
    """

    activation: Any = clipped_relu

    @nn.compact
    def weights(self, input_shape: tuple[int, ...]) -> Weights:
        """See ``Cell.weights``."""
        shape = (self.features, self.features)
        kernel = self.param("hidden_kernel", orthogonal, shape, self.param_dtype)
        return Weights({}, {"hidden": kernel}, {}, {})

    def project(self, weights: dict[str, Array], inputs: Array) -> dict[str, Array]:
        """Returns the inputs (...,F) themselves."""
        return {"hidden": jnp.asarray(inputs, self.dtype)}


class SequenceNormGRUCell(GRUCell):
    r"""GRU with its reset after the matmul, on inputs that are projected and normalised already.

    .. math::
        r, z &= σ(x_{rz} + h U_{rz}) \\
        n &= \tanh(x_n + r ∘ (h U_n + b_n)) \\
        h' &= (1 - z) n + z h

    Parameters: ``hidden_kernel`` U (F,3F), ``hidden_bias`` :math:`b_n` (F,). The other biases are
    those of the normalisation.
    """

    @nn.compact
    def weights(self, input_shape: tuple[int, ...]) -> Weights:
        """See ``Cell.weights``."""
        f, dtype = self.features, self.param_dtype
        kernel = self.param("hidden_kernel", per_gate(orthogonal, 3), (f, 3 * f), dtype)
        bias = self.param("hidden_bias", nn.initializers.zeros, (f,), dtype)
        biases = {"hidden": jnp.concatenate([jnp.zeros(2 * f, dtype), bias])}
        return Weights({}, {"hidden": kernel}, biases, {"bias": jnp.zeros(f, dtype)})

    def project(self, weights: dict[str, Array], inputs: Array) -> dict[str, Array]:
        """Returns the inputs (...,3F) themselves."""
        return {"inputs": jnp.asarray(inputs, self.dtype)}


CELLS = {"elman": (SequenceNormElmanCell, 1), "gru": (SequenceNormGRUCell, 3)}
"""Cells on projected inputs and their number of gates, by name."""


class SequenceNormRecurrent(nn.Module):
    r"""Stack of recurrent layers with sequence-wise BatchNorm (1512.02595, sections 3.1 and 3.2).

    Layer l normalises the projection of its inputs, by mean and variance of each feature over all
    valid steps of all sequences of the batch, and both directions share the projection; their
    outputs are summed:

    .. math::
        \overrightarrow{h}^l_t &= f(B(h^{l-1}_t W^l) + \overrightarrow{h}^l_{t-1}
            \overrightarrow{U}^l) \\
        \overleftarrow{h}^l_t &= f(B(h^{l-1}_t W^l) + \overleftarrow{h}^l_{t+1}
            \overleftarrow{U}^l) \\
        h^l_t &= \overrightarrow{h}^l_t + \overleftarrow{h}^l_t

    Padded steps have no effect on outputs, statistics and gradients.

    >>> from functools import partial
    >>> import jax, jax.numpy as jnp
    >>> layer = SequenceNormRecurrent(4, num_layers=2)
    >>> x, lengths = jnp.ones((2, 5, 3)), jnp.array([5, 2])
    >>> init = jax.jit(partial(layer.init_with_output, train=False))
    >>> outputs, variables = init(jax.random.key(0), x, lengths)
    >>> outputs.shape, float(jnp.abs(outputs[1, 2:]).max())
    ((2, 5, 4), 0.0)

    Attributes:
      features: F, width of the hidden states.
      num_layers: depth.
      cell: ``elman``, with the clipped ReLU, or ``gru``.
      bidirectional: whether each layer also scans backwards.
      lookahead: τ, steps of the lookahead convolution behind the last layer; 0: none.
      dropout_rate: on the inputs of each layer but the first.
      options: of the scans.
      dtype: of the matmuls and of the outputs.
    """

    features: int
    num_layers: int = 1
    cell: str = "elman"
    bidirectional: bool = True
    lookahead: int = 0
    dropout_rate: float = 0.0
    options: ScanOptions = ScanOptions()
    dtype: Dtype = jnp.float32

    def __post_init__(self) -> None:
        """Refuses unknown cells and dtypes."""
        check_dtype_argument(self.dtype)
        if self.cell not in CELLS:
            raise ValueError(f"cell: expected one of {', '.join(CELLS)}, received {self.cell!r}")
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        inputs: Array,
        lengths: Array | None = None,
        *,
        train: bool,
        initial_carry: Carry | None = None,
        return_carry: bool = False,
    ) -> Any:
        """Returns the outputs of the last layer, (B,T,F) ``dtype``, zero at padded steps.

        Args:
          inputs: (B,T,D) float.
          lengths: (B,) integers in [0,T], valid steps; None: all. A sequence of length 0 counts in
            no statistics.
          train: whether to apply dropout and to normalise by the statistics of this batch.
          initial_carry: of ``return_carry``, for the steps before these; None: zeros.
          return_carry: returns (carry, outputs), so that another call can continue.

        Raises:
          ValueError: inputs of another rank or of integers, or lengths outside [0,T].
        """
        check_inputs(inputs, "B,T", 1)
        if lengths is not None:
            lengths = check_lengths(lengths, *inputs.shape[:2])
        if self.obstacle and (return_carry or initial_carry is not None):
            raise ValueError(f"return_carry: expected False, since {self.obstacle}, received True")
        carries = []
        make, gates = CELLS[self.cell]
        valid = mask_steps(inputs, lengths)
        x = zero_padding(inputs, lengths)
        for layer in range(self.num_layers):
            if layer:
                x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
            width = gates * self.features
            x = nn.Dense(width, use_bias=False, dtype=self.dtype, name=f"input_{layer}")(x)
            norm = BatchNorm(name=f"norm_{layer}")
            x = norm(x[:, None], valid, train=train)[:, 0]  # (B,1,T,·): steps are its columns.
            names = ("forward", "backward")[: 1 + self.bidirectional]
            scanned = [
                scan_cell(
                    make(self.features, dtype=self.dtype, name=f"{name}_{layer}"),
                    x,
                    lengths,
                    initial_carry=None if initial_carry is None else initial_carry[layer],
                    reverse=name == "backward",
                    options=self.options,
                )
                for name in names
            ]
            carries.append(scanned[0][0])
            outputs = [outputs for _, outputs in scanned]
            x = outputs[0] + outputs[1] if self.bidirectional else outputs[0]
        if self.lookahead:
            x = LookaheadConv(self.lookahead, dtype=self.dtype, name="lookahead")(x, lengths)
        return (tuple(carries), x) if return_carry else x

    @property
    def obstacle(self) -> str:
        """The reason why the layer has no ``stream``; empty if it has."""
        if self.bidirectional:
            return "the recurrent layer is bidirectional"
        if self.lookahead:
            return "its lookahead convolution reads later steps"
        return ""

    def stream(
        self, carry: Carry | None, inputs: Array, lengths: Array | None = None
    ) -> tuple[Carry, Array]:
        """Returns the new carry and the outputs for the next steps, as ``Recurrent.stream``.

        BatchNorm takes its running statistics, so that all chunks give what the whole gives.
        """
        carry, outputs = self(inputs, lengths, train=False, initial_carry=carry, return_carry=True)
        return carry, outputs


class LookaheadConv(nn.Module):
    r"""Lookahead (row) convolution: each feature also reads its next τ steps (1512.02595, 3.7).

    .. math::
        r_{t,i} = \sum_{j=0}^{τ} w_{j,i} h_{t+j,i}

    A network that scans forwards alone so knows a little of what follows, and needs to wait for τ
    steps, not for the end. Steps beyond the length count as zeros.

    >>> import jax
    >>> x = jnp.ones((1, 4, 2))
    >>> layer = LookaheadConv(2)
    >>> variables = jax.tree.map(jnp.ones_like, layer.init(jax.random.key(0), x))
    >>> layer.apply(variables, x)[0, :, 0].tolist()
    [3.0, 3.0, 2.0, 1.0]

    Parameters: ``kernel`` w (1,τ + 1,1,F).

    Attributes:
      steps: τ, at least 1.
      dtype: of the arithmetic and the outputs.
      param_dtype: of the parameters.
    """

    steps: int
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    def __post_init__(self) -> None:
        """Refuses a number of steps below 1."""
        if self.steps < 1:
            raise ValueError(f"steps: expected at least 1, received {self.steps}")
        super().__post_init__()

    @nn.compact
    def __call__(self, inputs: Array, lengths: Array | None = None) -> Array:
        """Returns (B,T,F), zero at padded steps.

        Args:
          inputs: (B,T,F) float.
          lengths: (B,) integers in [0,T], valid steps; None: all.

        Raises:
          ValueError: inputs of another rank or of integers, or lengths outside [0,T].
        """
        check_inputs(inputs, "B,T", 1)
        shape = (1, self.steps + 1, 1, inputs.shape[-1])
        draw = nn.initializers.normal((self.steps + 1) ** -0.5)
        kernel = self.param("kernel", draw, shape, self.param_dtype)
        if lengths is not None:
            lengths = check_lengths(lengths, *inputs.shape[:2])
        x = zero_padding(inputs, lengths).astype(self.dtype)[:, None]  # (B,1,T,F)
        x = depthwise_conv(x, kernel, padding=((0, 0), (0, self.steps)))[:, 0]
        return zero_padding(x, lengths)
