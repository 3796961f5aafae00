"""Encoders rematerialised, in chunks of a batch, and on several devices."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from flaxnets.encoders.encoder import Encoder
from flaxnets.encoders.googlenet import GoogLeNet
from flaxnets.encoders.mobilenet_v2 import MobileNetV2
from flaxnets.encoders.resnet import ResNet
from flaxnets.encoders.small_cnn import SmallCNN
from flaxnets.encoders.vgg import VGG
from flaxnets.layers.batch_sharding import map_in_chunks
from tests.flaxnets.encoders.cases import draw_images, shapes_of
from tests.flaxnets.encoders.weights import draw_variables

# The first layers of each encoder, up to a block of each kind.
BEGINNINGS: dict[str, Encoder] = {
    "vgg11_bn": VGG(11, batch_norm=True, levels=("conv1_1", "pool2")),
    "resnet18": ResNet(18, levels=("stage_1",)),
    "googlenet": GoogLeNet(levels=("inception3a",)),
    "mobilenet_v2": MobileNetV2(levels=("stage_2",)),
    "small_cnn": SmallCNN((8, 8), (2, 2), depth=2, levels=("stage_1", "logits"), num_classes=5),
}


@pytest.mark.parametrize(
    "name",
    # All share one implementation; these take the longest to compile.
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


def test_elementwise_remat_recomputes_no_convolution() -> None:
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


@pytest.mark.slow
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


@pytest.mark.slow
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
