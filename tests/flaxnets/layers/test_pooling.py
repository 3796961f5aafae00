"""Pooling against loops in NumPy, and both implementations of the maximum."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxnets.layers.pooling import (
    adaptive_average_pool,
    average_pool,
    max_pool,
    native_max_pool,
    shifted_max_pool,
)

# window, strides, padding, ceil_mode, height, width
CASES = [
    (3, 2, 1, False, 8, 7),
    (3, 2, 0, True, 8, 6),
    (3, 1, 1, True, 5, 4),
    (2, 2, 0, False, 7, 9),
    (2, 2, 0, True, 7, 9),
    ((3, 2), (1, 2), 1, False, 6, 5),
    (3, 2, 1, True, 6, 9),
]


def draw(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def expected_max(x: np.ndarray, window: Any, strides: Any, padding: int, ceil: bool) -> np.ndarray:
    """Applies PyTorch's rule: a window must begin in the image or its upper left padding."""
    window, strides = np.broadcast_to(window, 2), np.broadcast_to(strides, 2)
    sizes, starts = x.shape[1:3], []
    for size, k, s in zip(sizes, window, strides, strict=True):
        round_ = np.ceil if ceil else np.floor
        count = int(round_((size + 2 * padding - k) / s)) + 1
        begins = [i * s - padding for i in range(count)]
        starts.append([b for b in begins if not ceil or b < size])
    y = np.empty((len(x), len(starts[0]), len(starts[1]), x.shape[3]), x.dtype)
    for i, top in enumerate(starts[0]):
        for j, left in enumerate(starts[1]):
            part = x[:, max(top, 0) : top + window[0], max(left, 0) : left + window[1]]
            y[:, i, j] = part.max((1, 2))
    return y


@pytest.mark.parametrize("case", CASES, ids=str)
def test_maximum_equals_a_loop(case: Any) -> None:
    window, strides, padding, ceil, height, width = case
    x = draw(2, height, width, 3)
    actual = max_pool(x, window, strides, padding=padding, ceil_mode=ceil)
    np.testing.assert_array_equal(actual, expected_max(x, window, strides, padding, ceil))


@pytest.mark.slow_after(4)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
    ("window", "strides", "pads"),
    [
        ((3, 3), (2, 2), [(1, 1), (1, 1)]),
        ((2, 3), (1, 2), [(0, 1), (2, 0)]),
        ((3, 2), (3, 2), [(0, 0), (0, 0)]),
        ((2, 2), (2, 2), [(0, 0), (0, 0)]),
    ],
)
def test_both_implementations_have_the_same_values_and_gradients(
    window: Any, strides: Any, pads: Any, dtype: Any
) -> None:
    # Whole numbers, none twice in a window and all exact in bfloat16.
    x = jnp.asarray((np.arange(2 * 9 * 8 * 3) * 89 % 251).reshape(2, 9, 8, 3), dtype)
    results = []
    for pool in (native_max_pool, shifted_max_pool):

        def loss(x: jax.Array, pool: Any = pool) -> jax.Array:
            pooled = pool(x, window, strides, pads).astype(jnp.float32)
            return jnp.sum(pooled * jnp.arange(pooled.size).reshape(pooled.shape))

        assert pool(x, window, strides, pads).dtype == dtype
        results.append(jax.value_and_grad(loss)(x))
    (native, native_gradient), (shifted, shifted_gradient) = results
    np.testing.assert_array_equal(native, shifted)
    np.testing.assert_allclose(
        native_gradient.astype(jnp.float32), shifted_gradient.astype(jnp.float32), rtol=1e-2
    )


def test_values_that_tie_share_their_gradient() -> None:
    x = jnp.zeros((1, 4, 4, 1))
    gradient = jax.grad(lambda x: max_pool(x, 2, 2).sum())(x)
    np.testing.assert_allclose(gradient, 0.25)
    gradient = jax.grad(lambda x: max_pool(x, 2, 2).sum())(x.at[0, 0, 0].set(-1))
    np.testing.assert_allclose(gradient[0, :2, :2, 0], [[0, 1 / 3], [1 / 3, 1 / 3]], rtol=1e-6)


def test_averages_equal_loops() -> None:
    x = draw(2, 7, 5, 3)
    y = average_pool(x, 2, 2)
    expected = [[x[:, i : i + 2, j : j + 2].mean((1, 2)) for j in (0, 2)] for i in (0, 2, 4)]
    np.testing.assert_allclose(y, np.moveaxis(np.array(expected), 2, 0), atol=1e-6)


@pytest.mark.parametrize("size", [1, 3, (7, 5), 6, (9, 8)])
def test_adaptive_blocks_are_those_of_pytorch(size: Any) -> None:
    x = draw(2, 7, 5, 3)
    rows, columns = np.broadcast_to(size, 2)
    expected = np.empty((2, rows, columns, 3))
    for i in range(rows):
        for j in range(columns):
            top, bottom = i * 7 // rows, -(-(i + 1) * 7 // rows)
            left, right = j * 5 // columns, -(-(j + 1) * 5 // columns)
            expected[:, i, j] = x[:, top:bottom, left:right].mean((1, 2))
    np.testing.assert_allclose(adaptive_average_pool(x, size), expected, atol=1e-6)


@pytest.mark.parametrize("pool", [max_pool, average_pool])
def test_other_ranks_are_refused(pool: Any) -> None:
    with pytest.raises(ValueError, match=r"maps: expected \(N,H,W,C\), received shape \(2, 7, 5\)"):
        pool(draw(2, 7, 5), 2, 2)
    with pytest.raises(ValueError, match=r"maps: expected \(N,H,W,C\)"):
        adaptive_average_pool(draw(7, 5), 1)
