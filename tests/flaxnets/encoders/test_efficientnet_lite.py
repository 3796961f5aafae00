"""EfficientNet-Lite0 against a NumPy reference; padding, dtypes, statistics."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from flaxnets.encoders.efficientnet_lite import STAGES, EfficientNetLite0
from flaxnets.layers.batch_sharding import map_in_chunks

SIZE = 40  # Not a multiple of 32: odd feature maps, uneven padding.
N = 4


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (N, SIZE, SIZE, 3), np.uint8)


@pytest.fixture(scope="module")
def variables() -> Any:
    """Returns random parameters and running statistics."""
    shape = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.uint8)
    model = EfficientNetLite0()
    shapes = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), shape)
    rng = np.random.default_rng(1)

    def draw(path: tuple[Any, ...], leaf: Any) -> np.ndarray:
        name = path[-1].key
        if name == "kernel":
            scale = (2 / np.prod(leaf.shape[:-1])) ** 0.5
            return rng.normal(0, scale, leaf.shape).astype(np.float32)
        low, high = {"scale": (0.5, 1.5), "var": (0.5, 1.5)}.get(name, (-0.2, 0.2))
        return rng.uniform(low, high, leaf.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


@pytest.fixture(scope="module")
def encode() -> Callable[..., np.ndarray]:
    model = EfficientNetLite0()
    return jax.jit(lambda variables, images: model.apply(variables, images, train=False))


@pytest.fixture(scope="module")
def beginning(variables: Any) -> Any:
    """Returns the variables up to ``stage_4``."""
    names = {"stem", "stem_norm", *(f"block_{i:02d}" for i in range(8))}
    return {
        collection: {name: tree[name] for name in names & tree.keys()}
        for collection, tree in variables.items()
    }


@pytest.fixture(scope="module")
def train_step() -> Callable[..., Any]:
    """Returns a function of parameters, statistics, images, mask: gradients, new statistics."""
    # All kinds of blocks; the rest would take twice the time to compile.
    model = EfficientNetLite0(levels=("stage_4",))

    def loss(params: Any, batch_stats: Any, images: Any, mask: Any) -> Any:
        variables = {"params": params, "batch_stats": batch_stats}
        outputs, updated = model.apply(variables, images, mask, train=True, mutable=["batch_stats"])
        maps = outputs["stage_4"]
        weights = jnp.linspace(-1, 1, maps.shape[-1])
        total = jnp.sum(jnp.sin(maps) * weights * mask[:, None, None, None])
        return total, updated["batch_stats"]

    return jax.jit(jax.grad(loss, has_aux=True))


def numpy_convolve(x: np.ndarray, kernel: np.ndarray, strides: int) -> np.ndarray:
    """Convolves with SAME padding; a kernel (k,k,1,C) is depthwise, (in,out) is 1×1."""
    if kernel.ndim == 2:
        return x @ kernel
    n, h = x.shape[:2]
    k = len(kernel)
    out = -(-h // strides)
    pad = max((out - 1) * strides + k - h, 0)
    padded = np.pad(x, ((0, 0), (pad // 2, pad - pad // 2), (pad // 2, pad - pad // 2), (0, 0)))
    y = np.zeros((n, out, out, kernel.shape[-1]))
    for i in range(k):
        for j in range(k):
            window = padded[:, i : i + strides * out : strides, j : j + strides * out : strides]
            window = window[:, :out, :out]
            depthwise = kernel.shape[2] == 1
            y += window * kernel[i, j, 0] if depthwise else window @ kernel[i, j]
    return y


def numpy_encode(variables: Any, images: np.ndarray) -> np.ndarray:
    def layer(x: np.ndarray, path: list[str], strides: int = 1, relu: bool = True) -> np.ndarray:
        params, statistics = variables["params"], variables["batch_stats"]
        for name in path[:-1]:
            params, statistics = params[name], statistics[name]
        norm = f"{path[-1]}_norm"
        x = numpy_convolve(x, params[path[-1]]["kernel"].astype(np.float64), strides)
        x = (x - statistics[norm]["mean"]) / np.sqrt(statistics[norm]["var"] + 1e-3)
        x = x * params[norm]["scale"] + params[norm]["bias"]
        return np.clip(x, 0, 6) if relu else x

    x = layer((images - 127.0) / 128, ["stem"], 2)
    number = 0
    for expansion, features, blocks, strides, _ in STAGES:
        for i in range(blocks):
            name = f"block_{number:02d}"
            y = layer(x, [name, "expand"]) if expansion != 1 else x
            y = layer(y, [name, "depthwise"], strides if i == 0 else 1)
            y = layer(y, [name, "project"], relu=False)
            x = x + y if i > 0 or (strides == 1 and x.shape[-1] == features) else y
            number += 1
    return layer(x, ["head"])


def test_equals_a_numpy_reference(images: np.ndarray, variables: Any, encode: Any) -> None:
    maps = encode(variables, images)
    assert maps.shape == (N, 2, 2, 1280)
    assert maps.dtype == jnp.float32
    np.testing.assert_allclose(maps, numpy_encode(variables, images), atol=2e-3)
    assert 0.1 < np.mean(np.asarray(maps) > 0) < 0.9


def test_number_of_parameters(variables: Any) -> None:
    # Lite0 has 4,652,008 with its classifier of 1280·1000 + 1000.
    parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    assert parameters == 4_652_008 - 1_281_000


def test_uint8_and_normalized_floats_agree(images: np.ndarray, variables: Any, encode: Any) -> None:
    normalized = EfficientNetLite0().normalize(jnp.asarray(images))
    assert float(normalized.min()) >= -127 / 128
    assert float(normalized.max()) <= 1
    np.testing.assert_allclose(encode(variables, images), encode(variables, normalized), atol=1e-5)


def test_bfloat16(images: np.ndarray, variables: Any) -> None:
    levels = ("stage_3",)
    half, whole = (
        jax.jit(
            lambda v, x, dtype=dtype: EfficientNetLite0(levels=levels, dtype=dtype).apply(
                v, x, train=False
            )
        )(variables, images)["stage_3"]
        for dtype in (jnp.bfloat16, jnp.float32)
    )
    assert half.dtype == jnp.bfloat16
    difference = np.abs(np.asarray(half, np.float32) - np.asarray(whole))
    assert 0 < difference.mean() < 0.02 * np.abs(whole).mean()


def test_chunks_equal_the_whole_batch() -> None:
    images = jnp.asarray(np.random.default_rng(0).normal(size=(7, 6, 6, 3)), jnp.float32)

    def encode(images: jax.Array) -> jax.Array:
        return nn.avg_pool(jnp.sin(images), (2, 2), (2, 2))

    for chunk_size in (1, 3, 7, 10):
        chunked = jax.jit(lambda x, n=chunk_size: map_in_chunks(encode, x, n))(images)
        np.testing.assert_allclose(chunked, encode(images), atol=1e-6)
    with pytest.raises(ValueError, match="chunk_size: expected at least 1"):
        map_in_chunks(encode, images, chunk_size=0)


@pytest.mark.slow
def test_every_parameter_has_a_gradient(
    images: np.ndarray, beginning: Any, train_step: Any
) -> None:
    mask = np.ones(N, bool)
    result = train_step(beginning["params"], beginning["batch_stats"], images, mask)
    gradients, _ = jax.device_get(result)
    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.isfinite(gradient).all(), path
        assert np.any(gradient), path


def test_masked_images_change_nothing(images: np.ndarray, beginning: Any, train_step: Any) -> None:
    mask = np.asarray([True, True, False, True])
    other = images.copy()
    other[2] = 255 - other[2]
    state = beginning["params"], beginning["batch_stats"]
    before, after = (jax.device_get(train_step(*state, x, mask)) for x in (images, other))
    # The gradient of a bias in front of another BatchNorm is zero but for rounding.
    rounding = 1e-6 * max(np.abs(leaf).max() for leaf in jax.tree.leaves(before[0]))
    for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3 * np.abs(a).max() + rounding)
    counted = train_step(*state, other, np.ones(N, bool))[1]["stem_norm"]["mean"]
    assert np.abs(counted - after[1]["stem_norm"]["mean"]).max() > 1e-4


def test_statistics_of_no_image_stay_finite(
    images: np.ndarray, beginning: Any, train_step: Any
) -> None:
    state = beginning["params"], beginning["batch_stats"]
    _, statistics = train_step(*state, images, np.zeros(N, bool))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(statistics))


def test_statistics_are_those_of_the_valid_images(
    images: np.ndarray, beginning: Any, train_step: Any
) -> None:
    mask = np.asarray([True, False, True, True])
    state = beginning["params"], beginning["batch_stats"]
    mean = train_step(*state, images, mask)[1]["stem_norm"]["mean"]
    kernel = beginning["params"]["stem"]["kernel"].astype(np.float64)
    stem = numpy_convolve((images[mask] - 127.0) / 128, kernel, 2)
    expected = 0.99 * beginning["batch_stats"]["stem_norm"]["mean"] + 0.01 * stem.mean((0, 1, 2))
    np.testing.assert_allclose(mean, expected, atol=1e-5)


def test_classifier_is_a_linear_layer_on_the_mean(
    images: np.ndarray, variables: Any, encode: Any
) -> None:
    rng = np.random.default_rng(2)
    kernel = rng.normal(size=(1280, 7)).astype(np.float32)
    bias = rng.normal(size=7).astype(np.float32)
    logits = jax.jit(
        lambda v, x: EfficientNetLite0(levels=("logits",), num_classes=7).apply(v, x, train=False)
    )(
        {
            "params": {**variables["params"], "classifier": {"kernel": kernel, "bias": bias}},
            "batch_stats": variables["batch_stats"],
        },
        images,
    )["logits"]
    expected = np.asarray(encode(variables, images)).mean((1, 2)) @ kernel + bias
    np.testing.assert_allclose(logits, expected, atol=1e-3)


@pytest.mark.parametrize(
    ("images_like", "mask_like", "message"),
    [
        (jnp.zeros((2, 32, 32, 1)), None, r"images: expected \(N,H,W,3\)"),
        (jnp.zeros((2, 4, 32, 32, 3)), None, r"images: expected \(N,H,W,3\)"),
        (jnp.zeros((2, 32, 32, 3), jnp.int32), None, "images: expected uint8 or float"),
        (jnp.zeros((2, 32, 32, 3)), jnp.ones(3, bool), r"mask: expected \(2,\) bool"),
        (jnp.zeros((2, 32, 32, 3)), jnp.ones(2), r"mask: expected \(2,\) bool"),
    ],
)
def test_wrong_arguments(images_like: Any, mask_like: Any, message: str) -> None:
    model = EfficientNetLite0()
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(
            lambda x: model.init(jax.random.key(0), x, mask_like, train=True), images_like
        )
