r"""Recurrent layer whose step t reads the carry of step t − p (LSTNet, Lai et al., 1703.07015).

A row of T steps is p interleaved sequences of T / p steps: those with the same t mod p, as the same
hour of successive days. They know nothing of each other until a layer above joins them, so that
they are p rows of an ordinary scan, which is p times as short.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxnets.layers.padding import check_lengths, check_starts, zero_padding
from flaxnets.recurrent.cell import check_inputs
from flaxnets.recurrent.layers import Recurrent
from flaxnets.recurrent.scan import AnyCell, ScanOptions
from flaxnets.typing import Array, Carry


class SkipRecurrent(nn.Module):
    r"""Stack of cells whose step t continues from step t − p (1703.07015, section 3.4).

    With a GRU, equation 4 of the paper with its reset after the matmul:

    .. math::
        r_t, u_t &= σ(x_t W_{ru} + h_{t-p} U_{ru} + b_{ru}) \\
        c_t &= \tanh(x_t W_c + b_c + r_t ∘ (h_{t-p} U_c + b_{hc})) \\
        h_t &= (1 - u_t) c_t + u_t h_{t-p}

    >>> from functools import partial
    >>> import jax, jax.numpy as jnp
    >>> from flaxnets.recurrent import GRUCell
    >>> layer = SkipRecurrent(partial(GRUCell, 4), period=3)
    >>> x = jnp.ones((2, 7, 5))
    >>> init = jax.jit(partial(layer.init_with_output, train=False))
    >>> outputs, variables = init(jax.random.key(0), x)
    >>> outputs.shape
    (2, 7, 4)
    >>> changed = jax.jit(partial(layer.apply, train=False))(variables, x.at[0, 1].set(2))
    >>> jnp.flatnonzero(jnp.any(changed != outputs, (0, 2))).tolist()
    [1, 4]

    Deviations: the paper's candidate has a ReLU in place of tanh; its u is our 1 − u.

    Attributes:
      make_cell: constructor of a cell, as for ``Recurrent``.
      period: p steps, at least 1; 1 is an ordinary recurrent layer.
      num_layers: depth; every layer skips p steps.
      bidirectional: each layer also scans backwards, from step t + p to step t.
      dropout_rate: dropout of the inputs of each layer but the first; in [0,1).
      options: of the scans; their steps are those of one interleaved sequence.

    Parameters: those of ``Recurrent``, under ``phases``.
    """

    make_cell: Callable[..., AnyCell]
    period: int
    num_layers: int = 1
    bidirectional: bool = False
    dropout_rate: float = 0.0
    options: ScanOptions = ScanOptions()

    def __post_init__(self) -> None:
        """Refuses a period below 1."""
        if self.period < 1:
            raise ValueError(f"period: expected at least 1, received {self.period}")
        super().__post_init__()

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
        """Returns the outputs of the last layer, (B,T,F), or 2F if bidirectional.

        Args:
          inputs: (B,T,D) float.
          lengths: (B,) integers in [0,T], valid steps; None: all. Outputs at padded steps are zero;
            inputs there have no effect on values or gradients.
          train: applies dropout.
          starts: (B,T) bool, the first steps of sequences that are packed one after another into a
            row: the p steps from there on begin from zeros. None: one sequence a row.
          initial_carry: the carry that ``return_carry`` gave for the steps before these; None:
            zeros.
          return_carry: returns (carry, outputs), so that another call can continue. The carry holds
            arrays (B,p,...), that of the next step first.

        Raises:
          ValueError: inputs of another rank or of integers, and what ``Recurrent`` refuses.
        """
        check_inputs(inputs, "B,T", 1)
        batch_size, num_steps = inputs.shape[:2]
        p = self.period
        if lengths is not None:
            lengths = check_lengths(lengths, batch_size, num_steps)
        counts = jnp.full(batch_size, num_steps) if lengths is None else lengths
        if starts is not None:
            starts = check_starts(starts, batch_size, num_steps) & (
                jnp.arange(num_steps) < counts[:, None]
            )
        # Phase f has the steps f, f + p, …: ⌈(length − f) / p⌉ of them.
        phases = jnp.maximum(counts[:, None] - jnp.arange(p) + p - 1, 0) // p  # (B,p)
        carry = initial_carry
        if carry is not None:
            carry = jax.tree.map(_merge, carry)
        layer = Recurrent(
            self.make_cell,
            num_layers=self.num_layers,
            bidirectional=self.bidirectional,
            dropout_rate=self.dropout_rate,
            options=self.options,
            name="phases",
        )
        found = layer(
            _interleave(inputs, p),
            _merge(phases),
            train=train,
            starts=None if starts is None else _interleave(_any_of_last(starts, p), p),
            initial_carry=carry,
            return_carry=return_carry,
        )
        carry, outputs = found if return_carry else (None, found)
        outputs = _join(outputs, p, num_steps)
        if not return_carry:
            return outputs
        carry = jax.tree.map(lambda leaf: leaf.reshape(batch_size, p, *leaf.shape[1:]), carry)
        # The next step, of number ``length``, continues phase length mod p.
        order = (counts[:, None] + jnp.arange(p)) % p
        carry = jax.tree.map(
            lambda leaf: jnp.take_along_axis(leaf, _expand(order, leaf), axis=1), carry
        )
        if starts is not None and num_steps:
            # A sequence that began among the last steps has no step p before the next ones.
            began = num_steps - 1 - jnp.argmax(starts[:, ::-1], axis=1)
            new = starts.any(axis=1)[:, None] & (
                began[:, None] > counts[:, None] + jnp.arange(p) - p
            )
            carry = jax.tree.map(lambda leaf: jnp.where(_expand(new, leaf), 0, leaf), carry)
        return carry, outputs

    @property
    def obstacle(self) -> str:
        """The reason why the layer has no ``stream``; empty if it has."""
        return "the recurrent layer is bidirectional" if self.bidirectional else ""

    def stream(
        self,
        carry: Carry | None,
        inputs: Array,
        lengths: Array | None = None,
        starts: Array | None = None,
    ) -> tuple[Carry, Array]:
        """Returns the new carry and the outputs for the next steps, as ``Recurrent.stream``.

        Chunks may have any number of steps: the carry knows which phase is next.
        """
        carry, outputs = self(
            inputs, lengths, train=False, starts=starts, initial_carry=carry, return_carry=True
        )
        return carry, outputs


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


def _interleave(x: Array, period: int) -> Array:
    """Returns (B,T,...) as p rows for each sequence, (B·p,⌈T/p⌉,...), with zeros at the end."""
    b, t, *rest = x.shape
    x = jnp.pad(x, ((0, 0), (0, -t % period), *[(0, 0)] * len(rest)))
    n = x.shape[1] // period
    return x.reshape(b, n, period, *rest).swapaxes(1, 2).reshape(b * period, n, *rest)


def _join(x: Array, period: int, num_steps: int) -> Array:
    """Returns (B,T,...), the inverse of ``_interleave``."""
    rows, n, *rest = x.shape
    b = rows // period
    return (
        x.reshape(b, period, n, *rest).swapaxes(1, 2).reshape(b, n * period, *rest)[:, :num_steps]
    )


def _merge(x: Array) -> Array:
    """Returns (B,p,...) as (B·p,...)."""
    b, p, *rest = x.shape
    return x.reshape(b * p, *rest)


def _any_of_last(starts: Array, count: int) -> Array:
    """Returns at each step of (B,T) whether any of the last ``count`` steps is True, itself too."""
    before = jnp.cumsum(jnp.pad(starts.astype(jnp.int32), ((0, 0), (count, 0))), axis=1)
    return before[:, count:] > before[:, :-count]


def _expand(x: Array, like: Array) -> Array:
    return x.reshape(*x.shape, *[1] * (like.ndim - x.ndim))
