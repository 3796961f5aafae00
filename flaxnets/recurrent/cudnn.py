"""The LSTM of NVIDIA's cuDNN (``jax.experimental.rnn``) with the parameters of ``LSTMCell``.

cuDNN adds one bias to the input projection and one to the hidden projection; ours has one for both,
so the second is zero and has no gradient. The layers of a stack run one after the other, since
``Recurrent`` has dropout and residuals between them; cuDNN would run a plain stack a little faster.
``jax.default_matmul_precision`` decides about TF32, as for matmuls.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import rnn

from flaxnets.layers.padding import zero_padding
from flaxnets.recurrent.cell import check_carry
from flaxnets.recurrent.cells import LSTMCell
from flaxnets.recurrent.scan import ScanOptions
from flaxnets.typing import Array, Carry


def check_cudnn(cell: Any, options: ScanOptions, recurrent_dropout_rate: float) -> None:
    """Refuses a layer that cuDNN cannot run.

    Args:
      cell: of the layer.
      options: of its scan; must be the defaults.
      recurrent_dropout_rate: of its hidden states; must be 0.

    Raises:
      ValueError: another cell than ``LSTMCell``, its ``peepholes``, ``layer_norm`` or
        ``projection_features``, another dtype than float32, options of the scan, dropout of hidden
        states, or a machine without a GPU.
    """
    if type(cell) is not LSTMCell:
        _refuse(
            "make_cell",
            f"{LSTMCell.__module__}.LSTMCell",
            f"{type(cell).__module__}.{type(cell).__name__}",
        )
    for name, expected in (("peepholes", False), ("layer_norm", False), ("projection_features", 0)):
        if getattr(cell, name) != expected:
            _refuse(name, expected, getattr(cell, name))
    for name in ("dtype", "param_dtype"):
        if jnp.dtype(getattr(cell, name)) != jnp.float32:
            _refuse(name, "float32", jnp.dtype(getattr(cell, name)))
    if options != ScanOptions():
        _refuse("options", ScanOptions(), options)
    if recurrent_dropout_rate:
        _refuse("recurrent_dropout_rate", 0, recurrent_dropout_rate)
    if (platform := jax.default_backend()) != "gpu":
        raise ValueError(f"backend: expected 'scan' on the platform {platform!r}, received 'cudnn'")


def run_cudnn(
    cells: Sequence[Any], inputs: Array, lengths: Array | None, initial_carry: Carry | None
) -> tuple[list[Carry], list[Array]]:
    """Runs one layer's cells over time; the results are those of ``scan_cell``.

    First-order reverse mode only, and no ``vmap``: JAX's binding of cuDNN's LSTM has neither.

    Args:
      cells: forward, or forward and backward; checked by ``check_cudnn``.
      inputs: (B,T,D) float32, not empty.
      lengths: (B,) int32 in [0,T], valid steps; None: all. Inputs behind them have no effect.
      initial_carry: (c,h) of the first cell, (B,F) each; None: zeros.

    Returns:
      For each cell the carry (c,h) after each sequence's last step, and the outputs (B,T,F), zero
      at padded steps.

    Raises:
      ValueError: inputs that are not float32, an initial carry that is not the cell's.
    """
    if inputs.dtype != jnp.float32:
        _refuse("inputs", "float32", inputs.dtype)
    batch, steps, width = inputs.shape
    inputs = zero_padding(inputs, lengths)
    features = cells[0].features
    weights = pack_weights([cell.weights(inputs.shape) for cell in cells])
    cell_states, hiddens = (jnp.zeros((len(cells), batch, features)) for _ in range(2))
    if initial_carry is not None:
        check_carry(initial_carry, cells[0].initialize_carry(None, (batch, width)))
        cell_states, hiddens = (state[None] for state in initial_carry)
    # cuDNN needs at least one step; that of an empty sequence is undone below.
    counts = jnp.full(batch, steps) if lengths is None else jnp.maximum(lengths, 1)
    outputs, last_hiddens, last_cell_states = rnn.lstm(
        inputs,
        hiddens,
        cell_states,
        weights,
        counts.astype(jnp.int32),
        width,
        features,
        1,
        0.0,
        len(cells) == 2,
    )
    if lengths is not None:
        valid = jnp.arange(steps) < lengths[:, None]
        outputs = jnp.where(valid[..., None], outputs, 0)
        some = (lengths > 0)[:, None]
        last_hiddens = jnp.where(some, last_hiddens, hiddens)
        last_cell_states = jnp.where(some, last_cell_states, cell_states)
    carries = list(zip(last_cell_states, last_hiddens, strict=True))
    return carries, jnp.split(outputs, len(cells), axis=-1)


def pack_weights(weights: Sequence[Any]) -> Array:
    """Returns the parameters of a layer's LSTMs as the one vector of ``jax.experimental.rnn``.

    It holds W_ih (4F,D) and W_hh (4F,F) of each direction, then b_ih and b_hh (4F,) of each, with
    gates in the order i, f, g, o.

    Args:
      weights: of each direction, from ``LSTMCell.weights``.
    """
    parts = [
        kernel["hidden"].T.reshape(-1) for cell in weights for kernel in (cell.input, cell.hidden)
    ]
    for cell in weights:
        bias = cell.bias["hidden"]
        parts += [bias, jnp.zeros_like(bias)]
    return jnp.concatenate(parts)


def _refuse(name: str, expected: Any, received: Any) -> None:
    raise ValueError(f"{name}: expected {expected} for cuDNN's LSTM, received {received}")
