"""Embedded sounds: determinism, classes, splits."""

import numpy as np
import pytest

from data.audio.generated_sounds import CLASSES, LOG_MEL, GeneratedSounds


def test_examples_depend_on_seed_split_and_index_alone() -> None:
    first = GeneratedSounds("train", 5)[3]
    np.testing.assert_array_equal(GeneratedSounds("train")[3]["spectrogram"], first["spectrogram"])
    for other in (GeneratedSounds("test", 5), GeneratedSounds("train", 5, seed=1)):
        assert not np.array_equal(other[3]["spectrogram"], first["spectrogram"])
    assert first["spectrogram"].shape == (63, 32)
    assert first["lengths"] == 63
    assert first["mask"]


def test_classes_differ_in_the_order_of_their_frames() -> None:
    sounds = GeneratedSounds("train", 240)
    assert {int(sounds.waveform(index)[1]) for index in range(240)} == set(range(len(CLASSES)))
    for index in range(240):
        samples, label = sounds.waveform(index)
        assert samples.shape == (8_000,)
        assert np.abs(samples).max() <= 1
        frames = np.exp(LOG_MEL(samples))[10:53]
        first, last = frames[:15].mean(0), frames[-15:].mean(0)
        name = CLASSES[label]
        if name in ("swelling", "fading"):
            assert (last.sum() > first.sum()) == (name == "swelling")
        else:
            assert (last.argmax() > first.argmax()) == (name in ("rising", "low_high"))


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="split: expected one of train, validation, test"):
        GeneratedSounds("dev")
    with pytest.raises(ValueError, match="num_examples, seed: expected at least 0"):
        GeneratedSounds("train", -1)
    with pytest.raises(IndexError, match=r"index: expected 0\.\.4, received 5"):
        GeneratedSounds("train", 5)[5]
