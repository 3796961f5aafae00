"""Lines and sounds of models in use: equal to those of training at test."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data.audio.augmentation import CutSound
from data.audio.decoding import read_sound as read_for_training
from data.audio.log_mel import SOUND, TELEPHONE, LogMel
from data.audio.sources import SoundSource, SpeechSource
from data.text_lines.alphabet import Alphabet
from data.text_lines.line_images import LineSource
from flaxnets.inference.runtime.columns import LinePreprocessing, SoundPreprocessing
from flaxnets.inference.runtime.media import MediaError, read_image
from flaxnets.inference.runtime.preprocessing import make_preprocessing
from flaxnets.inference.runtime.sound import FileSound, RawSound, kind_of_file, read_sound
from tests.data.audio.tones import tone
from tests.data.audio.wavs import FLOAT, write_wav

AS_IT_IS = LogMel(11_025, num_mels=20, low=0.0, high=5_000.0)
RANDOM = np.random.default_rng(0)
STEREO = np.stack([tone(300, 0.3, 11_025), 0.3 * tone(700, 0.3, 11_025)], axis=1)


@pytest.mark.parametrize("polarity", ["dark", "light", "auto"])
@pytest.mark.parametrize(
    ("size", "mode"), [((90, 31), "L"), ((40, 60), "RGB"), ((1, 48), "L"), ((600, 20), "RGBA")]
)
def test_lines_are_equal(tmp_path: Path, size: Any, mode: str, polarity: Any) -> None:
    path = str(tmp_path / "line.png")
    pixels = RANDOM.integers(0, 120, (size[1], size[0], len(mode))).astype(np.uint8)
    Image.fromarray(pixels[..., 0] if mode == "L" else pixels).save(path)
    source = LineSource((path,), ("a",), Alphabet(["a"]), height=48, polarity=polarity)
    preprocessing = make_preprocessing({"kind": "line", "height": 48, "polarity": polarity})
    assert isinstance(preprocessing, LinePreprocessing)
    found = preprocessing(read_image(path))
    np.testing.assert_array_equal(found.inputs, source[0]["image"])
    assert (found.width, found.extent) == (source.lengths()[0], size[0])
    assert found.scale == size[0] / found.width


def test_a_line_that_is_too_wide_is_refused() -> None:
    preprocessing = LinePreprocessing(48)
    with pytest.raises(MediaError, match=r"at most 4096 columns .* received 20000 × 48"):
        preprocessing(np.zeros((48, 20_000, 1), np.uint8), "long.png")
    with pytest.raises(ValueError, match="polarity: expected one of"):
        make_preprocessing({"kind": "line", "height": 48, "polarity": "black"})


@pytest.mark.parametrize(
    "log_mel", [TELEPHONE, SOUND, LogMel(11_025, num_mels=20, low=0.0, high=5_000.0)]
)
@pytest.mark.parametrize(
    ("samples", "options"),
    [(STEREO, {}), (STEREO[:, 0], {"bits": 8}), (STEREO, {"format": FLOAT})],
)
def test_sounds_are_equal(tmp_path: Path, log_mel: LogMel, samples: Any, options: Any) -> None:
    path = write_wav(tmp_path / "a.wav", samples, 11_025, **options)
    settings = {k: v for k, v in log_mel.describe().items() if k != "log_offset"}
    preprocessing = make_preprocessing(settings)
    assert isinstance(preprocessing, SoundPreprocessing)
    read = read_sound(path, log_mel.sample_rate)
    np.testing.assert_array_equal(read, read_for_training(path, log_mel.sample_rate).samples)
    found = preprocessing(read)
    source = SpeechSource((path,), ("a",), Alphabet(["a"]), log_mel)
    np.testing.assert_array_equal(found.inputs, source[0]["spectrogram"])
    # An array of the file's samples gives what the file gives.
    if samples.ndim == 1 and not options:
        again = read_sound(samples, log_mel.sample_rate, rate=11_025)
        np.testing.assert_allclose(again, read, atol=1e-4)


@pytest.mark.parametrize(("num_frames", "num_windows"), [(8, 1), (8, 3), (100, 3)])
def test_windows_are_equal(tmp_path: Path, num_frames: int, num_windows: int) -> None:
    path = write_wav(tmp_path / "a.wav", STEREO, 11_025)
    cut = CutSound(num_frames, None, False, num_windows)
    expected = cut(SoundSource((path,), log_mel=SOUND)[0], RANDOM)
    settings = {k: v for k, v in SOUND.describe().items() if k != "log_offset"}
    preprocessing = make_preprocessing(
        {**settings, "num_frames": num_frames, "num_windows": num_windows}
    )
    windows, lengths, times = preprocessing.windows(read_sound(path, 16_000))
    np.testing.assert_array_equal(windows, expected["spectrogram"])
    np.testing.assert_array_equal(lengths, expected["lengths"])
    assert times.shape == windows.shape[:2]


def test_raw_samples_are_those_of_the_file(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "a.wav", STEREO[:, 0], 11_025)
    content = Path(path).read_bytes()[44:]
    for rate in (11_025, 8_000):
        raw = RawSound(io.BytesIO(content), rate, 11_025)
        of_file = np.concatenate(list(FileSound(path, rate)))
        np.testing.assert_allclose(np.concatenate(list(raw)), of_file, atol=1e-6)
        assert not raw.problem
    samples = np.frombuffer(content, "<i2")
    np.testing.assert_array_equal(read_sound(samples, 11_025, rate=11_025), samples / 2.0**15)


def test_unreadable_sounds_are_refused(tmp_path: Path) -> None:
    silent = write_wav(tmp_path / "long.wav", np.zeros(9000), 1_000)
    with pytest.raises(MediaError, match="at most 5 s, received more"):
        read_sound(silent, 1_000, max_seconds=5.0)
    nan = np.full(100, np.nan)
    with pytest.raises(MediaError, match="not finite"):
        read_sound(write_wav(tmp_path / "nan.wav", nan, 8_000, format=FLOAT), 8_000)
    (tmp_path / "empty.wav").touch()
    with pytest.raises(MediaError, match="its sound is not readable"):
        read_sound(tmp_path / "empty.wav", 8_000)
    with pytest.raises(FileNotFoundError, match="expected a file with sound"):
        read_sound(tmp_path / "missing.wav", 8_000)
    for samples, rate, message in (
        (np.zeros(9), None, "rate: expected the samples/s of the array"),
        (np.zeros(9), -1, "rate: expected the samples/s of the array"),
        (np.zeros((2, 9)), 8_000, r"expected \(S,\) float"),
        (np.zeros(9, np.int32), 8_000, r"expected \(S,\) float"),
        (np.full(9, 300.0), 8_000, r"finite samples in \[-1,1\]"),
    ):
        with pytest.raises(ValueError, match=message):
            read_sound(samples, 8_000, rate=rate)


def test_files_are_told_by_their_first_bytes(tmp_path: Path) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    Image.new("L", (8, 8)).save(tmp_path / "a.webp")
    write_wav(tmp_path / "a.wav", np.zeros(9), 8_000)
    (tmp_path / "a.txt").write_text("text")
    found = [kind_of_file(tmp_path / f"a.{end}") for end in ("png", "webp", "wav", "txt", "none")]
    assert found == ["image", "image", "sound", "", ""]


@pytest.mark.parametrize(
    "changes",
    [{"hop": 0}, {"num_mels": 0}, {"low": -1.0}, {"high": 9_000.0}, {"normalisation": "x"}],
)
def test_settings_out_of_range_are_refused(changes: dict[str, Any]) -> None:
    settings = {k: v for k, v in TELEPHONE.describe().items() if k != "log_offset"}
    with pytest.raises(ValueError, match="expected"):
        make_preprocessing({**settings, **changes})
