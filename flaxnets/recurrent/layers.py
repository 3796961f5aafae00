"""Recurrent layers: stacks of cells scanned over time, and an order-blind baseline."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxnets.layers.padding import (
    check_lengths,
    check_starts,
    mask_steps,
    zero_padding,
    zero_where_masked,
)
from flaxnets.recurrent.cell import check_inputs
from flaxnets.recurrent.cudnn import check_cudnn, run_cudnn
from flaxnets.recurrent.scan import (
    AnyCell,
    ScanOptions,
    check_cell,
    check_hidden_dropout,
    check_options,
    scan_cell,
)
from flaxnets.typing import Array, Carry

BACKENDS = ("scan", "cudnn")


class Recurrent(nn.Module):
    """Stack of cells scanned over time, for every kind of cell.

    >>> from functools import partial
    >>> import jax, jax.numpy as jnp
    >>> from flaxnets.recurrent import LSTMCell, Recurrent
    >>> layer = Recurrent(partial(LSTMCell, 4), num_layers=2, bidirectional=True)
    >>> x, lengths = jnp.ones((2, 5, 3)), jnp.array([5, 2])
    >>> init = jax.jit(partial(layer.init_with_output, train=False))
    >>> outputs, variables = init(jax.random.key(0), x, lengths)
    >>> outputs.shape, float(jnp.abs(outputs[1, 2:]).max())
    ((2, 5, 8), 0.0)

    A stream of chunks gives the outputs of the whole sequence:

    >>> layer = Recurrent(partial(LSTMCell, 4))
    >>> whole, variables = jax.jit(partial(layer.init_with_output, train=False))(
    ...     jax.random.key(0), x
    ... )
    >>> stream, carry = jax.jit(partial(layer.apply, method="stream")), None
    >>> for t in range(5):
    ...     carry, outputs = stream(variables, carry, x[:, t : t + 1])
    >>> bool(jnp.allclose(outputs, whole[:, -1:], atol=1e-6))
    True

    Attributes:
      make_cell: constructor of a cell, as ``partial(LSTMCell, 256)``, called with ``name`` for each
        layer and direction. Any ``flax.linen.RNNCellBase`` works too, as ``partial(nn.GRUCell,
        256)`` (``flax_cells.py``), and so does a cell of one's own (``cell.py``).
      num_layers: depth; each layer reads the outputs of the one below.
      bidirectional: each layer also scans backwards; the outputs of both are concatenated.
      residual: each layer but the first adds its inputs to its outputs (Wu et al., 1609.08144).
      normalize_inputs: LayerNorm of each step's inputs (Ba et al., 1607.06450) over their features,
        two at least; where they are few, it leaves little of them.
      normalize_layers: LayerNorm of the inputs of each layer above the first, likewise; what
        ``residual`` adds is not normalised.
      glu: GELU and a gated linear unit (Dauphin et al., 1612.08083) on each layer's outputs, as on
        the layers of 2303.06349: a Dense layer to twice their width, one half of which is
        multiplied by the sigmoid of the other. LRUs have no other nonlinearity between them than
        the LayerNorm.
      delta_features: concatenates to each step's inputs their difference to the step before (Furui
        1986), zero at the first step.
      input_features: width of a Dense layer below the first cell; 0: none.
      layer_input_features: width of a Dense layer below each cell above the first; 0: none.
      dropout_rate: dropout of each layer's inputs, except those of the first layer without
        ``input_features``; in [0,1).
      variational: dropout draws one mask per sequence, the same at every step (Gal and Ghahramani,
        1512.05287).
      recurrent_dropout_rate: dropout of the hidden states that the hidden projections read, one
        mask per sequence; in [0,1). Not for linear cells, which have no such projections, nor for
        cells of ``flax.linen``.
      options: of the scans: unrolling, rematerialisation, truncation, gradients.
      backend: ``scan``, or ``cudnn`` for plain LSTMs on GPUs (``cudnn.py``), with the same
        parameters and outputs.
    """

    make_cell: Callable[..., AnyCell]
    num_layers: int = 1
    bidirectional: bool = False
    residual: bool = False
    normalize_inputs: bool = False
    normalize_layers: bool = False
    glu: bool = False
    delta_features: bool = False
    input_features: int = 0
    layer_input_features: int = 0
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
        starts: Array | None = None,
        initial_carry: Carry | None = None,
        return_carry: bool = False,
    ) -> Any:
        """Returns the outputs of the last layer, (B,T,...,F), or 2F if bidirectional.

        Args:
          inputs: (B,T,D), or (B,T,H,W,C) for cells on feature maps, float.
          lengths: (B,) integers in [0,T], valid steps, an array or a list; None: all. Outputs at
            padded steps are zero; inputs there have no effect on values or gradients.
          train: applies dropout.
          starts: (B,T) bool, the first steps of sequences that are packed one after another into a
            row: the carry is reset before them, so that values and gradients are those of the
            single sequences. None: one sequence a row.
          initial_carry: the carry that ``return_carry`` gave for the steps before these; None:
            zeros.
          return_carry: returns (carry, outputs), so that another call can continue.

        Raises:
          ValueError: inputs of another rank or of integers; lengths that are not (B,) integers or,
            where they are concrete, not in [0,T]; starts that are not (B,T) bool; a carry for a
            bidirectional layer, since its backward scan begins at the end; attributes that do not
            fit together; a ``make_cell`` that makes no cell.
        """
        cells = self._make_cells()
        self._check_attributes(cells[0][0])
        check_inputs(inputs, "B,T", cells[0][0].num_feature_axes)
        if lengths is not None:
            lengths = check_lengths(lengths, *inputs.shape[:2])
        if starts is not None:
            starts = check_starts(starts, *inputs.shape[:2])
        if self.bidirectional and (initial_carry is not None or return_carry):
            raise ValueError(
                "bidirectional: expected False where initial_carry or return_carry is used: "
                "a backward scan cannot be streamed, received True"
            )
        if initial_carry is None:
            initial_carry = {"cells": (None,) * self.num_layers, "inputs": None}
        x = inputs
        if self.normalize_inputs or self.delta_features or self.input_features:
            x = zero_padding(x, lengths)  # As ``scan_cell`` does where they are absent.
        if self.normalize_inputs:
            _check_normalized("normalize_inputs", x)
            x = nn.LayerNorm(dtype=x.dtype, name="norm")(x)
        last_inputs = None
        if self.delta_features:
            before = initial_carry["inputs"]
            last_inputs = _last_step(x, lengths, before)
            x = jnp.concatenate([x, _differences(x, before, starts)], axis=-1)
        if self.input_features:
            x = nn.Dense(self.input_features, dtype=x.dtype, name="input")(x)
        carries = []
        for layer, (directions, carry) in enumerate(
            zip(cells, initial_carry["cells"], strict=True)
        ):
            if self.layer_input_features and layer:
                dense = nn.Dense(self.layer_input_features, dtype=x.dtype, name=f"input_{layer}")
                x = zero_padding(dense(x), lengths)
            if layer or self.input_features:
                x = self._drop(x, train)
            read = x
            if self.normalize_layers and layer:
                _check_normalized("normalize_layers", x)
                read = nn.LayerNorm(dtype=x.dtype, name=f"norm_{layer}")(x)
            new_carries, outputs = self._scan(directions, read, lengths, starts, carry, train)
            carries += new_carries
            output = jnp.concatenate(outputs, axis=-1) if self.bidirectional else outputs[0]
            if self.glu:
                output = zero_padding(_gated(output, f"glu_{layer}"), lengths)
            x = _add_residual(output, x, lengths) if self.residual and layer else output
        if return_carry:
            return {"cells": tuple(carries), "inputs": last_inputs}, x
        return x

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
        """Returns the new carry and the outputs for the next steps of sequences.

        The outputs of all chunks are those of the whole sequence. Dropout is not applied. Shapes
        and errors are those of ``__call__``.

        Args:
          carry: that of the chunk before; None for the first chunk.
          inputs: (B,T,...), the next steps.
          lengths: (B,) integers in [0,T], valid steps of this chunk; None: all.
          starts: (B,T) bool, the first steps of new sequences; None: none.
        """
        carry, outputs = self(
            inputs, lengths, train=False, starts=starts, initial_carry=carry, return_carry=True
        )
        return carry, outputs

    def _check_attributes(self, cell: AnyCell) -> None:
        """Refuses attributes that the cell cannot have."""
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
        starts: Array | None,
        initial_carry: Carry | None,
        train: bool,
    ) -> tuple[list[Carry], list[Array]]:
        """Returns the carries and outputs of one layer's cells, forward and backward."""
        if self.backend == "cudnn" and starts is not None:
            raise ValueError(
                "backend: expected 'scan' where starts are given, since cuDNN cannot reset a carry "
                "within a row, received 'cudnn'"
            )
        if self.backend == "cudnn" and inputs.size:  # cuDNN takes no empty arrays.
            return run_cudnn(cells, inputs, lengths, initial_carry)
        both = [
            scan_cell(
                cell,
                inputs,
                lengths,
                starts=starts,
                initial_carry=initial_carry,
                reverse=bool(reverse),
                hidden_mask=self._hidden_mask(cell, inputs, train),
                options=self.options,
            )
            for reverse, cell in enumerate(cells)
        ]
        return [carry for carry, _ in both], [output for _, output in both]

    def _make_cells(self) -> list[list[AnyCell]]:
        """Creates the cells of each layer, forward and backward."""
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
        # One mask for all steps: broadcast over axis 1, time.
        shared = (1,) if self.variational else ()
        dropout = nn.Dropout(self.dropout_rate, broadcast_dims=shared, deterministic=not train)
        return dropout(x)

    def _hidden_mask(self, cell: AnyCell, inputs: Array, train: bool) -> Array | None:
        """Draws a dropout mask (B,F) or (B,1,1,F) with a mean of 1; None without dropout."""
        rate = self.recurrent_dropout_rate
        if not rate or not train:
            return None
        assert not isinstance(cell, nn.RNNCellBase)  # Refused above.
        width = getattr(cell, "projection_features", 0) or cell.features
        shape = (inputs.shape[0], *[1] * (cell.num_feature_axes - 1), width)
        kept = jax.random.bernoulli(self.make_rng("dropout"), 1 - rate, shape)
        return kept.astype(cell.dtype) / (1 - rate)


Last = tuple[Array, Array]
"""The last valid step (B,...) of each sequence, and (B,) bool: False before the first one."""


def _differences(x: Array, before: Last | None, starts: Array | None) -> Array:
    """Returns each step of (B,T,...) minus the step before.

    The step before the first one is ``before``; without it, and at ``starts``, the difference is
    zero.
    """
    if not x.shape[1]:
        return x
    first = x[:, 0]
    if before is not None:
        values, seen = before
        first = jnp.where(seen.reshape(-1, *[1] * (first.ndim - 1)), values, first)
    differences = jnp.diff(x, axis=1, prepend=first[:, None])
    return differences if starts is None else zero_where_masked(differences, ~starts)


def _last_step(x: Array, lengths: Array | None, before: Last | None) -> Last:
    """Returns the last valid step of (B,T,...), or ``before`` for sequences without one."""
    if not x.shape[1]:
        zeros = jnp.zeros((x.shape[0], *x.shape[2:]), x.dtype)
        return (zeros, jnp.zeros(x.shape[0], bool)) if before is None else before
    if lengths is None:
        return x[:, -1], jnp.ones(x.shape[0], bool)
    index = jnp.maximum(lengths - 1, 0).reshape(-1, *[1] * (x.ndim - 1))
    last, any_valid = jnp.take_along_axis(x, index, axis=1)[:, 0], lengths > 0
    if before is None:
        return last, any_valid
    values, seen = before
    last = jnp.where(any_valid.reshape(-1, *[1] * (last.ndim - 1)), last, values)
    return last, seen | any_valid


def _check_normalized(attribute: str, x: Array) -> None:
    """Refuses inputs (B,T,...,1), whose LayerNorm is the same whatever they are."""
    if x.shape[-1] == 1:
        raise ValueError(
            f"{attribute}: expected inputs of at least 2 features, since the LayerNorm of one is "
            f"constant, received shape {x.shape}"
        )


def _gated(x: Array, name: str) -> Array:
    """Returns GELU and a gated linear unit of (...,F), of the same width."""
    values = nn.Dense(2 * x.shape[-1], dtype=x.dtype, name=name)(nn.gelu(x))
    return nn.glu(values)


def _add_residual(outputs: Array, inputs: Array, lengths: Array | None) -> Array:
    """Returns the sum of a layer's outputs and inputs, both zero at padded steps.

    Raises:
      ValueError: outputs of another width than the inputs.
    """
    if outputs.shape != inputs.shape:
        raise ValueError(
            f"residual: expected layers of the width of their inputs {inputs.shape[-1]}, "
            f"received {outputs.shape[-1]}"
        )
    return outputs + inputs


class FrameAverage(nn.Module):
    """Order-blind baseline with the interface of a recurrent layer.

    Dense and ReLU on each step, then the mean over the valid steps, repeated at every valid step;
    of sequences that are packed into a row, the mean of each.

    >>> from functools import partial
    >>> import jax, jax.numpy as jnp
    >>> from flaxnets.recurrent import FrameAverage
    >>> layer, x, lengths = FrameAverage(4), jnp.ones((2, 5, 3)), jnp.array([5, 2])
    >>> init = jax.jit(partial(layer.init_with_output, train=False))
    >>> outputs, variables = init(jax.random.key(0), x, lengths)
    >>> outputs.shape, float(jnp.abs(outputs[1, 2:]).max())
    ((2, 5, 4), 0.0)

    Attributes:
      features: width of the Dense layer.
      normalize_inputs: LayerNorm of each step's inputs, as in ``Recurrent``.
    """

    features: int
    normalize_inputs: bool = False

    @nn.compact
    def __call__(
        self,
        inputs: Array,
        lengths: Array | None = None,
        *,
        train: bool,
        starts: Array | None = None,
        initial_carry: None = None,
        return_carry: bool = False,
    ) -> Array:
        """Returns (B,T,features), zero at padded steps.

        Args:
          inputs: (B,T,D) float.
          lengths: (B,) integers in [0,T], valid steps, an array or a list; None: all.
          train: has no effect; the signature is that of ``Recurrent``.
          starts: (B,T) bool, the first steps of packed sequences; None: one sequence a row.
          initial_carry: None: there is no carry.
          return_carry: False, likewise.

        Raises:
          ValueError: inputs of another rank or of integers, lengths and starts as for
            ``Recurrent``; a carry; the LayerNorm of one feature.
        """
        check_inputs(inputs, "B,T", 1)
        if return_carry or initial_carry is not None:
            raise ValueError(
                "return_carry, initial_carry: expected False and None, as the average over time "
                f"reads the whole sequence, received {return_carry} and "
                f"{'None' if initial_carry is None else 'a carry'}"
            )
        valid = mask_steps(inputs, lengths)
        x = inputs if lengths is None else zero_where_masked(inputs, valid)
        if self.normalize_inputs:
            _check_normalized("normalize_inputs", x)
            x = nn.LayerNorm(dtype=x.dtype, name="norm")(x)
        x = nn.relu(nn.Dense(self.features, dtype=x.dtype, name="hidden")(x))
        # Summed in float32 at least: float16 overflows after a few thousand steps.
        wide = jnp.promote_types(x.dtype, jnp.float32)
        if starts is not None:
            mean = _segment_means(x.astype(wide), valid, check_starts(starts, *inputs.shape[:2]))
            return jnp.where(valid[..., None], mean, 0).astype(x.dtype)
        total = jnp.sum(jnp.where(valid[..., None], x, 0), axis=1, keepdims=True, dtype=wide)
        mean = total / jnp.maximum(jnp.sum(valid, axis=1), 1)[:, None, None]
        return jnp.where(valid[..., None], mean, 0).astype(x.dtype)


def _segment_means(x: Array, valid: Array, starts: Array) -> Array:
    """Returns at each step of (B,T,F) the mean of the valid steps of its packed sequence."""
    numbers = jnp.cumsum(starts, axis=1)  # (B,T), of the sequence

    def average(x: Array, valid: Array, numbers: Array) -> Array:
        add = partial(jax.ops.segment_sum, segment_ids=numbers, num_segments=len(numbers) + 1)
        counts = jnp.maximum(add(valid.astype(x.dtype)), 1)
        return (add(jnp.where(valid[:, None], x, 0)) / counts[:, None])[numbers]

    return jax.vmap(average)(x, valid, numbers)
