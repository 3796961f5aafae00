"""Winograd's tiles next to a pixel that stands out, and batches of a prime number of images."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxnets.layers import convolution
from flaxnets.layers.batch_sharding import map_chunks, sum_chunks
from flaxnets.layers.convolution import conv2d, tapped_conv, winograd_conv


def direct(x: Any, kernel: Any) -> Any:
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@pytest.mark.parametrize("value", [1e2, 1e3, 1e4, np.inf, np.nan])
@pytest.mark.parametrize("size", [3, 5])
def test_a_pixel_spoils_no_result_that_does_not_read_it(size: int, value: float) -> None:
    rng = np.random.default_rng(0)
    kernel = (rng.normal(size=(size, size, 32, 32)) / (size * 6)).astype(np.float32)
    x = rng.normal(size=(4, 16, 16, 32)).astype(np.float32)
    clean, spoiled = x.copy(), x.copy()
    clean[1:3, 8, 8], spoiled[1:3, 8, 8] = 0, value  # The other images have no such pixel.
    reads = slice(8 - size // 2, 9 + size // 2)
    far = np.ones((4, 16, 16), bool)
    far[1:3, reads, reads] = False
    both = {
        "value": lambda x: conv2d(x, kernel),
        "gradient": lambda y: jax.vjp(lambda x: conv2d(x, kernel), jnp.asarray(clean))[1](y)[0],
    }
    wanted = {
        "value": direct(clean, kernel),
        "gradient": direct(clean, kernel[::-1, ::-1].swapaxes(2, 3)),
    }
    for name, function in both.items():
        got = np.asarray(jax.jit(function)(jnp.asarray(spoiled)))[far]
        want = np.asarray(wanted[name])[far]
        assert np.isfinite(got).all()
        assert np.abs(got - want).max() < 5e-5 * np.abs(want).max()


@pytest.mark.parametrize(
    ("stands_out", "maps"),
    [
        (False, lambda x: x),
        (False, lambda x: np.maximum(x, 0)),
        (False, np.zeros_like),
        (False, lambda x: x * np.array([1.0, 1e-12, 1e12, 1])[:, None, None, None]),  # Per image.
        (False, lambda x: x * (np.arange(14) < 3)[:, None]),  # An empty background.
        (True, lambda x: np.where(np.arange(x.size).reshape(x.shape) == 999, 1e5, x)),
        (True, lambda x: np.where(np.arange(x.size).reshape(x.shape) == 999, -np.inf, x)),
    ],
)
def test_the_direct_form_is_taken_where_a_pixel_stands_out_alone(
    stands_out: bool, maps: Any
) -> None:
    x = np.random.default_rng(0).normal(size=(4, 14, 14, 32)).astype(np.float32)
    found = convolution._has_outliers(jnp.asarray(maps(x), jnp.float32))
    assert bool(found) == stands_out


def test_no_image_has_no_outlier() -> None:
    y = jax.jit(winograd_conv)(jnp.zeros((0, 14, 14, 32)), jnp.ones((3, 3, 32, 8)))
    assert y.shape == (0, 14, 14, 8)


@pytest.mark.parametrize(("limit", "n"), [(1, 3), (3, 3), (3, 7), (4, 9), (8, 17), (8, 19)])
def test_chunks_of_any_batch_are_few_and_count_each_example_once(limit: int, n: int) -> None:
    x, sizes = np.arange(2.0 * n).reshape(n, 2), []

    def count(x: Any) -> Any:
        sizes.append(len(x))
        return x

    np.testing.assert_array_equal(map_chunks(lambda x: count(x) * 2, jnp.asarray(x), limit), 2 * x)
    total = sum_chunks(lambda x, y: count(x).T @ y, (jnp.asarray(x), jnp.asarray(x)), limit)
    np.testing.assert_array_equal(total, x.T @ x)
    assert max(sizes) <= limit
    assert min(sizes) > limit // 2 or n <= limit


@pytest.mark.parametrize("n", [5, 7, 13])
def test_a_prime_number_of_images_has_the_results_of_each(n: int) -> None:
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(n, 14, 14, 4)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(5, 5, 4, 4)), jnp.float32)
    strided = jnp.asarray(rng.normal(size=(3, 3, 4, 4)), jnp.float32)
    weights = jnp.asarray(rng.normal(size=(n, 1, 1, 1)), jnp.float32)

    def tapped(x: Any, kernel: Any) -> Any:
        return tapped_conv(x, kernel, (2, 2), ((1, 1), (1, 1)))

    def strided_direct(x: Any, kernel: Any) -> Any:
        return jax.lax.conv_general_dilated(
            x, kernel, (2, 2), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    pairs = ((winograd_conv, direct, kernel), (tapped, strided_direct, strided))
    for fast, reference, own in pairs:
        found, wanted = (
            jax.jit(jax.value_and_grad(lambda x, k, f=f: jnp.sum(weights * f(x, k) ** 2), (0, 1)))(
                x, own
            )
            for f in (fast, reference)
        )
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * float(jnp.abs(b).max()))
