"""Audio-visual clips: neither stream alone tells the label, and files give what was drawn."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from data.video.clips import VideoSource
from data.video.sound_clips import DecodeSoundClip
from data.video.sounding_shapes import (
    BEST_OF_ONE_STREAM,
    CLASSES,
    LOG_MEL,
    MOTIONS,
    NUM_FRAMES,
    PATCH_WIDTH,
    SIZE,
    TONES,
    SoundingShapes,
    write_clips,
)
from data.video.transforms import SpatialTransform


def best_accuracy(seen: list[str], labels: list[int]) -> float:
    """Returns the greatest accuracy of any function of what is seen."""
    right = 0
    for value in set(seen):
        counts = Counter(y for x, y in zip(seen, labels, strict=True) if x == value)
        right += max(counts.values())
    return right / len(labels)


def test_motion_alone_and_tone_alone_are_right_in_a_third() -> None:
    clips = SoundingShapes("test", 27)
    labels = [index % len(CLASSES) for index in range(len(clips))]
    names = [CLASSES[label].split(", ") for label in labels]
    assert best_accuracy([motion for motion, _ in names], labels) == BEST_OF_ONE_STREAM
    assert best_accuracy([tone for _, tone in names], labels) == BEST_OF_ONE_STREAM
    assert best_accuracy([" ".join(both) for both in names], labels) == 1


def test_frames_do_not_depend_on_the_tone_nor_sound_on_the_motion(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clips = SoundingShapes("train", 9)
    before = [clips.clip(index) for index in range(9)]
    monkeypatch.setattr("data.video.sounding_shapes.TONES", TONES[::-1])
    for index, (video, samples) in enumerate(before):
        other_video, other_samples = clips.clip(index)
        np.testing.assert_array_equal(other_video, video)
        assert (other_samples == samples).all() == (TONES[index % 3] == TONES[::-1][index % 3])
    monkeypatch.setattr("data.video.sounding_shapes.TONES", TONES)
    monkeypatch.setattr("data.video.sounding_shapes.MOTIONS", MOTIONS[::-1])
    for index, (video, samples) in enumerate(before):
        other_video, other_samples = clips.clip(index)
        np.testing.assert_array_equal(other_samples, samples)
        assert (other_video == video).all() == (MOTIONS[index // 3] == MOTIONS[::-1][index // 3])


def test_examples_depend_on_seed_split_and_index_alone() -> None:
    first = SoundingShapes("train", 3)[2]
    same, others = SoundingShapes("train", 9)[2], SoundingShapes("test", 3)[2]
    for name in ("video", "audio"):
        np.testing.assert_array_equal(first[name], same[name])
        assert (first[name] != others[name]).any()
    with pytest.raises(IndexError, match=r"index: expected 0..2, received 3"):
        SoundingShapes("train", 3)[3]
    with pytest.raises(ValueError, match="split: expected one of train, validation, test"):
        SoundingShapes("all")


def test_files_with_sound_give_the_clips_that_were_written(tmp_path: Path) -> None:
    clips = SoundingShapes("train", 3)
    paths = write_clips(clips, tmp_path)
    (silent := tmp_path / "silent.mkv").write_bytes(paths[0].read_bytes()[:200])
    source = VideoSource((*map(str, paths), str(silent)), (0, 1, 2, 0))
    transform = SpatialTransform((SIZE, SIZE), keep_aspect=False)
    read = DecodeSoundClip(NUM_FRAMES, transform, LOG_MEL, PATCH_WIDTH, train=False)
    rng = np.random.default_rng(0)
    for index in range(len(clips)):
        example, drawn = read(source[index], rng), clips[index]
        np.testing.assert_array_equal(example["video"], drawn["video"])
        # The samples were rounded to 16 bits.
        np.testing.assert_allclose(example["audio"], drawn["audio"], atol=0.01)
        assert example["label"] == drawn["label"]
        assert example["lengths"] == NUM_FRAMES
    damaged = read(source[3], rng)
    assert not damaged["mask"]
    assert damaged["label"] == -1
    assert damaged["audio"].shape == clips[0]["audio"].shape
    assert "silent.mkv" in read.explain(source[3])
