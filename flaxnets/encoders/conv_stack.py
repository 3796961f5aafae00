"""Stack of causal convolutions over time, the convolutional part of hybrids on sequences."""

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from flaxnets.layers.causal_convolution import CausalConv, check_sequences, last_inputs
from flaxnets.layers.padding import check_lengths, check_starts, zero_padding
from flaxnets.typing import Array, Carry, Dtype


class ConvStack(nn.Module):
    """Convolutions over time with ReLU, dropout and, if wanted, max pooling after each.

    Two layouts of published hybrids:

    - All channels together: each kernel reads (k,D), as in LSTNet (Lai et al., 1703.07015, section
      3.2) and in convolutions before a recurrent layer.
    - ``per_channel``: the kernels read each channel alone, with one set of kernels for all, and the
      maps of the D channels are concatenated to (B,T,D·F), as in DeepConvLSTM (Ordóñez and Roggen,
      Sensors 2016, section 2.2).

    It is called as ``Recurrent`` is. With pools of p_1 · p_2 · … = ``stride`` steps, outputs have
    ⌈T/stride⌉ steps, of which ⌈length/stride⌉ are valid, and packed sequences and carries are
    refused.

    >>> import functools, jax
    >>> layer = ConvStack((8, 8), kernel_size=5, pools=(2, 2))
    >>> x, lengths = jnp.ones((2, 10, 3)), jnp.array([10, 5])
    >>> init = jax.jit(functools.partial(layer.init_with_output, train=False))
    >>> outputs, variables = init(jax.random.key(0), x, lengths)
    >>> outputs.shape, layer.stride, float(jnp.abs(outputs[1, 2:]).max())
    ((2, 3, 8), 4, 0.0)

    Deviation: both papers convolve without padding, so that a window of T steps has fewer outputs;
    here zeros stand before the first step, so that each step has an output that depends on the past
    alone.

    Attributes:
      features: output channels of each convolution.
      kernel_size: k, >= 1.
      per_channel: convolves each channel of the input alone.
      pools: windows of the max pooling after each convolution, steps; empty: none.
      dropout_rate: after each convolution, in [0,1).
      dtype: of the matmuls and of the outputs.
    """

    features: Sequence[int]
    kernel_size: int = 3
    per_channel: bool = False
    pools: Sequence[int] = ()
    dropout_rate: float = 0.0
    dtype: Dtype = jnp.float32

    def __post_init__(self) -> None:
        """Refuses stacks without layers, and pools that do not belong to the convolutions."""
        if not self.features:
            raise ValueError("features: expected those of at least one convolution, received none")
        if self.pools and (len(self.pools) != len(self.features) or min(self.pools) < 1):
            raise ValueError(
                f"pools: expected a window of at least 1 step for each of the "
                f"{len(self.features)} convolutions, received {tuple(self.pools)}"
            )
        super().__post_init__()

    @property
    def stride(self) -> int:
        """Steps of the input for each output."""
        return math.prod(self.pools)

    @property
    def obstacle(self) -> str:
        """The reason why the layer has no ``stream``; empty if it has."""
        return "the convolutions are pooled over time" if self.stride > 1 else ""

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
        """Returns (B,⌈T/stride⌉,F), zero at padded steps; F is D·features[-1] if ``per_channel``.

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
            ``Recurrent``; packed sequences or a carry with pooling.
        """
        check_sequences(inputs)
        if self.stride > 1 and (return_carry or starts is not None or initial_carry is not None):
            raise ValueError(
                "pools: expected none where starts or a carry are used, since a window would "
                f"reach over their ends, received {tuple(self.pools)}"
            )
        b, t, d = inputs.shape
        if lengths is not None:
            lengths = check_lengths(lengths, b, t)
        if starts is not None:
            starts = check_starts(starts, b, t)
        count = len(self.features)
        given: list[Any] = [None] * count if initial_carry is None else list(initial_carry)
        if len(given) != count:
            raise ValueError(
                f"initial_carry: expected that of {count} convolutions, received {len(given)}"
            )
        carry: list[Array] = []
        x = zero_padding(inputs, lengths)
        if self.per_channel:  # (B·D,T,1): channels become rows.
            x = jnp.moveaxis(x, 2, 1).reshape(b * d, t, 1)
            lengths = None if lengths is None else jnp.repeat(lengths, d)
            starts = None if starts is None else jnp.repeat(starts, d, axis=0)
        for layer, width in enumerate(self.features):
            conv = CausalConv(width, self.kernel_size, dtype=self.dtype, name=f"conv_{layer}")
            before = given[layer]
            if before is None:
                if return_carry:
                    before = jnp.zeros((x.shape[0], conv.num_before, x.shape[-1]), x.dtype)
            elif self.per_channel:
                before = before.reshape(-1, *before.shape[2:])
            if return_carry:
                after = last_inputs(x, conv.num_before, before, lengths, starts)
                # Axis 0 of a carry is that of the batch.
                carry.append(after.reshape(b, d, *after.shape[1:]) if self.per_channel else after)
            x = nn.relu(conv(x, starts, before))
            x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
            x = zero_padding(x, lengths)
            if self.pools and self.pools[layer] > 1:
                x, lengths = _max_pool(x, lengths, self.pools[layer])
        if self.per_channel:
            maps = x.reshape(b, d, *x.shape[1:])  # (B,D,S,F)
            x = jnp.moveaxis(maps, 1, 2).reshape(b, x.shape[1], d * x.shape[2])
        return (tuple(carry), x) if return_carry else x

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


def _max_pool(x: Array, lengths: Array | None, window: int) -> tuple[Array, Array | None]:
    """Returns the maxima (B,⌈T/window⌉,F) of steps, which are >= 0, and the new lengths."""
    # Zeros, as padded steps are, change no maximum of what ReLU returned.
    x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % window), (0, 0)))
    x = x.reshape(x.shape[0], x.shape[1] // window, window, x.shape[-1]).max(axis=2)
    return x, None if lengths is None else -(-lengths // window)
