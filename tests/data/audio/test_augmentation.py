"""Random changes of spectrograms: each alone, bounds, seeds, windows of one length."""

from typing import Any

import numpy as np
import pytest

from data.audio.augmentation import CutSound, SpectrogramAugmentation
from data.audio.sources import make_labelled

NOTHING: dict[str, Any] = {"time_masks": 0, "band_masks": 0}


def example(num_frames: int = 100, num_mels: int = 16, seed: int = 0) -> dict[str, Any]:
    frames = np.random.default_rng(seed).normal(size=(num_frames, num_mels)).astype(np.float32)
    return dict(make_labelled(frames, 3, 5, num_mels))


def augment(given: dict[str, Any], seed: int = 0, **options: Any) -> np.ndarray:
    change = SpectrogramAugmentation(**{**NOTHING, **options})
    found = change(given, np.random.default_rng(seed))
    assert found["spectrogram"].dtype == np.float32
    assert (
        found["lengths"]
        == len(found["spectrogram"])
        <= len(given["spectrogram"]) * change.max_stretch
    )
    assert found["label"] == 3
    assert found["index"] == 5
    return found["spectrogram"]


def test_nothing_changes_nothing_and_seeds_decide() -> None:
    given = example()
    before = given["spectrogram"].copy()
    np.testing.assert_array_equal(augment(given), before)
    options = {"time_masks": 2, "speed": 0.2, "pitch": 2.0, "shift": 0.5, "level": 1.0}
    options |= {"noise": 0.5, "time_warp": 10, "band_masks": 1}
    np.testing.assert_array_equal(augment(given, 1, **options), augment(given, 1, **options))
    assert not np.array_equal(augment(given, 1, **options)[:50], augment(given, 2, **options)[:50])
    np.testing.assert_array_equal(given["spectrogram"], before)


def test_masks_hide_frames_and_bands_within_their_widths() -> None:
    given = example()
    mean = given["spectrogram"].mean()
    widths, bands = [], []
    for seed in range(60):
        found = augment(given, seed, time_masks=1, time_mask_width=30, time_mask_share=0.2)
        hidden = (found == mean).all(axis=1)
        assert np.array_equal(found[~hidden], given["spectrogram"][~hidden])
        places = np.flatnonzero(hidden)
        assert len(places) == 0 or places[-1] - places[0] + 1 == len(places)
        widths.append(len(places))
        hidden = (augment(given, seed, band_masks=1, band_mask_width=5) == mean).all(axis=0)
        bands.append(hidden.sum())
    assert (min(widths), max(widths)) == (0, 20)  # A fifth of 100 frames.
    assert (min(bands), max(bands)) == (0, 5)


def test_speed_stretches_by_at_most_its_factor() -> None:
    ramp = np.linspace(0, 1, 80, dtype=np.float32)[:, None] * np.ones(16, np.float32)
    given = {**example(80), "spectrogram": ramp}
    counts = []
    for seed in range(60):
        found = augment(given, seed, speed=0.25)
        counts.append(len(found))
        # A ramp stretched is the ramp of as many frames.
        np.testing.assert_allclose(found[:, 3], np.linspace(0, 1, len(found)), atol=1e-5)
    assert 64 <= min(counts) < 70
    assert 92 < max(counts) <= 100


def test_the_time_warp_moves_a_frame_and_keeps_the_ends() -> None:
    given = example(60)
    moved = []
    for seed in range(40):
        places = {**given, "spectrogram": np.arange(60, dtype=np.float32)[:, None] * np.ones(16)}
        places["spectrogram"] = places["spectrogram"].astype(np.float32)
        found = augment(places, seed, time_warp=8)[:, 0]
        assert len(found) == 60
        assert (found[0], found[-1]) == (0, 59)
        assert (np.diff(found) >= 0).all()
        moved.append(np.abs(found - np.arange(60)).max())
    assert 5 < max(moved) <= 8
    # A recording shorter than two such displacements stays as it is.
    np.testing.assert_array_equal(augment(example(9), time_warp=8), example(9)["spectrogram"])


def test_shift_level_noise_and_pitch() -> None:
    given = example()
    frames = given["spectrogram"]
    found = augment(given, 3, shift=1.0)
    shift = next(s for s in range(100) if np.array_equal(np.roll(frames, s, axis=0), found))
    assert shift
    difference = augment(given, 3, level=2.0) - frames
    assert np.ptp(difference) < 1e-5
    assert 0 < abs(difference[0, 0]) <= 2
    noise = augment(given, 3, noise=0.5) - frames
    assert 0 < noise.std() < 0.55
    assert abs(noise.mean()) < 0.05
    ramp = {**given, "spectrogram": np.ones((100, 1), np.float32) * np.arange(16, dtype=np.float32)}
    moved = augment(ramp, 3, pitch=2.0) - np.arange(16)
    assert np.ptp(moved[:, 3:13]) < 1e-5  # The same displacement in all frames and inner bands.
    assert 0 < abs(moved[0, 8]) <= 2


def test_padding_is_cut_off_and_unusable_examples_stay() -> None:
    given = example(50)
    given["lengths"] = np.asarray(20, np.int32)
    assert len(augment(given)) == 20
    masked = {**example(1), "mask": np.asarray(False)}
    found = SpectrogramAugmentation(speed=0.5, noise=1.0)(masked, np.random.default_rng(0))
    np.testing.assert_array_equal(found["spectrogram"], masked["spectrogram"])
    # One frame is no less than can be augmented.
    everything = SpectrogramAugmentation(speed=0.5, pitch=1, shift=1, level=1, noise=1, time_warp=3)
    for seed in range(10):
        found = everything(example(1), np.random.default_rng(seed))
        assert found["lengths"] == len(found["spectrogram"]) == 1


def test_windows_of_one_length() -> None:
    rng = np.random.default_rng(0)
    given, frames = example(25), example(25)["spectrogram"]
    for _ in range(20):
        found = CutSound(10, None, train=True)(given, rng)
        assert found["spectrogram"].shape == (10, 16)
        start = next(s for s in range(16) if np.array_equal(frames[s], found["spectrogram"][0]))
        np.testing.assert_array_equal(found["spectrogram"], frames[start : start + 10])
    found = CutSound(10, None, train=False, num_windows=3)(given, rng)
    assert found["lengths"].tolist() == [10, 10, 10]
    for window, start in zip(found["spectrogram"], (0, 7, 15), strict=True):
        np.testing.assert_array_equal(window, frames[start : start + 10])
    found = CutSound(10, None, train=False)(given, rng)
    np.testing.assert_array_equal(found["spectrogram"][0], frames[7:17])
    short = CutSound(40, SpectrogramAugmentation(**NOTHING), train=True)(given, rng)
    assert short["lengths"] == 25
    np.testing.assert_array_equal(short["spectrogram"][:25], frames)
    assert not short["spectrogram"][25:].any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"speed": 0.6}, "speed: expected 0 to 0.5, received 0.6"),
        ({"time_masks": -1}, "time_masks: expected at least 0"),
        ({"time_mask_share": 2.0}, "time_mask_share: expected 0 to 1"),
        ({"noise": float("nan")}, "noise: expected at least 0, received nan"),
    ],
)
def test_numbers_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SpectrogramAugmentation(**options)
    with pytest.raises(ValueError, match="num_frames: expected at least 1"):
        CutSound(0, None, train=True)
