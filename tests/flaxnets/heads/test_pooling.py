"""Pooling over time against NumPy: padding, empty sequences, gradients."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxnets.heads.pooling import (
    AttentionPooling,
    pool_last,
    pool_max,
    pool_mean,
)

B, T, F = 4, 5, 3
LENGTHS = np.array([5, 3, 1, 0], np.int32)
PADDING = np.arange(T) >= LENGTHS[:, None]
FUNCTIONS = {
    pool_last: lambda steps: steps[-1],
    pool_mean: lambda steps: steps.mean(0),
    pool_max: lambda steps: steps.max(0),
}


def name_of(pool: Any) -> str:
    """Returns a test id that is equal in every process, unlike the address of a function."""
    return getattr(pool, "__name__", str(pool))


def random(*shape: int) -> np.ndarray:
    # Negative values, so that a maximum that includes zeros at padding is wrong.
    return np.random.default_rng(0).normal(-3, 1, shape).astype(np.float32)


@pytest.fixture(scope="module")
def attention() -> tuple[AttentionPooling, Any]:
    layer = AttentionPooling(7)
    return layer, layer.init(jax.random.key(0), random(B, T, F))


@pytest.mark.parametrize("pool", FUNCTIONS, ids=name_of)
@pytest.mark.parametrize("shape", [(F,), (2, 3, F)])
def test_pools_equal_numpy_on_the_valid_steps(pool: Any, shape: tuple[int, ...]) -> None:
    inputs = random(B, T, *shape)
    pooled = pool(inputs, LENGTHS)
    assert pooled.dtype == jnp.float32
    for b, length in enumerate(LENGTHS):
        steps = inputs[b, :length].astype(np.float64)
        expected = FUNCTIONS[pool](steps) if length else np.zeros(shape)
        np.testing.assert_allclose(pooled[b], expected, rtol=1e-6)
    np.testing.assert_allclose(pool(inputs), FUNCTIONS[pool](inputs.swapaxes(0, 1)), rtol=1e-6)


def test_attention_is_a_softmax_over_the_valid_steps(
    attention: tuple[AttentionPooling, Any],
) -> None:
    layer, variables = attention
    inputs = random(B, T, F)
    pooled, sown = layer.apply(variables, inputs, LENGTHS, mutable=["intermediates"])
    (weights,) = sown["intermediates"]["weights"]
    parameters = jax.tree.map(np.float64, variables["params"])
    for b, length in enumerate(LENGTHS):
        steps = inputs[b, :length].astype(np.float64)
        hidden = np.tanh(steps @ parameters["hidden"]["kernel"] + parameters["hidden"]["bias"])
        powers = np.exp(hidden @ parameters["query"])
        expected = np.zeros(T)
        expected[:length] = powers / powers.sum() if length else 0
        np.testing.assert_allclose(weights[b], expected, atol=1e-6)
        np.testing.assert_allclose(pooled[b], expected[:length] @ steps, atol=1e-5)
    # The order of the steps does not matter, as for any weighted mean.
    backward = layer.apply(variables, inputs[:1, ::-1], LENGTHS[:1])
    np.testing.assert_allclose(backward, pooled[:1], atol=1e-5)


@pytest.mark.parametrize("pool", [*FUNCTIONS, None], ids=name_of)
@pytest.mark.parametrize("padding", [1e9, np.nan])
def test_padding_changes_neither_values_nor_gradients(
    pool: Any, padding: float, attention: tuple[AttentionPooling, Any]
) -> None:
    layer, variables = attention

    def total(variables: Any, inputs: Any) -> Any:
        pooled = layer.apply(variables, inputs, LENGTHS) if pool is None else pool(inputs, LENGTHS)
        return jnp.sum(jnp.sin(pooled)), pooled

    inputs = random(B, T, F)
    other = np.where(PADDING[..., None], np.float32(padding), inputs)
    gradient = jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True))
    (of_variables, of_inputs), pooled = gradient(variables, inputs)
    others, other_pooled = gradient(variables, other)
    np.testing.assert_allclose(other_pooled, pooled, atol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), others, (of_variables, of_inputs)
    )
    assert np.isfinite(of_inputs).all()
    assert not np.any(of_inputs[PADDING])
    assert not np.any(pooled[LENGTHS == 0])
    if pool is None:
        for leaf in jax.tree.leaves(of_variables):
            assert np.isfinite(leaf).all()
            assert np.any(leaf)


def test_gradients_are_finite_for_one_step_and_for_vast_logits(
    attention: tuple[AttentionPooling, Any],
) -> None:
    layer, variables = attention
    vast = jax.tree.map(lambda leaf: leaf * 1e6, variables)
    inputs = random(1, T, F)

    def total(variables: Any, length: int) -> Any:
        return jnp.sum(layer.apply(variables, inputs, np.array([length], np.int32)))

    for length in (1, T):
        for leaf in jax.tree.leaves(jax.grad(total)(vast, length)):
            assert np.isfinite(leaf).all()
    # One step has all the weight, whatever its logit.
    for leaf in jax.tree.leaves(jax.grad(total)(variables, 1)):
        np.testing.assert_allclose(leaf, 0, atol=1e-6)


@pytest.mark.parametrize("pool", [*FUNCTIONS, AttentionPooling(2)], ids=name_of)
def test_half_precision_stays(pool: Any) -> None:
    inputs = jnp.asarray(random(B, T, F), jnp.bfloat16)
    if isinstance(pool, AttentionPooling):
        shape = jax.eval_shape(lambda x: pool.init_with_output(jax.random.key(0), x)[0], inputs)
        assert shape.dtype == jnp.bfloat16
    else:
        assert pool(inputs, LENGTHS).dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("inputs", "lengths", "message"),
    [
        (np.zeros((B, T), np.float32), LENGTHS, r"inputs: expected \(B,T,...,F\), received shape"),
        (np.zeros((B, T, F), np.int32), LENGTHS, "inputs: expected a float dtype, received int32"),
        (random(B, T, F), LENGTHS[:2], r"lengths: expected shape \(4,\), received \(2,\)"),
        (random(B, T, F), LENGTHS / 1, "lengths: expected an integer dtype, received float64"),
        (random(B, T, F), LENGTHS + 1, r"lengths: expected values in \[0, 5\], received \[6, 4"),
        (random(B, T, F), LENGTHS - 1, r"lengths: expected values in \[0, 5\], received \[4"),
    ],
)
def test_wrong_arguments_are_refused(inputs: Any, lengths: Any, message: str) -> None:
    for pool in FUNCTIONS:
        with pytest.raises(ValueError, match=message):
            pool(inputs, lengths)
    with pytest.raises(ValueError, match=message):
        AttentionPooling(2).init(jax.random.key(0), inputs, lengths)


def test_attention_refuses_feature_maps() -> None:
    with pytest.raises(ValueError, match=r"inputs: expected \(B,T,F\), received shape"):
        AttentionPooling(2).init(jax.random.key(0), np.zeros((B, T, 2, 2, F), np.float32))
