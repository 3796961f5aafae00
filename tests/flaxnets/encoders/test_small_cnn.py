"""SmallCNN: effects and ranges of its hyper-parameters."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxnets.encoders.small_cnn import (
    ACTIVATIONS,
    DOWNSAMPLINGS,
    NORMALIZATIONS,
    SmallCNN,
)

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 20, 24, 1), np.uint8)


def encode(cnn: SmallCNN, variables: Any) -> Any:
    return jax.jit(lambda v: cnn.apply(v, IMAGES, train=False))(variables)


def init(cnn: SmallCNN) -> Any:
    return jax.jit(lambda: cnn.init(jax.random.key(0), IMAGES, train=False))()


def test_number_and_size_of_kernels() -> None:
    cnn = SmallCNN((4, 6), (2, 1), kernel_size=5, depth=2)
    variables = init(cnn)
    shapes = {
        name: tree["kernel"].shape
        for name, tree in variables["params"].items()
        if name.startswith("conv")
    }
    assert shapes == {
        "conv_0": (5, 5, 1, 4),
        "conv_0_1": (5, 5, 4, 4),
        "conv_1": (5, 5, 4, 6),
        "conv_1_1": (5, 5, 6, 6),
    }
    assert encode(cnn, variables).shape == (3, 10, 12, 6)


def test_equals_the_layers_of_flax() -> None:
    """Compares one stage with the same layers of Flax."""
    cnn = SmallCNN(
        (8,), (2,), normalization="group", num_groups=2, activation="gelu", downsampling="max"
    )
    variables = init(cnn)
    x: Any = (IMAGES.astype(np.float32) - 127.5) / 127.5
    x = nn.Conv(8, (3, 3), use_bias=False).apply({"params": variables["params"]["conv_0"]}, x)
    x = nn.GroupNorm(2).apply({"params": variables["params"]["norm_0"]}, x)
    expected = nn.max_pool(nn.gelu(x), (2, 2), (2, 2))
    np.testing.assert_allclose(encode(cnn, variables), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("normalization", "downsampling"),
    list(zip(NORMALIZATIONS, (*DOWNSAMPLINGS, "strides"), strict=True)),
)
def test_normalisation_and_downsampling(normalization: str, downsampling: str) -> None:
    cnn = SmallCNN((8, 16), (2, 2), normalization=normalization, downsampling=downsampling)
    variables = init(cnn)
    assert encode(cnn, variables).shape == (3, 5, 6, 16)
    assert ("batch_stats" in variables) == (normalization == "batch")
    assert ("bias" in variables["params"]["conv_0"]) == (normalization == "none")
    assert ("norm_1" in variables["params"]) == (normalization != "none")

    def loss(params: Any) -> Any:
        maps, _ = cnn.apply(
            {**variables, "params": params}, IMAGES, train=True, mutable=["batch_stats"]
        )
        return jnp.sum(jnp.sin(jnp.arange(maps.size)).reshape(maps.shape) * maps)

    for path, gradient in jax.tree_util.tree_leaves_with_path(
        jax.device_get(jax.jit(jax.grad(loss))(variables["params"]))
    ):
        assert np.isfinite(gradient).all(), path
        assert np.any(gradient), path


def test_activations_differ() -> None:
    variables = init(SmallCNN((4,), (2,)))
    outputs = [
        np.asarray(encode(SmallCNN((4,), (2,), activation=name), variables)) for name in ACTIVATIONS
    ]
    for i, a in enumerate(outputs):
        assert all(np.abs(a - b).max() > 1e-3 for b in outputs[:i])


def test_dropout_zeroes_whole_channels() -> None:
    cnn = SmallCNN((64,), (2,), dropout=0.5)
    variables = init(cnn)
    maps, _ = cnn.apply(
        variables, IMAGES, train=True, mutable=["batch_stats"], rngs={"dropout": jax.random.key(0)}
    )
    kept, _ = SmallCNN((64,), (2,)).apply(variables, IMAGES, train=True, mutable=["batch_stats"])
    zero = np.all(np.asarray(maps) == 0, axis=(1, 2))
    assert 0.3 < zero.mean() < 0.7
    np.testing.assert_allclose(maps, np.where(zero[:, None, None], 0, 2 * kept), atol=1e-5)
    evaluated = encode(cnn, variables)
    assert np.any(evaluated, axis=(1, 2)).all()


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        (
            {"column_strides": (2,)},
            r"column_strides: expected 3, one for each of features, or none, received \(2,\)",
        ),
        ({"strides": (2,)}, r"strides: expected 3, one for each of features, received \(2,\)"),
        ({"features": (), "strides": ()}, "features: expected at least one stage"),
        ({"depth": 0}, "depth: expected at least 1, received 0"),
        ({"dropout": 1.0}, r"dropout: expected a rate in \[0,1\), received 1.0"),
        ({"activation": "relu6"}, "activation: expected some of.*'relu6'; did you mean 'relu'"),
        ({"normalization": "batchnorm"}, "normalization: .*did you mean 'batch'"),
        ({"downsampling": "stride"}, "downsampling: .*did you mean 'strides'"),
        ({"normalization": "group", "num_groups": 5}, "num_groups: expected a divisor of"),
        ({"input_size": 7}, "images: expected sides that are multiples of 7"),
    ],
)
def test_wrong_attributes(attributes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SmallCNN(**attributes).init(jax.random.key(0), IMAGES, train=False)
