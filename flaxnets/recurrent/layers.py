"""Recurrent layers: stacks of cells scanned over time."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxnets.layers.padding import check_lengths
from flaxnets.recurrent.cell import check_cell, check_inputs
from flaxnets.recurrent.cudnn import check_cudnn, run_cudnn
from flaxnets.recurrent.scan import (
    AnyCell,
    ScanOptions,
    check_hidden_dropout,
    check_options,
    scan_cell,
)
from flaxnets.typing import Array, Carry

BACKENDS = ("scan", "cudnn")


class Recurrent(nn.Module):
    """A stack of scanned cells, one layer for every kind of cell.

    Attributes:
      make_cell: the constructor of a cell, as ``partial(LSTMCell, 256)``; called once a layer and
        direction with ``name``. Any ``flax.linen.RNNCellBase`` is a cell, too, as
        ``partial(nn.GRUCell, 256)`` (see ``flax_cells.py``).
      num_layers: depth; each layer reads the outputs of the one below.
      bidirectional: each layer also scans backwards; outputs of both are concatenated.
      residual: each layer but the first adds its inputs to its outputs (Wu et al., 1609.08144).
      normalize_inputs: LayerNorm of each step's inputs (Ba et al., 1607.06450).
      delta_features: each step also reads how its inputs differ from those of the step before
        (Furui 1986); zero at the first step.
      input_features: width of a linear layer below the first cell; 0: none.
      dropout_rate: on what each layer of cells reads from a layer below it.
      variational: dropout draws one mask a sequence, the same at every step (Gal and Ghahramani,
        1512.05287).
      recurrent_dropout_rate: on the hidden states that the cells' products read, one mask a
        sequence; not for linear cells, which have no such products, nor for cells of
        ``flax.linen``.
      options: how the scans are carried out: unrolling, rematerialisation, truncation.
      backend: ``scan``, or ``cudnn`` for plain LSTMs on GPUs (see ``cudnn.py``), with the same
        parameters and outputs.
    """

    make_cell: Callable[..., AnyCell]
    num_layers: int = 1
    bidirectional: bool = False
    residual: bool = False
    normalize_inputs: bool = False
    delta_features: bool = False
    input_features: int = 0
    dropout_rate: float = 0.0
    variational: bool = False
    recurrent_dropout_rate: float = 0.0
    options: ScanOptions = ScanOptions()
    backend: str = "scan"

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
        """Outputs of the last layer, (B,T,...,F), or 2F in two directions; zero at padding.

        Args:
          inputs: (B,T,D), or (B,T,H,W,C) for cells on maps, float.
          lengths: (B,) int32 in [0,T], valid steps; None: all.
          train: whether dropout acts.
          initial_carry: what ``return_carry`` gave after the steps before these: all layers'
            carries, from which the scans go on; None: zeros.
          return_carry: whether to return (carry, outputs), so that another call can go on.

        Raises:
          ValueError: inputs of another rank or of integers; lengths that are not (B,) integers or,
            where they are concrete, not in [0,T]; a layer in both directions asked to stream, since
            its backward scan begins at the end; attributes that do not go together.
        """
        cells = self._make_cells()
        self._check_attributes(cells[0][0])
        check_inputs(inputs, "B,T", cells[0][0].num_feature_axes)
        if lengths is not None:
            check_lengths(lengths, *inputs.shape[:2])
        if self.bidirectional and (initial_carry is not None or return_carry):
            raise ValueError(
                "bidirectional: expected False where initial_carry or return_carry is used: "
                "a backward scan cannot be streamed, received True"
            )
        if initial_carry is None:
            initial_carry = {"cells": (None,) * self.num_layers, "inputs": None}
        x = inputs
        if self.normalize_inputs:
            x = nn.LayerNorm(dtype=x.dtype, name="norm")(x)
        last_inputs = None
        if self.delta_features:
            before = initial_carry["inputs"]
            last_inputs = _last_step(x, lengths, before)
            x = jnp.concatenate([x, _differences(x, before)], axis=-1)
        if self.input_features:
            x = nn.Dense(self.input_features, dtype=x.dtype, name="input")(x)
        carries = []
        for layer, (directions, carry) in enumerate(
            zip(cells, initial_carry["cells"], strict=True)
        ):
            if layer or self.input_features:
                x = self._drop(x, train)
            new_carries, outputs = self._scan(directions, x, lengths, carry, train)
            carries += new_carries
            output = jnp.concatenate(outputs, axis=-1) if self.bidirectional else outputs[0]
            x = _add_residual(output, x, lengths) if self.residual and layer else output
        if return_carry:
            return {"cells": tuple(carries), "inputs": last_inputs}, x
        return x

    def stream(
        self, carry: Carry | None, inputs: Array, lengths: Array | None = None
    ) -> tuple[Carry, Array]:
        """The next steps of sequences: (carry, inputs) to the new carry and the outputs.

        Chunk after chunk gives what the whole would; without dropout. Arguments, shapes and errors
        are those of ``__call__``; the first chunk's carry is None.
        """
        carry, outputs = self(inputs, lengths, train=False, initial_carry=carry, return_carry=True)
        return carry, outputs

    def _check_attributes(self, cell: AnyCell) -> None:
        """Refuses what no layer of such cells can do."""
        if rate := self.recurrent_dropout_rate:
            check_hidden_dropout("recurrent_dropout_rate", cell, 0, rate)
        check_options(cell, self.options)
        if self.backend not in BACKENDS:
            raise ValueError(f"backend: expected one of {BACKENDS}, received {self.backend!r}")
        if self.backend == "cudnn":
            check_cudnn(cell, self.options, self.recurrent_dropout_rate)

    def _scan(
        self,
        cells: list[AnyCell],
        inputs: Array,
        lengths: Array | None,
        initial_carry: Carry | None,
        train: bool,
    ) -> tuple[list[Carry], list[Array]]:
        """Carries and outputs of one layer's cells, forward and backward."""
        if self.backend == "cudnn":
            return run_cudnn(cells, inputs, lengths, initial_carry)
        both = [
            scan_cell(
                cell,
                inputs,
                lengths,
                initial_carry=initial_carry,
                reverse=bool(reverse),
                hidden_mask=self._hidden_mask(cell, inputs, train),
                options=self.options,
            )
            for reverse, cell in enumerate(cells)
        ]
        return [carry for carry, _ in both], [output for _, output in both]

    def _make_cells(self) -> list[list[AnyCell]]:
        """The cells of each layer, forward and backward."""
        names = ("forward", "backward") if self.bidirectional else ("forward",)
        if isinstance(self.make_cell, nn.Module):
            kind = type(self.make_cell).__name__
            raise ValueError(
                f"make_cell: expected a constructor, as partial({kind}, 256), received an instance "
                f"of {kind}"
            )
        cells = [
            [self.make_cell(name=f"{name}_{layer}") for name in names]
            for layer in range(self.num_layers)
        ]
        check_cell("make_cell", cells[0][0])
        return cells

    def _drop(self, x: Array, train: bool) -> Array:
        # A mask that does not vary along time is broadcast over axis 1.
        shared = (1,) if self.variational else ()
        dropout = nn.Dropout(self.dropout_rate, broadcast_dims=shared, deterministic=not train)
        return dropout(x)

    def _hidden_mask(self, cell: AnyCell, inputs: Array, train: bool) -> Array | None:
        """(B,F) or (B,1,1,F), scaled so that its mean is one; None where nothing is dropped."""
        rate = self.recurrent_dropout_rate
        if not rate or not train:
            return None
        assert not isinstance(cell, nn.RNNCellBase)  # Refused above.
        width = getattr(cell, "projection_features", 0) or cell.features
        shape = (inputs.shape[0], *[1] * (cell.num_feature_axes - 1), width)
        kept = jax.random.bernoulli(self.make_rng("dropout"), 1 - rate, shape)
        return kept.astype(cell.dtype) / (1 - rate)


Last = tuple[Array, Array]
"""The last valid step (B,...) of each sequence, and (B,) bool, whether there has been one."""


def _differences(x: Array, before: Last | None) -> Array:
    """(B,T,...) minus the step before; the first step minus ``before``, or minus itself."""
    first = x[:, 0]
    if before is not None:
        values, seen = before
        first = jnp.where(seen.reshape(-1, *[1] * (first.ndim - 1)), values, first)
    return jnp.diff(x, axis=1, prepend=first[:, None])


def _last_step(x: Array, lengths: Array | None, before: Last | None) -> Last:
    """The last valid step of (B,T,...), or ``before`` where a sequence has none."""
    if lengths is None:
        return x[:, -1], jnp.ones(x.shape[0], bool)
    index = jnp.maximum(lengths - 1, 0).reshape(-1, *[1] * (x.ndim - 1))
    last, any_valid = jnp.take_along_axis(x, index, axis=1)[:, 0], lengths > 0
    if before is None:
        return last, any_valid
    values, seen = before
    last = jnp.where(any_valid.reshape(-1, *[1] * (last.ndim - 1)), last, values)
    return last, seen | any_valid


def _add_residual(outputs: Array, inputs: Array, lengths: Array | None) -> Array:
    """The sum of a layer's outputs and inputs, which are zero at padding both.

    Raises:
      ValueError: they differ in width.
    """
    if outputs.shape != inputs.shape:
        raise ValueError(
            f"residual: expected layers of the width of their inputs {inputs.shape[-1]}, "
            f"received {outputs.shape[-1]}"
        )
    return outputs + inputs


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
