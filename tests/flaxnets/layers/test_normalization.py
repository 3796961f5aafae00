"""Batch normalisation: values, custom vjp, masks, devices."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxnets.layers import normalization
from flaxnets.layers.normalization import BatchNorm, normalize_batch

N, H, W, C = 8, 3, 4, 5
MASK = np.array([True, False, True, True, False, True, True, True])


@pytest.fixture(scope="module")
def maps() -> np.ndarray:
    # A large mean and a small variance, which E[x²] − μ² would lose.
    return np.random.default_rng(0).normal(100, 0.5, (N, H, W, C)).astype(np.float32)


def plain(maps: Any, scale: Any, bias: Any, rows: Any, epsilon: float) -> Any:
    """Computes the definition, whose gradient JAX derives."""
    weights = rows[:, None, None, None]
    count = weights.sum() * H * W
    mean = (maps * weights).sum((0, 1, 2)) / count
    var = ((maps - mean) ** 2 * weights).sum((0, 1, 2)) / count
    return (maps - mean) / jnp.sqrt(var + epsilon) * scale + bias


@pytest.mark.parametrize(("mask", "chunks"), [(None, False), (MASK, False), (MASK, True)])
def test_values_and_gradients_equal_the_definition_in_float64(
    maps: Any, mask: Any, chunks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if chunks:  # Of three images, as large feature maps are summed.
        monkeypatch.setattr(normalization, "_LARGE_SIZE", 1)
        monkeypatch.setattr(normalization, "_CHUNK_SIZE", 3 * H * W * C)
    with jax.enable_x64(True):
        rng = np.random.default_rng(1)
        rows = jnp.asarray(np.ones(N) if mask is None else mask, jnp.float64)
        arguments = (jnp.asarray(maps, jnp.float64), *rng.normal(size=(2, C)))
        weights = rng.normal(size=maps.shape)

        def of_ours(x: Any, scale: Any, bias: Any) -> Any:
            return jnp.sum(weights * normalize_batch(x, scale, bias, rows, 1e-3, None)[0])

        def of_plain(x: Any, scale: Any, bias: Any) -> Any:
            return jnp.sum(weights * plain(x, scale, bias, rows, 1e-3))

        ours, theirs = (
            jax.value_and_grad(f, argnums=(0, 1, 2))(*arguments) for f in (of_ours, of_plain)
        )
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


def test_the_variance_is_exact_beside_a_large_mean(maps: np.ndarray) -> None:
    layer = BatchNorm(momentum=0.0, unbiased=True)
    variables = layer.init(jax.random.key(0), maps, train=False)
    y, updated = layer.apply(variables, maps, train=True, mutable=["batch_stats"])
    exact = maps.astype(np.float64)
    np.testing.assert_allclose(updated["batch_stats"]["mean"], exact.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(
        updated["batch_stats"]["var"], exact.var((0, 1, 2), ddof=1), rtol=1e-4
    )
    np.testing.assert_allclose(np.std(y, (0, 1, 2)), 1, rtol=1e-3)


def test_images_that_do_not_count_change_nothing(maps: np.ndarray) -> None:
    layer = BatchNorm()
    variables = layer.init(jax.random.key(0), maps, train=False)
    other = np.where(MASK[:, None, None, None], maps, -7 * maps)

    def run(x: np.ndarray) -> Any:
        return layer.apply(variables, x, jnp.asarray(MASK), train=True, mutable=["batch_stats"])

    (y, statistics), (other_y, other_statistics) = run(maps), run(other)
    np.testing.assert_array_equal(y[MASK], other_y[MASK])
    jax.tree.map(np.testing.assert_array_equal, statistics, other_statistics)


def test_evaluation_uses_the_running_statistics(maps: np.ndarray) -> None:
    rng = np.random.default_rng(2)
    scale, bias, mean, var = rng.uniform(0.5, 1.5, (4, C)).astype(np.float32)
    variables = {
        "params": {"scale": scale, "bias": bias},
        "batch_stats": {"mean": mean, "var": var},
    }
    y = BatchNorm(epsilon=1e-3).apply(variables, maps, train=False)
    np.testing.assert_allclose(
        y, (maps - mean) / np.sqrt(var + 1e-3) * scale + bias, rtol=1e-4, atol=1e-4
    )


def test_mapped_devices_equal_one_in_values_statistics_and_gradients(maps: np.ndarray) -> None:
    devices, mask = 4, jnp.asarray(MASK)
    one, many = BatchNorm(unbiased=True), BatchNorm(unbiased=True, axis_name="devices")
    variables = one.init(jax.random.key(0), maps, train=False)
    weights = jnp.asarray(np.random.default_rng(3).normal(size=maps.shape), jnp.float32)

    def loss(layer: BatchNorm, params: Any, x: Any, mask: Any, weights: Any) -> Any:
        y, updated = layer.apply(
            {**variables, "params": params}, x, mask, train=True, mutable=["batch_stats"]
        )
        return jnp.sum(y * weights), (y, updated)

    def gradients(layer: BatchNorm, *arguments: Any) -> Any:
        f = jax.grad(lambda p, x, m, w: loss(layer, p, x, m, w), argnums=(0, 1), has_aux=True)
        (of_params, of_maps), outputs = f(variables["params"], *arguments)
        return of_params, of_maps, outputs

    expected = gradients(one, maps, mask, weights)
    split = [x.reshape(devices, -1, *x.shape[1:]) for x in (jnp.asarray(maps), mask, weights)]
    actual = jax.pmap(lambda *a: gradients(many, *a), "devices")(*split)
    np.testing.assert_allclose(actual[1].reshape(maps.shape), expected[1], atol=2e-4)
    np.testing.assert_allclose(actual[2][0].reshape(maps.shape), expected[2][0], atol=2e-4)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a.sum(0), b, rtol=1e-4, atol=1e-4),
        actual[0],
        expected[0],
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, np.broadcast_to(b, a.shape), rtol=1e-5),
        actual[2][1],
        expected[2][1],
    )


def test_bfloat16_keeps_float32_statistics(maps: np.ndarray) -> None:
    layer = BatchNorm()
    x = jnp.asarray(maps - 100, jnp.bfloat16)
    variables = layer.init(jax.random.key(0), x, train=False)
    y, updated = layer.apply(variables, x, train=True, mutable=["batch_stats"])
    assert y.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(updated)} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
    ("x", "mask", "message"),
    [
        (np.zeros((2, 3, 4), np.float32), None, r"inputs: expected \(N,H,W,C\), received shape"),
        (
            np.zeros((2, 3, 3, 4), np.float32),
            np.ones(3, bool),
            r"mask: expected \(2,\) or \(2, 3\) bool",
        ),
        (np.zeros((2, 3, 3, 4), np.float32), np.ones(2), r"mask: expected \(2,\) or \(2, 3\) bool"),
    ],
)
def test_wrong_arguments_are_refused(x: Any, mask: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BatchNorm().init(jax.random.key(0), x, mask, train=True)


def test_sums_over_images_name_their_precision() -> None:
    layer, x = BatchNorm(), jnp.ones((3, 2, 2, 4))
    variables = layer.init(jax.random.key(0), x, train=False)
    mask = jnp.array([True, True, False])

    def normalize(x: Any) -> Any:
        return layer.apply(variables, x, mask, train=True, mutable=["batch_stats"])

    text = str(jax.make_jaxpr(normalize)(x))
    assert text.count("dot_general") == text.count("Precision.HIGHEST, Precision.HIGHEST") > 0
