"""Depthwise convolution: both implementations have equal values and gradients."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxnets.layers.convolution import Padding, resolve_padding
from flaxnets.layers.depthwise import DepthwiseConv, depthwise_conv, native_depthwise_conv


def make_inputs(size: tuple[int, int], kernel_size: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(2, *size, 3)).astype(np.float32)
    return features, rng.normal(size=(kernel_size, kernel_size, 1, 3)).astype(np.float32)


def numpy_depthwise_conv(x: np.ndarray, kernel: np.ndarray, strides: int) -> np.ndarray:
    n, h, w, c = x.shape
    k = len(kernel)
    out_h, out_w = -(-h // strides), -(-w // strides)
    pad_h = max((out_h - 1) * strides + k - h, 0)
    pad_w = max((out_w - 1) * strides + k - w, 0)
    padded = np.zeros((n, h + pad_h, w + pad_w, c))
    padded[:, pad_h // 2 : pad_h // 2 + h, pad_w // 2 : pad_w // 2 + w] = x
    y = np.zeros((n, out_h, out_w, c))
    for i in range(out_h):
        for j in range(out_w):
            window = padded[:, i * strides : i * strides + k, j * strides : j * strides + k]
            y[:, i, j] = (window * kernel[:, :, 0]).sum((1, 2))
    return y


@pytest.mark.parametrize(
    ("size", "kernel_size", "strides"),
    [((8, 8), 3, 1), ((7, 10), 3, 2), ((8, 8), 3, 2), ((7, 10), 5, 1), ((8, 8), 5, 2)],
)
def test_equals_the_native_convolution(
    size: tuple[int, int], kernel_size: int, strides: int
) -> None:
    features, kernel = make_inputs(size, kernel_size)
    expected = numpy_depthwise_conv(features, kernel, strides)
    cotangent = np.random.default_rng(1).normal(size=expected.shape).astype(np.float32)

    def differentiate(
        function: Callable[..., jax.Array],
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        @jax.jit
        def output_and_gradients(*inputs: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
            output, pull_back = jax.vjp(lambda *a: function(*a, strides=strides), *inputs)
            return output, pull_back(jnp.asarray(cotangent))

        output, (of_features, of_kernel) = output_and_gradients(features, kernel)
        return output, (of_features, of_kernel)

    output, gradients = differentiate(depthwise_conv)
    native, native_gradients = differentiate(native_depthwise_conv)
    np.testing.assert_allclose(output, expected, atol=1e-5)
    np.testing.assert_allclose(output, native, atol=1e-5)
    for gradient, native_gradient in zip(gradients, native_gradients, strict=True):
        np.testing.assert_allclose(gradient, native_gradient, atol=2e-5)


@pytest.mark.parametrize("padding", [1, "VALID", ((0, 3), (2, 1))])
@pytest.mark.parametrize("size", [(8, 9), (5, 5)])
@pytest.mark.parametrize("strides", [1, 2])
def test_padding(padding: Padding, size: tuple[int, int], strides: int) -> None:
    features, kernel = make_inputs(size, 3)
    pads = resolve_padding(padding, size, (3, 3), (strides, strides))

    def loss(function: Callable[..., jax.Array], padding: Padding) -> jax.Array:
        def total(*inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
            output = function(*inputs, strides=strides, padding=padding)
            return jnp.sum(output * jnp.cos(jnp.arange(output.size)).reshape(output.shape)), output

        return jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))(features, kernel)

    ours, native = loss(depthwise_conv, padding), loss(native_depthwise_conv, pads)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(native), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_bfloat16_is_summed_in_float32() -> None:
    features, kernel = (jnp.asarray(a, jnp.bfloat16) for a in make_inputs((9, 9), 3))
    output = jax.jit(depthwise_conv)(features, kernel)
    assert output.dtype == jnp.bfloat16
    exact = numpy_depthwise_conv(np.asarray(features, float), np.asarray(kernel, float), 1)
    # One rounding to bfloat16 (8 bits) of a sum in float32 (24 bits).
    np.testing.assert_allclose(np.asarray(output, float), exact, rtol=2**-8, atol=1e-5)


def test_each_platform_gets_its_own_implementation() -> None:
    features, kernel = make_inputs((8, 8), 3)
    traced = jax.jit(depthwise_conv).trace(jnp.asarray(features), jnp.asarray(kernel))
    lowered = {p: traced.lower(lowering_platforms=(p,)).as_text() for p in ("cpu", "cuda", "tpu")}
    assert "stablehlo.convolution" not in lowered["cpu"]
    assert "stablehlo.convolution" in lowered["cuda"]
    assert "stablehlo.convolution" in lowered["tpu"]


def test_module_takes_the_parameters_of_a_grouped_convolution() -> None:
    features, kernel = make_inputs((8, 8), 3)
    module = DepthwiseConv(3, 2)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.asarray(features)))
    assert shapes["params"]["kernel"].shape == kernel.shape
    output = np.asarray(module.apply({"params": {"kernel": kernel}}, jnp.asarray(features)))
    np.testing.assert_allclose(output, numpy_depthwise_conv(features, kernel, 2), atol=1e-5)


@pytest.mark.parametrize(
    ("features", "kernel", "strides", "message"),
    [
        ((8, 8, 3), (3, 3, 1, 3), 1, r"features: expected \(N,H,W,C\)"),
        ((1, 8, 8, 3), (3, 3, 1, 4), 1, r"kernel: expected \(kernel_h,kernel_w,1,3\)"),
        ((1, 8, 8, 3), (3, 3, 3), 1, "kernel: expected"),
        ((1, 8, 8, 3), (3, 3, 1, 3), 0, "strides: expected at least 1"),
    ],
)
def test_wrong_arguments(
    features: tuple[int, ...], kernel: tuple[int, ...], strides: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        depthwise_conv(jnp.zeros(features), jnp.zeros(kernel), strides=strides)
