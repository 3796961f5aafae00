"""Readers and sound classifiers in use: single or together, by width, from folders, bad input."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

import flaxnets
from flaxnets.decoders.ctc.character_ngram import train_ngram
from flaxnets.decoders.ctc.lexicon import make_lexicon
from flaxnets.inference import MediaError, ModelError, save_model
from flaxnets.inference.loading import load
from flaxnets.inference.runtime.readers import Reader
from tests.data.audio.wavs import write_wav
from tests.flaxnets.inference import sounds

ALPHABET = json.dumps(sounds.ALPHABET).encode()


@pytest.fixture(scope="module")
def lines() -> Reader:
    return sounds.reader(sounds.network(4, sounds.HEIGHT), sounds.LINE)[0]


def draw(width: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.integers(0, 256, (sounds.HEIGHT, width)).astype(np.uint8)


def test_a_line_reads_alike_alone_and_among_others(lines: Reader) -> None:
    images = [draw(width, width) for width in (60, 1, 100, 30, 63)]
    together = lines.read(images)
    assert len({item.text for item in together}) > 2
    for image, found in zip(images, together, strict=True):
        alone = lines.read(image)
        assert alone.text == found.text
        assert alone.confidence == pytest.approx(found.confidence, abs=1e-5)
        for character in found.characters:
            assert 0 <= character.start < character.end <= image.shape[1]
            assert 0 <= character.confidence <= 1
        assert "".join(item.character for item in found.characters) == found.text
    # The shapes of an array do not matter.
    rgb = np.repeat(images[0][..., None], 3, axis=2)
    assert lines.read(images[0][..., None]).text == lines.read(rgb).text == together[0].text
    again = pickle.loads(pickle.dumps(lines))
    assert again.read(images[0]).text == together[0].text


def test_bad_lines_do_not_stop_others(lines: Reader, tmp_path: Path) -> None:
    image = draw(50)
    for name, pixels in (("good", image), ("thin", image[:, :1]), ("long", np.tile(image, 400))):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("no image")
    sound = write_wav(tmp_path / "a.wav", sounds.sound(0.1), sounds.RATE)
    names = ("good", "thin", "long", "empty", "text", "missing")
    found: list[Any] = list(
        lines.read_each([*(str(tmp_path / f"{name}.png") for name in names), sound])
    )
    assert found[0].text == lines.read(image).text
    assert found[1].text == lines.read(image[:, :1]).text
    assert "expected a line of at most 512 columns" in str(found[2])
    assert "received 20000 × 16" in str(found[2])
    assert all(isinstance(item, MediaError) for item in found[2:5])
    assert isinstance(found[5], FileNotFoundError)
    assert str(found[5]).endswith("missing.png: expected an image file, which does not exist")
    assert "which this model reads, received a sound file" in str(found[6])
    for wrong in (image.astype(np.float32), image[None, None], np.zeros((0, 5), np.uint8)):
        with pytest.raises(ValueError, match=r"image: expected \(H,W\)"):
            lines.read(wrong)
    with pytest.raises(ValueError, match="beam_width: expected at least 0"):
        lines.read(image, beam_width=-1)


@pytest.mark.slow
def test_a_stored_reader_has_its_alphabet_and_language_model(tmp_path: Path) -> None:
    module = sounds.network(4, sounds.HEIGHT)
    model, described = sounds.reader(module, sounds.LINE)
    described = {**described, "search": {"width": 4, "language_model_weight": 1.0}}
    ngram = train_ngram([[1, 2, 1], [1, 2]], 3)
    assets = {
        "alphabet.json": ALPHABET,
        "language_model.safetensors": safetensors.numpy.save(ngram.to_arrays()),
    }
    functions: Any = model.functions
    save_model(tmp_path / "model", described, functions.variables, assets=assets)
    stored = flaxnets.load(tmp_path / "model")
    assert isinstance(stored, Reader)
    image = draw(120, 3)
    assert stored.read(image, beam_width=0) == model.read(image)
    # Settings that were chosen after the training take the place of the run's.
    chosen = tmp_path / "model" / "chosen.json"
    chosen.write_text('{"search.width": 7, "data.height": 3}')
    assert flaxnets.load(tmp_path / "model").functions.beam_width == 7
    chosen.write_text("[]")
    with pytest.raises(ModelError, match=r"chosen\.json: expected a JSON object"):
        flaxnets.load(tmp_path / "model")
    chosen.unlink()
    # Its own search is the beam with the model, which knows no third character.
    own: Any = stored.functions
    assert own.beam_width == 4
    assert own.automaton is not None
    assert stored.read(image).text.count("ä") < model.read(image).text.count("ä")
    lexicon = make_lexicon([[2]], 3)
    keeping = {**described, "search": {**described["search"], "lexicon": "lexicon.txt"}}
    words = {**assets, "lexicon.txt": b"b\nbc"}  # The second has a character that it lacks.
    save_model(tmp_path / "words", keeping, functions.variables, assets=words)
    kept: Any = flaxnets.load(tmp_path / "words")
    assert set(kept.read([draw(120, seed) for seed in (3, 4)])[0].text) <= {"b"}
    given: Any = load(tmp_path / "words", lexicon=lexicon)
    assert given.functions.lexicon is lexicon
    greedy: Any = load(tmp_path / "words", described={**keeping, "search": {"width": 0}})
    assert greedy.functions.lexicon is None
    (tmp_path / "words" / "lexicon.txt").write_bytes(b"cd")
    with pytest.raises(ModelError, match=r"lexicon\.txt: .* expected a word a line"):
        flaxnets.load(tmp_path / "words")
    for name, content, message in (
        ("alphabet.json", b'["a"]', "expected 3 characters"),
        ("alphabet.json", b'["ab"]', "not all of its items are one character"),
        ("language_model.safetensors", b"x", "expected a language model"),
    ):
        (tmp_path / "model" / name).write_bytes(content)
        with pytest.raises(ValueError, match=message):
            flaxnets.load(tmp_path / "model")
        (tmp_path / "model" / name).write_bytes(assets[name])
    (tmp_path / "model" / "alphabet.json").unlink()
    with pytest.raises(ValueError, match=r"alphabet.json: expected a list of characters"):
        flaxnets.load(tmp_path / "model")
    with pytest.raises(ValueError, match=r"assets: unknown 'alphabet\.txt'"):
        save_model(tmp_path / "x", described, functions.variables, assets={"alphabet.txt": b""})
    wrong = {**described, "preprocessing": {"kind": "image", "size": 8}}
    (tmp_path / "model" / "alphabet.json").write_bytes(ALPHABET)
    (tmp_path / "model" / "model.json").write_text(json.dumps(wrong))
    with pytest.raises(ModelError, match="preprocessing: expected that of the model's kind"):
        flaxnets.load(tmp_path / "model")


def test_speech_of_a_file_and_of_its_samples(tmp_path: Path) -> None:
    model = sounds.reader()[0]
    samples = np.round(sounds.sound(0.9) * 32767).astype(np.int16)
    path = write_wav(tmp_path / "a.wav", samples / 32767, sounds.RATE)
    found = model.read(path)
    assert model.read(samples, rate=sounds.RATE) == found
    ends = [character.end for character in found.characters]
    assert ends == sorted(ends)
    assert ends[-1] <= 0.9
    with pytest.raises(MediaError, match="silence: none of its samples"):
        model.read(np.zeros(800), rate=sounds.RATE)
    with pytest.raises(ValueError, match="rate: expected the samples/s"):
        model.read(samples)
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(MediaError, match=r"expected a file with sound .* received an image"):
        model.read(tmp_path / "a.png")


def test_windows_of_a_sound_are_averaged(tmp_path: Path) -> None:
    model, _ = sounds.classifier()
    samples = sounds.sound(1.3)
    found = model.predict(samples, rate=sounds.RATE)
    windows, lengths, _ = model.preprocessing.windows(samples)
    each = model.functions.classify(windows, lengths).probabilities
    assert len(each) == 2
    np.testing.assert_allclose(found.probabilities, each.mean(axis=0), atol=1e-6)
    assert found.step_probabilities is None
    silent = write_wav(tmp_path / "silent.wav", np.zeros(4000), sounds.RATE)
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    errors = [str(error) for error in model.predict_each([silent, str(tmp_path / "a.png")])]
    assert "silence: none of its samples" in errors[0]
    assert "received an image" in errors[1]
    with pytest.raises(ValueError, match="rate: expected the samples/s"):
        model.predict(samples)
    with pytest.raises(ValueError, match="window: expected None of a sound"):
        model.stream(window=3)
    assert pickle.loads(pickle.dumps(model)).predict(samples, rate=sounds.RATE).label == found.label
