"""Readers of speech: own recordings, strings of digits, held-out speakers, bad input."""

import logging
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from data.audio import sources
from data.audio.dial_tones import DialTones
from experiments.deep_speech2 import DeepSpeech2Experiment, get_config
from experiments.transcription.speech import SpeechExperiment
from flaxnets.inference.runtime.preprocessing import make_preprocessing
from tests.data.audio.tones import tone
from tests.data.audio.wavs import FLOAT, PCM, write_wav
from tests.experiments import grid

DIGITS = Path(__file__).parents[2].parent / "shared" / "data" / "spoken_digits" / "train.csv"
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


def write_speech(folder: Path) -> dict[str, str]:
    """Writes recordings of every kind with their texts; returns the reasons of the unusable."""
    numbers = DialTones("train", 14)
    for index in range(14):
        write_wav(folder / f"{index:02}.wav", numbers.waveform(index))
        (folder / f"{index:02}.txt").write_text(numbers.text(index))
    samples = numbers.waveform(0)
    both = np.stack([samples, samples], axis=1)
    for name, written, rate, bits, kind in (
        ("stereo", both, 8_000, 16, PCM),
        ("eight", samples, 8_000, 8, PCM),
        ("wide", samples, 8_000, 24, PCM),
        ("float", samples, 8_000, 32, FLOAT),
        ("fast", np.repeat(samples, 2), 16_000, 16, PCM),
        ("silent", np.zeros(8_000), 8_000, 16, PCM),
        ("long", tone(440, 3.0, 8_000), 8_000, 16, PCM),
    ):
        write_wav(folder / f"{name}.wav", written, rate, bits=bits, format=kind)
        (folder / f"{name}.txt").write_text(numbers.text(0))
    (folder / "empty.wav").touch()
    (folder / "empty.txt").write_text("1")
    whole = (folder / "00.wav").read_bytes()
    (folder / "header.wav").write_bytes(whole[:30])
    (folder / "header.txt").write_text("2")
    (folder / "cut.wav").write_bytes(whole[: len(whole) // 2])
    (folder / "cut.txt").write_text("3")
    return {
        "silent": "silence: none of its samples exceeds",
        "long": "expected at most 2.5 s, received 3.0 s",
        "empty": "its sound is not readable",
        "header": "its sound is not readable",
    }


def small(variant: str = "small", **data: Any) -> DeepSpeech2Experiment:
    config = get_config("smoke")
    config.data.dataset = "files" if variant == "small" else variant
    config.model.features = 4
    config.num_steps = config.eval_every = config.checkpoint_every = 2
    for name, value in data.items():
        setattr(config.data, name, value)
    return config


def test_recordings_of_every_kind(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    reasons = write_speech(tmp_path)
    config = small(root=str(tmp_path), max_seconds=2.5, max_bad_share=0.5, augment=False)
    config.validate()
    names = [*config.lines.names]
    sources._tell_resampling.cache_clear()
    with caplog.at_level(logging.WARNING):
        source = config.make_source(config.lines.paths, config.lines.texts)
        examples = {name.removesuffix(".wav"): source[i] for i, name in enumerate(names)}
    assert "recordings of 16000 samples/s are resampled to 8000" in caplog.text
    plain = examples["00"]["spectrogram"]
    for name in ("stereo", "wide", "float"):
        np.testing.assert_allclose(examples[name]["spectrogram"], plain, atol=0.02, err_msg=name)
    for name in ("eight", "fast"):  # 8 bits are noisy, and repeated samples are another sound.
        assert examples[name]["spectrogram"].shape == plain.shape
        assert np.corrcoef(examples[name]["spectrogram"].ravel(), plain.ravel())[0, 1] > 0.8
    assert len(examples["cut"]["spectrogram"]) == pytest.approx(len(plain) / 2, abs=1)
    for name, example in examples.items():
        assert bool(example["mask"]) == (name not in reasons), name
        if name in reasons:
            assert reasons[name] in source.explain(names.index(f"{name}.wav"))
    assert config.describe_choices(source)[0].startswith("recordings    24 for training")


def test_recordings_are_read_without_texts(tmp_path: Path) -> None:
    write_speech(tmp_path)
    config = small(root=str(tmp_path), max_seconds=2.5)
    files = [str(tmp_path / f"{name}.wav") for name in ("00", "silent", "empty", "long")]
    loader = config.make_prediction_data(files)
    masks: dict[int, bool] = {}
    with loader.batches() as batches:
        for batch in batches:
            assert set(batch["token_lengths"]) == {0}
            masks.update(zip(batch["index"].tolist(), batch["mask"].tolist(), strict=True))
    assert [masks[index] for index in range(4)] == [True, False, False, False]
    assert "silence: none of its samples exceeds" in loader.bad[1]
    assert "its sound is not readable" in loader.bad[2]
    assert "expected at most 2.5 s, received 3.0 s" in loader.bad[3]
    # The settings with which a trained model reads files.
    described = config.describe_inference()
    preprocessing = make_preprocessing(described["preprocessing"])
    assert preprocessing.log_mel.describe() == config.log_mel.describe()
    assert (described["kind"], preprocessing.max_seconds) == ("transcription", 2.5)


def write_digits(folder: Path, speakers: str = "ab", digits: str = "123", copies: int = 10) -> Path:
    rows = ["file,digit,speaker"]
    for number, speaker in enumerate(speakers):
        for digit in digits:
            for copy in range(copies):
                name = f"{digit}_{speaker}_{copy}.wav"
                pitch = 200 * int(digit) + 10 * copy + 3 * number
                write_wav(folder / name, tone(pitch, 0.2, 8_000))
                rows.append(f"{name},{digit},{speaker}")
    (folder / "digits.csv").write_text("\n".join(rows))
    return folder / "digits.csv"


def test_strings_of_digits_keep_their_split(tmp_path: Path) -> None:
    table = write_digits(tmp_path / "mine")
    config = small("spoken_digits", list=str(table))
    config.validate()
    assert config.alphabet.characters == (" ", "1", "2", "3")
    assert [config.digits.splits.count(s) for s in ("train", "validation", "test")] == [48, 6, 6]
    assert "split         train 48, validation 6, test 6; 2 groups" in config.describe_choices(
        config.source("train")
    )
    assert all(3 <= len(text.split()) <= 7 for text in config.texts("test"))
    config.save_assets(tmp_path)
    write_digits(tmp_path / "mine", copies=12)
    again = small("spoken_digits", list=str(table))
    again.load_assets(tmp_path)
    assert again.describe_data("test") == config.describe_data("test")
    assert again.training_texts == config.texts("train")
    picture = again.load_clip("test", 0)
    assert picture.shape[::3] == (1, 3)
    other = small("spoken_digits", list=str(write_digits(tmp_path / "other", speakers="c")))
    other.load_assets(tmp_path)
    assert set(other.digits.splits) == {"test"}
    assert len(other.texts("test")) == other.data.num_evaluated
    fewer = small("spoken_digits", list=str(write_digits(tmp_path / "fewer", "d", "12")))
    fewer.load_assets(tmp_path)
    with pytest.raises(ValueError, match="expected recordings of the digits of the model, 123"):
        fewer.source("test")


def test_a_held_out_speaker_alone_is_tested(tmp_path: Path) -> None:
    config = small("spoken_digits", list=str(write_digits(tmp_path)), held_out_speaker="b")
    sides = {
        split: {config.digits.groups[i] for i in config.digits.indices(split)}
        for split in ("train", "validation", "test")
    }
    assert sides == {"train": {"a"}, "validation": {"a"}, "test": {"b"}}
    config.data.held_out_speaker = "bob"
    config._digits = None
    with pytest.raises(ValueError, match="held_out: expected a speaker of a, b, received 'bob'"):
        config.source("train")


def test_scores_count_digits_as_words() -> None:
    config = grid.parse("deep_speech2.py:smoke")
    texts = config.texts("test")
    score = config.make_scorer("test")
    right = [{"index": i, "text": text} for i, text in enumerate(texts)]
    assert score(right)["word_error_rate"] == 0
    missing = [{"index": i, "text": text[2:]} for i, text in enumerate(texts)]
    words = sum(len(text.split()) for text in texts)
    assert score(missing)["word_error_rate"] == pytest.approx(len(texts) / words)


def test_a_root_that_is_gone_is_refused_by_its_flag(tmp_path: Path) -> None:
    config = grid.parse("deep_speech2.py", f"--config.data.root={tmp_path / 'gone'}")
    with pytest.raises(FileNotFoundError, match=r"^data\.root: expected the folder of the record"):
        config.make_data("train")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "data.root: expected a folder of recordings with their texts"),
        (("--config.data.dataset=dial_tone",), "did you mean 'dial_tones'"),
        (("--config.data.dataset=spoken_digits",), "data.list: expected the table of the record"),
        (
            ("--config.data.dataset=dial_tones", "--config.data.held_out_speaker=a"),
            "data.held_out_speaker: expected '' for data.dataset=dial_tones",
        ),
        (("--config.data.root=.", "--config.data.max_seconds=0"), "data.max_seconds: expected mor"),
        (("--config.data.root=.", "--config.data.high=9000"), "low, high: expected 0 <= low < hi"),
        (("--config.data.root=.", "--config.augmentation.speed=2"), "speed: expected 0 to 0.5"),
        (("--config.data.root=.", "--config.model.cell=gur"), "did you mean 'gru'"),
        (("--config.data.root=.", "--config.data.max_digits=2"), "data.max_digits: expected at le"),
    ],
)
def test_wrong_values_are_refused(flags: tuple[str, ...], message: str) -> None:
    config = grid.parse("deep_speech2.py", *flags)
    with pytest.raises(ValueError, match=message):
        config.validate()


def test_the_streaming_network_is_built_from_flags() -> None:
    config = grid.parse(
        "deep_speech2.py:smoke", "--config.model.bidirectional=False", "--config.model.lookahead=5"
    )
    assert "recurrent     1 × elman of 8 units, 5 steps of lookahead" in config.describe_network()
    model, batch = config.make_model(), grid.first_batch(config)
    variables = jax.eval_shape(
        lambda: config.make_task().initialize(model, jax.random.key(0), batch)
    )
    assert variables["params"]["recurrent"]["lookahead"]["kernel"].shape == (1, 6, 1, 8)
    assert "backward_0" not in variables["params"]["recurrent"]


def test_unknown_variants_are_refused() -> None:
    with pytest.raises(ValueError, match="deep_speech2:smal: no such variant; did you mean 'smal"):
        get_config("smal")
    assert isinstance(get_config("full"), SpeechExperiment)


@pytest.mark.skipif(not DIGITS.is_file(), reason=f"{DIGITS} is not there")
def test_the_shared_digits() -> None:
    config = get_config("spoken_digits")
    config.data.list = str(DIGITS)
    config.validate()
    counts = [config.digits.splits.count(s) for s in ("train", "validation", "test")]
    assert counts == [2160, 270, 270]
    assert len(config.alphabet) == 11
