"""Quasi-recurrent cells: a loop in NumPy over single sequences, windows across chunks, errors."""

from functools import partial
from typing import Any

import jax
import numpy as np
import pytest

from flaxnets.recurrent import RecurrentConfig, ScanOptions, make_recurrent
from flaxnets.recurrent.layers import Recurrent
from flaxnets.recurrent.linear_cells import QRNNCell
from flaxnets.recurrent.scan import scan_cell
from tests.flaxnets.recurrent.reference import sigmoid

B, T, D, F = 3, 9, 3, 4
LENGTHS = np.array([9, 6, 0], np.int32)
STARTS = np.zeros((B, T), bool)
STARTS[0, 4] = STARTS[1, 1] = STARTS[1, 3] = STARTS[1, 7] = True


def draw(window: int) -> tuple[Any, Any, np.ndarray]:
    """Draws parameters, carry and inputs (B,T,D), whose padding is NaN."""
    rng = np.random.default_rng(window)
    params = {
        "input_kernel": rng.normal(size=(window * D, 3 * F)),
        "bias": rng.normal(size=3 * F),
    }
    carry = rng.normal(size=(B, F)), rng.normal(size=(B, window - 1, D))
    x = rng.normal(size=(B, T, D))
    for row, length in enumerate(LENGTHS):
        x[row, length:] = np.nan
    return jax.tree.map(np.float32, (params, carry, x))


def loop(
    params: Any, carry: Any, x: np.ndarray, starts: np.ndarray, *, reverse: bool
) -> tuple[Any, np.ndarray]:
    """Runs each row step by step: a list of the steps before, emptied where a sequence begins."""
    outputs, lasts = np.zeros((B, T, F)), []
    for row in range(B):
        state, before = carry[0][row], list(carry[1][row])
        window = len(before) + 1
        order = range(LENGTHS[row])
        for t in reversed(order) if reverse else order:
            # Backwards, a sequence is entered at its last step.
            begins = t + 1 < LENGTHS[row] and starts[row, t + 1] if reverse else starts[row, t]
            if begins:
                state, before = np.zeros(F), [np.zeros(D)] * (window - 1)
            read = np.concatenate([*before, x[row, t]])
            z, f, o = np.split(read @ params["input_kernel"] + params["bias"], 3)
            state = sigmoid(f) * state + (1 - sigmoid(f)) * np.tanh(z)
            outputs[row, t] = sigmoid(o) * state
            before = [*before, x[row, t]][1:]
        lasts.append((state, np.reshape(before, (window - 1, D))))
    states, windows = zip(*lasts, strict=True)
    return (np.stack(states), np.stack(windows)), outputs


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("window", [1, 2, 4])
def test_equals_a_loop_with_lengths_resets_and_a_carry(window: int, reverse: bool) -> None:
    params, carry, x = draw(window)
    run = jax.jit(partial(QRNNCell(F, window=window).apply, reverse=reverse, method=scan_cell))
    found = run({"params": params}, x, LENGTHS, starts=STARTS, initial_carry=carry)
    expected = loop(params, carry, x, STARTS, reverse=reverse)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_chunks_and_single_steps_equal_the_whole() -> None:
    params, carry, x = draw(3)
    x = np.nan_to_num(x)
    cell = QRNNCell(F, window=3)
    run = jax.jit(partial(cell.apply, method=scan_cell), static_argnames="options")
    how = {"starts": STARTS, "initial_carry": carry}
    (state, before), whole = run({"params": params}, x, LENGTHS, **how)
    chunks = run({"params": params}, x, LENGTHS, options=ScanOptions(remat_steps=2), **how)
    for a, b in zip(jax.tree.leaves(chunks), (state, before, whole), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    # One step at a time, without resets: the cell as Flax's cells are called.
    carries, step = carry, jax.jit(cell.apply)
    outputs = []
    for t in range(T):
        carries, output = step({"params": params}, carries, x[:, t])
        outputs.append(output)
    expected = run({"params": params}, x, initial_carry=carry)[1]
    np.testing.assert_allclose(np.stack(outputs, 1), expected, rtol=1e-5, atol=1e-6)


def test_layers_train_and_padding_has_no_effect_on_gradients() -> None:
    config = RecurrentConfig("qrnn", features=F, bidirectional=True, window=3)
    layer: Any = make_recurrent(config)
    assert isinstance(layer, Recurrent)
    _, _, x = draw(2)

    @jax.jit
    def gradients(x: Any) -> Any:
        variables = layer.init(jax.random.key(0), x, train=False)

        def loss(params: Any, x: Any) -> Any:
            return (layer.apply({"params": params}, x, LENGTHS, train=False) ** 2).sum()

        return jax.grad(loss, (0, 1))(variables["params"], x)

    kernel = jax.tree.leaves(gradients(x)[0])[-1]
    assert kernel.shape == (3 * D, 3 * F)
    with_nan, without = gradients(x), gradients(np.nan_to_num(x))
    for a, b in zip(jax.tree.leaves(with_nan), jax.tree.leaves(without), strict=True):
        np.testing.assert_array_equal(a, b)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(with_nan[0]))
    assert not np.asarray(with_nan[1])[1, LENGTHS[1] :].any()


def test_a_window_without_steps_is_refused() -> None:
    with pytest.raises(ValueError, match="window: expected at least 1, received 0"):
        QRNNCell(F, window=0)
