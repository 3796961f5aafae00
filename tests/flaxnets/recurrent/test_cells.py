"""Every cell, on vectors and on feature maps, against its equations in NumPy."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxnets.recurrent.cells import GRUCell, LSTMCell
from flaxnets.recurrent.layers import Recurrent
from tests.flaxnets.recurrent import reference
from tests.flaxnets.recurrent.cases import (
    BY_NAME,
    CASES,
    FLOAT64,
    FULL,
    LENGTHS,
    Case,
    T,
    assert_close,
    in_bfloat16,
    make_shapes,
    scan,
)

EXACT = {"rtol": 1e-10, "atol": 1e-12}
CARRY_DTYPES = {
    reference.lstm: (jnp.float32, jnp.bfloat16),
    reference.gru: jnp.float32,
    reference.st_lstm: (jnp.float32, jnp.bfloat16, jnp.float32),
}
every_cell = pytest.mark.parametrize("case", CASES, ids=str)


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


@every_cell
def test_one_step(case: Case) -> None:
    params, carry, x = case.draw()
    cell = case.make_cell(**FLOAT64)
    actual = jax.jit(cell.apply)({"params": params}, carry, x[:, 0])
    assert_close(actual, case.step(params, carry, x[:, 0]), **EXACT)
    assert actual[1].dtype == jnp.float64


@every_cell
@pytest.mark.parametrize("lengths", [FULL, LENGTHS], ids=["whole", "masked"])
def test_scan(case: Case, lengths: np.ndarray) -> None:
    params, carry, x = case.draw()
    carry, outputs = scan(case.make_cell(**FLOAT64), params, carry, x, lengths)
    expected = reference.scan(case.step, *case.draw(), lengths)
    assert_close((carry, outputs), expected, **EXACT)
    assert not np.asarray(outputs)[np.arange(T) >= lengths[:, None]].any()


@every_cell
def test_chunk_after_chunk(case: Case) -> None:
    params, carry, x = case.draw()
    cell = case.make_cell(**FLOAT64)
    middle, first = scan(cell, params, carry, x[:, : T // 2])
    last, second = scan(cell, params, middle, x[:, T // 2 :])
    expected = reference.scan(case.step, params, carry, x)
    assert_close((last, np.concatenate([first, second], 1)), expected, **EXACT)


@every_cell
def test_both_directions(case: Case) -> None:
    (forward, carry, x), (backward, *_) = case.draw(), case.draw(1)
    layer = Recurrent(partial(case.make_cell, **FLOAT64), bidirectional=True)
    variables = {"params": {"forward_0": forward, "backward_0": backward}}
    outputs = jax.jit(partial(layer.apply, train=False))(variables, x, LENGTHS)
    zeros = jax.tree.map(np.zeros_like, carry)
    expected = [
        reference.scan(case.step, params, zeros, x, LENGTHS, reverse=reverse)[1]
        for params, reverse in ((forward, False), (backward, True))
    ]
    assert_close(outputs, np.concatenate(expected, -1), **EXACT)


@every_cell
def test_bfloat16_stays_so_and_what_adds_up_stays_float32(case: Case) -> None:
    params, carry, x = in_bfloat16(case, case.draw())
    cell = case.make_cell(dtype=jnp.bfloat16)
    last, outputs = scan(cell, params, carry, x, LENGTHS)
    assert outputs.dtype == jnp.bfloat16
    dtypes: Any = CARRY_DTYPES.get(case.step, jnp.bfloat16)
    for new, old, dtype in zip(*map(jax.tree.leaves, (last, carry, dtypes)), strict=True):
        assert new.dtype == old.dtype == dtype
    expected = reference.scan(case.step, *case.draw(), LENGTHS)
    assert_close((last, outputs), expected, rtol=0.03, atol=0.03)


# Each step adds 0.001 or less, half of what bfloat16 can tell from 0.5 (0.002).
@pytest.mark.parametrize(
    ("cell_class", "step", "gates"),
    [(LSTMCell, reference.lstm, [-7, 20, 20, 0]), (GRUCell, reference.gru, [0, 7, 20])],
)
def test_in_bfloat16_small_contributions_add_up_over_many_steps(
    cell_class: Any, step: Any, gates: list[int]
) -> None:
    cell = cell_class(1, dtype=jnp.bfloat16)
    x = np.zeros((1, 1000, 1), np.float32)
    params, _ = jax.tree.map(
        lambda leaf: np.zeros(leaf.shape), make_shapes(partial(cell_class, 1), (1,))
    )
    params["bias"] = np.array(gates, np.float32)
    zeros = jax.tree.map(np.float64, cell.initialize_carry(None, (1, 1)))
    carry, _ = scan(cell, params, None, x)
    expected, _ = reference.scan(step, params, zeros, x)
    adding, expected = (c[0] if isinstance(c, tuple) else c for c in (carry, expected))
    assert expected > 0.55
    np.testing.assert_allclose(adding, expected, rtol=1e-2)


@pytest.mark.parametrize(
    "name", ["elman", "lstm-all", "gru-before", "convlstm-peepholes-2x3", "convgru-after-3x2"]
)
def test_flax_scans_our_cells(name: str) -> None:
    case = BY_NAME[name]
    params, _, x = case.draw()
    layer = nn.RNN(case.make_cell(**FLOAT64), return_carry=True)
    variables = {"params": {"cell": params}}
    shapes = jax.eval_shape(layer.init, jax.random.key(0), x)
    assert jax.tree.map(np.shape, shapes) == jax.tree.map(np.shape, variables)
    lengths = np.array([6, 4, 1], np.int32)
    carry, outputs = jax.jit(layer.apply)(variables, x, seq_lengths=lengths)
    expected_carry, expected = scan(case.make_cell(**FLOAT64), params, None, x, lengths)
    valid = np.arange(T) < lengths[:, None]
    assert_close((carry, outputs[valid]), (expected_carry, expected[valid]), **EXACT)
