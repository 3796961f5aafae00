"""Averaging cells with gates far below zero, in float32 against float64: values and gradients."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxnets.recurrent.linear_cells import MinGRUCell, MinLSTMCell
from flaxnets.recurrent.linear_recurrence import gate_weights, gated_average
from flaxnets.recurrent.scan import ScanOptions, scan_cell

RTOL = 5e-6  # A gate of -20 has an ulp of 2e-6, which is the relative error of its σ.
CELLS: dict[str, tuple[Any, list[float]]] = {
    "minGRU": (MinGRUCell, [0.0, 1.0]),
    "minLSTM, little enters": (MinLSTMCell, [0.0, 0.0, 1.0]),
}


@pytest.mark.parametrize("initial", [0.0, 0.3])
@pytest.mark.parametrize("gate", [-6.0, -12.0, -17.0, -20.0, -50.0])
def test_a_small_share_keeps_its_digits(gate: float, initial: float) -> None:
    def state(gates: Any, dtype: Any) -> Any:
        candidates, start = jnp.ones((3, 1), dtype), jnp.full(1, initial, dtype)
        return jnp.sum(gated_average(gates.astype(dtype), candidates, start)[-1] - start)

    with jax.enable_x64(True):
        slopes = [
            np.asarray(jax.grad(partial(state, dtype=dtype))(jnp.full((3, 1), gate)))
            for dtype in (jnp.float32, jnp.float64)
        ]
        np.testing.assert_allclose(*slopes, rtol=1e-6)
        if not initial:  # Else the share is below the last digit of the state.
            states = [state(jnp.full((3, 1), gate), dtype) for dtype in (jnp.float32, jnp.float64)]
            np.testing.assert_allclose(*states, rtol=1e-6)


@pytest.mark.parametrize("gradients", ["deferred", "autodiff"])
@pytest.mark.parametrize("gate", [-17.0, -20.0])
@pytest.mark.parametrize("name", CELLS)
def test_cells_and_streams(name: str, gate: float, gradients: str) -> None:
    make, biases = CELLS[name]
    found = []
    with jax.enable_x64(True):
        for dtype in (jnp.float32, jnp.float64):
            cell = make(1, dtype=dtype, param_dtype=dtype)
            bias = jnp.asarray([*biases[:-2], gate, biases[-1]], dtype)
            params = {"input_kernel": jnp.full((1, len(biases)), 0.01, dtype), "bias": bias}
            x = jnp.asarray([[[0.1], [0.2], [0.3]]], dtype)

            def scanned(params: Any, cell: Any = cell, x: Any = x) -> Any:
                options = ScanOptions(gradients=gradients)
                run = nn.apply(lambda cell: scan_cell(cell, x, options=options)[1], cell)
                return run({"params": params})[0, -1, 0]

            def streamed(params: Any, cell: Any = cell, x: Any = x) -> Any:
                carry = cell.initialize_carry(None, (1, 1))
                for t in range(3):
                    carry, output = cell.apply({"params": params}, carry, x[:, t])
                return output[0, 0]

            found.append([jax.jit(jax.value_and_grad(f))(params) for f in (scanned, streamed)])
    for narrow, wide in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(narrow, wide, rtol=RTOL)
        assert np.abs(wide).min() > 0


def test_weights_at_the_limits_and_in_forward_mode() -> None:
    z = jnp.array([-jnp.inf, -200.0, 0.0, 200.0, jnp.inf])
    entering, kept = gate_weights(z)
    np.testing.assert_array_equal(entering, [0, 0, 0.5, 1, 1])
    np.testing.assert_array_equal(kept, [1, 1, 0.5, 0, 0])
    _, (rise, fall) = jax.jvp(gate_weights, (z,), (jnp.ones(5),))
    np.testing.assert_array_equal(rise, [0, 0, 0.25, 0, 0])
    np.testing.assert_array_equal(fall, -rise)
    curvature = jax.grad(jax.grad(lambda z: gate_weights(z)[1]))(-17.0)
    share = 1 / (1 + np.exp(17.0))
    np.testing.assert_allclose(curvature, -share * (1 - share) * (1 - 2 * share), rtol=1e-6)
