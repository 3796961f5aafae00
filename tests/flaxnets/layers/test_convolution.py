"""Convolution, direct and by Winograd's algorithm, against a loop in NumPy."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxnets.layers.convolution import (
    Conv,
    conv2d,
    conv2d_kernel_gradient,
    winograd_conv,
)


def convolve(x: Any, kernel: Any, strides: Any, pads: Any, groups: int) -> np.ndarray:
    x = np.pad(np.asarray(x, np.float64), ((0, 0), *pads, (0, 0)))
    kh, kw, per_group, outputs = kernel.shape
    h = (x.shape[1] - kh) // strides[0] + 1
    w = (x.shape[2] - kw) // strides[1] + 1
    y = np.zeros((len(x), h, w, outputs))
    share = outputs // groups
    for i, j, o in np.ndindex(h, w, outputs):
        channels = slice(o // share * per_group, (o // share + 1) * per_group)
        top, left = i * strides[0], j * strides[1]
        window = x[:, top : top + kh, left : left + kw, channels]
        y[:, i, j, o] = (window * kernel[..., o]).sum((1, 2, 3))
    return y


@pytest.mark.parametrize(
    ("kernel_size", "strides", "padding", "pads", "groups"),
    [
        ((3, 3), (1, 1), "SAME", ((1, 1), (1, 1)), 1),
        ((2, 3), (1, 1), "SAME", ((0, 1), (1, 1)), 1),
        ((3, 3), (2, 2), 1, ((1, 1), (1, 1)), 2),
        ((3, 3), (2, 2), "SAME", ((1, 1), (0, 1)), 1),
        ((3, 2), (2, 1), "VALID", ((0, 0), (0, 0)), 4),
        ((3, 3), (1, 1), ((2, 0), (0, 1)), ((2, 0), (0, 1)), 1),
    ],
)
def test_equals_a_loop(
    kernel_size: Any, strides: Any, padding: Any, pads: Any, groups: int
) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 7, 6, 4)).astype(np.float32)
    kernel = rng.normal(size=(*kernel_size, 4 // groups, 8)).astype(np.float32)
    bias = rng.normal(size=8).astype(np.float32)
    layer = Conv(8, kernel_size, strides=strides, padding=padding, groups=groups)
    y = layer.apply({"params": {"kernel": kernel, "bias": bias}}, x)
    np.testing.assert_allclose(y, convolve(x, kernel, strides, pads, groups) + bias, atol=1e-4)


@pytest.mark.parametrize("kernel_size", [(3, 3), (5, 5), (2, 3)])
def test_gradient_of_the_kernel_equals_that_of_jax(kernel_size: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.normal(size=(2, 6, 5, 3)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(*kernel_size, 3, 4)), jnp.float32)
    gradient = jnp.asarray(rng.normal(size=(2, 6, 5, 4)), jnp.float32)
    expected = jax.grad(lambda k: jnp.sum(conv2d(x, k) * gradient))(kernel)
    actual = conv2d_kernel_gradient(x, gradient, kernel_size)
    np.testing.assert_allclose(actual, expected, atol=1e-4)


@pytest.mark.parametrize("size", [3, 5])
@pytest.mark.parametrize("shape", [(3, 12, 12, 5), (16, 13, 9, 4), (1, 5, 3, 2)])
def test_winograd_equals_a_loop_in_values_and_gradients(shape: tuple[int, ...], size: int) -> None:
    with jax.enable_x64(True):
        rng = np.random.default_rng(2)
        x, kernel = rng.normal(size=shape), rng.normal(size=(size, size, shape[-1], 6))
        weights = rng.normal(size=(*shape[:-1], 6))

        def by_winograd(x: Any, kernel: Any) -> Any:
            return jnp.sum(weights * winograd_conv(x, kernel))

        def direct(x: Any, kernel: Any) -> Any:
            return jnp.sum(weights * conv2d(x, kernel))  # float64 takes the direct path.

        expected = convolve(x, kernel, (1, 1), ((size // 2, size // 2),) * 2, 1)
        actual = jax.jit(winograd_conv)(x, kernel)
        np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-9)
        ours, theirs = (jax.jit(jax.grad(f, (0, 1)))(x, kernel) for f in (by_winograd, direct))
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("shape", "suits"),
    [
        ((1, 12, 232, 32), True),
        ((1, 6, 232, 32), True),
        ((1, 5, 232, 32), False),  # Tiles are 1.6 times as large.
        ((1, 14, 14, 32), True),
        ((1, 13, 13, 32), False),
        ((1, 8, 8, 32), False),  # 4 tiles.
        ((1, 12, 232, 31), False),
    ],
)
def test_winograd_is_chosen_where_tiles_and_channels_suffice(
    shape: tuple[int, ...], suits: bool
) -> None:
    x, kernel = jnp.zeros(shape), jnp.zeros((3, 3, shape[-1], 32))
    assert ("winograd_conv" in str(jax.make_jaxpr(conv2d)(x, kernel))) == suits


@pytest.mark.parametrize("size", [3, 5])
def test_rounding_errors_of_winograd_in_float32(size: int) -> None:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(4, 16, 16, 64)).astype(np.float32)
    kernel = rng.normal(0, 0.05, size=(size, size, 64, 64)).astype(np.float32)
    with jax.enable_x64(True):
        exact = np.asarray(conv2d(jnp.asarray(x, jnp.float64), jnp.asarray(kernel, jnp.float64)))
    actual = conv2d(x, kernel)
    assert "winograd_conv" in str(jax.make_jaxpr(conv2d)(x, kernel))
    assert np.abs(actual - exact).max() < 3e-5 * np.abs(exact).max()


def test_wrong_shapes_are_refused() -> None:
    x, kernel = jnp.zeros((1, 4, 4, 3)), jnp.zeros((3, 3, 3, 2))
    with pytest.raises(ValueError, match=r"inputs: expected \(N,H,W,C\), received shape"):
        conv2d(x[0], kernel)
    with pytest.raises(ValueError, match=r"kernel: expected \(h,w,3/1,D\), received shape"):
        conv2d(x, kernel[:, :, :2])
