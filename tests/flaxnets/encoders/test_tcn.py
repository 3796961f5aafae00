"""Causal convolution and TCN: a NumPy reference, causality, padding, packing, streams."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxnets.encoders.tcn import TCN
from flaxnets.layers.causal_convolution import CausalConv

T, D = 19, 3
RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, T, D)).astype(np.float32)
NETWORK = TCN((4, 4, 5), kernel_size=3)
VARIABLES = NETWORK.init(jax.random.key(1), X, train=False)


@partial(jax.jit, static_argnames=("return_carry",))
def apply(variables: Any, x: Any, lengths: Any = None, starts: Any = None, **options: Any) -> Any:
    return NETWORK.apply(variables, x, lengths, train=False, starts=starts, **options)


def conv(params: Any, x: np.ndarray, dilation: int) -> np.ndarray:
    """Returns a causal convolution with a normalised kernel, step by step."""
    v = np.asarray(params["kernel"], np.float64)
    w = v * params["scale"] / np.sqrt((v**2).sum((0, 1)))
    y = np.zeros((*x.shape[:2], w.shape[-1])) + params["bias"]
    for t in range(x.shape[1]):
        for j in range(len(w)):
            if t - j * dilation >= 0:
                y[:, t] += x[:, t - j * dilation] @ w[len(w) - 1 - j]
    return y


def test_network_equals_numpy() -> None:
    params = jax.device_get(VARIABLES["params"])
    x: np.ndarray = X.astype(np.float64)
    for block in range(3):
        skip = x
        if f"block_{block}_skip" in params:
            dense = params[f"block_{block}_skip"]
            skip = x @ dense["kernel"] + dense["bias"]
        for number in range(2):
            x = np.maximum(conv(params[f"block_{block}_conv_{number}"], x, 2**block), 0)
        x = np.maximum(skip + x, 0)
    np.testing.assert_allclose(apply(VARIABLES, X), x, rtol=1e-4, atol=1e-5)


def test_kernel_without_normalisation_is_used_as_it_is() -> None:
    layer = CausalConv(2, kernel_size=2, dilation=3)
    y, variables = layer.init_with_output(jax.random.key(0), X)
    kernel = np.asarray(variables["params"]["kernel"])
    before = np.pad(X, ((0, 0), (3, 0), (0, 0)))[:, :T]
    np.testing.assert_allclose(y, X @ kernel[1] + before @ kernel[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dilation", [1, 4, 6, 18, 19, 40])
def test_taps_before_the_first_step_of_all_outputs_change_nothing(dilation: int) -> None:
    layer = CausalConv(4, kernel_size=4, dilation=dilation, weight_norm=True)
    variables = layer.init(jax.random.key(0), X)
    params = jax.device_get(variables["params"])
    y = layer.apply(variables, X)
    np.testing.assert_allclose(y, conv(params, X, dilation), rtol=1e-4, atol=1e-5)

    def loss(variables: Any, x: Any, before: Any) -> Any:
        return jnp.sum(jnp.sin(layer.apply(variables, x, None, before)))

    differentiate = jax.jit(jax.grad(loss, argnums=(0, 1)))
    zeros = np.zeros((2, layer.num_before, D), np.float32)
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5),
        differentiate(variables, X, None),
        differentiate(variables, X, zeros),
    )


def test_outputs_read_the_past_within_the_receptive_field_alone() -> None:
    jacobian = jax.jacrev(lambda x: NETWORK.apply(VARIABLES, x, train=False)[0].sum(-1))
    x = RNG.normal(size=(1, 40, D)).astype(np.float32)
    reads = np.abs(np.asarray(jax.jit(jacobian)(x))[:, 0]).sum(-1) > 0  # (T out, T in)
    steps = np.arange(40)
    distance = steps[:, None] - steps
    assert NETWORK.receptive_field == 29
    assert not reads[(distance < 0) | (distance >= 29)].any()
    assert np.diagonal(reads, -28).any()


def test_padding_has_no_effect() -> None:
    lengths = np.array([T, 7])
    padded = X.copy()
    padded[1, 7:] = np.nan

    def loss(variables: Any, x: Any) -> Any:
        return jnp.sum(jnp.sin(NETWORK.apply(variables, x, lengths, train=False)))

    differentiate = jax.jit(jax.grad(loss))
    expected, found = differentiate(VARIABLES, X), differentiate(VARIABLES, padded)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    outputs = apply(VARIABLES, padded, lengths)
    assert not np.asarray(outputs[1, 7:]).any()
    np.testing.assert_allclose(outputs[1, :7], apply(VARIABLES, X)[1, :7], rtol=1e-5, atol=1e-6)


def test_packed_sequences_equal_single_ones() -> None:
    starts = np.zeros((2, T), bool)
    starts[0, [0, 4, 5]] = starts[1, [0, 11]] = True
    packed = np.asarray(apply(VARIABLES, X, starts=starts))
    whole = apply(VARIABLES, X)
    for row, begin, end in ((0, 0, 4), (0, 4, 5), (0, 5, T), (1, 0, 11), (1, 11, T)):
        rest = np.zeros((2, T, D), np.float32)
        rest[0, : end - begin] = X[row, begin:end]
        single = apply(VARIABLES, rest)[0, : end - begin]
        np.testing.assert_allclose(packed[row, begin:end], single, rtol=1e-5, atol=1e-6)
    assert np.abs(packed - np.asarray(whole)).max() > 1e-3


@pytest.mark.parametrize("with_starts", [False, True])
def test_stream_of_chunks_equals_the_whole(with_starts: bool) -> None:
    starts = np.zeros((2, T), bool)
    if with_starts:
        starts[0, 8] = starts[1, 2] = starts[1, 12] = True
    whole = np.asarray(apply(VARIABLES, X, starts=starts))
    carry, outputs = None, []
    stream = jax.jit(partial(NETWORK.apply, VARIABLES, method="stream"))
    for begin in range(0, T, 5):
        # Chunks of 5, of which the second row's last one is shorter by two.
        chunk = np.zeros((2, 5, D), np.float32)
        marks = np.zeros((2, 5), bool)
        size = min(5, T - begin)
        chunk[:, :size], marks[:, :size] = X[:, begin:][:, :size], starts[:, begin:][:, :size]
        carry, output = stream(carry, chunk, np.full(2, size), marks)
        outputs.append(np.asarray(output)[:, :size])
    np.testing.assert_allclose(np.concatenate(outputs, 1), whole, rtol=1e-5, atol=1e-6)


def test_sequences_of_several_lengths_continue_each_at_its_end() -> None:
    first = np.array([3, 5])
    carry, _ = apply(VARIABLES, X[:, :5], first, return_carry=True)
    rest = np.stack([X[0, 3:8], X[1, 5:10]])
    outputs = NETWORK.apply(VARIABLES, rest, train=False, initial_carry=carry)
    whole = np.asarray(apply(VARIABLES, X))
    expected = np.stack([whole[0, 3:8], whole[1, 5:10]])
    np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("layer", "x", "message"),
    [
        (lambda: TCN(()), X, "features: expected those of at least one block"),
        (lambda: TCN((4,), 0), X, "kernel_size: expected at least 1, received 0"),
        (lambda: TCN((4,)), X[0], r"inputs: expected \(B,T,D\)"),
        (lambda: TCN((4,)), X.astype(np.int32), "inputs: expected float"),
    ],
)
def test_bad_input_is_refused(layer: Any, x: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(partial(layer().init, train=False), jax.random.key(0), x)
