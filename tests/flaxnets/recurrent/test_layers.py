"""The LSTM and its scan, against a loop in NumPy and against their own promises."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxnets.recurrent.cells import LSTMCell
from flaxnets.recurrent.layers import Recurrent, scan_cell

B, T, D, F = 3, 7, 5, 4
LENGTHS = np.array([7, 4, 1], np.int32)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def lstm_loop(params: Any, x: np.ndarray, lengths: np.ndarray, *, reverse: bool) -> np.ndarray:
    """Each sequence on its own, cut to its length; zeros after it."""
    kernel, bias = np.asarray(params["input_kernel"]), np.asarray(params["bias"])
    hidden_kernel = np.asarray(params["hidden_kernel"])
    out = np.zeros((*x.shape[:2], F))
    for b, length in enumerate(lengths):
        h = c = np.zeros(F)
        steps = range(length)
        for t in reversed(steps) if reverse else steps:
            i, f, g, o = np.split(x[b, t] @ kernel + bias + h @ hidden_kernel, 4)
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(c)
            out[b, t] = h
    return out


@pytest.fixture(scope="module")
def inputs() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(B, T, D)).astype(np.float32)


def make(inputs: np.ndarray, **options: Any) -> tuple[Recurrent, Any]:
    layer = Recurrent(partial(LSTMCell, F), **options)
    variables = layer.init(jax.random.key(1), inputs, LENGTHS, train=False)
    return layer, variables


def test_equals_a_loop_over_each_sequence_in_both_directions(inputs: np.ndarray) -> None:
    layer, variables = make(inputs, bidirectional=True)
    outputs = layer.apply(variables, inputs, LENGTHS, train=False)
    params = variables["params"]
    forward = lstm_loop(params["forward_0"], inputs, LENGTHS, reverse=False)
    backward = lstm_loop(params["backward_0"], inputs, LENGTHS, reverse=True)
    np.testing.assert_allclose(outputs, np.concatenate([forward, backward], -1), atol=1e-6)


def test_second_layer_reads_the_outputs_of_the_first(inputs: np.ndarray) -> None:
    layer, variables = make(inputs, num_layers=2)
    outputs = layer.apply(variables, inputs, LENGTHS, train=False)
    params = variables["params"]
    first = lstm_loop(params["forward_0"], inputs, LENGTHS, reverse=False)
    second = lstm_loop(params["forward_1"], first, LENGTHS, reverse=False)
    np.testing.assert_allclose(outputs, second, atol=1e-6)


def test_what_lies_in_the_padding_changes_nothing(inputs: np.ndarray) -> None:
    layer, variables = make(inputs, num_layers=2, bidirectional=True)
    padding = np.arange(T) >= LENGTHS[:, None]
    other = np.where(padding[..., None], np.float32(1e3), inputs)

    def loss(params: Any, x: np.ndarray) -> jax.Array:
        return jnp.sum(layer.apply({"params": params}, x, LENGTHS, train=False) ** 2)

    np.testing.assert_array_equal(
        layer.apply(variables, inputs, LENGTHS, train=False),
        layer.apply(variables, other, LENGTHS, train=False),
    )
    for a, b in zip(
        jax.tree.leaves(jax.grad(loss)(variables["params"], inputs)),
        jax.tree.leaves(jax.grad(loss)(variables["params"], other)),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("reverse", [False, True])
def test_carry_is_the_one_at_each_end_and_chunks_equal_the_whole(
    inputs: np.ndarray, reverse: bool
) -> None:
    cell = LSTMCell(F)
    variables = cell.init(jax.random.key(0), inputs.shape, method=LSTMCell.weights)

    def scan(x: np.ndarray, lengths: np.ndarray | None, carry: Any = None) -> Any:
        return cell.apply(
            variables, x, lengths, initial_carry=carry, reverse=reverse, method=scan_cell
        )

    (_, hidden), outputs = scan(inputs, LENGTHS)
    last = np.zeros(B, int) if reverse else LENGTHS - 1
    np.testing.assert_allclose(hidden, np.asarray(outputs)[np.arange(B), last], atol=1e-6)

    parts = [inputs[:, 3:], inputs[:, :3]] if reverse else [inputs[:, :3], inputs[:, 3:]]
    carry, first = scan(parts[0], None)
    _, second = scan(parts[1], None, carry)
    chunks = [second, first] if reverse else [first, second]
    whole = scan(inputs, None)[1]
    np.testing.assert_allclose(np.concatenate(chunks, 1), whole, atol=1e-6)


def test_outputs_are_causal(inputs: np.ndarray) -> None:
    layer, variables = make(inputs)
    changed = inputs.copy()
    changed[:, 4:] += 1
    before, after = (layer.apply(variables, x, train=False) for x in (inputs, changed))
    np.testing.assert_array_equal(before[:, :4], after[:, :4])
    assert np.abs(before[:, 4] - after[:, 4]).min() > 0


def test_every_parameter_has_a_finite_gradient_that_is_not_zero(inputs: np.ndarray) -> None:
    layer, variables = make(inputs, num_layers=2, bidirectional=True)

    def loss(params: Any) -> jax.Array:
        return jnp.sum(layer.apply({"params": params}, inputs, LENGTHS, train=False) ** 2)

    for gradient in jax.tree.leaves(jax.grad(loss)(variables["params"])):
        assert np.isfinite(gradient).all()
        assert np.abs(gradient).max() > 0


def test_forget_bias_and_bfloat16(inputs: np.ndarray) -> None:
    cell = partial(LSTMCell, F, forget_bias=2.0, dtype=jnp.bfloat16)
    layer = Recurrent(cell)
    variables = layer.init(jax.random.key(1), inputs, LENGTHS, train=False)
    bias = variables["params"]["forward_0"]["bias"].reshape(4, F)
    np.testing.assert_array_equal(bias, np.repeat([0, 2, 0, 0], F).reshape(4, F))
    outputs = layer.apply(variables, inputs, LENGTHS, train=False)
    assert outputs.dtype == jnp.bfloat16
    exact = Recurrent(partial(LSTMCell, F)).apply(variables, inputs, LENGTHS, train=False)
    np.testing.assert_allclose(np.asarray(outputs, np.float32), exact, atol=0.02)


def test_wrong_shapes_are_refused(inputs: np.ndarray) -> None:
    layer, variables = make(inputs)
    with pytest.raises(ValueError, match=r"inputs: expected \(B,T,D\), received shape \(3, 7\)"):
        layer.apply(variables, inputs[..., 0], train=False)
    with pytest.raises(ValueError, match=r"lengths: expected shape \(3,\), received \(2,\)"):
        layer.apply(variables, inputs, LENGTHS[:2], train=False)
