"""Recordings as examples: transcripts, labels, lengths, what cannot be used, memory."""

import logging
import pickle
from pathlib import Path

import numpy as np
import pytest

from data.audio import sources
from data.audio.log_mel import SOUND, TELEPHONE
from data.audio.sources import Recordings, SoundSource, SpeechSource, Waveforms
from data.text_lines.alphabet import Alphabet
from tests.data.audio.tones import tone
from tests.data.audio.wavs import write_wav

ALPHABET = Alphabet.from_texts(["abc d"])


@pytest.fixture
def paths(tmp_path: Path) -> tuple[str, ...]:
    """Three recordings, and five that cannot be used."""
    good = [
        write_wav(tmp_path / f"{n}.wav", tone(300 * (n + 1), 0.2 + n / 10, 8_000)) for n in range(3)
    ]
    silent = write_wav(tmp_path / "silent.wav", np.zeros(4_000))
    nothing = write_wav(tmp_path / "nothing.wav", np.zeros(0))
    long = write_wav(tmp_path / "long.wav", tone(440, 3.0, 8_000))
    (tmp_path / "text.wav").write_text("no sound")
    return (*good, silent, nothing, long, str(tmp_path / "text.wav"), str(tmp_path / "none.wav"))


REASONS = (
    "silence: none of its samples exceeds one step of 16 bits",
    "nothing.wav: ",
    "expected at most 2 s, received 3.0 s; cut the recording, or give a larger data.max_seconds",
    "its sound is not readable",
    "expected a file with sound",
)


def test_transcripts(paths: tuple[str, ...]) -> None:
    texts = ("cab", "", "a\u0062", *["d"] * 5)
    source = SpeechSource(paths, texts, ALPHABET, TELEPHONE, max_seconds=2.0)
    lengths = source.lengths()
    assert lengths.tolist() == [21, 31, 41, 1, 1, 1, 1, 1]
    assert source.token_lengths()[:3].tolist() == [3, 0, 2]
    for index in range(3):
        example = source[index]
        assert example["spectrogram"].shape == (lengths[index], 40)
        assert example["spectrogram"].dtype == np.float32
        assert example["lengths"] == lengths[index]
        assert ALPHABET.decode(example["tokens"]) == texts[index]
        assert example["token_lengths"] == len(texts[index])
        assert example["mask"]
        assert example["index"] == index
        for name in ("lengths", "tokens", "token_lengths", "index"):
            assert example[name].dtype == np.int32
    for index, reason in enumerate(REASONS, 3):
        example = source[index]
        assert not example["mask"]
        assert not example["spectrogram"].any()
        assert example["spectrogram"].shape == (1, 40)
        assert example["token_lengths"] == len(example["tokens"]) == 0
        assert reason in source.explain(index)


def test_silence_may_have_an_empty_text(paths: tuple[str, ...]) -> None:
    source = SpeechSource(paths[3:4], (" ",), ALPHABET, TELEPHONE)
    assert source[0]["mask"]
    assert source[0]["lengths"] == 51


def test_characters_that_the_alphabet_lacks(paths: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=r"received 1 others in 2 of 3 texts: 'x' \(U\+0078\) 3"):
        SpeechSource(paths[:3], ("xa", "b", "xx"), ALPHABET)
    source = SpeechSource(paths[:3], ("xa", "b", "xx"), ALPHABET, unknown="drop")
    assert source.token_lengths().tolist() == [1, 1, 0]


def test_labels(paths: tuple[str, ...]) -> None:
    source = SoundSource(paths, (2, 0, 1, 1, 1, 1, 1, 1), TELEPHONE, max_seconds=2.0)
    assert [int(source[index]["label"]) for index in range(8)] == [2, 0, 1, -1, -1, -1, -1, -1]
    assert source.lengths().tolist() == [21, 31, 41, 1, 1, 1, 1, 1]
    assert [bool(source[index]["mask"]) for index in range(8)] == [True] * 3 + [False] * 5
    for index, reason in enumerate(REASONS, 3):
        assert reason in source.explain(index)
    assert SoundSource(paths[:1])[0]["label"] == -1


def test_pickled_sources_are_equal_and_small(paths: tuple[str, ...]) -> None:
    speech = SpeechSource(paths[:3], ("a", "b", "c"), ALPHABET)
    sounds = SoundSource(paths[:3], (0, 1, 2))
    for source in (speech, sounds):
        source.lengths()
        content = pickle.dumps(source)
        assert len(content) < 10_000
        again = pickle.loads(content)
        assert repr(again) == repr(source)
        np.testing.assert_array_equal(again[1]["spectrogram"], source[1]["spectrogram"])
        np.testing.assert_array_equal(again.lengths(), source.lengths())
    waveforms = Waveforms(paths, 8_000)
    assert waveforms.sizes().tolist() == [1600, 2400, 3200, 0, 0, 24_000, 0, 0]
    assert len(pickle.dumps(waveforms)) < 2_000


def test_each_file_is_decoded_once_as_long_as_there_is_room(
    paths: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = []
    read = sources.read_sound

    def count(path: str, rate: int) -> object:
        decoded.append(path)
        return read(path, rate)

    monkeypatch.setattr(sources, "read_sound", count)
    recordings = Recordings(paths[:3], SOUND)
    recordings.lengths()
    first = [recordings.spectrogram(index) for index in range(3)]
    assert len(decoded) == 3
    with pytest.raises(ValueError, match="read-only"):
        first[0][0] = 0
    small = Recordings(paths[:3], SOUND, memory_bytes=1)
    for _ in range(2):
        for index in range(3):
            np.testing.assert_array_equal(small.spectrogram(index), first[index])
    assert len(decoded) == 9


def test_resampling_is_told_once(paths: tuple[str, ...], caplog: pytest.LogCaptureFixture) -> None:
    sources._tell_resampling.cache_clear()
    with caplog.at_level(logging.WARNING):
        SoundSource(paths[:3]).lengths()
        SoundSource(paths[:3]).lengths()
        SoundSource(paths[:3], log_mel=TELEPHONE).lengths()
    assert caplog.messages == [
        "recordings of 8000 samples/s are resampled to 16000, the rate of the model"
    ]


def test_bad_arguments_are_refused(paths: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="texts: expected one for each of the paths"):
        SpeechSource(paths[:2], ("a",), ALPHABET)
    with pytest.raises(ValueError, match="unknown: expected 'error' or 'drop'"):
        SpeechSource(paths[:1], ("a",), ALPHABET, unknown="skip")
    with pytest.raises(ValueError, match="labels: expected one for each of the paths"):
        SoundSource(paths[:2], (1,))
    with pytest.raises(ValueError, match="labels: expected one for each of the paths, at least"):
        SoundSource(())
    with pytest.raises(ValueError, match="max_seconds: expected more than 0 s"):
        Recordings(paths, SOUND, max_seconds=0)
