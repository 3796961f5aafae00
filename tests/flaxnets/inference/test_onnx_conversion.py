"""Conversion to ONNX: rewriting without the converter, and equal results with it."""

import importlib.util
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxnets.heads.classifier import ClipClassifier
from flaxnets.heads.pooling import AttentionPooling, pool_concatenate, pool_max
from flaxnets.inference import exporting, onnx_conversion
from flaxnets.inference.exporting import export_model
from flaxnets.inference.functions import LinenClassifier
from flaxnets.inference.onnx_conversion import ConversionRefused, OnnxFunction, rewrite
from flaxnets.models.crnn import CRNN
from flaxnets.recurrent.cells import GRUCell, LSTMCell
from flaxnets.recurrent.convolutional_cells import ConvLSTMCell
from flaxnets.recurrent.layers import Recurrent
from flaxnets.recurrent.linear_cells import LRUCell, MinGRUCell
from tests.flaxnets.inference import sounds
from tests.flaxnets.inference.test_exporting import (
    ENCODER,
    FRAMES,
    K,
    StepClassifier,
    attending,
    captioner,
    classifier,
    clips,
    crnn,
)

pytest.importorskip("flatbuffers", reason="exports are written with flatbuffers")

needs_converter = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("jax2onnx", "onnxruntime")),
    reason="the extra onnx is not installed",
)

CONVERTED: dict[str, Callable[[], CRNN]] = {
    "lstm": lambda: crnn(),
    "bidirectional": lambda: crnn(partial(LSTMCell, 5), bidirectional=True),
    "stack": lambda: crnn(
        partial(GRUCell, 4), ClipClassifier(K, pool_max), num_layers=2, normalize_inputs=True
    ),
    "minimal": lambda: crnn(partial(MinGRUCell, 4)),
    "convolutional": lambda: CRNN(
        StepClassifier(K),
        encoder=ENCODER,
        recurrent=Recurrent(partial(ConvLSTMCell, 4)),
        pool="none",
    ),
    "attention": lambda: crnn(head=ClipClassifier(K, AttentionPooling(3))),
    "concatenate": lambda: crnn(head=ClipClassifier(K, pool_concatenate)),
}


@pytest.mark.parametrize("name", ["bidirectional", "minimal"])
def test_rewriting_keeps_the_values(name: str) -> None:
    model, _ = classifier(CONVERTED[name]())
    functions: Any = model.functions
    own = LinenClassifier(exporting.portable(functions.module), functions.variables, "per_step")

    def clip(frames: Any, lengths: Any) -> list[Any]:
        return jax.tree.leaves(own.classify_clips(own.variables, frames, lengths))

    arguments = clips(2), np.array([FRAMES, 2], np.int32)
    (b,) = jax.export.symbolic_shape("b")
    shapes = [jax.ShapeDtypeStruct((b, *x.shape[1:]), x.dtype) for x in arguments]
    written = rewrite(clip, *shapes)
    text = str(jax.make_jaxpr(written)(*shapes))
    for operation in ("platform_index", "reverse=True", "custom_vjp"):
        assert operation not in text
    fixed = rewrite(clip, *(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in arguments))
    both = jax.jit(fixed)(*arguments), jax.jit(clip)(*arguments)
    for one, other in zip(*both, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_control_flow_and_padding_are_kept() -> None:
    def function(x: Any) -> list[Any]:
        doubled = jax.lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, 2 * c[1]), (0, x))[1]
        chosen = jax.lax.cond(x[0, 0] > 0, lambda y: y + 1, lambda y: y - 1, x)
        padded = jax.lax.pad(x, -1.0, [(1, 2, 2), (0, -1, 0)])
        platform = jax.lax.platform_dependent(x, cpu=lambda y: y, default=lambda y: y + 0.0)
        return [doubled, chosen, padded, platform]

    x = jnp.arange(1.0, 7.0).reshape(2, 3)
    written = rewrite(function, jax.ShapeDtypeStruct(x.shape, x.dtype))
    text = str(jax.make_jaxpr(written)(x))
    assert "platform_index" not in text
    for one, other in zip(written(x), function(x), strict=True):
        np.testing.assert_array_equal(one, other)
    assert all("2)" not in part.split(")")[0] for part in text.split("padding_config=")[1:])


def test_pooling_remainders_and_open_batches_are_written_otherwise() -> None:
    def function(x: Any, lengths: Any) -> list[Any]:
        windows = ((1, 3, 2, 1), (1, 2, 2, 1), ((0, 0), (1, 1), (0, 0), (0, 0)))
        pooled = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, *windows)
        padded = jax.lax.pad(x, 2.0, [(0, 0, 0), (1, 0, 0), (0, 3, 0), (0, 0, 0)])
        return [pooled, padded, jax.lax.rem(lengths, 4), -(-lengths // 4)]

    x = np.random.default_rng(0).normal(size=(3, 5, 6, 2)).astype(np.float32)
    lengths = np.array([9, 4, -3], np.int32)
    (b,) = jax.export.symbolic_shape("b")
    shapes = [jax.ShapeDtypeStruct((b, *a.shape[1:]), a.dtype) for a in (x, lengths)]
    text = str(jax.make_jaxpr(rewrite(function, *shapes))(*shapes))
    for operation in ("reduce_window", "pad[", "rem "):
        assert operation not in text
    fixed = rewrite(function, *(jax.ShapeDtypeStruct(a.shape, a.dtype) for a in (x, lengths)))
    for one, other in zip(fixed(x, lengths), function(x, lengths), strict=True):
        np.testing.assert_array_equal(one, other)


@needs_converter
@pytest.mark.parametrize("sound", [False, True])
def test_a_reader_gives_its_logits(sound: bool, tmp_path: Path) -> None:
    import onnxruntime

    module = sounds.network(4, sounds.MELS, bidirectional=True)
    model, described = sounds.reader(module) if sound else sounds.reader(module, sounds.LINE)
    assets = {"alphabet.json": json.dumps(sounds.ALPHABET).encode()}
    folder = tmp_path / "exported"
    export_model(model, described, folder, assets=assets, onnx=True, onnx_columns=62)
    told = json.loads((folder / "model.json").read_text())["export"]["onnx"]
    assert told["num_steps"] == 64
    assert told["functions"]["logits"]["batch_size"] is None
    assert "class 0 of the logits is CTC's blank" in (folder / "README.md").read_text()
    # Two inputs of one batch, filled up, give the greedy text of the model.
    random = np.random.default_rng(0)
    if sound:
        items = [model.prepare(sounds.sound(s, 1), rate=sounds.RATE) for s in (0.5, 0.3)]
    else:
        images = [random.integers(0, 256, (sounds.HEIGHT, w)).astype(np.uint8) for w in (64, 30)]
        items = [model.prepare(image) for image in images]
    axis = 0 if sound else 1
    inputs = np.stack([fill(item.inputs, 64, axis) for item in items])
    lengths = np.array([item.width for item in items], np.int32)
    session = onnxruntime.InferenceSession(folder / "logits.onnx")
    logits, steps = session.run(None, {"inputs": inputs, "lengths": lengths})
    for row, item in enumerate(items):
        best = logits[row, : steps[row]].argmax(axis=1)
        tokens = [k for k, before in zip(best, [0, *best[:-1]], strict=True) if k and k != before]
        text = "".join(sounds.ALPHABET[k - 1] for k in tokens)
        assert text == model.transcribe(item).text


def fill(inputs: np.ndarray, width: int, axis: int) -> np.ndarray:
    padding = [(0, 0)] * inputs.ndim
    padding[axis] = 0, width - inputs.shape[axis]
    return np.pad(inputs, padding)


def test_differences_are_relative_and_infinities_may_be_equal() -> None:
    inf = np.inf
    values = np.array([1.0, -inf, 8.0])
    assert onnx_conversion._difference(values, values) == 0
    assert onnx_conversion._difference(np.array([1.0, -inf, 12.0]), values) == 0.5
    for other in ([1.0, -inf], [1.0, inf, 8.0], [1.0, 3.0, 8.0], [np.nan, -inf, 8.0]):
        assert onnx_conversion._difference(np.array(other), values) == inf


def test_a_missing_converter_is_told_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    model, described = classifier(crnn())
    with pytest.raises(ModuleNotFoundError, match=r"--onnx needs jax2onnx.*-e '\.\[onnx\]'$"):
        export_model(model, described, tmp_path / "exported", onnx=True)
    assert not (tmp_path / "exported").exists()


def test_what_is_refused_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = {"step"}

    def convert(name: str, *_: Any) -> OnnxFunction:
        if name in taken:
            return OnnxFunction(b"a file", ("carry_0", "frames"), ("probabilities",), 1e-7)
        raise ConversionRefused("NotImplementedError: no such plug-in")

    monkeypatch.setattr(onnx_conversion, "check_installed", lambda: None)
    monkeypatch.setattr(onnx_conversion, "convert", convert)
    monkeypatch.setattr(exporting.importlib.metadata, "version", lambda name: "1.0")
    model, described = classifier(crnn())
    export_model(model, described, tmp_path / "one", onnx=True)
    told = json.loads((tmp_path / "one" / "model.json").read_text())["export"]["onnx"]
    assert list(told["functions"]) == ["step"]
    assert told["refused"]["clip"] == "NotImplementedError: no such plug-in"
    assert (tmp_path / "one" / "step.onnx").read_bytes() == b"a file"
    readme = (tmp_path / "one" / "README.md").read_text()
    assert "jax2onnx refused `clip` (NotImplementedError: no such plug-in)." in readme
    assert 'InferenceSession("step.onnx")' in readme
    taken.clear()
    with pytest.raises(ValueError, match=r"refuses clip: NotImpl.*; export without --onnx$"):
        export_model(model, described, tmp_path / "none", onnx=True)
    assert not (tmp_path / "none").exists()


@needs_converter
@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CONVERTED if name != "minimal"])
def test_onnxruntime_gives_the_same(name: str, tmp_path: Path) -> None:
    import onnxruntime

    model, described = classifier(CONVERTED[name]())
    export_model(model, described, tmp_path / "exported", onnx=True)
    told = json.loads((tmp_path / "exported" / "model.json").read_text())["export"]["onnx"]
    assert told["refused"] == {}
    assert told["num_steps"] == FRAMES
    assert all(function["difference"] < 1e-5 for function in told["functions"].values())
    sessions = {
        name: onnxruntime.InferenceSession(tmp_path / "exported" / function["file"])
        for name, function in told["functions"].items()
    }
    batch_sizes = {name: function["batch_size"] for name, function in told["functions"].items()}
    size = 1 if any(batch_sizes.values()) else 4
    frames, lengths = clips(size), np.array([FRAMES, 1, 3, 2][:size], np.int32)
    own = model.functions.classify(frames, lengths)
    found = sessions["clip"].run(None, {"frames": frames, "lengths": lengths})
    np.testing.assert_allclose(found[0], own.probabilities, atol=1e-5)
    assert ("step" in sessions) == model.functions.causal
    if "step" not in sessions:
        return
    taken = {value.name for value in sessions["start"].get_inputs()}
    carry = sessions["start"].run(None, {"frames": frames[:, 0]} if taken else {})
    for t in range(FRAMES):
        given = {f"carry_{index}": leaf for index, leaf in enumerate(carry)}
        *carry, _, so_far = sessions["step"].run(None, given | {"frames": frames[:, t]})
    whole = model.functions.classify(frames, np.full(size, FRAMES, np.int32)).probabilities
    np.testing.assert_allclose(so_far, whole, atol=1e-5)


@needs_converter
@pytest.mark.slow
def test_complex_states_are_refused(tmp_path: Path) -> None:
    model, described = classifier(crnn(partial(LRUCell, 4)))
    with pytest.raises(ValueError, match="it refuses clip: "):
        export_model(model, described, tmp_path / "exported", onnx=True)
    assert not (tmp_path / "exported").exists()


@needs_converter
@pytest.mark.slow
def test_other_results_are_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(onnx_conversion, "TOLERANCE", -1.0)
    model, described = classifier(crnn(None))
    with pytest.raises(ValueError, match=r"clip\.onnx: expected results within .*not kept"):
        export_model(model, described, tmp_path / "exported", onnx=True)
    assert not (tmp_path / "exported").exists()


@needs_converter
@pytest.mark.slow
def test_a_captioners_encoder(tmp_path: Path) -> None:
    model, described = captioner(attending())
    export_model(model, described, tmp_path / "exported", onnx=True)
    told = json.loads((tmp_path / "exported" / "model.json").read_text())["export"]["onnx"]
    assert "encode" in told["functions"]
    assert {*told["functions"], *told["refused"]} == {"encode", "search", "attend"}
