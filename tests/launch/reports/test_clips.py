"""Film strips: selected clips and frames, as JPEG."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from launch.reports.clips import SPECTROGRAM_SIDE, make_frames, make_strips
from tests.launch.reports.records import make_record


def load_clip(index: int) -> np.ndarray:
    return np.full((16, 12, 20, 3), index, np.uint8)


def test_film_strips_are_the_frames() -> None:
    rng = np.random.default_rng(3)
    colours = rng.integers(0, 256, (16, 1, 1, 3))
    clip = np.broadcast_to(colours, (16, 24, 40, 3)).astype(np.uint8)
    frames = make_frames(clip)
    assert [frame.number for frame in frames] == [0, 2, 4, 6, 9, 11, 13, 15]
    for frame in frames:
        head, _, data = frame.source.partition(",")
        assert head == "data:image/jpeg;base64"
        image = Image.open(io.BytesIO(base64.b64decode(data)))
        assert image.format == "JPEG"
        assert image.size == (frame.width, frame.height) == (40, 24)
        difference = np.asarray(image, int) - clip[frame.number]
        assert np.abs(difference).max() <= 6


def test_large_frames_shrink_and_short_clips_give_what_they_have() -> None:
    frames = make_frames(np.zeros((3, 240, 320, 3), np.uint8))
    assert [frame.number for frame in frames] == [0, 1, 2]
    assert {(frame.width, frame.height) for frame in frames} == {(176, 132)}


@pytest.mark.parametrize(
    "clip",
    [np.zeros((0, 8, 8, 3), np.uint8), np.zeros((4, 8, 8), np.uint8), np.zeros((4, 8, 8, 3))],
)
def test_a_clip_of_another_kind_is_refused(clip: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"expected \(T,H,W,3\) uint8"):
        make_frames(clip)


def test_strips_show_right_and_wrong_clips() -> None:
    rng = np.random.default_rng(4)
    records = [
        make_record(i, int(rng.integers(8)), list(rng.dirichlet(np.full(8, 0.5))))
        for i in range(200)
    ]
    names = [f"name {k}" for k in range(8)]
    correct, wrong = make_strips(records, names, load_clip)
    assert (len(correct.strips), len(wrong.strips)) == (6, 6)
    assert len({strip.label for strip in correct.strips}) == 6
    assert all(strip.label == strip.prediction for strip in correct.strips)
    assert all(strip.label != strip.prediction for strip in wrong.strips)
    confident = [strip.guesses[0].probability for strip in wrong.strips]
    mistakes = [r["probabilities"] for r in records if r["label"] != r["prediction"]]
    assert confident == sorted((max(values) for values in mistakes), reverse=True)[:6]
    for strip in [*correct.strips, *wrong.strips]:
        top = [guess.probability for guess in strip.guesses[:5]]
        assert top == sorted(records[strip.index]["probabilities"], reverse=True)[:5]
        # The true class is always shown, whatever its rank.
        assert [guess.name for guess in strip.guesses if guess.is_label] == [strip.label]


def test_recordings_show_wrong_ones_and_a_random_sample_of_the_others() -> None:
    rng = np.random.default_rng(5)
    records = [
        make_record(i, int(rng.integers(3)), list(rng.dirichlet(np.ones(3)))) for i in range(60)
    ]
    names = ["rain", "dog", "<b>"]
    wrong, drawn = make_strips(
        records,
        names,
        lambda index: np.zeros((1, 96, 900, 3), np.uint8),
        max_side=SPECTROGRAM_SIDE,
        random_sample=True,
    )
    assert (wrong.title, drawn.title) == ("Wrong", "Random")
    assert all(strip.label != strip.prediction for strip in wrong.strips)
    assert len({strip.index for strip in (*wrong.strips, *drawn.strips)}) == 12
    assert {strip.label == strip.prediction for strip in drawn.strips} == {True, False}
    assert drawn.strips[0].frames[0].width == SPECTROGRAM_SIDE
