"""Temporal convolutional network (Bai, Kolter and Koltun, 1803.01271)."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from flaxnets.layers.causal_convolution import CausalConv, check_sequences, last_inputs
from flaxnets.layers.padding import check_lengths, check_starts, zero_padding
from flaxnets.typing import Array, Carry, Dtype


class TCN(nn.Module):
    r"""Stack of residual blocks of dilated causal convolutions (1803.01271, section 3).

    Block i has two causal convolutions with dilation :math:`2^i`, each followed by ReLU and
    dropout, and a residual connection, by a 1×1 convolution where the width changes (figure 1):

    .. math::
        o = \mathrm{ReLU}(x + F(x))

    It is called as ``Recurrent`` is, and so takes its place in any model: the outputs of a step
    depend on the :math:`1 + 2 (k-1) (2^n - 1)` last steps alone (``receptive_field``), which a
    stream carries.

    >>> import functools, jax, jax.numpy as jnp
    >>> layer = TCN((8, 8, 8), kernel_size=3)
    >>> x, lengths = jnp.ones((2, 40, 5)), jnp.array([40, 7])
    >>> init = jax.jit(functools.partial(layer.init_with_output, train=False))
    >>> outputs, variables = init(jax.random.key(0), x, lengths)
    >>> outputs.shape, float(jnp.abs(outputs[1, 7:]).max()), layer.receptive_field
    ((2, 40, 8), 0.0, 29)

    Deviations: the paper initialises the kernels by N(0, 0.01); with weight normalisation, as in
    its code, that scales the direction v alone, so here the kernels have PyTorch's default and the
    norm that follows from it. Dropout zeroes single entries, as that code does, where the text says
    whole channels.

    Attributes:
      features: output channels of each block.
      kernel_size: k, >= 1.
      dropout_rate: after each convolution, in [0,1).
      weight_norm: normalises the kernels (Salimans and Kingma, 1602.07868).
      dtype: of the convolutions and of the outputs.
    """

    features: Sequence[int]
    kernel_size: int = 3
    dropout_rate: float = 0.0
    weight_norm: bool = True
    dtype: Dtype = jnp.float32

    @property
    def receptive_field(self) -> int:
        """Steps, the current one included, that an output depends on."""
        return 1 + 2 * (self.kernel_size - 1) * (2 ** len(self.features) - 1)

    @property
    def obstacle(self) -> str:
        """The reason why the network has no ``stream``: always empty."""
        return ""

    @nn.compact
    def __call__(
        self,
        inputs: Array,
        lengths: Array | None = None,
        *,
        train: bool,
        starts: Array | None = None,
        initial_carry: Carry | None = None,
        return_carry: bool = False,
    ) -> Any:
        """Returns (B,T,features[-1]), zero at padded steps.

        Args:
          inputs: (B,T,D) float.
          lengths: (B,) integers in [0,T], valid steps; None: all.
          train: applies dropout.
          starts: (B,T) bool, the first steps of packed sequences; None: one sequence a row.
          initial_carry: the carry that ``return_carry`` gave for the steps before these; None:
            zeros.
          return_carry: returns (carry, outputs), so that another call can continue.

        Raises:
          ValueError: inputs of another rank or of integers, lengths and starts as for
            ``Recurrent``, no block, or a carry of another network.
        """
        if not self.features:
            raise ValueError("features: expected those of at least one block, received none")
        check_sequences(inputs)
        if lengths is not None:
            lengths = check_lengths(lengths, *inputs.shape[:2])
        if starts is not None:
            starts = check_starts(starts, *inputs.shape[:2])
        count = 2 * len(self.features)
        given: list[Any] = [None] * count if initial_carry is None else list(initial_carry)
        if len(given) != count:
            raise ValueError(
                f"initial_carry: expected that of {count} convolutions, received {len(given)}"
            )
        carry: list[Array | None] = []
        x = zero_padding(inputs, lengths)
        for block, width in enumerate(self.features):
            skip = x
            if x.shape[-1] != width:
                skip = nn.Dense(width, dtype=self.dtype, name=f"block_{block}_skip")(x)
            for number in range(2):
                conv = CausalConv(
                    width,
                    self.kernel_size,
                    2**block,
                    self.weight_norm,
                    dtype=self.dtype,
                    name=f"block_{block}_conv_{number}",
                )
                before = given[len(carry)]
                if return_carry and before is None:
                    before = jnp.zeros((x.shape[0], conv.num_before, x.shape[-1]), x.dtype)
                carry.append(
                    last_inputs(x, conv.num_before, before, lengths, starts)
                    if return_carry
                    else None
                )
                x = nn.relu(conv(x, starts, before))
                x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
            x = nn.relu(skip + x)
        outputs = zero_padding(x, lengths)
        return (tuple(carry), outputs) if return_carry else outputs

    def stream(
        self,
        carry: Carry | None,
        inputs: Array,
        lengths: Array | None = None,
        starts: Array | None = None,
    ) -> tuple[Carry, Array]:
        """Returns the new carry and the outputs for the next steps, as ``Recurrent.stream``."""
        carry, outputs = self(
            inputs, lengths, train=False, starts=starts, initial_carry=carry, return_carry=True
        )
        return carry, outputs
