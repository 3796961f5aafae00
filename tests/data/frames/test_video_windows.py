"""Windows of videos: their frames, splits, and the videos that give none."""

import logging
import pickle
from pathlib import Path

import numpy as np
import pytest

from data.frames import FrameFormat, Section, VideoWindows, find_videos, split_videos
from tests.data.video_files import frame_numbers, write_video

FORM = FrameFormat(24, 24, grey=False)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos of two sizes, a short one, and one that cannot be decoded."""
    folder = tmp_path_factory.mktemp("videos")
    write_video(folder / "a.avi", 20)
    write_video(folder / "below" / "b.avi", 12, size=(64, 48))
    write_video(folder / "short.avi", 3)
    (folder / "text.mp4").write_text("no video")
    (folder / "notes.txt").write_text("no video either")
    return folder


def _whole(root: Path, **options: int) -> VideoWindows:
    videos = find_videos(root)
    sections = [Section(i, 0, count) for i, count in enumerate(videos.num_frames) if count]
    return VideoWindows(videos, sections, num_frames=4, form=FORM, **options)


def test_windows_are_the_frames_of_the_videos(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        source = _whole(root, stride=2)
    assert source.videos.names == ("a.avi", "below/b.avi", "short.avi", "text.mp4")
    assert source.videos.num_frames == (20, 12, 3, 0)
    assert source.windows.tolist() == [[0, 0], [0, 7], [1, 0]]
    assert source.skipped == {"short.avi": "3 of 7 frames"}
    assert "1 of 3 videos are too short for a window and skipped: short.avi (3 of" in caplog.text
    assert "1 of 4 videos cannot be decoded and are skipped" in caplog.text
    for index, first in enumerate((0, 7, 0)):
        example = source[index]
        assert example["frames"].shape == (4, 24, 24, 3)
        assert bool(example["mask"])
        assert frame_numbers(example["frames"]).tolist() == [first + 2 * t for t in range(4)]


def test_kept_videos_give_the_same_frames_as_decoded_windows(root: Path) -> None:
    kept, decoded = _whole(root, window_stride=3), _whole(root, window_stride=3, cache_bytes=0)
    assert len(kept) == len(decoded) == 6 + 3
    again = pickle.loads(pickle.dumps(kept))
    for index in range(len(kept)):
        frames = kept[index]["frames"]
        assert np.array_equal(frames, decoded[index]["frames"])
        assert np.array_equal(frames, again[index]["frames"])


def test_grey_frames_have_one_channel(root: Path) -> None:
    colour = FrameFormat(16, 24, grey=False).read_last(root / "a.avi", 2, 3)
    grey = FrameFormat(16, 24).read_last(root / "a.avi", 2, 3)
    assert frame_numbers(colour).tolist() == [16, 19]
    assert grey.shape == (2, 16, 24, 1)
    luma = colour @ np.array([0.299, 0.587, 0.114])
    assert np.abs(grey[..., 0] - luma).max() <= 1
    with pytest.raises(ValueError, match=r"expected at least the 5 frames .* received 3"):
        FrameFormat(16, 24).read_last(root / "short.avi", 3, 2)


def test_a_horizon_beyond_every_clip_is_one_sentence(root: Path) -> None:
    videos = find_videos(root)
    with pytest.raises(ValueError, match=r"num_inputs \+ num_outputs: .*span 30.*longest has 20"):
        VideoWindows(videos, [Section(0, 0, 20)], num_frames=30, form=FORM)


def test_a_video_that_vanishes_is_masked_and_explained(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.avi", 6)
    source = _whole(tmp_path)
    path.write_bytes(b"")
    example = source[0]
    assert not example["mask"]
    assert not example["frames"].any()
    assert str(path) in source.explain(0)


def test_splits_by_video_time_and_folder(tmp_path: Path) -> None:
    for name in "abcde":
        write_video(tmp_path / f"{name}.avi", 10)
    videos = find_videos(tmp_path)
    drawn = split_videos(videos, shares=(0.6, 0.2, 0.2), seed=1)
    assert {name: len(found) for name, found in drawn.items()} == {
        "train": 3,
        "validation": 1,
        "test": 1,
    }
    assert sorted(s.video for found in drawn.values() for s in found) == [0, 1, 2, 3, 4]
    assert split_videos(videos, shares=(0.6, 0.2, 0.2), seed=1) == drawn
    cut = split_videos(videos, split_by="time", shares=(0.5, 0.3))
    assert cut["validation"][1] == Section(1, 5, 8)
    (tmp_path / "Train").mkdir()
    (tmp_path / "val").mkdir()
    for name in "abc":
        (tmp_path / f"{name}.avi").rename(tmp_path / "Train" / f"{name}.avi")
    with pytest.raises(ValueError, match=r"all videos in folders of splits .* received d\.avi"):
        find_videos(tmp_path)
    for name in "de":
        (tmp_path / f"{name}.avi").rename(tmp_path / "val" / f"{name}.avi")
    found = split_videos(find_videos(tmp_path))
    assert {name: len(sections) for name, sections in found.items()} == {
        "train": 3,
        "validation": 2,
    }


def test_what_cannot_be_split_is_refused(root: Path, tmp_path: Path) -> None:
    videos = find_videos(root)
    for options, message in (
        ({"shares": (0.5, 0.6)}, "shares"),
        ({"split_by": "vidoe"}, "split_by: expected one of video, time"),
    ):
        with pytest.raises(ValueError, match=message):
            split_videos(videos, **options)
    write_video(tmp_path / "a.avi", 5)
    with pytest.raises(ValueError, match=r"at least 3 videos .* received 1; split by time"):
        split_videos(find_videos(tmp_path))
    with pytest.raises(FileNotFoundError, match="received none"):
        find_videos(_empty(tmp_path))
    with pytest.raises(FileNotFoundError, match="does not exist"):
        find_videos(tmp_path / "none")


def _empty(folder: Path) -> Path:
    (folder / "empty").mkdir()
    return folder / "empty"
