"""Exports of readers and sound classifiers: equal to the models they were made of."""

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flaxnets.inference.exporting import export_model
from flaxnets.inference.loading import load
from flaxnets.inference.runtime.exported import load_exported, main
from flaxnets.inference.runtime.models import Classifier
from flaxnets.inference.runtime.readers import Reader
from tests.data.audio.wavs import write_wav
from tests.flaxnets.inference import sounds
from tests.flaxnets.inference.test_exporting import environment

pytest.importorskip("flatbuffers", reason="exports are written with flatbuffers")
ASSETS = {"alphabet.json": json.dumps(sounds.ALPHABET).encode()}


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> tuple[Reader, Reader, Path]:
    """A causal reader of speech, with a beam search, its export, and the folder."""
    model, described = sounds.reader(width=3)
    folder = tmp_path_factory.mktemp("speech") / "exported"
    export_model(model, described, folder, assets=ASSETS)
    exported = load_exported(folder)
    assert isinstance(exported, Reader)
    return model, exported, folder


def equal(own: Any, theirs: Any) -> None:
    assert own.text == theirs.text
    assert own.confidence == pytest.approx(theirs.confidence, abs=1e-5)
    for a, b in zip(own.characters, theirs.characters, strict=True):
        assert (a.character, a.start, a.end) == (b.character, b.start, b.end)
        assert a.confidence == pytest.approx(b.confidence, abs=1e-5)


@pytest.mark.slow
def test_an_exported_reader_of_speech_equals_its_model(speech: Any) -> None:
    model, exported, _ = speech
    samples = [sounds.sound(seconds, seed) for seed, seconds in enumerate((1.2, 1.0, 1.23))]
    for width in (0, None):
        own = model.read(samples, rate=sounds.RATE, beam_width=width)
        theirs = exported.read(samples, rate=sounds.RATE, beam_width=width)
        for a, b in zip(own, theirs, strict=True):
            equal(a, b)
    with pytest.raises(ValueError, match=r"beam_width: expected 0 \(greedy\) or 3"):
        exported.read(samples[0], rate=sounds.RATE, beam_width=4)


def test_an_exported_reader_streams(speech: Any) -> None:
    model, exported, _ = speech
    samples = sounds.sound(1.2)
    stream = exported.stream(0.1)
    results = [*stream(samples[:3000]), *stream(samples[3000:]), *stream.finish()]
    expected = model.read(samples, rate=sounds.RATE, beam_width=0)
    assert "".join(result.text for result in results) == expected.text


def test_files_on_the_command_line(speech: Any, tmp_path: Path, capsys: Any) -> None:
    model, _, folder = speech
    path = write_wav(tmp_path / "a.wav", sounds.sound(0.5), sounds.RATE)
    broken = tmp_path / "b.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\n")
    assert main(folder, [path, str(broken), "--beam_width=0"]) == 1
    first, second = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert first["text"] == model.read(path, beam_width=0).text
    assert "received an image" in second["error"]


@pytest.mark.stress
def test_an_exported_reader_of_lines_equals_its_model(tmp_path: Path) -> None:
    module = sounds.network(4, sounds.HEIGHT, bidirectional=True)
    model, described = sounds.reader(module, sounds.LINE)
    export_model(model, described, tmp_path / "exported", assets=ASSETS)
    exported = load(tmp_path / "exported")
    assert isinstance(exported, Reader)
    random = np.random.default_rng(0)
    lines = [random.integers(0, 256, (30, width)).astype(np.uint8) for width in (7, 90, 300)]
    for own, theirs in zip(model.read(lines), exported.read(lines), strict=True):
        equal(own, theirs)
    assert exported.read(lines[1], beam_width=10).text == model.read(lines[1], beam_width=10).text
    with pytest.raises(ValueError, match="expected a model of sound"):
        exported.stream()
    with pytest.raises(ValueError, match="received an export"):
        export_model(exported, described, tmp_path / "again")


def test_an_exported_classifier_of_sounds_equals_its_model(tmp_path: Path) -> None:
    model, described = sounds.classifier()
    export_model(model, described, tmp_path / "exported")
    exported = load_exported(tmp_path / "exported")
    assert isinstance(exported, Classifier)
    samples = [sounds.sound(seconds, 1) for seconds in (0.2, 0.5, 1.7)]
    own = model.predict(samples, rate=sounds.RATE)
    theirs = exported.predict(samples, rate=sounds.RATE)
    for a, b in zip(own, theirs, strict=True):
        np.testing.assert_allclose(a.probabilities, b.probabilities, atol=1e-5)
    stream = exported.stream(chunk=0.1)
    steps = [*stream(samples[1]), *stream.finish()]
    np.testing.assert_allclose(steps[-1].smoothed, own[1].probabilities, atol=1e-5)


@pytest.mark.stress
@pytest.mark.subprocess
def test_exports_of_sound_run_without_flax(speech: Any, tmp_path: Path) -> None:
    python = environment()
    model, _, folder = speech
    samples = sounds.sound(0.9)
    path = write_wav(tmp_path / "a.wav", samples, sounds.RATE)
    code = (
        "import sys, json; sys.path.insert(0, sys.argv[1]);"
        "import importlib.util as u;"
        "assert not any(map(u.find_spec, ('flax', 'optax', 'orbax', 'flaxnets')));"
        "from runtime.exported import load_exported; from runtime.sound import read_sound;"
        "m = load_exported(sys.argv[1]); s = m.stream(); x = read_sound(sys.argv[2], 8000);"
        "text = ''.join(step.text for step in [*s(x), *s.finish()]);"
        "found = [m.read(sys.argv[2], beam_width=w).text for w in (0, 3)];"
        "print(json.dumps([*found, text]))"
    )
    command = [str(python), "-I", "-c", code, str(folder), path]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    own = model.read(path, beam_width=0).text
    assert json.loads(done.stdout) == [own, model.read(path).text, own]
    assert len(own) > 3
