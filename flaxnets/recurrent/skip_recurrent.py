"""Skip-recurrent layers: a state that reads the one a period before (LSTNet, 1703.07015)."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from flaxnets.layers.padding import check_lengths, zero_padding
from flaxnets.recurrent.cell import check_inputs
from flaxnets.recurrent.layers import Recurrent
from flaxnets.recurrent.scan import AnyCell, ScanOptions
from flaxnets.typing import Array, Carry


class SkipRecurrent(nn.Module):
    """Cell whose state at step t reads that at step t − p (Lai et al., 1703.07015, equation 5).

    A series with a period, as the hours of a day, is so p series of one phase each, and the state
    passes T/p cells instead of T from one end to the other.

    >>> from functools import partial
    >>> import jax, jax.numpy as jnp
    >>> from flaxnets.recurrent import GRUCell
    >>> layer, x = SkipRecurrent(partial(GRUCell, 4), period=3), jnp.ones((2, 8, 5))
    >>> init = jax.jit(partial(layer.init_with_output, train=False))
    >>> outputs, variables = init(jax.random.key(0), x)
    >>> outputs.shape
    (2, 8, 4)

    Attributes:
      make_cell: constructor of a cell, as for ``Recurrent``.
      period: p steps, >= 1; 1 is ``Recurrent``.
      options: of the scan.
    """

    make_cell: Callable[..., AnyCell]
    period: int
    options: ScanOptions = ScanOptions()

    @nn.compact
    def __call__(self, inputs: Array, lengths: Array | None = None, *, train: bool) -> Array:
        """Returns the states (B,T,F), zero at padded steps.

        Args:
          inputs: (B,T,D) float.
          lengths: (B,) integers in [0,T], valid steps; None: all.
          train: not read; the layer has no dropout.

        Raises:
          ValueError: inputs of another rank, a period below 1, or lengths as for ``Recurrent``.
        """
        if self.period < 1:
            raise ValueError(f"period: expected at least 1, received {self.period}")
        check_inputs(inputs, "B,T", 1)
        b, t, d = inputs.shape
        p = self.period
        if lengths is not None:
            lengths = check_lengths(lengths, b, t)
            inputs = zero_padding(inputs, lengths)
        turns = -(-t // p)
        x = jnp.pad(inputs, ((0, 0), (0, turns * p - t), (0, 0)))
        # Each phase t mod p is a row of its own: the batch grows by p, the scan shrinks by it.
        x = jnp.moveaxis(x.reshape(b, turns, p, d), 2, 1).reshape(b * p, turns, d)
        layer = Recurrent(self.make_cell, options=self.options, name="phases")
        states = layer(x, train=train)
        states = jnp.moveaxis(states.reshape(b, p, turns, -1), 1, 2).reshape(b, turns * p, -1)
        return zero_padding(states[:, :t], lengths)


class WithSkip(nn.Module):
    """Recurrent layer with a skip-recurrent one beside it, as LSTNet's linear layer reads both.

    The output of step t is the concatenation of the recurrent layer's state at t and of the
    skip-recurrent layer's at t, t − 1, …, t − p + 1, zero before the first step: a linear layer on
    it is equation 6 of Lai et al., 1703.07015. It is called as ``Recurrent`` is; packed sequences
    and carries are refused.

    >>> from functools import partial
    >>> import jax, jax.numpy as jnp
    >>> from flaxnets.recurrent import GRUCell, Recurrent
    >>> recurrent = Recurrent(partial(GRUCell, 8))
    >>> layer = WithSkip(recurrent, SkipRecurrent(partial(GRUCell, 4), period=3))
    >>> init = jax.jit(partial(layer.init_with_output, train=False))
    >>> outputs, variables = init(jax.random.key(0), jnp.ones((2, 8, 5)))
    >>> outputs.shape
    (2, 8, 20)

    Attributes:
      recurrent: (B,T,D) to (B,T,F), as ``Recurrent``.
      skip: (B,T,D) to (B,T,G).
    """

    recurrent: nn.Module
    skip: SkipRecurrent

    @property
    def obstacle(self) -> str:
        """The reason why the layer has no ``stream``."""
        return "the skip-recurrent layer reads the last period of a window"

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
        """Returns (B,T,F+p·G), zero at padded steps; arguments as ``Recurrent``.

        Raises:
          ValueError: packed sequences or a carry, or as the layers.
        """
        if starts is not None or initial_carry is not None or return_carry:
            raise ValueError(
                "starts, initial_carry, return_carry: expected none, since a skip-recurrent layer "
                "reads the windows of single sequences, received some"
            )
        states = self.recurrent(inputs, lengths, train=train)
        skipped = self.skip(inputs, lengths, train=train)
        t = skipped.shape[1]
        before = [
            jnp.pad(skipped, ((0, 0), (k, 0), (0, 0)))[:, :t] for k in range(self.skip.period)
        ]
        return zero_padding(jnp.concatenate([states, *before], axis=-1), lengths)
