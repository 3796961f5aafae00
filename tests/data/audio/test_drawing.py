"""Pictures of spectrograms: place and colour of sounds, marks of seconds, bad input."""

import numpy as np
import pytest

from data.audio.drawing import COLOURS, HEIGHT, MARK, MAX_WIDTH, draw_spectrogram


def test_a_low_tone_at_the_end_is_bright_below_on_the_right() -> None:
    frames = np.zeros((250, 40), np.float32)
    frames[200:, :8] = 5.0
    picture = draw_spectrogram(frames, 0.01)
    assert picture.shape == (HEIGHT, 300, 3)
    assert picture.dtype == np.uint8
    assert picture[HEIGHT - 3 * MARK, 290].tolist() == list(COLOURS[-1])
    for row, column in ((5, 290), (HEIGHT - 3 * MARK, 10)):
        assert picture[row, column].tolist() == list(COLOURS[0])


def test_marks_are_seconds_apart() -> None:
    picture = draw_spectrogram(np.zeros((250, 4), np.float32), 0.01)
    assert np.flatnonzero((picture[-1] == 255).all(-1)).tolist() == [120, 240]
    assert not (picture[-MARK - 1] == 255).all(-1).any()


def test_any_length_and_silence_have_a_picture() -> None:
    assert draw_spectrogram(np.full((1, 3), -4.6), 0.001).shape == (HEIGHT, 1, 3)
    assert draw_spectrogram(np.zeros((12_000, 2)), 0.01).shape[1] == MAX_WIDTH


@pytest.mark.parametrize(
    ("frames", "hop", "name"),
    [
        (np.zeros(3), 0.01, "frames"),
        (np.zeros((0, 3)), 0.01, "frames"),
        (np.full((2, 3), np.nan), 0.01, "frames"),
        (np.zeros((2, 3)), 0.0, "hop"),
    ],
)
def test_what_is_no_spectrogram_is_refused(frames: np.ndarray, hop: float, name: str) -> None:
    with pytest.raises(ValueError, match=name):
        draw_spectrogram(frames, hop)
