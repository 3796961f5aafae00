"""Initial kernels: orthogonal, batched by vmap, one block per gate."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxnets.recurrent.cells import orthogonal, per_gate


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
