"""Copies of clips for players: only where browsers need one, with the same pictures."""

from pathlib import Path

import numpy as np
import pytest

from flaxnets.inference.runtime.media import Limits, MediaError, Video
from launch.serving.previews import is_playable, write_preview
from tests.data.video_files import write_video

LIMITS = Limits()


def test_mp4_and_webm_are_played_as_they_are(tmp_path: Path) -> None:
    for name, codec in (("a.mp4", "libx264"), ("a.webm", "libvpx")):
        path = write_video(tmp_path / name, 8, codec=codec)
        assert is_playable(str(path))
        assert not write_preview(str(path), str(tmp_path / "copy.mp4"), LIMITS)
        assert not (tmp_path / "copy.mp4").exists()


@pytest.mark.parametrize(
    ("name", "codec"), [("a.avi", "mpeg4"), ("a.mp4", "mpeg4"), ("a.mkv", "libx264")]
)
def test_other_clips_get_a_copy_with_their_pictures(name: str, codec: str, tmp_path: Path) -> None:
    path = write_video(tmp_path / name, 12, size=(50, 70), codec=codec)
    copy = tmp_path / "copy.mp4"
    assert write_preview(str(path), str(copy), LIMITS)
    assert is_playable(str(copy))
    before, after = Video(path).probe(), Video(copy).probe()
    assert (after.num_frames, after.rate) == (before.num_frames, before.rate)
    pictures = zip(Video(path).frames(), Video(copy).frames(), strict=True)
    for (_, one), (_, other) in pictures:
        assert np.abs(one.astype(int) - other).mean() < 12


def test_large_and_fast_clips_get_small_copies(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.avi", 20, size=(400, 722), rate=120)
    copy = tmp_path / "copy.mp4"
    assert write_preview(str(path), str(copy), LIMITS)
    info = Video(copy).probe()
    assert (info.num_frames, info.rate, info.height) == (5, 30.0, 360)


def test_unreadable_clips_get_a_reason(tmp_path: Path) -> None:
    (tmp_path / "a.avi").write_bytes(b"no clip")
    with pytest.raises(MediaError, match="not a readable video"):
        write_preview(str(tmp_path / "a.avi"), str(tmp_path / "copy.mp4"), LIMITS)
