"""Sums over pixels and steps: float32 for half precision, float64 for float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxnets.encoders.alexnet import local_response_norm
from flaxnets.encoders.encoder import average_blocks, normalize_pixels, pool_globally
from flaxnets.heads.pooling import AttentionPooling, pool_mean
from flaxnets.layers.depthwise import depthwise_conv
from flaxnets.layers.pooling import average_pool
from flaxnets.models.late_fusion import StreamProjection
from flaxnets.recurrent.layers import FrameAverage

HALF_ULP = 2.0**-8  # Of bfloat16, relative.


@pytest.mark.parametrize("size", [2, 7, 28])
def test_means_of_windows_in_bfloat16(size: int) -> None:
    x = jnp.asarray(1 + 0.5 * np.random.default_rng(0).random((2, 28, 28, 4)), jnp.bfloat16)
    blocks = np.asarray(x, np.float64).reshape(2, 28 // size, size, 28 // size, size, 4)
    for means in (average_pool(x, size, size), average_blocks(x, 28 // size)):
        assert means.dtype == jnp.bfloat16
        np.testing.assert_allclose(
            np.asarray(means, np.float64), blocks.mean((2, 4)), rtol=HALF_ULP
        )


def test_the_gradient_of_a_mean_in_bfloat16() -> None:
    x = jnp.ones((1, 16, 16, 1), jnp.bfloat16)
    slope = jax.grad(lambda x: average_pool(x, 16, 1).astype(jnp.float32).sum())(x)
    np.testing.assert_array_equal(np.asarray(slope, np.float32), 1 / 256)


def test_sums_in_float16_do_not_overflow() -> None:
    maps = jnp.full((1, 8, 8, 1), 1500, jnp.float16)
    assert average_pool(maps, 8, 8).item() == 1500
    assert average_blocks(maps, 1).item() == 1500
    steps = jnp.ones((1, 100, 2), jnp.float16)
    layer = FrameAverage(1)
    params = {"hidden": {"kernel": jnp.full((2, 1), 500.0), "bias": jnp.zeros(1)}}
    assert layer.apply({"params": params}, steps, train=False)[0, 0, 0] == 1000


def test_float64_keeps_its_precision() -> None:
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        x = jnp.asarray(rng.normal(size=(2, 9, 9, 4)))
        kernel = jnp.asarray(rng.normal(size=(3, 3, 1, 4)))

        def loss(x: jax.Array, kernel: jax.Array) -> jax.Array:
            return jnp.sum(depthwise_conv(x, kernel, strides=2) ** 2)

        def reference(x: jax.Array, kernel: jax.Array) -> jax.Array:
            y = jax.lax.conv_general_dilated(
                x,
                kernel,
                (2, 2),
                "SAME",
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
                feature_group_count=4,
            )
            return jnp.sum(y**2)

        both = [jax.jit(jax.value_and_grad(f, (0, 1)))(x, kernel) for f in (loss, reference)]
        for actual, expected in zip(*map(jax.tree.leaves, both), strict=True):
            assert actual.dtype == np.float64
            np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-13)
        mean = np.asarray(x).mean((1, 2))
        np.testing.assert_allclose(pool_globally(x), mean, rtol=1e-13)
        np.testing.assert_allclose(
            pool_mean(x[:, :, 0]), np.asarray(x[:, :, 0]).mean(1), rtol=1e-13
        )
        pooled, _ = AttentionPooling(3, dtype=jnp.float64).init_with_output(
            jax.random.key(0), jnp.broadcast_to(x[:, :1, 0], (2, 5, 4))
        )
        np.testing.assert_allclose(pooled, x[:, 0, 0], rtol=1e-13)  # Equal steps.
        square = np.pad(np.asarray(x) ** 2, ((0, 0),) * 3 + ((2, 2),))
        summed = sum(square[..., i : i + 4] for i in range(5))
        np.testing.assert_allclose(
            local_response_norm(x), np.asarray(x) * (1 + 1e-4 / 5 * summed) ** -0.75, rtol=1e-13
        )
        pixels = normalize_pixels(jnp.array([0, 7, 255], jnp.uint8), dtype=jnp.float64)
        np.testing.assert_allclose(pixels, np.array([0, 7, 255]) / 127.5 - 1, rtol=1e-15)
        projected, variables = StreamProjection(2, param_dtype=jnp.float64).init_with_output(
            jax.random.key(0), x
        )
        weights = np.asarray(variables["params"]["kernel"])
        np.testing.assert_allclose(
            projected, np.einsum("btsd,sdp->btsp", np.asarray(x), weights), rtol=1e-12, atol=1e-14
        )
