"""Recorder of torchvision's outputs for weights and images that NumPy draws.

    python -m tests.flaxnets.encoders.record_torchvision

writes ``fixtures/``: for each network the names and shapes of its ``state_dict``, and for some of
them samples of the outputs at each endpoint, so that the tests need no PyTorch. Where torchvision
is installed, a test compares the files with its current outputs.
"""

import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

FIXTURES = Path(__file__).parent / "fixtures"
NAMED = (
    *("alexnet", "googlenet", "mobilenet_v2"),
    *(f"resnet{depth}" for depth in (18, 34, 50, 101, 152)),
    *(f"vgg{depth}{suffix}" for depth in (11, 13, 16, 19) for suffix in ("", "_bn")),
)
"""Networks whose names and shapes are recorded."""


class Recording(NamedTuple):
    """Settings of one recording.

    Attributes:
      size: height and width of the images.
      modules: endpoint to the module of torchvision whose output it is, in order.
      train: whether it is also recorded with BatchNorm in training, up to ``pooled``.
    """

    size: tuple[int, int]
    modules: dict[str, str]
    train: bool


# Sizes that are odd and even, and no multiples of 32.
RECORDINGS = {
    "alexnet": Recording(
        (65, 90),
        {
            **{"conv1": "features.1", "pool1": "features.2", "conv2": "features.4"},
            **{"pool2": "features.5", "conv3": "features.7", "conv4": "features.9"},
            **{"conv5": "features.11", "pool5": "features.12", "fc6": "classifier.2"},
            **{"fc7": "classifier.5", "logits": "classifier"},
        },
        train=False,
    ),
    "googlenet": Recording(
        (65, 48),
        {
            **{name: name for name in ("conv1", "conv2", "conv3", "inception3a", "inception3b")},
            **{f"inception4{letter}": f"inception4{letter}" for letter in "abcde"},
            **{"inception5a": "inception5a", "inception5b": "inception5b"},
            **{"pooled": "avgpool", "logits": "fc"},
        },
        train=True,
    ),
    "mobilenet_v2": Recording(
        (65, 48),
        {
            "stem": "features.0",
            **{f"stage_{i + 1}": f"features.{n}" for i, n in enumerate((1, 3, 6, 10, 13, 16, 17))},
            **{"head": "features.18", "pooled": "classifier.0", "logits": "classifier"},
        },
        train=True,
    ),
    **{
        name: Recording(
            (65, 48),
            {
                "stem": "relu",
                **{f"stage_{i}": f"layer{i}" for i in (1, 2, 3, 4)},
                **{"pooled": "avgpool", "logits": "fc"},
            },
            train=name == "resnet18",
        )
        for name in ("resnet18", "resnet50")
    },
    "vgg11": Recording(
        (65, 48),
        {
            **{"conv1_1": "features.1", "pool1": "features.2", "conv2_1": "features.4"},
            **{"pool2": "features.5", "conv3_1": "features.7", "conv3_2": "features.9"},
            **{"pool3": "features.10", "pool4": "features.15", "conv5_2": "features.19"},
            **{"pool5": "features.20", "fc6": "classifier.1", "fc7": "classifier.4"},
            "logits": "classifier",
        },
        train=False,
    ),
    "vgg16_bn": Recording(
        (65, 48),
        {
            **{"conv1_1": "features.2", "conv1_2": "features.5", "pool1": "features.6"},
            **{"pool2": "features.13", "pool3": "features.23", "conv4_1": "features.26"},
            **{"pool4": "features.33", "conv5_3": "features.42", "pool5": "features.43"},
        },
        train=True,
    ),
}


def draw_weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Returns float32 weights, a function of name and shape, that keep the variance."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if len(shape) > 1:
        scale = np.float32(np.sqrt(1.6 / np.prod(shape[1:])))
        return scale * rng.standard_normal(shape, np.float32)
    low, high = (0.6, 1.2) if name.endswith(("weight", "running_var")) else (-0.2, 0.2)
    return rng.uniform(low, high, shape).astype(np.float32)


def draw_images(size: tuple[int, int]) -> np.ndarray:
    """Returns random images (4,H,W,3) float32."""
    return np.random.default_rng(0).standard_normal((4, *size, 3), np.float32)


def sample(values: Any) -> np.ndarray:
    """Returns 48 evenly spaced values of an array, float32."""
    flat = np.asarray(values, np.float32).reshape(-1)
    return flat[np.linspace(0, flat.size - 1, 48).astype(int)]


def read_shapes(name: str) -> dict[str, tuple[int, ...]]:
    """Returns names and shapes of the ``state_dict``, without ``num_batches_tracked``."""
    with np.load(FIXTURES / f"{name}.npz") as file:
        lines = str(file["state_dict"]).splitlines()
    pairs = (line.split(" ") for line in lines)
    return {entry: tuple(map(int, shape.split(","))) for entry, shape in pairs}


def record_shapes(name: str) -> str:
    """Returns a line ``name 64,3,7,7`` for each entry of torchvision's ``state_dict``."""
    return "\n".join(
        f"{entry} {','.join(map(str, tensor.shape))}"
        for entry, tensor in make_empty_network(name).state_dict().items()
        if not entry.endswith("num_batches_tracked")
    )


def make_empty_network(name: str) -> Any:
    """Returns the network of torchvision with shapes but no values yet."""
    import torch
    import torchvision

    settings = {"transform_input": True, "init_weights": False} if name == "googlenet" else {}
    with torch.device("meta"):
        return getattr(torchvision.models, name)(**settings)


def make_network(name: str) -> Any:
    """Returns the network of torchvision with the weights of ``draw_weight``."""
    import torch

    network = make_empty_network(name).to_empty(device="cpu")
    state = {
        entry: torch.from_numpy(draw_weight(entry, tuple(tensor.shape)))
        for entry, tensor in network.state_dict().items()
        if not entry.endswith("num_batches_tracked")
    }
    network.load_state_dict(state, strict=False)
    return network


def record_outputs(name: str) -> dict[str, np.ndarray]:
    """Returns samples ``eval/ENDPOINT``, ``train/ENDPOINT`` and of the updated statistics."""
    import torch

    recording = RECORDINGS[name]
    network = make_network(name)
    modules = dict(network.named_modules())
    if "logits" not in recording.modules:  # The classifier takes long and is that of VGG-11.
        network.classifier = torch.nn.Identity()
    outputs: dict[str, Any] = {}

    def watch(level: str) -> Any:
        def keep(module: Any, inputs: Any, output: Any) -> None:
            # The block's ReLUs reuse the module ``relu``: only its first call is the stem's.
            outputs.setdefault(level, output.detach().clone())

        return keep

    for level, module in recording.modules.items():
        modules[module].register_forward_hook(watch(level))
    images = torch.from_numpy(draw_images(recording.size)).permute(0, 3, 1, 2)
    samples: dict[str, np.ndarray] = {}
    for mode in ("eval", "train") if recording.train else ("eval",):
        network.train(mode == "train")
        for module in modules.values():
            if isinstance(module, torch.nn.Dropout):
                module.eval()
        outputs.clear()
        with torch.no_grad():
            network(images)
        for level, output in outputs.items():
            if output.ndim == 4:
                output = output.permute(0, 2, 3, 1)
            samples[f"{mode}/{level}"] = sample(output.numpy())
    for entry, tensor in network.state_dict().items() if recording.train else ():
        if entry.endswith(("running_mean", "running_var")) and not entry.startswith("aux"):
            samples[f"statistics/{entry}"] = sample(tensor.numpy())
    return samples


def main() -> None:
    """Writes all fixtures."""
    FIXTURES.mkdir(exist_ok=True)
    for name in NAMED:
        arrays = record_outputs(name) if name in RECORDINGS else {}
        outputs = [key for key in arrays if not key.startswith("statistics/")]
        statistics = [key for key in arrays if key.startswith("statistics/")]
        np.savez_compressed(
            FIXTURES / f"{name}.npz",
            state_dict=np.array(record_shapes(name)),
            output_names=np.array("\n".join(outputs)),
            outputs=np.array([arrays[key] for key in outputs], np.float32),
            statistic_names=np.array("\n".join(statistics)),
            statistics=np.array([arrays[key][::6] for key in statistics], np.float32),
        )


if __name__ == "__main__":
    main()
