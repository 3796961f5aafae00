"""Encoder interface: endpoints, errors, dtypes, dropout, pixel normalisation."""

import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from flax.errors import InvalidRngError

from flaxnets.encoders.alexnet import AlexNet, CaffeNet
from flaxnets.encoders.config import EncoderConfig, make_encoder
from flaxnets.encoders.efficientnet_lite import EfficientNetLite0
from flaxnets.encoders.encoder import Encoder
from flaxnets.encoders.googlenet import GoogLeNet
from flaxnets.encoders.mobilenet_v2 import MobileNetV2
from flaxnets.encoders.resnet import ResNet
from flaxnets.encoders.small_cnn import SmallCNN
from flaxnets.encoders.vgg import VGG
from tests.flaxnets.encoders.cases import draw_images, shapes_of

ENCODERS: dict[str, Encoder] = {
    "alexnet": AlexNet(),
    "caffenet": CaffeNet(),
    "vgg11": VGG(11),
    "vgg19_bn": VGG(19, batch_norm=True),
    "resnet18": ResNet(18),
    "resnet50": ResNet(50),
    "googlenet": GoogLeNet(),
    "mobilenet_v2": MobileNetV2(),
    "efficientnet_lite0": EfficientNetLite0(),
    "small_cnn": SmallCNN(),
}
by_name = pytest.mark.parametrize("name", ENCODERS)


@pytest.mark.slow_after(4)
@by_name
def test_endpoints_are_in_order_and_nothing_is_built_behind_the_deepest(name: str) -> None:
    encoder, images = ENCODERS[name], draw_images(2, (97, 130))
    names = encoder.level_names
    variables, outputs = shapes_of(encoder.clone(levels=names), images)
    assert set(outputs) == set(names)
    sizes = [outputs[level].shape[1] for level in names if outputs[level].ndim == 4]
    assert sizes == sorted(sizes, reverse=True)
    _, maps = shapes_of(encoder, images)
    assert maps.shape == outputs[encoder.maps_level].shape
    assert outputs["pooled"].shape == (2, maps.shape[-1])
    assert outputs["logits"].shape == (2, 1000)

    whole = traverse_util.flatten_dict(variables)
    counts = []
    for level in (names[0], names[len(names) // 2], "pooled", "logits"):
        part, only = shapes_of(encoder.clone(levels=(level,)), images)
        assert only == {level: outputs[level]}
        flat = traverse_util.flatten_dict(part)
        assert flat.items() <= whole.items()
        counts.append(len(flat))
    assert counts == sorted(counts)
    assert counts[-2] < counts[-1] == len(whole)


@pytest.mark.slow_after(4)
@by_name
def test_dtypes(name: str) -> None:
    encoder = ENCODERS[name]
    levels = (encoder.maps_level, "pooled", "logits")
    encoder = encoder.clone(levels=levels, dtype=jnp.bfloat16, num_classes=7)
    variables, (outputs, updated) = shapes_of(encoder, draw_images(), train=True)
    assert {level: output.dtype for level, output in outputs.items()} == {
        levels[0]: jnp.bfloat16,
        "pooled": jnp.float32,
        "logits": jnp.float32,
    }
    assert outputs["logits"].shape == (2, 7)
    for leaf in jax.tree.leaves((variables, updated)):
        assert leaf.dtype == jnp.float32
    half, _ = shapes_of(encoder.clone(param_dtype=jnp.bfloat16), draw_images())
    assert {leaf.dtype for leaf in jax.tree.leaves(half["params"])} == {jnp.dtype(jnp.bfloat16)}


@by_name
@pytest.mark.parametrize(
    ("images", "mask", "message"),
    [
        (jnp.zeros((65, 65, 3)), None, r"images: expected \(N,H,W,[3C]\), received shape \(65"),
        (jnp.zeros((1, 2, 65, 65, 3)), None, r"images: expected \(N,H,W,[3C]\)"),
        (jnp.zeros((2, 65, 65, 3), jnp.int32), None, "images: expected uint8 or float.*int32"),
        (jnp.zeros((2, 65, 65, 3)), jnp.ones(3, bool), r"mask: expected \(2,\) bool.*\(3,\)"),
        (jnp.zeros((2, 65, 65, 3)), jnp.ones(2), r"mask: expected \(2,\) bool.*float32"),
    ],
)
def test_wrong_arguments(name: str, images: Any, mask: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ENCODERS[name].init(jax.random.key(0), images, mask, train=True)


@by_name
def test_an_unknown_endpoint_lists_all_and_names_the_nearest(name: str) -> None:
    known = ENCODERS[name].level_names
    encoder = ENCODERS[name].clone(levels=("logits", known[0] + "s"))
    message = (
        f"levels: expected some of {', '.join(known)}; received '{known[0]}s'; "
        f"did you mean '{known[0]}'?"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        encoder.init(jax.random.key(0), draw_images(), train=False)


def test_wrong_attributes() -> None:
    for encoder, images, message in (
        (
            ResNet(18, levels="logits"),
            draw_images(),
            r"levels: expected a tuple of names, as \('logits',\), received 'logits'",
        ),
        (ResNet(42), draw_images(), r"depth: expected one of \[18, .*received 42"),
        (VGG(12), draw_images(), r"depth: expected one of \[11, .*received 12"),
        (ResNet(18), draw_images()[..., :1], r"images: expected \(N,H,W,3\), received shape"),
    ):
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(lambda e=encoder, x=images: e.init(jax.random.key(0), x, train=False))


@pytest.mark.parametrize("name", ["alexnet", "caffenet", "vgg11", "small_cnn"])
def test_images_that_are_too_small(name: str) -> None:
    encoder = ENCODERS[name]
    if name == "small_cnn":
        encoder = SmallCNN(strides=(4, 4, 4), downsampling="max")
    with pytest.raises(
        ValueError, match=r"images: expected larger ones, received \(31, 31\) pixels, of"
    ):
        jax.eval_shape(
            lambda: encoder.init(jax.random.key(0), draw_images(2, (31, 31)), train=False)
        )


@pytest.mark.parametrize("name", ["alexnet", "caffenet", "vgg11", "googlenet", "mobilenet_v2"])
def test_dropout_wants_a_key_while_training(name: str) -> None:
    encoder = ENCODERS[name].clone(levels=("logits",))
    variables, _ = shapes_of(encoder, draw_images())
    with pytest.raises(InvalidRngError, match="dropout"):
        jax.eval_shape(
            lambda v: encoder.apply(v, draw_images(), train=True, mutable=["batch_stats"]),
            variables,
        )


def test_dropout_acts_while_training_only() -> None:
    encoder = AlexNet(levels=("pooled", "logits"), num_classes=4)
    images = draw_images(1, (65, 65))
    variables = jax.tree.map(
        lambda x: np.full(x.shape, 0.01, np.float32), shapes_of(encoder, images)[0]
    )
    run = jax.jit(lambda v, key: encoder.apply(v, images, train=True, rngs={"dropout": key}))
    first, second = run(variables, jax.random.key(0)), run(variables, jax.random.key(1))
    np.testing.assert_array_equal(first["pooled"], second["pooled"])
    assert np.any(first["logits"] != second["logits"])


def test_pixels_are_normalised_by_each_networks_statistics() -> None:
    pixels = jnp.asarray(draw_images())
    ratio = np.asarray(pixels, np.float32) / 255
    imagenet = (ratio - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    for name in ("alexnet", "vgg11", "resnet18", "googlenet", "mobilenet_v2"):
        encoder = ENCODERS[name]
        np.testing.assert_allclose(encoder.normalize(pixels), imagenet, atol=1e-5)
    caffe = np.asarray(pixels, np.float32)[..., ::-1] - [104.00699, 116.66877, 122.67892]
    np.testing.assert_allclose(CaffeNet().normalize(pixels), caffe, atol=1e-4)
    np.testing.assert_allclose(SmallCNN().normalize(pixels), 2 * ratio - 1, atol=1e-6)
    for encoder in ENCODERS.values():
        floats = encoder.normalize(pixels)
        np.testing.assert_array_equal(encoder.normalize(floats), floats)


class OwnEncoder(Encoder):
    """Encoder whose ``features`` is a number."""

    features: int = 4
    level_names = ("maps",)
    maps_level = "maps"

    def endpoints(self, images: Any, mask: Any, *, train: bool) -> Any:
        """One convolution."""
        yield "maps", nn.Conv(self.features, (3, 3))(images)


def test_attributes_of_an_own_encoder_are_its_own() -> None:
    name = f"{__name__}:OwnEncoder"
    config = EncoderConfig(name, features=(8, 8), strides=(2, 2))
    made: Any = make_encoder(config)
    assert made.features == 4
