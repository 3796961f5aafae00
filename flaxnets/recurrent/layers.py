"""Recurrent layers: cells scanned over time, with lengths, depth and both directions."""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp

from flaxnets.recurrent.cells import Cell
from flaxnets.typing import Array, Carry


def scan_cell(
    cell: Cell,
    inputs: Array,
    lengths: Array | None = None,
    *,
    initial_carry: Carry | None = None,
    reverse: bool = False,
) -> tuple[Carry, Array]:
    """Runs a cell over time, once.

    A step from ``lengths`` on leaves the carry as it is and gives zeros, so a reversed scan begins
    at each sequence's last valid step.

    Args:
      cell: a bound cell; ``project`` runs over all steps at once, ``step`` is scanned.
      inputs: (B,T,D) float.
      lengths: (B,) int32 in [0,T], valid steps; None: all of them.
      initial_carry: the carry before the first step; zeros by default.
      reverse: from the last step to the first.

    Returns:
      The carry after each sequence's last step (in the direction of the scan), and the outputs
      (B,T,F), zero at padded steps.
    """
    batch_size, num_steps = inputs.shape[:2]
    projected = cell.project(inputs)  # (B,T,G)
    steps = jnp.arange(num_steps)
    if initial_carry is None:
        initial_carry = cell.initialize_carry(batch_size)

    def body(cell: Cell, carry: Carry, x: tuple[Array, Array]) -> tuple[Carry, Array]:
        projected, t = x
        new_carry, output = cell.step(carry, projected)
        if lengths is not None:
            valid = (t < lengths)[:, None]
            new_carry = tuple(
                jnp.where(valid, new, old) for new, old in zip(new_carry, carry, strict=True)
            )
            output = jnp.where(valid, output, jnp.zeros_like(output))
        return new_carry, output

    scan = nn.scan(
        body,
        variable_broadcast="params",
        split_rngs={"params": False},
        in_axes=((1, 0),),
        out_axes=1,
        reverse=reverse,
    )
    carry, outputs = scan(cell, initial_carry, (projected, steps))
    return carry, outputs


class Recurrent(nn.Module):
    """A stack of scanned cells over (B,T,D) inputs.

    Attributes:
      make_cell: the constructor of a cell, as ``partial(LSTMCell, 256)``; called once a layer and
        direction with ``name``.
      num_layers: depth; each layer reads the outputs of the one below.
      bidirectional: each layer also scans backwards; outputs of both are concatenated.
      normalize_inputs: LayerNorm of each step's inputs (Ba et al., 1607.06450).
      delta_features: each step also reads how its inputs differ from those of the step before
        (Furui 1986); zero at the first step.
      input_features: width of a linear layer below the first cell; 0: none.
      dropout_rate: on what each layer of cells reads from a layer below it.
    """

    make_cell: Callable[..., Cell]
    num_layers: int = 1
    bidirectional: bool = False
    normalize_inputs: bool = False
    delta_features: bool = False
    input_features: int = 0
    dropout_rate: float = 0.0

    @nn.compact
    def __call__(self, inputs: Array, lengths: Array | None = None, *, train: bool) -> Array:
        """Outputs of the last layer, (B,T,F), or (B,T,2F) in two directions; zero at padding.

        Args:
          inputs: (B,T,D) float.
          lengths: (B,) int32 in [0,T], valid steps; None: all.
          train: whether dropout acts.

        Raises:
          ValueError: ``inputs`` is not of rank 3, or ``lengths`` not (B,).
        """
        if inputs.ndim != 3:
            raise ValueError(f"inputs: expected (B,T,D), received shape {inputs.shape}")
        if lengths is not None and lengths.shape != inputs.shape[:1]:
            raise ValueError(
                f"lengths: expected shape {inputs.shape[:1]}, received {lengths.shape}"
            )
        x = inputs
        if self.normalize_inputs:
            x = nn.LayerNorm(dtype=x.dtype, name="norm")(x)
        if self.delta_features:
            deltas = jnp.diff(x, axis=1, prepend=x[:, :1])
            x = jnp.concatenate([x, deltas], axis=-1)
        if self.input_features:
            x = nn.Dense(self.input_features, name="input")(x)
        for layer in range(self.num_layers):
            if layer or self.input_features:
                x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
            _, outputs = scan_cell(self.make_cell(name=f"forward_{layer}"), x, lengths)
            if self.bidirectional:
                cell = self.make_cell(name=f"backward_{layer}")
                _, backward = scan_cell(cell, x, lengths, reverse=True)
                outputs = jnp.concatenate([outputs, backward], axis=-1)
            x = outputs
        return x


class FrameAverage(nn.Module):
    """What stands in a recurrent layer's place where order shall not be seen.

    A layer on each step alone, then the mean over the valid steps, which every step gets.

    Attributes:
      features: width of the layer.
      normalize_inputs: LayerNorm of each step's inputs, as in ``Recurrent``.
    """

    features: int
    normalize_inputs: bool = False

    @nn.compact
    def __call__(self, inputs: Array, lengths: Array | None = None, *, train: bool) -> Array:
        """(B,T,D) float to (B,T,features); zero at steps from ``lengths`` (B,) on."""
        x = inputs
        if self.normalize_inputs:
            x = nn.LayerNorm(dtype=x.dtype, name="norm")(x)
        x = nn.relu(nn.Dense(self.features, dtype=x.dtype, name="hidden")(x))
        steps = jnp.arange(x.shape[1])
        valid = steps < (jnp.full(x.shape[:1], len(steps)) if lengths is None else lengths)[:, None]
        total = jnp.sum(jnp.where(valid[..., None], x, 0), axis=1, keepdims=True)
        mean = total / jnp.maximum(jnp.sum(valid, axis=1), 1)[:, None, None]
        return jnp.where(valid[..., None], mean, 0).astype(x.dtype)
