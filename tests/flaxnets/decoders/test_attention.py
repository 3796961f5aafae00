"""Additive attention: regions of any layout, masks, overflow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxnets.decoders.attention import attend, average_regions, flatten_regions

B, C, R, D, A = 2, 3, 4, 5, 6
RNG = np.random.default_rng(0)
REGIONS = RNG.normal(size=(B, R, D)).astype(np.float32)
KEYS = RNG.normal(size=(B, R, A)).astype(np.float32)
QUERY = RNG.normal(size=(B, C, A)).astype(np.float32)
VECTOR = RNG.normal(size=A).astype(np.float32)
MASK = np.array([[1, 0, 1, 1], [0, 0, 0, 0]], bool)


def test_weights_are_those_of_a_loop() -> None:
    actual = attend(KEYS, QUERY, VECTOR, jnp.asarray(MASK, jnp.float32))
    for b in range(B):
        for c in range(C):
            powers = np.exp([VECTOR @ np.tanh(key + QUERY[b, c]) for key in KEYS[b]]) * MASK[b]
            expected = powers / max(powers.sum(), 1e-30)
            np.testing.assert_allclose(actual[b, c], expected, rtol=1e-5)


def test_large_energies_give_finite_weights_and_gradients() -> None:
    def largest(keys: jax.Array) -> jax.Array:
        return attend(keys, QUERY, 1e4 * VECTOR, jnp.asarray(MASK, jnp.float32)).max(-1).sum()

    value, gradient = jax.value_and_grad(largest)(KEYS)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


def test_in_bfloat16_weights_are_float32() -> None:
    keys, query = (jnp.asarray(x, jnp.bfloat16) for x in (KEYS, QUERY))
    actual = attend(keys, query, VECTOR, None)
    assert actual.dtype == jnp.float32
    np.testing.assert_allclose(actual.sum(-1), 1, rtol=1e-6)
    np.testing.assert_allclose(actual, attend(KEYS, QUERY, VECTOR, None), atol=0.02)


def test_regions_that_do_not_exist_count_in_no_mean() -> None:
    regions, mask = flatten_regions(jnp.asarray(REGIONS).at[0, 1].set(jnp.nan), MASK)
    actual = average_regions(regions, mask)
    np.testing.assert_allclose(actual[0], REGIONS[0, [0, 2, 3]].mean(0), rtol=1e-5)
    assert not np.any(actual[1])
    np.testing.assert_allclose(
        average_regions(jnp.asarray(REGIONS), None), REGIONS.mean(1), rtol=1e-5
    )


def test_the_mean_of_many_small_numbers_does_not_round_in_float16() -> None:
    regions = jnp.full((1, 4096, 1), 1.0009765625, jnp.float16)
    assert average_regions(regions, None)[0, 0] == regions[0, 0, 0]


@pytest.mark.parametrize("shape", [(B, R, D), (B, 2, 2, D), (B, D)])
def test_maps_and_vectors_are_regions(shape: tuple[int, ...]) -> None:
    features = jnp.asarray(RNG.normal(size=shape), jnp.float32)
    regions, mask = flatten_regions(features, None)
    np.testing.assert_array_equal(regions, features.reshape(B, -1, D))
    assert mask is None


@pytest.mark.parametrize("features", [np.zeros((B,)), np.zeros((B, 1, 2, 2, D))])
def test_features_of_another_rank_are_refused(features: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"features: expected \(B,D\).*received shape"):
        flatten_regions(features, None)


def test_whole_numbers_and_other_masks_are_refused() -> None:
    with pytest.raises(ValueError, match="features: expected a float dtype, received int"):
        flatten_regions(REGIONS.astype(np.int32), None)
    for mask in (MASK[:, 1:], MASK.astype(np.float32), MASK[:1]):
        with pytest.raises(ValueError, match=r"mask: expected \(2, 4\) bool"):
            flatten_regions(REGIONS, mask)
