"""Network of Deep Speech 2: shapes, padding, and the paper's size."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxnets.encoders.deep_speech_cnn import DeepSpeechCNN
from flaxnets.models.deep_speech2 import (
    ConvolutionsConfig,
    DeepSpeech2Config,
    make_deep_speech2,
)

BANDS, CLASSES = 12, 5
CONFIG = DeepSpeech2Config(
    ConvolutionsConfig((3, 4), (5, 3), (5, 3), (2, 2), (2, 2)),
    features=6,
    num_layers=1,
)


@partial(jax.jit, static_argnums=0)
def train_step(model: Any, variables: Any, inputs: Any, lengths: Any, mask: Any) -> Any:
    """Returns logits, new statistics, and gradients of the examples that count."""

    def loss(params: Any) -> Any:
        logits, updated = model.apply(
            {**variables, "params": params},
            inputs,
            lengths,
            mask,
            train=True,
            mutable=["batch_stats"],
        )
        valid = (jnp.arange(logits.shape[1]) < model.steps(lengths)[:, None]) & mask[:, None]
        return jnp.sum(jnp.where(valid[..., None], logits, 0) ** 2), (logits, updated)

    gradients, (logits, updated) = jax.grad(loss, has_aux=True)(variables["params"])
    return logits, updated, gradients


def test_padding_and_examples_that_do_not_count_change_nothing() -> None:
    rng = np.random.default_rng(0)
    lengths = np.array([30, 17, 9], np.int32)
    inputs = rng.normal(size=(3, 30, BANDS)).astype(np.float32)
    mask = np.array([True, True, False])
    model = make_deep_speech2(CONFIG, CLASSES)
    init = jax.jit(partial(model.init, train=False))
    variables = init(jax.random.key(0), inputs, lengths)
    variables = {**variables, "params": jax.tree.map(lambda x: x + 0.1, variables["params"])}
    first = train_step(model, variables, inputs, lengths, mask)
    assert first[0].shape == (3, 8, CLASSES)
    assert model.stride == 4
    changed = inputs.copy()
    changed[1, 17:], changed[2] = 9.0, rng.normal(size=(30, BANDS))
    second = train_step(model, variables, changed, np.array([30, 17, 25], np.int32), mask)
    np.testing.assert_allclose(first[0][0], second[0][0], atol=1e-6)
    np.testing.assert_allclose(first[0][1, :5], second[0][1, :5], atol=1e-6)
    close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    jax.tree.map(close, first[1:], second[1:])
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(first[2]))


def test_the_papers_network_has_its_shapes() -> None:
    model = make_deep_speech2(DeepSpeech2Config(), num_classes=29)
    inputs = jax.ShapeDtypeStruct((1, 400, 80), jnp.float32)
    lengths = jax.ShapeDtypeStruct((1,), jnp.int32)
    init = partial(model.init_with_output, train=False)
    logits, variables = jax.eval_shape(init, jax.random.key(0), inputs, lengths)
    assert logits.shape == (1, 200, 29)
    params = variables["params"]
    assert params["columns"]["encoder"]["conv_0"]["kernel"].shape == (41, 11, 1, 32)
    assert params["recurrent"]["input_0"]["kernel"].shape == (10 * 96, 1_760)
    assert {"forward_6", "backward_6"} <= params["recurrent"].keys()
    count = sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    assert 60e6 < count < 75e6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cell": "gur"}, "model.cell: unknown 'gur'; did you mean 'gru'"),
        ({"num_layers": 0}, "model.num_layers: expected at least 1, received 0"),
        ({"lookahead": -1}, "model.lookahead: expected at least 0"),
        ({"dropout_rate": 1.0}, "model.dropout_rate: expected 0 to below 1"),
        ({"dtype": "float33"}, "model.dtype: unknown 'float33'"),
        (
            {"convolutions": ConvolutionsConfig(strides=(2,))},
            r"model.convolutions.strides: expected 3 numbers of at least 1, one for each of",
        ),
    ],
)
def test_wrong_values_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_deep_speech2(DeepSpeech2Config(**options), CLASSES)


def test_convolutions_of_other_levels() -> None:
    encoder = DeepSpeechCNN(levels=("conv_1", "conv_2"))
    images = jax.ShapeDtypeStruct((1, 160, 100, 1), jnp.float32)
    init = partial(encoder.init_with_output, train=False)
    maps, _ = jax.eval_shape(init, jax.random.key(0), images)
    assert {name: x.shape for name, x in maps.items()} == {
        "conv_1": (1, 80, 50, 32),
        "conv_2": (1, 40, 50, 32),
    }
    with pytest.raises(ValueError, match=r"features: expected at least one convolution"):
        DeepSpeechCNN(())
