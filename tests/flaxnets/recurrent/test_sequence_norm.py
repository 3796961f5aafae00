"""Recurrent layers with sequence-wise BatchNorm, and the lookahead convolution."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxnets.recurrent.sequence_norm import LookaheadConv, SequenceNormRecurrent
from tests.flaxnets.recurrent.reference import sigmoid

B, T, D, F = 3, 6, 5, 4
LENGTHS = np.array([6, 3, 0], np.int32)
VALID = np.arange(T) < LENGTHS[:, None]


@pytest.fixture(scope="module")
def inputs() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(B, T, D)).astype(np.float32)


def make(inputs: np.ndarray, **options: Any) -> tuple[SequenceNormRecurrent, Any]:
    """Returns the layer and random variables, none of them constant."""
    layer = SequenceNormRecurrent(F, **options)
    shapes = jax.eval_shape(partial(layer.init, train=False), jax.random.key(0), inputs)
    rng = np.random.default_rng(1)
    variables = jax.tree.map(lambda x: rng.normal(0, 0.5, x.shape).astype(np.float32), shapes)
    variables["batch_stats"] = jax.tree.map(np.abs, variables["batch_stats"])
    return layer, variables


@partial(jax.jit, static_argnums=0)
def train_step(layer: Any, variables: Any, x: Any, lengths: Any) -> Any:
    """Returns outputs, new statistics, and gradients of variables and inputs."""

    def loss(params: Any, x: Any) -> Any:
        outputs, updated = layer.apply(
            {**variables, "params": params}, x, lengths, train=True, mutable=["batch_stats"]
        )
        return jnp.sum(outputs**2), (outputs, updated)

    gradients, (outputs, updated) = jax.grad(loss, (0, 1), has_aux=True)(variables["params"], x)
    return outputs, updated, gradients


def normalised(x: np.ndarray, params: Any, layer: int) -> np.ndarray:
    projected = x @ params[f"input_{layer}"]["kernel"].astype(np.float64)
    counted = projected[VALID]
    found: np.ndarray = (projected - counted.mean(0)) / np.sqrt(counted.var(0) + 1e-5)
    return found * params[f"norm_{layer}"]["scale"] + params[f"norm_{layer}"]["bias"]


def elman(params: Any, hidden: np.ndarray, x: np.ndarray) -> np.ndarray:
    return np.clip(x + hidden @ params["hidden_kernel"], 0, 20)


def gru(params: Any, hidden: np.ndarray, x: np.ndarray) -> np.ndarray:
    r, z, n = np.split(hidden @ params["hidden_kernel"], 3, axis=-1)
    x_r, x_z, x_n = np.split(x, 3, axis=-1)
    r, z = sigmoid(x_r + r), sigmoid(x_z + z)
    n = np.tanh(x_n + r * (n + params["hidden_bias"]))
    return (1 - z) * n + z * hidden


def scan(step: Any, params: Any, x: np.ndarray, *, reverse: bool) -> np.ndarray:
    outputs = np.zeros((B, T, F))
    for row, length in enumerate(LENGTHS):
        hidden = np.zeros(F)
        for t in reversed(range(length)) if reverse else range(length):
            outputs[row, t] = hidden = step(params, hidden, x[row, t])
    return outputs


@pytest.mark.parametrize(("cell", "step"), [("elman", elman), ("gru", gru)])
def test_two_layers_are_the_equations(inputs: np.ndarray, cell: str, step: Any) -> None:
    layer, variables = make(inputs, cell=cell, num_layers=2)
    params, x = variables["params"], inputs.astype(np.float64)
    for number in range(2):
        drive = normalised(x, params, number)
        x = scan(step, params[f"forward_{number}"], drive, reverse=False)
        x += scan(step, params[f"backward_{number}"], drive, reverse=True)
    outputs, updated, _ = train_step(layer, variables, inputs, LENGTHS)
    np.testing.assert_allclose(outputs, x, atol=2e-5)
    projected = inputs[VALID] @ params["input_0"]["kernel"]
    running = 0.9 * variables["batch_stats"]["norm_0"]["mean"] + 0.1 * projected.mean(0)
    np.testing.assert_allclose(updated["batch_stats"]["norm_0"]["mean"], running, atol=1e-6)
    # Other padding, NaN included, and sequences without steps change nothing.
    dirty = np.where(VALID[..., None], inputs, np.nan).astype(np.float32)
    clean = train_step(layer, variables, inputs, LENGTHS)
    again = train_step(layer, variables, dirty, LENGTHS)
    jax.tree.map(np.testing.assert_array_equal, clean[:2], again[:2])
    jax.tree.map(np.testing.assert_array_equal, clean[2][0], again[2][0])
    assert not np.asarray(again[2][1])[~VALID].any()
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(clean[2][0]))


def test_lookahead_is_a_bounded_sum(inputs: np.ndarray) -> None:
    steps = 2
    layer = LookaheadConv(steps)
    kernel = np.random.default_rng(2).normal(size=(1, steps + 1, 1, D)).astype(np.float32)
    run = jax.jit(lambda x, lengths: layer.apply({"params": {"kernel": kernel}}, x, lengths))
    outputs = np.asarray(run(inputs, LENGTHS))
    for row, length in enumerate(LENGTHS):
        for t in range(T):
            expected = np.zeros(D)
            if t < length:
                for j in range(min(steps + 1, length - t)):
                    expected += kernel[0, j, 0] * inputs[row, t + j]
            np.testing.assert_allclose(outputs[row, t], expected, atol=1e-6)
    # A step reads itself and the next two, no other.
    changed = inputs.copy()
    changed[0, 3] += 1
    moved = np.abs(np.asarray(run(changed, LENGTHS)) - outputs)[0].max(-1) > 0
    assert moved.tolist() == [False, True, True, True, False, False]
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(run(x, LENGTHS)[0, 2])))(inputs)
    assert (np.abs(gradient).max((0, 2)) > 0).tolist() == [False] * 2 + [True] * 3 + [False]


def test_a_forward_scan_with_lookahead_reads_no_further(inputs: np.ndarray) -> None:
    layer, variables = make(inputs, num_layers=2, bidirectional=False, lookahead=1)
    run = jax.jit(partial(layer.apply, train=False))
    lengths = np.full(B, T, np.int32)
    changed = inputs.copy()
    changed[:, 4:] += 1
    outputs, others = run(variables, inputs, lengths), run(variables, changed, lengths)
    np.testing.assert_array_equal(outputs[:, :3], others[:, :3])
    assert np.abs(outputs[:, 3] - others[:, 3]).max() > 0


def test_wrong_arguments_are_refused(inputs: np.ndarray) -> None:
    with pytest.raises(ValueError, match="cell: expected one of elman, gru, received 'lstm'"):
        SequenceNormRecurrent(F, cell="lstm")
    with pytest.raises(ValueError, match="steps: expected at least 1, received 0"):
        LookaheadConv(0)
    layer = SequenceNormRecurrent(F)
    with pytest.raises(ValueError, match=r"inputs: expected \(B,T,D\)"):
        layer.init(jax.random.key(0), inputs[0], train=False)
    with pytest.raises(ValueError, match=r"lengths: expected values in \[0, 6\]"):
        layer.init(jax.random.key(0), inputs, np.array([7, 1, 1]), train=False)
