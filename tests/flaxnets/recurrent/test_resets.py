"""Packed sequences: a row with resets equals the single sequences, values and gradients."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxnets.recurrent import (
    ConvGRUCell,
    ConvLSTMCell,
    ElmanCell,
    FrameAverage,
    GRUCell,
    LRUCell,
    LSTMCell,
    MinGRUCell,
    MinLSTMCell,
    Recurrent,
    ScanOptions,
)

F = 4
CELLS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "elman": (partial(ElmanCell, F), (3,)),
    "lstm": (partial(LSTMCell, F, peepholes=True, layer_norm=True), (3,)),
    "gru": (partial(GRUCell, F), (3,)),
    "gru-before": (partial(GRUCell, F, reset_after=False), (3,)),
    "convlstm": (partial(ConvLSTMCell, 2, kernel_size=(3, 3), peepholes=True), (3, 2, 2)),
    "convgru": (partial(ConvGRUCell, 2, kernel_size=(2, 3)), (3, 2, 2)),
    "mingru": (partial(MinGRUCell, F), (3,)),
    "minlstm": (partial(MinLSTMCell, F), (3,)),
    "lru": (partial(LRUCell, F, state_features=3), (3,)),
    "flax-lstm": (partial(nn.OptimizedLSTMCell, F), (3,)),
    "flax-gru": (partial(nn.GRUCell, F), (3,)),
}
ROWS = ((2, 1, 3), (4, 2))
"""Lengths of the sequences of each row; the second row ends with a step of padding."""
T = 7


def pack(axes: tuple[int, ...], padding: float = 0.0) -> tuple[Any, Any, np.ndarray, np.ndarray]:
    """Returns single sequences padded to the longest, their lengths, rows of them and starts."""
    rng = np.random.default_rng(0)
    lengths = np.array([length for row in ROWS for length in row], np.int32)
    single = np.zeros((len(lengths), lengths.max(), *axes), np.float32)
    rows = np.full((len(ROWS), T, *axes), padding, np.float32)
    starts = np.zeros((len(ROWS), T), bool)
    number = 0
    for row, counts in enumerate(ROWS):
        begin = 0
        for count in counts:
            steps = rng.normal(size=(count, *axes))
            single[number, :count] = rows[row, begin : begin + count] = steps
            starts[row, begin] = True
            begin, number = begin + count, number + 1
    return single, lengths, rows, starts


def unpack(rows: Any) -> Any:
    """Returns the sequences of rows (R,T,...), padded with zeros to the longest."""
    longest = max(max(row) for row in ROWS)
    found = []
    for row, counts in enumerate(ROWS):
        begin = 0
        for count in counts:
            steps = rows[row, begin : begin + count]
            found.append(jnp.pad(steps, ((0, longest - count), *[(0, 0)] * (steps.ndim - 1))))
            begin += count
    return jnp.stack(found)


def row_lengths() -> np.ndarray:
    return np.array([sum(row) for row in ROWS], np.int32)


@pytest.mark.slow_after(5)
@pytest.mark.parametrize("name", CELLS)
def test_packed_rows_equal_single_sequences(name: str) -> None:
    make_cell, axes = CELLS[name]
    # Both directions, and the gradients of chunks that end within a sequence.
    options = ScanOptions(remat_steps=2 if name in ("lstm", "mingru") else 0)
    layer = Recurrent(make_cell, bidirectional=True, options=options)
    single, lengths, rows, starts = pack(axes)
    variables = layer.init(jax.random.key(0), single, lengths, train=False)
    weights = np.random.default_rng(1).normal(size=(len(lengths), 1, 1))

    def run(variables: Any, x: Any, packed: bool) -> Any:
        if packed:
            out = unpack(layer.apply(variables, x, row_lengths(), train=False, starts=starts))
        else:
            out = layer.apply(variables, x, lengths, train=False)
        return jnp.sum(jnp.sin(out.reshape(*out.shape[:2], -1)) * weights), out

    differentiate = jax.jit(jax.grad(run, (0, 1), has_aux=True), static_argnums=2)
    (expected, d_single), outputs = differentiate(variables, single, False)
    (found, d_rows), packed = differentiate(variables, rows, True)
    np.testing.assert_allclose(packed, outputs, rtol=2e-5, atol=2e-6)
    np.testing.assert_allclose(unpack(d_rows), d_single, rtol=2e-4, atol=2e-5)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)


def test_layer_without_resets_mixes_the_sequences() -> None:
    layer = Recurrent(partial(LSTMCell, F))
    _, _, rows, starts = pack((3,))
    variables = layer.init(jax.random.key(0), rows, train=False)
    mixed = layer.apply(variables, rows, row_lengths(), train=False)
    apart = layer.apply(variables, rows, row_lengths(), train=False, starts=starts)
    assert np.abs(np.asarray(mixed - apart)).max() > 1e-3
    np.testing.assert_array_equal(mixed[:, :1], apart[:, :1])


@pytest.mark.parametrize("layer", ["average", "differences"])
def test_other_parts_of_layers_see_single_sequences(layer: str) -> None:
    part: Any = FrameAverage(F)
    if layer == "differences":
        options = {"normalize_inputs": True, "normalize_layers": True, "glu": True}
        part = Recurrent(partial(MinGRUCell, F), 2, delta_features=True, **options)
    single, lengths, rows, starts = pack((3,), padding=np.nan)
    variables = part.init(jax.random.key(0), single, lengths, train=False)
    expected = part.apply(variables, single, lengths, train=False)
    found = part.apply(variables, rows, row_lengths(), train=False, starts=starts)
    np.testing.assert_allclose(unpack(found), expected, rtol=1e-5, atol=1e-6)
    assert not np.asarray(found)[1, -1].any()


def test_stream_of_packed_chunks_equals_the_whole() -> None:
    layer = Recurrent(partial(GRUCell, F), delta_features=True)
    _, _, rows, starts = pack((3,))
    variables = layer.init(jax.random.key(0), rows, train=False)
    whole = layer.apply(variables, rows, train=False, starts=starts)
    carry: Any = None
    outputs = []
    for begin in range(0, T, 3):
        chunk = slice(begin, begin + 3)
        carry, output = layer.apply(
            variables, carry, rows[:, chunk], starts=starts[:, chunk], method="stream"
        )
        outputs.append(output)
    np.testing.assert_allclose(np.concatenate(outputs, 1), whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("starts", "options", "message"),
    [
        (np.zeros((2, 3), bool), {}, r"starts: expected shape \(2, 7\), received \(2, 3\)"),
        (np.zeros((2, 7), np.int32), {}, "starts: expected bool, received int32"),
        (np.zeros((2, 7), bool), {"backend": "cudnn"}, "backend: expected 'scan'"),
    ],
)
def test_bad_starts_are_refused(starts: Any, options: Any, message: str) -> None:
    layer = Recurrent(partial(LSTMCell, F), **options)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(
            partial(layer.init, train=False), jax.random.key(0), np.zeros((2, 7, 3)), starts=starts
        )
