"""Speech in a report: spectrograms of recordings and of drawn strings, and their speakers."""

from pathlib import Path

import numpy as np
import pytest

from data.audio.drawing import HEIGHT
from experiments.deep_speech2 import get_config
from experiments.transcription.config import DrawnSource
from experiments.transcription.speech import SpeechExperiment
from launch.reports.transcripts import ShowsTranscripts, make_transcripts
from tests.data.audio.tones import tone
from tests.data.audio.wavs import write_wav


def test_generated_sounds_have_spectrograms() -> None:
    config = get_config("smoke")
    assert config.unit == "recording"
    count = len(config.texts("test"))
    assert list(config.groups("test")) == list(config.names("test")) == [""] * count
    picture = config.load_clip("test", 0)
    assert picture.shape[:2] == (1, HEIGHT)
    frames = config.make_drawn("test").lengths()[0]
    assert abs(picture.shape[2] - 120 * frames * config.data.hop) <= 1


def test_strings_of_digits_have_their_speakers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = ["file,digit,speaker"]
    for digit, speaker, take in np.ndindex(2, 2, 4):
        name = f"{digit}_{'ab'[speaker]}_{take}.wav"
        write_wav(tmp_path / name, tone(300 + 100 * digit + 10 * take + speaker, 0.2, 8_000), 8_000)
        rows.append(f"{name},{digit},{'ab'[speaker]}")
    (tmp_path / "digits.csv").write_text("\n".join(rows))
    config = get_config("spoken_digits")
    config.data.list, config.data.num_evaluated = str(tmp_path / "digits.csv"), 12
    config.data.test_share = config.data.validation_share = 0.25
    made: list[str] = []
    make = SpeechExperiment.make_drawn

    def count(self: SpeechExperiment, split: str) -> DrawnSource:
        made.append(split)
        return make(self, split)

    monkeypatch.setattr(SpeechExperiment, "make_drawn", count)
    texts = config.texts("test")
    assert isinstance(config, ShowsTranscripts)
    records = [{"index": i, "text": text, "confidence": 0.5} for i, text in enumerate(texts)]
    found = make_transcripts(config, "test", records, metric="word_error_rate")
    assert {group.name for group in found.groups} == {"a", "b"}
    assert sum(group.count for group in found.groups) == 12
    assert not any(line.problem for line in found.selections[1].lines)
    assert made == ["test"]  # The recordings are decoded once.


def test_recordings_of_ones_own_have_spectrograms(tmp_path: Path) -> None:
    for number in range(12):
        write_wav(tmp_path / f"{number}.wav", tone(300 + number, 0.5, 16_000), 16_000)
        (tmp_path / f"{number}.txt").write_text("ja" if number % 2 else "nein")
    config = get_config()
    config.data.root = str(tmp_path)
    assert config.load_clip("test", 0).shape[::2] == (1, 60 + 1)
    (tmp_path / config.names("test")[0]).write_bytes(b"no sound")
    with pytest.raises(ValueError, match=config.names("test")[0]):
        config.load_clip("test", 0)
