"""Initial values of linear cells' parameters, and errors of linear cells."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxnets.recurrent.config import RecurrentConfig, make_cell_type, make_recurrent
from flaxnets.recurrent.layers import Recurrent
from flaxnets.recurrent.linear_cells import (
    LinearCell,
    LRUCell,
    MinGRUCell,
    MinLSTMCell,
)
from flaxnets.recurrent.scan import scan_cell

D, F = 5, 4
X = np.random.default_rng(0).normal(size=(2, 3, D)).astype(np.float32)


def init(cell: Any, width: int = D) -> Any:
    draw = partial(cell.init, input_shape=(1, width), method="weights")
    return jax.jit(draw)(jax.random.key(0))["params"]


def eigenvalues(params: Any) -> np.ndarray:
    return np.exp(-np.exp(np.asarray(params["nu"])) + 1j * np.exp(np.asarray(params["theta"])))


def test_biases_by_which_cells_remember() -> None:
    gru = init(MinGRUCell(F, update_bias=-2.0))["bias"]
    np.testing.assert_array_equal(gru, np.repeat([-2, 0], F))
    lstm = init(MinLSTMCell(F, forget_bias=1.0, input_bias=-3.0))["bias"]
    np.testing.assert_array_equal(lstm, np.repeat([1, -3, 0], F))
    zeros = np.zeros((1, D), np.float32)
    for cell, kept in ((MinGRUCell(F, update_bias=-2.0), 0.8808), (MinLSTMCell(F), 0.5)):
        state, _ = cell.apply({"params": init(cell)}, jnp.ones((1, F)), zeros)
        np.testing.assert_allclose(state, kept, atol=1e-4)


@pytest.mark.parametrize("extreme", [-200.0, 200.0])
def test_gates_far_from_zero_give_finite_values_and_gradients(extreme: float) -> None:
    for make_cell in (MinGRUCell, MinLSTMCell):
        cell = make_cell(F)
        params = init(cell)
        params["bias"] = jnp.full_like(params["bias"], extreme)

        def loss(params: Any, cell: Any = cell) -> Any:
            return (cell.apply({"params": params}, X, method=scan_cell)[1] ** 2).sum()

        value, gradients = jax.jit(jax.value_and_grad(loss))(params)
        assert all(np.isfinite(leaf).all() for leaf in (value, *jax.tree.leaves(gradients)))


def test_min_lstm_divides_gates_that_are_both_almost_shut() -> None:
    cell = MinLSTMCell(1)
    params = {"input_kernel": jnp.zeros((D, 3)), "bias": jnp.array([-150.0, -151.0, 2.0])}
    state, _ = cell.apply({"params": params}, jnp.zeros((1, 1)), X[:1, 0])
    np.testing.assert_allclose(state, 2 / (1 + np.e), rtol=1e-5)


def test_eigenvalues_are_uniform_on_the_ring() -> None:
    cell = LRUCell(F, state_features=4000, r_min=0.5, r_max=0.9, max_phase=1.0)
    params = init(cell)
    values = eigenvalues(params)
    radius, phase = np.abs(values), np.angle(values)
    assert radius.min() > 0.499
    assert radius.max() < 0.901
    assert phase.min() >= 0
    assert phase.max() <= 1.001
    # Half of the ring's area lies within sqrt((r_min² + r_max²) / 2).
    inside = (radius < np.sqrt((0.5**2 + 0.9**2) / 2)).mean()
    np.testing.assert_allclose([inside, (phase < 0.5).mean()], 0.5, atol=0.03)
    np.testing.assert_allclose(np.exp(params["gamma"]), np.sqrt(1 - radius**2), rtol=1e-4)


@pytest.mark.parametrize("radii", [(0.0, 1.0), (0.999999, 1.0), (0.0, 1e-6)])
def test_rings_at_the_limits_give_finite_parameters(radii: tuple[float, float]) -> None:
    params = init(LRUCell(F, state_features=4000, r_min=radii[0], r_max=radii[1]))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
    assert np.abs(eigenvalues(params)).max() < 1


def test_states_of_white_noise_have_the_variance_of_one_input() -> None:
    # γ and the kernels' scale normalise it (2303.06349, section 3.4), also for |λ| close to 1.
    cell = LRUCell(8, state_features=64, r_min=0.9, r_max=0.99)
    x = np.random.default_rng(0).normal(size=(32, 600, 16)).astype(np.float32)
    last, _ = jax.jit(partial(cell.apply, method=scan_cell))({"params": init(cell, 16)}, x)
    np.testing.assert_allclose(np.mean(np.abs(last) ** 2), 1.0, rtol=0.15)


def test_radii_and_phases_out_of_range_are_refused() -> None:
    for radii in ((0.5, 0.5), (-0.1, 0.5), (0.5, 1.1)):
        with pytest.raises(ValueError, match="r_min, r_max: expected 0 <= r_min < r_max <= 1"):
            init(LRUCell(F, r_min=radii[0], r_max=radii[1]))
    for phase in (0.0, 7.0):
        with pytest.raises(ValueError, match=f"max_phase: expected in .*, received {phase}"):
            init(LRUCell(F, max_phase=phase))


def test_the_ring_is_set_by_the_configuration() -> None:
    for name in ("lru", "flaxnets.recurrent.linear_cells:LRUCell"):
        cell = make_cell_type(RecurrentConfig(name, features=500, r_min=0.99, max_phase=0.3))()
        values = eigenvalues(init(cell))
        assert np.abs(values).min() > 0.9899
        assert np.angle(values).max() < 0.3001
    with pytest.raises(ValueError, match=r"model.recurrent.r_min: expected 0 to below 1, .* 1.0"):
        make_recurrent(RecurrentConfig("lru", r_min=1.0))
    with pytest.raises(ValueError, match=r"model.recurrent.max_phase: expected in .* received 7"):
        make_recurrent(RecurrentConfig("lru", max_phase=7))


def test_dropout_of_hidden_states_is_refused() -> None:
    layer = Recurrent(partial(MinGRUCell, F), recurrent_dropout_rate=0.2)
    match = "recurrent_dropout_rate: expected 0 for MinGRUCell.*received 0.2"
    with pytest.raises(ValueError, match=match):
        layer.init(jax.random.key(0), X, train=False)
    cell = MinGRUCell(F)
    params = {"params": init(cell)}
    with pytest.raises(ValueError, match=r"hidden_mask: expected None for MinGRUCell.*\(2, 4\)"):
        cell.apply(params, X, hidden_mask=jnp.ones((2, F)), method=scan_cell)


@pytest.mark.parametrize("make_cell", [MinGRUCell, MinLSTMCell, LRUCell])
def test_inputs_and_carries_of_other_shapes_are_refused(make_cell: Any) -> None:
    cell = make_cell(F)
    variables, carry = {"params": init(cell)}, cell.initialize_carry(None, (2, D))
    with pytest.raises(ValueError, match=r"inputs: expected \(B,T,D\), received shape \(2, 5\)"):
        cell.apply(variables, X[:, 0], method=scan_cell)
    with pytest.raises(ValueError, match=r"inputs: expected \(B,D\), received shape \(2, 3, 5\)"):
        cell.apply(variables, carry, X)
    with pytest.raises(ValueError, match="inputs: expected float, received int32"):
        cell.apply(variables, X.astype(np.int32), method=scan_cell)
    with pytest.raises(ValueError, match=r"initial_carry: expected \w+\[2, 4\], received \w+\[4\]"):
        cell.apply(variables, X, initial_carry=carry[0], method=scan_cell)


def test_the_contract_is_abstract() -> None:
    cell = LinearCell(F)
    with pytest.raises(NotImplementedError):
        cell.weights((1, D))
    with pytest.raises(NotImplementedError):
        cell.coefficients({}, jnp.asarray(X))
