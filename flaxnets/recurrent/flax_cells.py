"""Any ``flax.linen.RNNCellBase``, scanned over time by ``flax.linen.scan``.

A Flax cell is one opaque call per step, so all of its work stays in the loop: input projections
cannot move before the scan, nor weight gradients after it (``scan_vjp.py``). On a CPU our own LSTM
trains about 1.4 times as fast, our ConvLSTM about 20 times. The layer keeps the contract of
``scan_cell``, which differs from ``flax.linen.RNN`` in four points:

- Outputs at padded steps are zero, and inputs there have no effect, not even NaN.
- The carry of a finished sequence is kept in the loop, so that one carry is stored, not T.
- Random numbers differ from step to step: dropout inside a cell draws a new mask at every step.
- The carry is at least float32, and outputs have the cell's ``dtype`` if it is set. In Flax the
  LSTM, GRU and ConvLSTM return float32 with ``dtype=bfloat16``, since their carry is float32.
"""

from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.errors import ScopeCollectionNotFound

from flaxnets.typing import Array, Carry, PyTree

# Dropout and noise differ from step to step, the parameters do not.
_SPLIT_RNGS: Mapping[bool | str | Collection[str] | nn.DenyList, bool] = {
    "params": False,
    nn.DenyList("params"): True,
}


class Flags(NamedTuple):
    """Flags of the steps of a scan, (T,B) bool each."""

    valid: Array | None
    """False at padded steps, which keep the carry; None: all are valid."""
    resets: Array | None
    """Steps that begin from the initial carry, in the direction of the scan; None: none."""


def initialize_flax_carry(cell: nn.RNNCellBase, input_shape: tuple[int, ...]) -> Carry:
    """Returns the cell's carry before the first step, in at least float32.

    Args:
      cell: any cell of Flax.
      input_shape: of one step: (B,D) or (B,H,W,C).
    """
    # ``flax.linen.RNN`` uses this key, too; zeros, the default of Flax's cells, do not read it.
    carry = cell.initialize_carry(jax.random.key(0), input_shape)

    def widen(x: Array) -> Array:
        floating = jnp.issubdtype(x.dtype, jnp.inexact)
        return x.astype(jnp.promote_types(x.dtype, jnp.float32)) if floating else x

    return jax.tree.map(widen, carry)


def scan_flax_steps(
    cell: nn.RNNCellBase,
    carry: Carry,
    xs: tuple[Array, Flags],
    *,
    reverse: bool,
    unroll: int,
) -> tuple[Carry, Array]:
    """Scans a cell over the (T,B,...) inputs of one chunk.

    Args:
      cell: bound to the layer that owns its parameters.
      carry: before the first step.
      xs: inputs (T,B,...), finite at padded steps, and the flags of the steps.
      reverse: from the last step to the first.
      unroll: steps in one turn of the loop.

    Returns:
      The last carry and the outputs (T,B,...), zero at padded steps.

    Raises:
      ValueError: a step that returns a carry of other shapes than it was given, or a cell with
        variables that are no parameters.
    """
    return scan_module(step_flax_cell, cell, carry, xs, reverse=reverse, unroll=unroll)


def step_flax_cell(cell: Any, carry: Carry, xs: tuple[Array, Flags]) -> tuple[Carry, Array]:
    """Returns the new carry and the output (B,...) of one step, zero where it is padding.

    Args:
      cell: bound.
      carry: before the step.
      xs: inputs (B,...), finite where they are padding, and the flags of the step.

    Raises:
      ValueError: as for ``scan_flax_steps``.
    """
    inputs, (valid, resets) = xs
    entering = carry
    if resets is not None:
        initial = initialize_flax_carry(cell, inputs.shape)
        entering = jax.tree.map(partial(_select, resets), initial, carry)
    try:
        new_carry, output = cell(entering, inputs)
    except ScopeCollectionNotFound as error:
        raise ValueError(
            f"make_cell: expected a cell whose only variables are parameters, received "
            f"{type(cell).__name__}, which has others, as BatchNorm's statistics; LayerNorm "
            "has none"
        ) from error
    _check_step(cell, carry, new_carry, valid if resets is None else resets)
    # A scan's carry keeps its dtype, whatever the cell's promotion makes of it.
    new_carry = jax.tree.map(lambda new, old: new.astype(old.dtype), new_carry, carry)
    output = output.astype(getattr(cell, "dtype", None) or output.dtype)
    if valid is None:
        return new_carry, output
    carry = jax.tree.map(lambda new, old: _select(valid, new, old), new_carry, carry)
    return carry, _select(valid, output, jnp.zeros((), output.dtype))


def scan_module(
    body: Callable[..., tuple[Carry, PyTree]],
    module: Any,
    carry: Carry,
    xs: PyTree,
    *,
    reverse: bool,
    unroll: int = 1,
) -> tuple[Carry, PyTree]:
    """Runs ``jax.lax.scan`` with a bound module as first argument of its body.

    Args:
      body: (module, carry, x) to the new carry and the output; all steps share the parameters.
      module: bound, with parameters only: no batch statistics.
      carry: before the first step.
      xs: a pytree of arrays (T,...).
      reverse: from the last step to the first.
      unroll: steps in one turn of the loop.
    """
    scan = nn.scan(
        body,
        variable_broadcast="params",
        split_rngs=_SPLIT_RNGS,
        reverse=reverse,
        unroll=unroll,
    )
    result: tuple[Carry, PyTree] = scan(module, carry, xs)
    return result


def remat_module(scan_steps: Callable[..., Any]) -> Callable[..., Any]:
    """Returns ``jax.checkpoint`` of a function whose first argument is a bound module."""
    # Inside a scan nothing is common to the forward and the backward pass.
    rematerialized: Callable[..., Any] = nn.remat(scan_steps, prevent_cse=False)
    return rematerialized


def _check_step(cell: Any, carry: Carry, new_carry: Carry, valid: Array | None) -> None:
    """Refuses a carry that changes shape, or that has no batch axis where lengths are given."""

    def shapes(tree: Carry) -> Carry:
        return jax.tree.map(jnp.shape, tree)

    name = type(cell).__name__
    if shapes(carry) != shapes(new_carry):
        raise ValueError(
            f"make_cell: expected of a step of {name} a carry of shapes {shapes(carry)}, as its "
            f"initialize_carry makes it, received {shapes(new_carry)}"
        )
    if valid is not None and any(x.shape[:1] != valid.shape for x in jax.tree.leaves(carry)):
        raise ValueError(
            f"make_cell: expected the arrays in the carry of {name} to have the batch of "
            f"{len(valid)} as first axis where lengths or starts are given, received "
            f"{shapes(carry)}"
        )


def _select(valid: Array, new: Array, old: Array) -> Array:
    return jnp.where(valid.reshape(-1, *[1] * (new.ndim - 1)), new, old)
