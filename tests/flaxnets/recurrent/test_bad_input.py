"""Errors of recurrent layers, and their messages."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxnets.recurrent.cells import ElmanCell, GRUCell, LSTMCell
from flaxnets.recurrent.convolutional_cells import ConvGRUCell, ConvLSTMCell
from flaxnets.recurrent.layers import Recurrent
from flaxnets.recurrent.newton_scan import NewtonScan
from flaxnets.recurrent.scan import ScanOptions, scan_cell

B, T, D, F = 3, 5, 4, 4
VECTORS = jax.ShapeDtypeStruct((B, T, D), jnp.float32)
MAPS = jax.ShapeDtypeStruct((B, T, 4, 3, D), jnp.float32)


def like(shape: tuple[int, ...], dtype: Any = jnp.float32) -> Any:
    return jax.ShapeDtypeStruct(shape, dtype)


def scan(make_cell: Any, inputs: Any, lengths: Any = None, **options: Any) -> None:
    cell = make_cell(F)
    init = partial(cell.init, jax.random.key(0), method=scan_cell, **options)
    jax.eval_shape(lambda x: init(x, lengths), inputs)


def layer(inputs: Any, lengths: Any = None, call: Any = None, **options: Any) -> None:
    recurrent = Recurrent(partial(LSTMCell, F), **options)
    options = {"lengths": lengths, **(call or {"train": False})}
    jax.eval_shape(lambda x: recurrent.init(jax.random.key(0), inputs=x, **options), inputs)


@pytest.mark.parametrize("make_cell", [ElmanCell, LSTMCell, GRUCell])
@pytest.mark.parametrize("shape", [(B, D), (B, T, 2, D), (B, T, 4, 3, D)])
def test_inputs_of_another_rank_to_cells_on_vectors(make_cell: Any, shape: Any) -> None:
    with pytest.raises(ValueError, match=r"inputs: expected \(B,T,D\), received shape \(3, "):
        scan(make_cell, like(shape))


@pytest.mark.parametrize("make_cell", [ConvLSTMCell, ConvGRUCell])
@pytest.mark.parametrize("shape", [(B, T, D), (T, 4, 3, D), (1, B, T, 4, 3, D)])
def test_inputs_of_another_rank_to_cells_on_maps(make_cell: Any, shape: Any) -> None:
    with pytest.raises(ValueError, match=r"inputs: expected \(B,T,H,W,C\), received shape \("):
        scan(make_cell, like(shape))


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.uint8, jnp.bool_])
@pytest.mark.parametrize("make_cell", [LSTMCell, ConvGRUCell])
def test_inputs_that_are_no_floats(make_cell: Any, dtype: Any) -> None:
    shape = (VECTORS if make_cell is LSTMCell else MAPS).shape
    with pytest.raises(ValueError, match=f"inputs: expected float, received {dtype.__name__}"):
        scan(make_cell, like(shape, dtype))


@pytest.mark.parametrize(
    ("make_cell", "inputs", "message"),
    [
        (LSTMCell, VECTORS, r"inputs: expected \(B,D\), received shape \(3, 5, 4\)"),
        (ConvLSTMCell, VECTORS, r"inputs: expected \(B,H,W,C\), received shape \(3, 5, 4\)"),
        (GRUCell, like((B, D), jnp.int32), "inputs: expected float, received int32"),
    ],
)
def test_inputs_of_one_step(make_cell: Any, inputs: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda x: make_cell(F).init(jax.random.key(0), None, x), inputs)


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ([5, 6, 0], r"lengths: expected values in \[0, 5\], received \[5, 6, 0\]"),
        ([5, -1, 0], r"lengths: expected values in \[0, 5\], received \[5, -1, 0\]"),
        ([5.0, 4.0, 1.0], "lengths: expected an integer dtype, received float32"),
        ([5, 4], r"lengths: expected shape \(3,\), received \(2,\)"),
        ([[5, 4, 1]], r"lengths: expected shape \(3,\), received \(1, 3\)"),
        (3, r"lengths: expected shape \(3,\), received \(\)"),
    ],
    ids=str,
)
def test_lengths(lengths: Any, message: str) -> None:
    lengths = np.asarray(lengths)
    lengths = lengths.astype(np.float32 if lengths.dtype == np.float64 else np.int32)
    for of in (lengths, jnp.asarray(lengths)):
        with pytest.raises(ValueError, match=message):
            scan(LSTMCell, VECTORS, of)
        with pytest.raises(ValueError, match=message):
            scan(ConvGRUCell, MAPS, of)
        with pytest.raises(ValueError, match=message):
            layer(VECTORS, of)


def test_lengths_that_are_traced_are_not_looked_at() -> None:
    init = partial(LSTMCell(F).init, method=scan_cell)
    jax.eval_shape(init, jax.random.key(0), VECTORS, like((B,), jnp.int32))


@pytest.mark.parametrize("call", ["carry", "return_carry", "stream"])
def test_a_layer_in_both_directions_cannot_stream(call: str) -> None:
    message = r"bidirectional: expected False where .*streamed, received True"
    carry = {"cells": (None,), "inputs": None}
    calls: dict[str, Any] = {
        "carry": {"train": False, "initial_carry": carry},
        "return_carry": {"train": False, "return_carry": True},
        "stream": {"method": "stream", "carry": None},
    }
    with pytest.raises(ValueError, match=message):
        layer(VECTORS, call=calls[call], bidirectional=True)


def test_residual_layers_of_another_width_than_their_inputs() -> None:
    message = "residual: expected layers of the width of their inputs 8, received 4"
    recurrent = Recurrent(
        lambda name: LSTMCell(8 if name == "forward_0" else 4, name=name),
        num_layers=2,
        residual=True,
    )
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(partial(recurrent.init, train=False), jax.random.key(0), VECTORS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"unroll": 0}, "unroll: expected at least 1, received 0"),
        ({"remat_steps": -1}, "remat_steps: expected at least 0, received -1"),
        ({"truncate_steps": -2}, "truncate_steps: expected at least 0, received -2"),
        ({"gradients": "none"}, r"gradients: expected one of \('auto', .*received 'none'"),
        ({"parallel": "deer"}, r"parallel: expected a ParallelScan, .*received 'deer'"),
        ({"parallel": NewtonScan}, "parallel: expected a ParallelScan, .*NewtonScan"),
        (
            {"remat_steps": 4, "truncate_steps": 6},
            "truncate_steps: expected a multiple of remat_steps = 4, received 6",
        ),
        ({"remat_outer_steps": 4}, "remat_outer_steps: expected 0 without remat_steps, .* 4"),
        (
            {"remat_steps": 2, "remat_outer_steps": 5},
            "remat_outer_steps: expected a multiple of remat_steps = 2, received 5",
        ),
        (
            {"remat_steps": 2, "remat_outer_steps": 4, "truncate_steps": 6},
            "truncate_steps: expected a multiple of remat_outer_steps = 4, received 6",
        ),
    ],
    ids=str,
)
def test_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ScanOptions(**options)


@pytest.mark.parametrize(
    ("make_cell", "inputs", "carry"),
    [
        (LSTMCell, VECTORS, np.zeros((B, F), np.float32)),
        (LSTMCell, VECTORS, (np.zeros((B, F), np.float32),) * 3),
        (LSTMCell, VECTORS, (np.zeros((B, F), np.float32), np.zeros((B, F + 1), np.float32))),
        (GRUCell, VECTORS, np.zeros((B + 1, F), np.float32)),
        (GRUCell, VECTORS, np.zeros((B, F), np.int32)),
        (ConvGRUCell, MAPS, np.zeros((B, 4, 4, F), np.float32)),
    ],
)
def test_an_initial_carry_that_is_not_the_cells(make_cell: Any, inputs: Any, carry: Any) -> None:
    with pytest.raises(ValueError, match=r"initial_carry: expected .*float32.*, received "):
        scan(make_cell, inputs, initial_carry=carry)
