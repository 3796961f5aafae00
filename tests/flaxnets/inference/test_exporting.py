"""Exports: equal to the model they were made of, alone in an environment without Flax."""

import dataclasses
import functools
import json
import pickle
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest
from PIL import Image

from flaxnets.configuration import describe_part
from flaxnets.decoders.show_and_tell import ShowAndTell
from flaxnets.decoders.show_attend_tell import SoftAttention
from flaxnets.encoders.efficientnet_lite import EfficientNetLite0
from flaxnets.encoders.small_cnn import SmallCNN
from flaxnets.heads.classifier import ClipClassifier, StepClassifier
from flaxnets.heads.pooling import AttentionPooling, pool_concatenate, pool_last, pool_max
from flaxnets.inference.exporting import export_model
from flaxnets.inference.functions import LinenClassifier
from flaxnets.inference.loading import load
from flaxnets.inference.lowering import portable
from flaxnets.inference.runtime.exported import MODEL_FORMAT, load_exported
from flaxnets.inference.runtime.models import Captioner as CaptionerInUse
from flaxnets.inference.runtime.models import Classifier
from flaxnets.inference.runtime.words import Words
from flaxnets.inference.store import build_model
from flaxnets.models.captioner import Captioner
from flaxnets.models.crnn import CRNN
from flaxnets.models.frozen_encoder import FrozenEncoder
from flaxnets.recurrent.cells import GRUCell, LSTMCell
from flaxnets.recurrent.convolutional_cells import ConvGRUCell
from flaxnets.recurrent.layers import Recurrent
from flaxnets.recurrent.linear_cells import LRUCell, MinGRUCell
from flaxnets.training import workdir

pytest.importorskip("flatbuffers", reason="exports are written with flatbuffers")

SIZE, FRAMES, K = 16, 5, 3
WORDS = tuple(f"word{number}" for number in range(20))
ROOT = Path(__file__).parents[3]
ENCODER = SmallCNN((4, 6), (2, 2))
LSTM = partial(LSTMCell, 5)
CONVOLUTIONAL = partial(ConvGRUCell, 4)


def initialize(network: nn.Module, *inputs: Any) -> Any:
    variables = jax.jit(partial(network.init, train=False))(jax.random.key(0), *inputs)
    rng = np.random.default_rng(0)  # Zero biases would hide what is left out.
    return jax.tree.map(
        lambda x: (np.abs(rng.normal(0, 0.3, x.shape)) + 0.1).astype(x.dtype), variables
    )


def classifier(network: nn.Module, **settings: Any) -> tuple[Classifier, dict[str, Any]]:
    described = {
        "format": MODEL_FORMAT,
        "kind": "video_classification",
        "name": "toy",
        "labels": ["wave", "walk", "sit"],
        "network": describe_part(network),
        "encoder": None,
        "averaging": "per_step",
        "preprocessing": {"kind": "clip", "size": [SIZE, SIZE], "num_frames": FRAMES} | settings,
    }
    frames = np.zeros((1, FRAMES, SIZE, SIZE, 3), np.uint8)
    variables = initialize(network, frames, np.array([FRAMES], np.int32))
    model = build_model(described, variables)
    assert isinstance(model, Classifier)
    return model, described


def captioner(network: Captioner) -> tuple[CaptionerInUse, dict[str, Any]]:
    described = {
        "format": MODEL_FORMAT,
        "kind": "captioning",
        "name": "toy captioner",
        "network": describe_part(network),
        "encoder": None,
        "search": {"beam_size": 3, "max_steps": 6},
        "preprocessing": {"kind": "image", "size": SIZE},
    }
    inputs = np.zeros((1, SIZE, SIZE, 3), np.uint8), np.ones((1, 1, 2), np.int32), np.ones((1, 1))
    variables = initialize(network, *inputs[:2], inputs[2].astype(np.int32))
    model = build_model(described, variables, Words(WORDS))
    assert isinstance(model, CaptionerInUse)
    return model, described


def crnn(cell: Any = LSTM, head: Any = None, **options: Any) -> CRNN:
    return CRNN(
        head or StepClassifier(K),
        encoder=options.pop("encoder", ENCODER),
        recurrent=cell and Recurrent(cell, **options),
        pool="none" if cell is CONVOLUTIONAL else "mean",
    )


def clips(count: int, seed: int = 0) -> np.ndarray:
    shape = (count, FRAMES, SIZE, SIZE, 3)
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


CAUSAL: dict[str, Callable[[], CRNN]] = {
    "lstm": lambda: crnn(),
    "stack": lambda: crnn(
        partial(GRUCell, 4),
        ClipClassifier(K, pool_max),
        num_layers=2,
        delta_features=True,
        normalize_inputs=True,
    ),
    "complex": lambda: crnn(partial(LRUCell, 4), ClipClassifier(K, pool_last)),
    "convolutional": lambda: crnn(CONVOLUTIONAL),
    "cnn": lambda: crnn(None),
}
WHOLE: dict[str, Callable[[], CRNN]] = {
    "bidirectional": lambda: crnn(partial(MinGRUCell, 4), bidirectional=True),
    "attention": lambda: crnn(head=ClipClassifier(K, AttentionPooling(3))),
    "concatenate": lambda: crnn(head=ClipClassifier(K, pool_concatenate)),
}


@pytest.mark.slow_after(3)
@pytest.mark.parametrize("name", [*CAUSAL, *WHOLE])
def test_an_exported_classifier_equals_its_model(name: str, tmp_path: Path) -> None:
    model, described = classifier((CAUSAL | WHOLE)[name]())
    folder = tmp_path / "exported"
    export_model(model, described, folder)
    exported = load_exported(folder)
    assert isinstance(exported, Classifier)
    assert (exported.name, exported.labels) == (model.name, model.labels)
    assert exported.functions.causal == model.functions.causal == (name in CAUSAL)
    # Batches of several sizes, and clips of several lengths, by the same functions.
    for count, lengths in ((1, [FRAMES]), (3, [2, FRAMES, 1])):
        arguments = clips(count), np.array(lengths, np.int32)
        own, theirs = model.functions.classify(*arguments), exported.functions.classify(*arguments)
        np.testing.assert_allclose(theirs.probabilities, own.probabilities, atol=1e-5)
        assert (theirs.steps is None) == (own.steps is None)
        if own.steps is not None and theirs.steps is not None:
            for a, b, n in zip(theirs.steps, own.steps, lengths, strict=True):
                np.testing.assert_allclose(a[:n], b[:n], atol=1e-5)
    if name not in CAUSAL:
        with pytest.raises(ValueError, match="expected a causal model"):
            exported.stream()
        return
    # The step function, chained over the clip.
    frames, carry = clips(2), exported.functions.start(2)
    for t in range(FRAMES):
        carry, _, so_far = exported.functions.step(carry, frames[:, t])
        so_long = np.full(2, t + 1, np.int32)
        whole = exported.functions.classify(frames, so_long).probabilities
        np.testing.assert_allclose(so_far, whole, atol=1e-5)


def test_a_frozen_encoder_sees_equal_frames_once(tmp_path: Path) -> None:
    model, described = classifier(crnn())
    module = FrozenEncoder(ENCODER, crnn(encoder=None), pool="max")
    frames = clips(3)
    frames[1, :3], lengths = frames[0, 2:], np.array([FRAMES, FRAMES, 2], np.int32)
    variables = initialize(module, frames, lengths)
    functions = LinenClassifier(module, variables, "per_step")
    model = dataclasses.replace(model, functions=functions)
    export_model(model, described, tmp_path / "exported")
    exported = load_exported(tmp_path / "exported")
    assert isinstance(exported, Classifier)
    own, theirs = (m.functions.classify(frames, lengths) for m in (model, exported))
    np.testing.assert_allclose(theirs.probabilities, own.probabilities, atol=1e-5)
    # The function of whole clips beside the two parts.
    whole: Any = exported.functions
    np.testing.assert_allclose(
        whole._functions["clip"](frames, lengths)[0], own.probabilities, atol=1e-5
    )
    carry = exported.functions.start(3)
    for t in range(FRAMES):
        carry, _, so_far = exported.functions.step(carry, frames[:, t])
    np.testing.assert_allclose(so_far[:2], own.probabilities[:2], atol=1e-5)


def test_clips_of_any_number_of_steps(tmp_path: Path) -> None:
    model, described = classifier(crnn())
    export_model(model, described, tmp_path / "exported")
    exported = load_exported(tmp_path / "exported")
    assert isinstance(exported, Classifier)
    frames = np.concatenate([clips(2, seed) for seed in range(3)], axis=1)
    lengths = np.array([15, 7], np.int32)
    own = model.functions.classify(frames, lengths).probabilities
    theirs = exported.functions.classify(frames, lengths).probabilities
    np.testing.assert_allclose(theirs, own, atol=1e-5)


def attending(encoder: Any = ENCODER) -> Captioner:
    return Captioner(
        SoftAttention(
            vocabulary_size=len(WORDS) + 4,
            make_cell=partial(LSTMCell, 6),
            embed_features=5,
            attention_features=4,
        ),
        encoder=encoder,
        chunk_images=2,
    )


@pytest.mark.slow
def test_an_exported_captioner_equals_its_model(tmp_path: Path) -> None:
    model, described = captioner(attending())
    assets = {"vocabulary.json": json.dumps({"format": 1, "words": WORDS}).encode()}
    export_model(model, described, tmp_path / "exported", assets=assets)
    exported = load(tmp_path / "exported")
    assert isinstance(exported, CaptionerInUse)
    images = [clips(1, seed)[0, 0] for seed in range(3)]
    own = model.caption(images, num_captions=3, attention=True)
    theirs = exported.caption(images, num_captions=3, attention=True)
    for image, other in zip(own, theirs, strict=True):
        assert [c.text for c in image] == [c.text for c in other]
        for a, b in zip(image, other, strict=True):
            assert a.log_probability == pytest.approx(b.log_probability, abs=1e-5)
            assert a.attention is not None
            assert b.attention is not None
            np.testing.assert_allclose(a.attention, b.attention, atol=1e-5)
    with pytest.raises(ValueError, match="num_captions: expected 1 to 3"):
        exported.caption(images[0], num_captions=4)


def test_a_decoder_without_attention_has_none(tmp_path: Path) -> None:
    decoder = ShowAndTell(
        vocabulary_size=len(WORDS) + 4, make_cell=partial(LSTMCell, 6), embed_features=5
    )
    model, described = captioner(
        Captioner(decoder, encoder=SmallCNN((4,), (4,), levels=("pooled",)))
    )
    assets = {"vocabulary.json": json.dumps({"format": 1, "words": WORDS}).encode()}
    export_model(model, described, tmp_path / "exported", assets=assets)
    exported = load_exported(tmp_path / "exported")
    assert isinstance(exported, CaptionerInUse)
    image = clips(1)[0, 0]
    assert exported.caption(image)[0].text == model.caption(image)[0].text
    with pytest.raises(ValueError, match="attention: expected False"):
        exported.caption(image, attention=True)


def test_loops_over_chunks_and_cudnn_are_left_out() -> None:
    network = CRNN(
        StepClassifier(K),
        encoder=ENCODER,
        recurrent=Recurrent(partial(LSTMCell, 4), backend="cudnn"),
        chunk_frames=2,
    )
    module = portable(FrozenEncoder(ENCODER, network, chunk_images=2))
    assert (module.chunk_images, module.network.chunk_frames) == (0, 0)
    assert module.network.recurrent.backend == "scan"
    assert module.network.classifier == network.classifier


def test_functions_are_lowered_for_all_platforms_with_native_operations(tmp_path: Path) -> None:
    """On other platforms than CPUs a depthwise convolution is XLA's own."""
    network = crnn(encoder=EfficientNetLite0(levels=("stage_1",)))
    model, described = classifier(network)
    export_model(model, described, tmp_path / "exported")
    from jax import export

    content = (tmp_path / "exported" / "clip.stablehlo").read_bytes()
    exported = export.deserialize(bytearray(content))
    assert exported.platforms == ("cpu", "cuda", "tpu")
    text = exported.mlir_module()
    assert "_platform_index" in text or "stablehlo.case" in text
    assert "feature_group_count = 32" in text
    # Parameters are arguments: no constant is as large as a kernel.
    assert len(content) < 200_000


@functools.cache
def _made(folder: Path) -> None:
    model, described = classifier(crnn())
    export_model(model, described, folder)


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Path:
    made = tmp_path_factory.getbasetemp() / "export_for_damage"
    _made(made)
    return Path(shutil.copytree(made, tmp_path / "copy"))


@pytest.mark.parametrize("name", ["clip.stablehlo", "step.stablehlo", "variables.safetensors"])
@pytest.mark.parametrize("how", ["truncated", "missing"])
def test_damaged_files_are_named(folder: Path, name: str, how: str) -> None:
    content = (folder / name).read_bytes()
    (folder / name).unlink()
    if how == "truncated":
        (folder / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=rf"{name}: (damaged|unreadable).*export the model again"):
        _use(folder)


def _use(folder: Path) -> None:
    model = load_exported(folder)
    assert isinstance(model, Classifier)
    model.functions.classify(clips(1), np.array([FRAMES], np.int32))
    model.functions.step(None, clips(1)[:, 0])


def test_another_format_and_another_folder_are_refused(folder: Path) -> None:
    path = folder / "model.json"
    described = json.loads(path.read_text())
    path.write_text(json.dumps({**described, "format": 2}))
    for read in (load_exported, load):
        with pytest.raises(ValueError, match=r"expected .*format 1, received (format )?2"):
            read(folder)
    del described["export"]
    path.write_text(json.dumps(described))
    with pytest.raises(ValueError, match=r"expected a folder that launch\.export wrote"):
        load_exported(folder)
    path.write_text("{")
    with pytest.raises(ValueError, match=r"expected a folder that launch\.export wrote"):
        load_exported(folder)
    model, described = classifier(crnn())
    with pytest.raises(ValueError, match="out: expected a folder that is new or empty"):
        export_model(model, described, folder)
    with pytest.raises(ValueError, match="received the file"):
        export_model(model, described, path)
    assert MODEL_FORMAT == workdir.MODEL_FORMAT


def test_incomplete_descriptions_are_refused(folder: Path) -> None:
    path = folder / "model.json"
    described = json.loads(path.read_text())
    export = described["export"]
    outside = {"file": "../model.json", "sha256": ""}
    changes: dict[str, dict[str, Any]] = {
        "labels: expected a JSON array": {"labels": None},
        "preprocessing: expected a JSON object": {"preprocessing": 3},
        "export: expected a JSON object": {"export": []},
        "export: expected functions": {"export": {**export, "functions": {}}},
        "expected a file of this folder": {
            "export": {**export, "functions": {**export["functions"], "clip": outside}}
        },
    }
    for message, change in changes.items():
        path.write_text(json.dumps({**described, **change}))
        for read in (load_exported, load):
            with pytest.raises(ValueError, match=message):
                read(folder)


def test_an_export_is_pickled(folder: Path) -> None:
    model = load_exported(folder)
    assert isinstance(model, Classifier)
    again = pickle.loads(pickle.dumps(model))
    frames, lengths = clips(1), np.array([FRAMES], np.int32)
    found = again.functions.classify(frames, lengths).probabilities
    np.testing.assert_array_equal(found, model.functions.classify(frames, lengths).probabilities)


def test_an_export_is_not_exported_again(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="received an export"):
        export_model(load_exported(folder), {}, tmp_path / "again")


@functools.cache
def environment() -> Path:
    """Python of an environment with nothing but what an export needs; made once."""
    made = ROOT / "runs" / "venv_exported"
    python = made / "bin" / "python"
    ready = made / "ready"
    if not ready.exists():
        venv.create(made, with_pip=True, clear=True)
        needs = ("jax", "numpy", "pillow", "safetensors", "flatbuffers", "av")
        command = [str(python), "-m", "pip", "install", "-q", "-c", "constraints.txt", *needs]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"the environment cannot be made: {done.stderr.strip().splitlines()[-1]}")
        ready.touch()
    return python


@pytest.mark.slow
@pytest.mark.subprocess
def test_an_export_runs_without_flax(tmp_path: Path) -> None:
    python = environment()
    model, described = captioner(attending())
    assets = {"vocabulary.json": json.dumps({"format": 1, "words": WORDS}).encode()}
    export_model(model, described, tmp_path / "captions", assets=assets)
    photograph = tmp_path / "photograph.png"
    Image.fromarray(clips(1)[0, 0]).save(photograph)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from runtime.exported import main;"
        "import importlib.util as u;"
        "assert not any(map(u.find_spec, ('flax', 'optax', 'orbax', 'flaxnets')));"
        "sys.exit(main(*sys.argv[1:2], sys.argv[2:]))"
    )
    command = [str(python), "-I", "-c", code, str(tmp_path / "captions"), str(photograph)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["captions"][0]
    own = model.caption(str(photograph))[0]
    assert found["text"] == own.text
    assert found["log_probability"] == pytest.approx(own.log_probability, abs=1e-5)
    model_of_clips, described = classifier(crnn())
    export_model(model_of_clips, described, tmp_path / "clips")
    video = tmp_path / "video.npy"
    np.save(video, clips(1)[0])
    code = (
        "import sys, json, numpy as np; sys.path.insert(0, sys.argv[1]);"
        "from runtime.exported import load_exported; m = load_exported(sys.argv[1]);"
        "v = np.load(sys.argv[2]); s = m.stream(); steps = [s(f) for f in v];"
        "print(json.dumps([m.predict(v).probabilities.tolist(), steps[-1].smoothed.tolist()]))"
    )
    command = [str(python), "-I", "-c", code, str(tmp_path / "clips"), str(video)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    own_probabilities = model_of_clips.predict(clips(1)[0]).probabilities
    np.testing.assert_allclose(json.loads(done.stdout), [own_probabilities] * 2, atol=1e-5)
    # The command of the folder itself.
    command = [str(python), str(tmp_path / "captions" / "run.py"), str(photograph), "missing.png"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 1
    first, second = map(json.loads, done.stdout.splitlines())
    assert first["captions"][0]["text"] == own.text
    assert "error" in second
    assert sys.executable != str(python)
