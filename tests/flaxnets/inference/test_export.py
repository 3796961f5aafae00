"""Exported variables equal the original ones when they are read back."""

from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest
import safetensors.numpy
from flax import traverse_util

from flaxnets.encoders.pretrained import load_pretrained, read_weights
from flaxnets.encoders.resnet import ResNet
from flaxnets.inference.export import to_encoder_tensors, to_tensors, write_safetensors


def random_variables(model: nn.Module, inputs: np.ndarray, **options: Any) -> Any:
    shapes = jax.eval_shape(lambda key: model.init(key, inputs, **options), jax.random.key(0))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype), shapes)


def test_all_variables_come_back_under_their_paths(tmp_path: Path) -> None:
    network = nn.Sequential([nn.Dense(3), nn.BatchNorm(use_running_average=True), nn.Dense(2)])
    variables = random_variables(network, np.zeros((1, 4), np.float32))
    write_safetensors(tmp_path / "all.safetensors", to_tensors(variables), {"step": "7"})
    tensors = read_weights(tmp_path / "all.safetensors")
    assert tensors["params.layers_0.kernel"].shape == (4, 3)
    assert tensors["batch_stats.layers_1.mean"].shape == (3,)
    jax.tree.map(
        np.testing.assert_array_equal, traverse_util.unflatten_dict(tensors, sep="."), variables
    )
    with safetensors.safe_open(tmp_path / "all.safetensors", "numpy") as file:
        assert file.metadata() == {"step": "7"}
    assert [path.name for path in tmp_path.iterdir()] == ["all.safetensors"]


def test_an_encoder_is_read_as_pretrained_weights_are(tmp_path: Path) -> None:
    encoder = ResNet(18, levels=("stage_1",))
    own = random_variables(encoder, np.zeros((1, 32, 32, 3), np.uint8), train=False)
    model = {name: {"encoder": tree, "recurrent": {"b": 1}} for name, tree in own.items()}
    tensors = to_encoder_tensors(encoder, model)
    assert tensors["layer1.0.conv1.weight"].shape == (64, 64, 3, 3)
    assert tensors["bn1.running_var"].shape == (64,)
    write_safetensors(tmp_path / "encoder.safetensors", tensors, {})
    loaded = load_pretrained(encoder, tmp_path / "encoder.safetensors")
    jax.tree.map(np.testing.assert_array_equal, loaded, own)


def test_what_cannot_be_exported_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected FILE\.safetensors, received .*weights\.pth"):
        write_safetensors(tmp_path / "weights.pth", {}, {})
    with pytest.raises(ValueError, match="expected a part 'encoder', received none"):
        to_encoder_tensors(ResNet(18, levels=("stage_1",)), {"params": {"recurrent": {}}})
