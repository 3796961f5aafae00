"""Initial kernels: orthogonal, batched by vmap, one block per gate; biases by chrono_steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxnets.configuration import parameters_of
from flaxnets.recurrent.cells import chrono_bias, orthogonal, per_gate
from flaxnets.recurrent.config import CELLS, RecurrentConfig, make_cell_type, make_recurrent

CHRONO = ("lstm", "gru", "mingru", "minlstm", "qrnn", "minconvgru", "minconvlstm")


@pytest.mark.parametrize("size", [1, 5, 256])
def test_is_orthogonal_and_differs_by_key(size: int) -> None:
    matrices = [np.asarray(orthogonal(jax.random.key(seed), (size, size))) for seed in range(2)]
    for matrix in matrices:
        np.testing.assert_allclose(matrix @ matrix.T, np.eye(size), atol=2e-5)
    assert size == 1 or np.abs(matrices[0] - matrices[1]).max() > 0.01


def test_reflections_are_as_likely_as_rotations() -> None:
    keys = jax.random.split(jax.random.key(0), 400)
    determinants = jnp.linalg.det(jax.vmap(lambda key: orthogonal(key, (3, 3)))(keys))
    assert 150 < int((determinants > 0).sum()) < 250


def test_many_batched_draws_at_once_do_not_wait_for_each_other() -> None:
    @jax.jit
    def draw(keys: jax.Array) -> list[jax.Array]:
        return [jax.vmap(lambda k: orthogonal(k, (16, 16)))(keys + i) for i in range(8)]

    assert all(np.isfinite(x).all() for x in draw(jax.random.split(jax.random.PRNGKey(0), 4)))


def test_each_gate_is_a_block_of_its_own() -> None:
    kernel = np.asarray(per_gate(orthogonal, 4)(jax.random.key(0), (6, 24), jnp.float32))
    for block in np.split(kernel, 4, axis=1):
        np.testing.assert_allclose(block @ block.T, np.eye(6), atol=2e-5)


def test_only_squares_can_be_orthogonal() -> None:
    with pytest.raises(ValueError, match=r"shape: expected a square, received \(2, 3\)"):
        orthogonal(jax.random.key(0), (2, 3))


@pytest.mark.parametrize("name", sorted(CHRONO))
def test_chrono_biases_keep_states_for_two_to_so_many_steps(name: str) -> None:
    features, steps = 200, 50
    cell = make_cell_type(RecurrentConfig(name, features=features, chrono_steps=steps))()
    inputs = jnp.zeros((1, *(2, 2, 3)[-cell.num_feature_axes :]))
    zeros = cell.initialize_carry(None, inputs.shape)
    variables = cell.init(jax.random.key(0), zeros, inputs)
    # Without kernels the gates have their biases alone, and candidates are zero.
    params = {k: v * 0 if "kernel" in k else v for k, v in variables["params"].items()}
    ones = jax.tree.map(jnp.ones_like, zeros)
    after, _ = cell.apply({"params": params}, ones, inputs)
    kept = jax.tree.leaves(after)[0]
    memories = np.asarray(1 / (1 - np.asarray(kept, np.float64)))
    assert memories.min() >= 2 - 1e-4
    assert memories.max() <= steps + 1e-2
    np.testing.assert_allclose(memories.mean(), (2 + steps) / 2, rtol=0.15)
    if name == "lstm":  # What enters is what is forgotten.
        i, f = np.split(np.asarray(params["bias"]), 4)[:2]
        np.testing.assert_array_equal(i, -f)


def test_chrono_steps_out_of_range_or_of_cells_without_gates_are_refused() -> None:
    assert {name for name, cell in CELLS.items() if "chrono_steps" in parameters_of(cell)} == set(
        CHRONO
    )
    bias = chrono_bias((1, -1), 1)(jax.random.key(0), (6,), jnp.float32)
    np.testing.assert_array_equal(bias, 0)
    with pytest.raises(ValueError, match="chrono_steps: expected at least 0, received -1"):
        make_recurrent(RecurrentConfig("lstm", chrono_steps=-1), field="model.recurrent")
    with pytest.raises(ValueError, match="chrono_steps: expected at least 1, received -1"):
        chrono_bias((1, 0), -1)
    with pytest.raises(ValueError, match="chrono_steps: expected 0 with elman, received 100; the"):
        make_recurrent(RecurrentConfig("elman", chrono_steps=100))
