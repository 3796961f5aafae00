"""The contract of all encoders: levels, errors, types, rematerialisation, devices, chunks."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from flax.errors import InvalidRngError
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from flaxnets.encoders.alexnet import AlexNet, CaffeNet
from flaxnets.encoders.efficientnet_lite import EfficientNetLite0
from flaxnets.encoders.encoder import Encoder
from flaxnets.encoders.googlenet import GoogLeNet
from flaxnets.encoders.mobilenet_v2 import MobileNetV2
from flaxnets.encoders.resnet import ResNet
from flaxnets.encoders.small_cnn import SmallCNN
from flaxnets.encoders.vgg import VGG
from flaxnets.spatial.chunks import map_in_chunks
from tests.flaxnets.encoders.weights import draw_variables

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
# The first layers of each, up to a block of each kind.
BEGINNINGS: dict[str, Encoder] = {
    "vgg11_bn": VGG(11, batch_norm=True, levels=("conv1_1", "pool2")),
    "resnet18": ResNet(18, levels=("stage_1",)),
    "googlenet": GoogLeNet(levels=("inception3a",)),
    "mobilenet_v2": MobileNetV2(levels=("stage_2",)),
    "small_cnn": SmallCNN((8, 8), (2, 2), depth=2, levels=("stage_1", "logits"), num_classes=5),
}
by_name = pytest.mark.parametrize("name", ENCODERS)


def shapes_of(encoder: Encoder, images: Any, *, train: bool = False) -> tuple[Any, Any]:
    """Shapes of the variables and of the outputs."""
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}

    def run() -> Any:
        outputs, variables = encoder.init_with_output(keys, images, train=False)
        if train:
            outputs = encoder.apply(
                variables, images, train=True, mutable=["batch_stats"], rngs=keys
            )
        return variables, outputs

    return jax.eval_shape(run)


def draw_images(n: int = 2, size: tuple[int, int] = (65, 70)) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, *size, 3), np.uint8)


@by_name
def test_levels_are_in_order_and_nothing_is_built_behind_the_deepest(name: str) -> None:
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


@by_name
def test_types(name: str) -> None:
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
def test_an_unknown_level_names_the_nearest(name: str) -> None:
    known = ENCODERS[name].level_names[0]
    encoder = ENCODERS[name].clone(levels=("logits", known + "s"))
    message = f"levels: expected some of {known}, .*received '{known}s'; did you mean '{known}'"
    with pytest.raises(ValueError, match=message):
        encoder.init(jax.random.key(0), draw_images(), train=False)


def test_wrong_attributes() -> None:
    for encoder, images, message in (
        (ResNet(18, levels="logits"), draw_images(), "levels: expected a tuple of names"),
        (ResNet(42), draw_images(), r"depth: expected one of \[18, .*received 42"),
        (VGG(12), draw_images(), r"depth: expected one of \[11, .*received 12"),
        (ResNet(18), draw_images()[..., :1], r"images: expected \(N,H,W,3\), received shape"),
    ):
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(lambda e=encoder, x=images: e.init(jax.random.key(0), x, train=False))


@pytest.mark.parametrize("name", ["alexnet", "caffenet", "vgg11", "small_cnn"])
def test_images_of_which_nothing_is_left(name: str) -> None:
    encoder = ENCODERS[name]
    if name == "small_cnn":
        encoder = SmallCNN(strides=(4, 4, 4), downsampling="max")
    with pytest.raises(ValueError, match=r"images: expected larger ones, of \(31, 31\) nothing"):
        jax.eval_shape(
            lambda: encoder.init(jax.random.key(0), draw_images(2, (31, 31)), train=False)
        )


@pytest.mark.parametrize(
    "name",
    # All have the same way to blocks; these take the longest to compile.
    [
        pytest.param(
            name, marks=[pytest.mark.stress] * (name in ("vgg11_bn", "googlenet", "resnet18"))
        )
        for name in BEGINNINGS
    ],
)
def test_remat_changes_neither_names_nor_numbers_and_every_parameter_learns(name: str) -> None:
    images, plain = draw_images(), BEGINNINGS[name]
    variables = draw_variables(plain)
    state = {key: tree for key, tree in variables.items() if key != "params"}
    weights: Any = jax.tree.map(
        lambda leaf: np.random.default_rng(1).normal(size=leaf.shape).astype(np.float32),
        shapes_of(plain, images)[1],
    )

    def make_loss(encoder: Encoder) -> Callable[..., Any]:
        def loss(params: Any) -> Any:
            outputs, updated = encoder.apply(
                {"params": params, **state}, images, train=True, mutable=["batch_stats"]
            )
            products = jax.tree.map(lambda a, b: jnp.mean(a * b), outputs, weights)
            return sum(jax.tree.leaves(products)), (outputs, updated)

        return jax.value_and_grad(loss, has_aux=True)

    remat = plain.clone(remat="full")
    forward = jax.make_jaxpr(lambda v: remat.apply(v, images, train=False))
    assert "remat" in str(forward(variables))
    assert traverse_util.flatten_dict(shapes_of(remat, images)[0]).keys() == (
        traverse_util.flatten_dict(variables).keys()
    )
    expected = jax.device_get(jax.jit(make_loss(plain))(variables["params"]))
    actual = jax.device_get(jax.jit(make_loss(remat))(variables["params"]))
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected[1]))
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(expected), jax.tree.leaves(actual), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5 * largest, err_msg=str(path))
    for path, gradient in jax.tree_util.tree_leaves_with_path(expected[1]):
        assert np.isfinite(gradient).all(), path
        assert np.any(gradient), path


def test_remat_of_what_is_elementwise_computes_no_convolution_again() -> None:
    images = draw_images()
    plain = SmallCNN((4, 5), (1, 2))
    variables = draw_variables(plain)

    def convolutions(remat: str) -> int:
        encoder = plain.clone(remat=remat)

        def loss(params: Any) -> Any:
            return jnp.sum(encoder.apply({**variables, "params": params}, images, train=False))

        gradient = jax.jit(jax.grad(loss))
        return gradient.lower(variables["params"]).as_text().count("stablehlo.convolution")

    assert convolutions("elementwise") == convolutions("none") < convolutions("full")
    with pytest.raises(ValueError, match="remat: expected one of none, elementwise, full, rec"):
        plain.clone(remat="dots").apply(variables, images, train=False)


def test_statistics_and_gradients_are_those_of_all_devices() -> None:
    images = draw_images(16, (33, 36))
    # One device sees no image that counts.
    mask = np.ones(16, bool)
    mask[[2, 3, 9]] = False
    single = ResNet(18, levels=("stage_1",))
    variables = draw_variables(single)

    def step(encoder: Encoder, variables: Any, images: Any, mask: Any) -> Any:
        def loss(params: Any) -> Any:
            outputs, updated = encoder.apply(
                {**variables, "params": params}, images, mask, train=True, mutable=["batch_stats"]
            )
            maps = outputs["stage_1"] * mask[:, None, None, None]
            return jnp.sum(maps * jnp.linspace(-1, 1, maps.shape[-1])), (maps, updated)

        gradients, (maps, updated) = jax.grad(loss, has_aux=True)(variables["params"])
        if encoder.axis_name:
            gradients = jax.lax.psum(gradients, encoder.axis_name)
        return gradients, maps, updated

    def assert_equal(actual: Any, expected: Any) -> None:
        leaves = (jax.tree.leaves(jax.device_get(tree)) for tree in (actual, expected))
        for a, b in zip(*leaves, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * np.abs(b).max())

    jitted = jax.jit(lambda *arguments: step(single, *arguments))
    expected = jitted(variables, images, mask)
    assert len(jax.devices()) == 8

    sharding = NamedSharding(Mesh(jax.devices(), ("data",)), PartitionSpec("data"))
    assert_equal(jitted(variables, *jax.device_put((images, mask), sharding)), expected)

    mapped = jax.pmap(
        lambda *arguments: step(single.clone(axis_name="data"), *arguments),
        axis_name="data",
        in_axes=(None, 0, 0),
    )
    parts = mapped(variables, images.reshape(8, 2, 33, 36, 3), mask.reshape(8, 2))
    gradients, maps, updated = parts
    maps = np.asarray(maps).reshape(expected[1].shape)
    first = jax.tree.map(lambda leaf: np.asarray(leaf)[0], (gradients, updated))
    assert_equal((first[0], maps, first[1]), expected)


def test_chunks_and_remat_give_the_outputs_and_gradients_of_the_whole_batch() -> None:
    images = draw_images(5, (33, 36)).astype(np.float32) / 255
    encoder = ResNet(18, levels=("stem", "stage_1"), remat="full")
    variables = draw_variables(encoder)

    def make_loss(chunk_size: int) -> Callable[..., Any]:
        def loss(params: Any) -> Any:
            def encode(x: Any) -> Any:
                return encoder.apply({**variables, "params": params}, x, train=False)

            outputs = encode(images)
            if chunk_size:
                outputs = map_in_chunks(jax.checkpoint(encode), jnp.asarray(images), chunk_size)
            return sum(jnp.sum(jnp.sin(x)) for x in outputs.values()), outputs

        return jax.jit(jax.grad(loss, has_aux=True))

    expected, chunked = (make_loss(n)(variables["params"]) for n in (0, 2))
    leaves = (jax.tree.leaves(jax.device_get(tree)) for tree in (chunked, expected))
    for a, b in zip(*leaves, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4 * np.abs(b).max())


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
