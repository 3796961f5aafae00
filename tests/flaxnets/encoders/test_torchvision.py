"""Names and outputs of torchvision's networks, recorded and, where it is installed, live."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest
from flax import traverse_util

from flaxnets.encoders.alexnet import AlexNet
from flaxnets.encoders.encoder import Encoder
from flaxnets.encoders.googlenet import GoogLeNet
from flaxnets.encoders.mobilenet_v2 import MobileNetV2
from flaxnets.encoders.pretrained import fit_weights, weight_shapes
from flaxnets.encoders.resnet import ResNet
from flaxnets.encoders.vgg import VGG
from tests.flaxnets.encoders.record_torchvision import (
    FIXTURES,
    NAMED,
    RECORDINGS,
    draw_images,
    draw_weight,
    read_shapes,
    record_outputs,
    record_shapes,
    sample,
)

TOLERANCE = 1e-4  # Relative to the largest value of an endpoint.


def make_encoder(name: str, levels: tuple[str, ...]) -> Encoder:
    simple: dict[str, Callable[..., Encoder]] = {
        "alexnet": AlexNet,
        "googlenet": GoogLeNet,
        "mobilenet_v2": MobileNetV2,
    }
    if name in simple:
        return simple[name](levels=levels)
    if name.startswith("resnet"):
        return ResNet(int(name.removeprefix("resnet")), levels=levels)
    depth = int(name.removeprefix("vgg").removesuffix("_bn"))
    return VGG(depth, name.endswith("_bn"), levels=levels)


@pytest.mark.parametrize("name", NAMED)
def test_names_and_shapes_are_torchvisions(name: str) -> None:
    encoder = make_encoder(name, ("logits",))
    expected = {
        entry: shape
        for entry, shape in read_shapes(name).items()
        if not entry.startswith(("aux1.", "aux2."))
    }
    assert weight_shapes(encoder) == expected


def recorded(name: str, kind: str) -> dict[str, np.ndarray]:
    """Returns recorded samples by name; ``kind`` is ``output`` or ``statistic``."""
    with np.load(FIXTURES / f"{name}.npz") as file:
        names = str(file[f"{kind}_names"]).splitlines()
        return dict(zip(names, file[f"{kind}s"], strict=True))


def assert_close(ours: Any, theirs: np.ndarray, what: str) -> None:
    np.testing.assert_allclose(ours, theirs, atol=TOLERANCE * np.abs(theirs).max(), err_msg=what)


def without_dropout(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
    return args[0] if isinstance(context.module, nn.Dropout) else call(*args, **kwargs)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    # vgg16_bn is slow, and the other VGGs have its layers.
    [pytest.param(name, marks=[pytest.mark.stress] * (name == "vgg16_bn")) for name in RECORDINGS],
)
def test_outputs_are_torchvisions(name: str) -> None:
    recording = RECORDINGS[name]
    encoder = make_encoder(name, tuple(recording.modules))
    state = {
        entry: draw_weight(entry, shape)
        for entry, shape in read_shapes(name).items()
        if "logits" in recording.modules or not entry.startswith("classifier")
    }
    found, report = fit_weights(encoder, state)
    assert not report, report
    variables = traverse_util.unflatten_dict(found)
    images = draw_images(recording.size)
    theirs = recorded(name, "output")

    outputs = jax.jit(lambda v, x: encoder.apply(v, x, train=False))(variables, images)
    assert set(outputs) == set(recording.modules)
    for level, output in outputs.items():
        assert_close(sample(output), theirs[f"eval/{level}"], level)
        assert np.asarray(output).std(0).max() > 0.02, f"{level} hardly depends on the image"
    if not recording.train:
        return

    @jax.jit
    def train_step(variables: Any, images: Any) -> Any:
        with nn.intercept_methods(without_dropout):
            return encoder.apply(variables, images, train=True, mutable=["batch_stats"])

    outputs, updated = train_step(variables, images)
    for level, output in outputs.items():
        assert_close(sample(output), theirs[f"train/{level}"], level)
    statistics = recorded(name, "statistic")
    flat = traverse_util.flatten_dict(updated)
    assert len(flat) == len(statistics) > 0
    for path, leaf in flat.items():
        entry = encoder.weight_name(path)
        assert_close(sample(leaf)[::6], statistics[f"statistics/{entry}"], entry)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_recorded_answers_are_torchvisions(name: str) -> None:
    pytest.importorskip("torchvision", reason="torchvision is not installed")
    live = record_outputs(name)
    for entry, values in (recorded(name, "output") | recorded(name, "statistic")).items():
        assert_close(live[entry][:: 48 // len(values)], values, entry)
    lines = [line.split(" ") for line in record_shapes(name).splitlines()]
    assert read_shapes(name) == {entry: tuple(map(int, s.split(","))) for entry, s in lines}
