"""Weight files: round trips of every format, and lists of mismatches."""

import os
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from flaxnets.encoders.encoder import Encoder
from flaxnets.encoders.googlenet import GoogLeNet
from flaxnets.encoders.pretrained import fit_weights, load_pretrained, read_weights
from flaxnets.encoders.resnet import ResNet
from flaxnets.encoders.small_cnn import SmallCNN
from flaxnets.encoders.torch_checkpoint import PthError, read_pth
from flaxnets.encoders.vgg import VGG
from tests.flaxnets.encoders.pth_files import (
    EMPTY_TUPLE,
    named,
    state,
    storage,
    tensor,
    write_zip,
)
from tests.flaxnets.encoders.record_torchvision import draw_weight, make_network, read_shapes
from tests.flaxnets.encoders.weights import draw_state, draw_variables

SMALL = SmallCNN((4, 6), (2, 2), levels=("logits",), num_classes=3)
BEGINNING = ResNet(18, levels=("stage_1",))


def fake_state(name: str) -> dict[str, np.ndarray]:
    """Returns zeros that take no memory, with the names and shapes of torchvision's network."""
    zero = np.zeros((), np.float32)
    return {entry: np.broadcast_to(zero, shape) for entry, shape in read_shapes(name).items()}


def assert_same(actual: Any, expected: Any) -> None:
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)


def save(state: dict[str, Any], path: Path) -> Path:
    safetensors.numpy.save_file(state, path)
    return path


@pytest.mark.parametrize("encoder", [SMALL, BEGINNING])
def test_safetensors_round_trip(encoder: Encoder, tmp_path: Path) -> None:
    path = save(draw_state(encoder), tmp_path / "weights.safetensors")
    assert_same(load_pretrained(encoder, path), draw_variables(encoder))


def test_every_dtype_round_trips(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    kinds = (np.float64, np.float32, np.float16, jnp.bfloat16, np.int64, np.uint8, np.bool_)
    state = {np.dtype(kind).name: rng.uniform(0, 3, (2, 3)).astype(kind) for kind in kinds}
    state |= {"scalar": np.array(2, np.float32), "empty": np.zeros((0, 3), np.float32)}
    loaded = read_weights(save(state, tmp_path / "weights.safetensors"))
    assert loaded.keys() == state.keys()
    for name, array in state.items():
        assert loaded[name].dtype == array.dtype
        np.testing.assert_array_equal(loaded[name], array)


def test_weights_are_converted_to_the_dtypes_of_the_network(tmp_path: Path) -> None:
    state = {name: array.astype(jnp.bfloat16) for name, array in draw_state(SMALL).items()}
    path = save(state, tmp_path / "weights.safetensors")
    variables = load_pretrained(SMALL, path)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype(np.float32)}
    half = load_pretrained(SMALL.clone(param_dtype=jnp.bfloat16), path)
    assert {x.dtype for x in jax.tree.leaves(half["params"])} == {np.dtype(jnp.bfloat16)}
    assert {x.dtype for x in jax.tree.leaves(half["batch_stats"])} == {np.dtype(np.float32)}


@pytest.mark.parametrize("legacy", [False, True])
def test_files_of_pytorch(legacy: bool, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    pytest.importorskip("torchvision", reason="torchvision is not installed")
    import safetensors.torch

    network = make_network("resnet50")
    path = tmp_path / "weights.pth"
    torch.save(network.state_dict(), path, _use_new_zipfile_serialization=not legacy)
    encoder = ResNet(50, levels=("logits",))
    variables = load_pretrained(encoder, path)
    np.testing.assert_array_equal(
        variables["params"]["layer3_5"]["conv2"]["kernel"],
        draw_weight("layer3.5.conv2.weight", (256, 256, 3, 3)).transpose(2, 3, 1, 0),
    )
    safetensors.torch.save_file(network.state_dict(), tmp_path / "weights.safetensors")
    assert_same(load_pretrained(encoder, tmp_path / "weights.safetensors"), variables)
    wrapped = {
        "model": {f"module.{name}": array for name, array in network.state_dict().items()},
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]},
        "epoch": 90,
    }
    torch.save(wrapped, tmp_path / "checkpoint.pt", _use_new_zipfile_serialization=not legacy)
    assert_same(load_pretrained(encoder, tmp_path / "checkpoint.pt"), variables)
    assert read_pth(tmp_path / "checkpoint.pt")["epoch"] == 90


class Checkpoint:
    """Writer of nested dictionaries of arrays as ``torch.save`` writes them, without PyTorch."""

    def __init__(self) -> None:
        self.data: dict[str, bytes] = {}

    def pickled(self, value: Any) -> bytes:
        """Returns the opcodes of a dictionary or an array; of bytes these themselves."""
        if isinstance(value, bytes):
            return value
        if isinstance(value, dict):
            return state(**{name: self.pickled(item) for name, item in value.items()})
        key, array = f"{len(self.data)}", np.ascontiguousarray(value)
        self.data[f"_{key}"] = array.tobytes()
        strides = tuple(step // array.itemsize for step in array.strides)
        # ascontiguousarray makes one axis of none.
        shape, strides = (array.shape, strides) if np.ndim(value) else ((), ())
        return tensor(storage(array.dtype.str.replace("|", ""), key, array.size), 0, shape, strides)

    def write(self, path: Path, content: dict[str, Any]) -> Path:
        """Writes a file and returns its path."""
        return write_zip(path, self.pickled(content), **self.data)


def prefixed(prefix: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {f"{prefix}{name}": array for name, array in arrays.items()}


WEIGHTS = draw_state(SMALL)
COUNT = np.array(3, np.int64)
NAMESPACE = named("argparse.Namespace") + EMPTY_TUPLE + b"\x81}b"
OPTIMIZER = {"state": {"0": {"exp_avg": np.ones(3, np.float32)}}, "param_groups": b"]"}
NESTS: dict[str, dict[str, Any]] = {
    "compiled.pth": prefixed("_orig_mod.", WEIGHTS),
    "averaged.pt": {"n_averaged": COUNT} | prefixed("module.", WEIGHTS),
    "averaged_compiled.pt": {"n_averaged": COUNT} | prefixed("_orig_mod.module.", WEIGHTS),
    "parallel_compiled.pt": prefixed("module._orig_mod.module.", WEIGHTS),
    "sharded.bin": prefixed("_fsdp_wrapped_module.", WEIGHTS),
    "inside.bin": {
        name.replace(".", "._orig_mod._checkpoint_wrapped_module.", 1): array
        for name, array in WEIGHTS.items()
    },
    "model_best.pth.tar": {
        "epoch": b"K\x05",
        "state_dict": prefixed("module.", WEIGHTS),
        "best_acc1": np.array(71.2, np.float32),
        "optimizer": OPTIMIZER,
    },
    "reference.PTH": {"model": WEIGHTS, "args": NAMESPACE, "lr_scheduler": NAMESPACE},
    "dtype.pth": {"state_dict": WEIGHTS, "dtype": named("torch.float32")},
    "net.th": {"net": WEIGHTS, "acc": b"N"},
    "ema.pth": {"model_ema": {"n_averaged": COUNT} | prefixed("module.", WEIGHTS)},
    "ema_object.pth": {"model": NAMESPACE, "ema": {"state_dict": WEIGHTS}},
    "both.pth": {
        "model_ema": prefixed("module.", WEIGHTS) | {"n_averaged": COUNT},
        "model": WEIGHTS,
    },
    "settings.pth": {"model": {"depth": b"K\x12"}, "params": {"lr": b"N"}, "network": WEIGHTS},
    "deep.model": {"checkpoint": {"model": {"state_dict": prefixed("module.", WEIGHTS)}}},
    "own_name.pkl": {"my_cnn": WEIGHTS, "rng": np.ones(9, np.uint8), "loss": np.array(1.5)},
    "lightning.ckpt": {
        "pytorch-lightning_version": b"N",
        "state_dict": prefixed("model.backbone.", WEIGHTS) | {"model.head.bias": np.ones(3)},
        "hyper_parameters": NAMESPACE,
    },
    "segment.pth": prefixed("module.base_model.", WEIGHTS) | {"module.new_fc.bias": np.ones(3)},
    "extra.pth": WEIGHTS | {"_extra_state": NAMESPACE, "epoch": b"K\x05"},
}


@pytest.mark.parametrize("name", NESTS)
def test_checkpoints_as_people_have_them(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = Checkpoint().write(tmp_path / name, NESTS[name])
    assert_same(load_pretrained(SMALL, path), draw_variables(SMALL))
    notes = {
        "reference.PTH": "skipped what is neither a tensor nor a container: argparse.Namespace",
        "dtype.pth": "skipped what is neither a tensor nor a container: torch.float32",
        "both.pth": "took the weights under 'model', left out those under model_ema",
        "lightning.ckpt": "under the prefix 'model.backbone.', left out 1 others",
        "extra.pth": "left out what is no tensor: '_extra_state', 'epoch'",
    }
    assert notes.get(name, "") in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"student": WEIGHTS, "teacher": WEIGHTS},
            "one dictionary of weights, found 'student', 't",
        ),
        ({"state_dict": prefixed("q.", WEIGHTS) | prefixed("k.", WEIGHTS)}, "prefixes 'k.', 'q.'"),
        ({"model": NAMESPACE, "ema": b"N"}, "objects 'model' (argparse.Namespace), which are not"),
        ({"epoch": b"K\x05", "model": {"lr": b"N"}}, "found no dictionary of tensors"),
        (WEIGHTS | prefixed("_orig_mod.", WEIGHTS), "is there twice"),
        ({"model": b"}q\x07(" + b"X\x05\0\0\0modelh\x07u"}, "found no dictionary of tensors"),
        ({"state_dict": {"q": {"w": np.ones(3)}, "k": {"w": np.ones(3)}}}, "found 'q', 'k'"),
    ],
)
def test_checkpoints_that_leave_a_choice_or_none(
    content: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = Checkpoint().write(tmp_path / "a.pth", content)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        load_pretrained(SMALL, path)
    assert str(path) in str(error.value)


def test_a_dictionary_nested_in_itself_ends(tmp_path: Path) -> None:
    names = ("model", "net", "ema", "state_dict", "module", "weights", "params", "network")
    itself = b"".join(b"X" + len(n).to_bytes(4, "little") + n.encode() + b"h\x07" for n in names)
    path = write_zip(tmp_path / "a.pth", b"}q\x07(" + itself + b"u")
    with pytest.raises(PthError, match="found no dictionary of tensors"):
        read_weights(path)


def test_the_content_decides_between_the_two_formats(tmp_path: Path) -> None:
    path = save(WEIGHTS, tmp_path / "weights.safetensors").rename(tmp_path / "weights.bin")
    assert_same(load_pretrained(SMALL, path), draw_variables(SMALL))


def test_layers_behind_the_deepest_endpoint_are_optional() -> None:
    state = fake_state("resnet18")
    for levels in (("stem",), (), ("pooled",), ("logits",)):
        _, report = fit_weights(
            ResNet(18, levels=levels, num_classes=5 if not levels else 1000), state
        )
        assert not report, report
    del state["fc.weight"], state["fc.bias"]
    assert not fit_weights(ResNet(18), state)[1]
    assert fit_weights(ResNet(18, levels=("logits",)), state)[1].missing == (
        "fc.bias",
        "fc.weight",
    )


def test_counters_and_auxiliary_classifiers_are_ignored() -> None:
    state = fake_state("googlenet") | {"conv1.bn.num_batches_tracked": np.array(3)}
    assert any(name.startswith("aux1.") for name in state)
    assert not fit_weights(GoogLeNet(levels=("logits",)), state)[1]
    unused = fit_weights(ResNet(18), state)[1].unused
    assert "conv1.bn.num_batches_tracked" not in unused
    assert "aux1.conv.conv.weight" in unused


@pytest.mark.parametrize(
    ("encoder", "other", "parts"),
    [
        (
            ResNet(34, levels=("logits",)),
            "resnet18",
            ["80 missing: ", "layer1.2.bn1.running_mean", ", …"],
        ),
        (
            ResNet(18),
            "resnet34",
            ["80 unused: layer1.2.conv1.weight, layer1.2.bn1.weight", ", …"],
        ),
        (
            ResNet(50),
            "resnet34",
            [
                " missing: ",
                " misshapen: layer1.0.conv1.weight (expected (64, 64, 1, 1), received "
                "(64, 64, 3, 3))",
            ],
        ),
        (VGG(11), "resnet18", ["16 missing: features.0.bias", " unused: conv1.weight"]),
        (VGG(16), "vgg16_bn", [" missing: features.", " unused: features."]),
        (
            ResNet(18, levels=("logits",), num_classes=10),
            "resnet18",
            ["2 misshapen: fc.weight (expected (10, 512), received (1000, 512)), fc.bias ("],
        ),
    ],
)
def test_a_file_of_another_architecture_lists_the_first_mismatches(
    encoder: Encoder, other: str, parts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flaxnets.encoders.pretrained.read_weights", lambda _: fake_state(other))
    with pytest.raises(ValueError, match="the weights do not fit") as error:
        load_pretrained(encoder, "other.pth")
    message = str(error.value)
    assert message.startswith(f"other.pth: the weights do not fit {type(encoder).__name__}: ")
    for part in parts:
        assert part in message
    assert len(message) < 3000


def test_not_strict_loads_what_fits_and_initialises_the_rest(tmp_path: Path) -> None:
    state = draw_state(SMALL)
    whole = draw_variables(SMALL)
    del state["norm.0.running_var"]
    state["classifier.weight"] = np.zeros((7, 6), np.float32)
    state["extra"] = np.zeros(3, np.float32)
    path = save(state, tmp_path / "weights.safetensors")
    with pytest.raises(
        ValueError, match=r"1 missing: norm\.0\.running_var; 1 unused: extra; 1 mis"
    ):
        load_pretrained(SMALL, path)
    variables, report = load_pretrained(SMALL, path, strict=False, key=jax.random.key(0))
    assert report.missing == ("norm.0.running_var",)
    assert report.unused == ("extra",)
    assert report.misshapen == ("classifier.weight (expected (3, 6), received (7, 6))",)
    images = np.zeros((1, 8, 8, 3), np.uint8)
    drawn: Any = jax.jit(lambda: SMALL.init(jax.random.key(0), images, train=False))()
    whole["batch_stats"]["norm_0"]["var"] = np.ones(4, np.float32)
    whole["params"]["classifier"]["kernel"] = drawn["params"]["classifier"]["kernel"]
    assert_same(variables, whole)


def test_a_key_is_required_only_if_not_strict(tmp_path: Path) -> None:
    path = save(draw_state(SMALL), tmp_path / "weights.safetensors")
    calls: list[tuple[dict[str, Any], str]] = [
        ({"strict": False}, "key: expected one when not strict, received None"),
        ({"key": jax.random.key(0)}, "key: expected none when strict"),
    ]
    for settings, message in calls:
        with pytest.raises(ValueError, match=message):
            load_pretrained(SMALL, path, **settings)
    _, report = load_pretrained(SMALL, path, strict=False, key=jax.random.key(0))
    assert str(report) == "nothing differs"


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent\.safetensors"):
        read_weights(tmp_path / "absent.safetensors")
    with pytest.raises(ValueError, match=r"path: expected a \.pth, \.pt or \.safetensors file"):
        read_weights(tmp_path / "weights.h5")
    good = save({"a": np.ones(3, np.float32)}, tmp_path / "good.safetensors").read_bytes()
    for content in (b"", b"not weights at all", good[:-3]):
        path = tmp_path / "bad.safetensors"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"bad\.safetensors: not a \.safetensors file"):
            read_weights(path)
    path.write_bytes(good.replace(b'"F32"', b'"U32"'))
    with pytest.raises(ValueError, match=r"a: expected numbers of F64, .*received U32"):
        read_weights(path)


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_a_pipe_is_no_file_of_weights(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="expected a file of weights"):
        read_weights(tmp_path / name)
