"""Models on sequences: streams, strides, autoregression, refusals."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxnets.encoders.conv_stack import ConvStack
from flaxnets.heads.classifier import ClipClassifier, StepClassifier
from flaxnets.heads.pooling import pool_last
from flaxnets.models.sequence_model import (
    SequenceModel,
    SequenceModelConfig,
    make_sequence_model,
)
from flaxnets.recurrent import GRUCell, Recurrent
from flaxnets.recurrent.config import RecurrentConfig

B, T = 2, 6


def test_a_stream_of_tokens_gives_the_logits_of_the_whole() -> None:
    model = SequenceModel(
        StepClassifier(5),
        encoder=ConvStack((4,)),
        recurrent=Recurrent(partial(GRUCell, 4)),
        num_tokens=5,
        embedding_features=3,
    )
    tokens = jnp.array([[0, 1, 2, 3, 4, 0], [4, 4, 3, 3, 2, 2]])
    variables = model.init(jax.random.key(0), tokens, train=False)
    whole: Any = model.apply(variables, tokens, train=False)
    stream = jax.jit(partial(model.apply, method="stream"))
    carry, found = None, []
    for begin, end in ((0, 2), (2, 4), (4, 6)):
        result: Any = stream(variables, carry, tokens[:, begin:end])
        carry = result[0]
        found.append(result[1].steps)
    np.testing.assert_allclose(jnp.concatenate(found, 1), whole, atol=1e-6)


def test_an_encoder_that_pools_shortens_the_sequence_for_the_cell() -> None:
    model = SequenceModel(
        ClipClassifier(3, pool_last),
        encoder=ConvStack((4,), pools=(4,)),
        recurrent=Recurrent(partial(GRUCell, 4)),
    )
    x, lengths = jax.random.normal(jax.random.key(1), (B, T, 2)), jnp.array([T, 3])
    variables = model.init(jax.random.key(0), x, lengths, train=False)
    logits: Any = model.apply(variables, x, lengths, train=False)
    assert logits.shape == (B, 1, 3)
    alone: Any = model.apply(variables, x[1:, :3], train=False)
    np.testing.assert_allclose(logits[1], alone[0], atol=1e-6)


def test_the_autoregression_is_linear_in_the_last_steps_of_each_channel() -> None:
    config = SequenceModelConfig(
        recurrent=RecurrentConfig("gru", features=4), autoregressive_steps=3
    )
    config.head.pool = "last"
    model = make_sequence_model(config, 2 * 2, forecast_channels=(2, 0))  # 2 horizons, 2 channels
    x, lengths = np.zeros((B, T, 3), np.float32), jnp.array([T, 2])
    variables: Any = model.init(jax.random.key(0), x, lengths, train=False)
    weights = variables["params"]["autoregression"]["kernel"]  # (3,2)
    rng = np.random.default_rng(0)
    x[:] = rng.normal(size=x.shape)
    head: Any = SequenceModel(model.head, recurrent=model.recurrent)
    network = head.apply(
        {"params": {k: v for k, v in variables["params"].items() if k != "autoregression"}},
        x,
        lengths,
        train=False,
    )
    forecasts: Any = model.apply(variables, x, lengths, train=False)
    for row, length in enumerate([T, 2]):
        last = np.zeros((3, 3), np.float32)
        last[max(3 - length, 0) :] = x[row, max(length - 3, 0) : length]
        expected = np.stack([weights.T @ last[:, 2], weights.T @ last[:, 0]], 1)  # (H,C)
        np.testing.assert_allclose(
            forecasts[row, 0] - network[row, 0], expected.ravel(), rtol=1e-4, atol=1e-5
        )


def forecaster(
    *, relative: bool = True, with_observed: bool = True
) -> tuple[SequenceModel, dict[str, Any]]:
    """Returns a forecaster of the channels 2 and 0 of three, and its parameters."""
    config = SequenceModelConfig(
        recurrent=RecurrentConfig("gru", features=4), autoregressive_steps=3, relative=relative
    )
    config.head.pool = "last"
    model = make_sequence_model(
        config, 2 * 2, forecast_channels=(2, 0), with_observed=with_observed
    )
    x, lengths = jnp.zeros((B, T, 6)), jnp.array([T, T])
    return model, dict(model.init(jax.random.key(0), x, lengths, train=False))


def with_mask(values: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Returns inputs as the loader makes them: zeros for missing values, then the mask."""
    return np.concatenate([np.where(seen, values, 0), seen], -1).astype(np.float32)


@pytest.mark.parametrize("lengths", [(T, T), (T, 4)])
@pytest.mark.parametrize("holes", [(), (3,), (0, 1), (2, 3), (3, 4, 5), (0, 2, 3, 5)])
def test_a_constant_series_with_holes_is_its_own_forecast(
    holes: tuple[int, ...], lengths: tuple[int, int]
) -> None:
    values = np.broadcast_to(np.array([0.7, -1.3, 3.1], np.float32), (B, T, 3))
    seen = np.ones((B, T, 3), bool)
    seen[1, holes, 2] = False
    x = with_mask(values, seen)
    x[1, lengths[1] :] = np.nan
    expected = np.tile(values[:, :1, [2, 0]], 2)
    # Without the network, the forecast is the level; random weights of the autoregression read
    # zeros, the series less its level.
    model, variables = forecaster()
    params = {k: jax.tree.map(jnp.zeros_like, v) for k, v in variables["params"].items()}
    params["autoregression"] = variables["params"]["autoregression"]
    found: Any = model.apply({"params": params}, x, jnp.array(lengths), train=False)
    np.testing.assert_array_equal(found, expected)
    # Without the level, the autoregression reads the last two steps themselves.
    model, _ = forecaster(relative=False)
    params["autoregression"] = {"kernel": jnp.eye(3, 2, -1), "bias": jnp.zeros(2)}
    found = model.apply({"params": params}, x, jnp.array(lengths), train=False)
    np.testing.assert_array_equal(found, expected)


def test_a_missing_value_is_the_one_before_it_or_the_first_after_it() -> None:
    model, variables = forecaster()
    x = np.random.default_rng(0).normal(size=(B, T, 3)).astype(np.float32)
    seen = np.ones(x.shape, bool)
    seen[0, [0, 3, 5], 2] = False
    filled = x.copy()
    filled[0, [0, 3, 5], 2] = x[0, [1, 2, 4], 2]
    mask = seen.astype(np.float32)
    for lengths in (None, jnp.array([T, 2]), jnp.array([4, 0])):
        apply: Any = partial(model.apply, variables, lengths=lengths, train=False)
        expected = apply(np.concatenate([filled, mask], -1))
        np.testing.assert_array_equal(apply(with_mask(x, seen)), expected)
        assert np.isfinite(expected).all()
    # A channel that is never observed is at the mean of the training part, whatever was there.
    seen[0, :, 0] = False
    found: Any = model.apply(variables, with_mask(x, seen), train=False)
    assert np.isfinite(found).all()
    empty: Any = model.apply(variables, jnp.zeros((B, 0, 6)), train=False)
    assert empty.shape == (B, 1, 4)


def test_without_missing_values_the_mask_changes_nothing() -> None:
    x = np.random.default_rng(0).normal(size=(B, T, 3)).astype(np.float32)
    inputs = with_mask(x, np.ones(x.shape, bool))
    for lengths in (None, jnp.array([T, 2])):
        for relative in (True, False):
            masked, variables = forecaster(relative=relative)
            plain, _ = forecaster(relative=relative, with_observed=False)
            found: Any = masked.apply(variables, inputs, lengths, train=False)
            expected: Any = plain.apply(variables, inputs, lengths, train=False)
            np.testing.assert_array_equal(found, expected)


def test_inputs_of_the_wrong_kind_are_refused() -> None:
    tokens = SequenceModel(StepClassifier(5), num_tokens=5, embedding_features=3)
    values = SequenceModel(StepClassifier(5))
    with pytest.raises(ValueError, match=r"expected \(B,T\) integer tokens"):
        tokens.init(jax.random.key(0), jnp.zeros((B, T, 2)), train=False)
    with pytest.raises(ValueError, match=r"expected \(B,T,D\) float values"):
        values.init(jax.random.key(0), jnp.zeros((B, T), int), train=False)


def test_cells_on_maps_are_refused() -> None:
    config = SequenceModelConfig(recurrent=RecurrentConfig("convlstm"))
    with pytest.raises(ValueError, match="convlstm reads feature maps, and a step is a vector"):
        make_sequence_model(config, 3)


def test_a_network_that_needs_the_whole_sequence_says_so() -> None:
    config = SequenceModelConfig(recurrent=RecurrentConfig("lstm", bidirectional=True))
    model = make_sequence_model(config, 3)
    assert model.obstacle == "the recurrent layer is bidirectional"
    with pytest.raises(ValueError, match="expected a causal network, but the recurrent layer is"):
        model.init(jax.random.key(0), None, jnp.zeros((B, T, 2)), method="stream")
