"""Embedded numbers of telephone keys: tones of their keys, texts, and seeds."""

import pickle

import numpy as np
import pytest

from data.audio.dial_tones import COLUMNS, KEYS, ROWS, DialTones


def test_each_key_sounds_as_its_two_tones() -> None:
    numbers = DialTones("train", 20, min_keys=1, max_keys=1)
    seen = set()
    for index in range(20):
        samples = numbers.waveform(index)
        spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples)), 8_000))  # Bins of 1 Hz.
        row = max(ROWS, key=lambda f: spectrum[f - 5 : f + 6].max())
        column = max(COLUMNS, key=lambda f: spectrum[f - 5 : f + 6].max())
        key = KEYS[ROWS.index(row)][COLUMNS.index(column)]
        assert numbers.text(index) == key
        seen.add(key)
    assert len(seen) > 5


def test_examples_depend_on_seed_split_and_index_alone() -> None:
    numbers = DialTones("train", 10)
    assert [numbers.text(i) for i in range(5)] == [DialTones("train", 5).text(i) for i in range(5)]
    assert numbers.text(0) != DialTones("test", 10).text(0)
    assert numbers.text(0) != DialTones("train", 10, seed=1).text(0)
    again = pickle.loads(pickle.dumps(numbers))
    assert repr(again) == repr(numbers)
    for index in range(3):
        example = numbers[index]
        np.testing.assert_array_equal(example["spectrogram"], again[index]["spectrogram"])
        assert example["spectrogram"].shape == (numbers.lengths()[index], 40)
        assert example["token_lengths"] == numbers.token_lengths()[index]
        assert numbers.alphabet.decode(example["tokens"]) == numbers.text(index)
        assert 2 <= len(numbers.text(index).split()) <= 5


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="split: expected one of train, validation, test"):
        DialTones("dev")
    with pytest.raises(ValueError, match="num_examples, seed: expected at least 1 and 0"):
        DialTones("train", 0)
    with pytest.raises(ValueError, match="expected 1 <= min_keys <= max_keys, received 3 and 2"):
        DialTones("train", 1, min_keys=3, max_keys=2)
    with pytest.raises(IndexError, match=r"expected 0\.\.0, received 1"):
        DialTones("train", 1).text(1)
