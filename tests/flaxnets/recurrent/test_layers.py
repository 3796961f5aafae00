"""Stacks of scanned cells: depth, directions, residuals, lengths, dropout."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxnets.recurrent.cells import ElmanCell, GRUCell, LSTMCell
from flaxnets.recurrent.convolutional_cells import ConvGRUCell, ConvLSTMCell
from flaxnets.recurrent.layers import Recurrent
from tests.flaxnets.recurrent import reference

B, T, D, F = 3, 7, 5, 4
LENGTHS = np.array([7, 4, 1], np.int32)
PADDING = np.arange(T) >= LENGTHS[:, None]


@pytest.fixture(scope="module")
def inputs() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(B, T, D)).astype(np.float32)


def make(inputs: np.ndarray, make_cell: Any = LSTMCell, **options: Any) -> tuple[Recurrent, Any]:
    """Returns the layer and random parameters, none of them constant."""
    layer = Recurrent(partial(make_cell, F), **options)
    shapes = jax.eval_shape(partial(layer.init, train=False), jax.random.key(0), inputs)
    rng = np.random.default_rng(2)
    return layer, jax.tree.map(
        lambda leaf: rng.normal(0, 0.4, leaf.shape).astype(np.float32), shapes
    )


@partial(jax.jit, static_argnums=0, static_argnames="return_carry")
def apply(layer: Recurrent, *arguments: Any, return_carry: bool = False) -> Any:
    return layer.apply(*arguments, train=False, return_carry=return_carry)


@partial(jax.jit, static_argnums=0)
@partial(jax.grad, argnums=(1, 2))
def gradient(layer: Recurrent, variables: Any, x: Any, lengths: Any) -> Any:
    return jnp.sum(layer.apply(variables, x, lengths, train=False) ** 2)


def lstm(params: Any, x: np.ndarray, *, reverse: bool = False) -> np.ndarray:
    zeros = np.zeros((B, F)), np.zeros((B, F))
    return reference.scan(reference.lstm, params, zeros, x, LENGTHS, reverse=reverse)[1]


@pytest.mark.parametrize("residual", [False, True])
def test_layers_in_both_directions_equal_loops(inputs: np.ndarray, residual: bool) -> None:
    layer, variables = make(inputs, num_layers=3, bidirectional=True, residual=residual)
    x: np.ndarray = inputs
    for number in range(3):
        forward = lstm(variables["params"][f"forward_{number}"], x)
        backward = lstm(variables["params"][f"backward_{number}"], x, reverse=True)
        outputs = np.concatenate([forward, backward], axis=-1)
        x = outputs + x if residual and number else outputs
    np.testing.assert_allclose(apply(layer, variables, inputs, LENGTHS), x, atol=1e-6)


@pytest.mark.parametrize(
    ("make_cell", "options"),
    [
        (LSTMCell, {"bidirectional": True}),
        (GRUCell, {"num_layers": 2, "residual": True}),
        (ConvGRUCell, {}),
    ],
    ids=["both", "two", "maps"],
)
def test_what_lies_in_the_padding_changes_nothing(
    inputs: np.ndarray, make_cell: Any, options: Any
) -> None:
    padding = PADDING[..., None]
    if make_cell is ConvGRUCell:
        inputs = np.broadcast_to(inputs[:, :, None, None, :], (B, T, 3, 2, D))
        padding = PADDING[..., None, None, None]
    layer, variables = make(inputs, make_cell, **options)
    other = np.where(padding, np.float32(1e3), inputs)
    return_carry = not options.get("bidirectional")
    (before, after), gradients = (
        [apply(layer, variables, x, LENGTHS, return_carry=return_carry) for x in (inputs, other)],
        [gradient(layer, variables, x, LENGTHS) for x in (inputs, other)],
    )
    jax.tree.map(np.testing.assert_array_equal, before, after)
    outputs = np.asarray(before[1] if return_carry else before)
    assert not outputs[PADDING].any()
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), *gradients)
    assert not np.asarray(gradients[0][1])[PADDING].any()


def test_other_lengths_need_no_other_program(inputs: np.ndarray) -> None:
    layer, variables = make(inputs, num_layers=2, bidirectional=True)
    run: Any = jax.jit(partial(layer.apply, train=False))
    for lengths in ([7, 4, 1], [1, 2, 3], [0, 0, 7]):
        run(variables, inputs, np.array(lengths, np.int32))
    assert run._cache_size() == 1


def test_outputs_are_causal(inputs: np.ndarray) -> None:
    layer, variables = make(inputs)
    changed = inputs.copy()
    changed[:, 4:] += 1
    before, after = (np.asarray(apply(layer, variables, x)) for x in (inputs, changed))
    np.testing.assert_array_equal(before[:, :4], after[:, :4])
    assert np.abs(before[:, 4] - after[:, 4]).min() > 0


def test_every_parameter_has_a_finite_gradient_that_is_not_zero(inputs: np.ndarray) -> None:
    layer, variables = make(inputs, num_layers=2, bidirectional=True)
    for leaf in jax.tree.leaves(gradient(layer, variables, inputs, LENGTHS)):
        assert np.isfinite(leaf).all()
        assert np.abs(leaf).max() > 0


def test_forget_bias(inputs: np.ndarray) -> None:
    cell = LSTMCell(F, forget_bias=2.0)

    def draw() -> Any:
        return cell.init(jax.random.key(0), inputs.shape, method="weights")["params"]["bias"]

    np.testing.assert_array_equal(jax.jit(draw)(), np.repeat([0, 2, 0, 0], F))


@pytest.mark.parametrize("make_cell", [ElmanCell, LSTMCell, GRUCell])
def test_bfloat16_stays_so_from_layer_to_layer(inputs: np.ndarray, make_cell: Any) -> None:
    options: Any = {"num_layers": 2, "bidirectional": True, "residual": True}
    layer, variables = make(inputs, make_cell, **options)
    half, _ = make(inputs, partial(make_cell, dtype=jnp.bfloat16), **options)
    outputs = apply(half, variables, inputs, LENGTHS)
    assert outputs.dtype == jnp.bfloat16
    exact = apply(layer, variables, inputs, LENGTHS)
    np.testing.assert_allclose(np.asarray(outputs, np.float32), exact, atol=0.03)


# Dropout: the outputs of these cells are the dropped inputs or hidden states.

WIDE, RATE = 400, 0.25


def linear(input_weight: float, hidden_weight: float, **options: Any) -> tuple[Recurrent, Any]:
    """Returns a layer of linear Elman cells h' = u·x + w·h, and its parameters."""
    layer = Recurrent(partial(ElmanCell, WIDE, activation=lambda x: x), **options)
    cell = {
        "input_kernel": input_weight * np.eye(WIDE, dtype=np.float32),
        "hidden_kernel": hidden_weight * np.eye(WIDE, dtype=np.float32),
        "bias": np.zeros(WIDE, np.float32),
    }
    return layer, {"params": {f"forward_{number}": cell for number in range(layer.num_layers)}}


def dropped(layer: Recurrent, variables: Any, train: bool = True, **options: Any) -> np.ndarray:
    rngs = {"dropout": jax.random.key(3)}
    run = jax.jit(partial(layer.apply, train=train, rngs=rngs, **options))
    return np.asarray(run(variables, np.ones((2, T, WIDE), np.float32)))


@pytest.mark.parametrize("variational", [False, True])
def test_dropout_between_layers(variational: bool) -> None:
    layer, variables = linear(1, 0, num_layers=2, dropout_rate=RATE, variational=variational)
    mask = dropped(layer, variables)
    np.testing.assert_allclose(np.unique(mask), [0, 1 / (1 - RATE)], rtol=1e-6)
    assert abs(mask.mean() - 1) < 0.1
    assert (mask[:, :1] == mask).all() == variational
    assert (mask[0] != mask[1]).any()
    np.testing.assert_array_equal(dropped(layer, variables, train=False), 1)


def test_dropout_of_hidden_states_has_one_mask_for_all_steps_of_a_sequence() -> None:
    layer, variables = linear(0, 1, recurrent_dropout_rate=RATE)
    start = {"cells": (np.ones((2, WIDE), np.float32),), "inputs": None}
    outputs = dropped(layer, variables, initial_carry=start)
    mask = outputs[:, 0]
    np.testing.assert_allclose(np.unique(mask), [0, 1 / (1 - RATE)], rtol=1e-6)
    assert abs(mask.mean() - 1) < 0.1
    assert (mask[0] != mask[1]).any()
    powers = mask[:, None] ** np.arange(1, T + 1)[:, None]
    np.testing.assert_allclose(outputs, powers, rtol=1e-5)
    np.testing.assert_array_equal(dropped(layer, variables, train=False, initial_carry=start), 1)


@pytest.mark.parametrize(
    "make_cell", [partial(LSTMCell, F, projection_features=3), partial(ConvLSTMCell, F)]
)
def test_dropout_of_hidden_states_of_any_width(make_cell: Any) -> None:
    layer = Recurrent(make_cell, recurrent_dropout_rate=RATE)
    x = np.ones((B, T, 3, 2, D) if make_cell.func is ConvLSTMCell else (B, T, D), np.float32)
    shapes = jax.eval_shape(partial(layer.init, train=False), jax.random.key(0), x)
    variables = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.1, leaf.dtype), shapes)
    run = jax.jit(lambda key: layer.apply(variables, x, train=True, rngs={"dropout": key}))
    first, second, again = (np.asarray(run(jax.random.key(seed))) for seed in (0, 1, 0))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - second).max() > 1e-4
