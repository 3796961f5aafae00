"""Inputs of a recurrent layer's first cell: normalisation, delta features, a Dense layer."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxnets.recurrent.cells import LSTMCell
from flaxnets.recurrent.layers import Recurrent

B, T, D, F = 3, 6, 5, 4
LENGTHS = np.array([6, 4, 1], np.int32)
PADDING = np.arange(T) >= LENGTHS[:, None]
ALL: dict[str, Any] = {"normalize_inputs": True, "delta_features": True, "input_features": 7}


@pytest.fixture(scope="module")
def inputs() -> np.ndarray:
    return np.random.default_rng(0).normal(1, 3, size=(B, T, D)).astype(np.float32)


@partial(jax.jit, static_argnums=0)
def apply(layer: Recurrent, variables: Any, x: np.ndarray, lengths: Any) -> Any:
    return layer.apply(variables, x, lengths, train=False)


def run(layer: Recurrent, variables: Any, x: np.ndarray, lengths: Any = LENGTHS) -> np.ndarray:
    return np.asarray(apply(layer, variables, x, lengths))


def make(inputs: np.ndarray, **options: Any) -> tuple[Recurrent, Any]:
    """Returns the layer and random parameters, none of them constant."""
    layer = Recurrent(partial(LSTMCell, F), **options)
    init = partial(layer.init, train=False)
    shapes = jax.eval_shape(init, jax.random.key(0), inputs, LENGTHS)
    rng = np.random.default_rng(2)
    return layer, jax.tree.map(
        lambda leaf: rng.normal(0, 0.4, leaf.shape).astype(np.float32), shapes
    )


def prepared(params: Any, x: np.ndarray, options: dict[str, Any]) -> np.ndarray:
    """Returns the expected inputs of the first cell, computed step by step."""
    rows = []
    for sequence in x.astype(np.float64):
        steps = []
        before = None
        for step in sequence:
            if options.get("normalize_inputs"):
                scale, shift = (np.asarray(params["norm"][name]) for name in ("scale", "bias"))
                step = (step - step.mean()) / np.sqrt(step.var() + 1e-6) * scale + shift
            read = step
            if options.get("delta_features"):
                delta = np.zeros(len(step)) if before is None else step - before
                read = np.concatenate([step, delta])
            if options.get("input_features"):
                kernel, bias = (np.asarray(params["input"][name]) for name in ("kernel", "bias"))
                read = read @ kernel + bias
            steps.append(read)
            before = step
        rows.append(steps)
    return np.array(rows, np.float32)


@pytest.mark.parametrize(
    "options", [{name: value} for name, value in ALL.items()] + [ALL], ids=lambda o: "+".join(o)
)
def test_the_first_cell_of_both_directions_reads_what_a_loop_prepares(
    inputs: np.ndarray, options: dict[str, Any]
) -> None:
    layer, variables = make(inputs, bidirectional=True, **options)
    outputs = run(layer, variables, inputs)
    params = variables["params"]
    plain = Recurrent(partial(LSTMCell, F), bidirectional=True)
    cells = {name: value for name, value in params.items() if name[:7] in ("forward", "backwar")}
    read = prepared(params, inputs, options)
    expected = run(plain, {"params": cells}, read)
    np.testing.assert_allclose(outputs, expected, atol=2e-5)


def test_deltas_are_zero_at_the_first_step_and_for_inputs_that_stay(inputs: np.ndarray) -> None:
    layer, variables = make(inputs, delta_features=True)
    params = jax.tree.map(jnp.asarray, variables["params"])
    kernel = params["forward_0"]["input_kernel"]
    assert kernel.shape == (2 * D, 4 * F)
    # The deltas are zero, so their rows of the kernel have no effect.
    params["forward_0"]["input_kernel"] = kernel.at[D:].add(5.0)
    still = np.broadcast_to(inputs[:, :1], inputs.shape)
    for x, steps in ((still, slice(None)), (inputs, slice(1))):
        before, after = (
            run(layer, {"params": p}, x)[:, steps] for p in (variables["params"], params)
        )
        np.testing.assert_array_equal(before, after)
    moved = run(layer, {"params": params}, inputs)
    plain = run(layer, variables, inputs)
    assert np.abs(moved - plain)[0, 1:].max() > 1e-2


@pytest.mark.parametrize("bidirectional", [False, True])
def test_what_lies_in_the_padding_changes_nothing(inputs: np.ndarray, bidirectional: bool) -> None:
    layer, variables = make(inputs, bidirectional=bidirectional, **ALL)
    other = np.where(PADDING[..., None], 50 * np.cos(inputs), inputs)
    outputs, other_outputs = (run(layer, variables, x) for x in (inputs, other))
    np.testing.assert_array_equal(outputs, other_outputs)
    assert not outputs[PADDING].any()
    assert outputs[~PADDING].any(axis=-1).all()


def test_a_padded_sequence_gives_what_it_gives_cut_off(inputs: np.ndarray) -> None:
    layer, variables = make(inputs, bidirectional=True, **ALL)
    outputs = run(layer, variables, inputs)
    alone = run(layer, variables, inputs[1:2, : LENGTHS[1]], None)
    np.testing.assert_allclose(outputs[1, : LENGTHS[1]], alone[0], atol=1e-6)


def test_forwards_a_step_reads_nothing_of_later_ones(inputs: np.ndarray) -> None:
    layer, variables = make(inputs, **ALL)
    other = inputs.copy()
    other[:, 3:] = 20 * np.sin(other[:, 3:])
    before, after = (run(layer, variables, x, None) for x in (inputs, other))
    np.testing.assert_array_equal(before[:, :3], after[:, :3])
    assert np.abs(before - after)[:, 3:].max() > 1e-3


def test_normalised_inputs_have_neither_scale_nor_offset(inputs: np.ndarray) -> None:
    layer, variables = make(inputs, normalize_inputs=True)
    before = run(layer, variables, inputs)
    after = run(layer, variables, 30 * inputs + 8)
    np.testing.assert_allclose(before, after, atol=1e-4)


def test_every_parameter_gets_a_finite_gradient_that_is_not_zero(inputs: np.ndarray) -> None:
    layer, variables = make(inputs, bidirectional=True, **ALL)

    @jax.jit
    @jax.grad
    def gradients(params: Any) -> Any:
        return jnp.sum(jnp.sin(layer.apply({"params": params}, inputs, LENGTHS, train=False)))

    for path, gradient in jax.tree.leaves_with_path(gradients(variables["params"])):
        name = jax.tree_util.keystr(path)
        assert np.isfinite(gradient).all(), name
        assert np.abs(gradient).max() > 0, name


def test_dropout_acts_on_the_projected_inputs_in_training_alone(inputs: np.ndarray) -> None:
    def spread(**options: Any) -> float:
        layer, variables = make(inputs, dropout_rate=0.5, **options)

        @jax.jit
        def trained(key: jax.Array) -> Any:
            return layer.apply(variables, inputs, train=True, rngs={"dropout": key})

        return float(np.abs(trained(jax.random.key(0)) - trained(jax.random.key(1))).max())

    # Without input_features the inputs of the first cell are not dropped.
    assert spread() == 0
    assert spread(input_features=7) > 1e-2
