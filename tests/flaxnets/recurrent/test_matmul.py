"""Matmuls that skip padded rows, against those of all rows."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxnets.layers.batch_sharding import is_batch_known_unsharded
from flaxnets.recurrent.matmul import multiply_valid, valid_kernel_gradient
from tests.flaxnets.meshes import make_mesh, tracing_on

T, B, F, G = 10, 32, 5, 7
RNG = np.random.default_rng(0)
X = RNG.normal(size=(T, B, F)).astype(np.float32)
KERNEL = RNG.normal(size=(F, G)).astype(np.float32)
GRADIENT = RNG.normal(size=(T, B, G)).astype(np.float32)


@pytest.fixture(autouse=True, params=[1, 8])
def told(request: pytest.FixtureRequest) -> Iterator[None]:
    """Selects one device, where rows are packed, or several, where they are not."""
    with tracing_on(make_mesh(request.param)):
        assert is_batch_known_unsharded() == (request.param == 1)
        yield


@pytest.mark.parametrize("count", [0, 1, 150, 160, 161, 250, 319, 320])
def test_valid_rows_are_multiplied_and_the_others_are_zero(count: int) -> None:
    valid = (RNG.permutation(T * B) < count).reshape(T, B)
    expected = np.where(valid[..., None], X @ KERNEL, 0)
    actual, pull = jax.vjp(lambda x, kernel: multiply_valid(x, kernel, valid), X, KERNEL)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)
    masked = np.where(valid[..., None], GRADIENT, 0)
    of_x, of_kernel = pull(GRADIENT)
    np.testing.assert_allclose(of_x, masked @ KERNEL.T, rtol=1e-4, atol=1e-5)
    sums = np.einsum("tbf,tbg->fg", X, masked)
    np.testing.assert_allclose(of_kernel, sums, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(
        valid_kernel_gradient(jnp.asarray(X), jnp.asarray(masked), jnp.asarray(KERNEL), valid),
        sums,
        rtol=1e-4,
        atol=1e-4,
    )


def test_few_rows_and_several_products_under_vmap_are_the_same() -> None:
    valid = np.arange(T)[:, None] < RNG.integers(0, T, B)
    few = multiply_valid(X[:, :3], KERNEL, valid[:, :3])
    all_rows = multiply_valid(X, KERNEL, valid)
    np.testing.assert_allclose(few, all_rows[:, :3], rtol=1e-4, atol=1e-5)
    several = jax.vmap(multiply_valid)(
        np.stack([X, X]), np.stack([KERNEL, -KERNEL]), np.stack([valid, ~valid])
    )
    np.testing.assert_allclose(several[0], all_rows, rtol=1e-4, atol=1e-5)
    expected = np.where(valid[..., None], 0, -X @ KERNEL)
    np.testing.assert_allclose(several[1], expected, rtol=1e-4, atol=1e-5)
