"""Folders of frames in the place of video files, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.video import DecodeClip, DenseClip, SpatialTransform, StreamSource, VideoSource
from data.video.decoding import VideoError, VideoInfo, decode
from data.video.feature_clips import WholeVideos
from data.video.frame_folders import FrameFolders, list_frames
from tests.data.pictures import random_image
from tests.data.video_files import frame_numbers, write_video

READER = FrameFolders(rate=12.0)


def write_frames(folder: Path, count: int = 12, size: tuple[int, int] = (20, 30)) -> Path:
    """Writes PNG frames 1.png, 2.png and so on, whose grey level is 11 × t + 20."""
    folder.mkdir(parents=True, exist_ok=True)
    for t in range(count):
        Image.new("RGB", size[::-1], (11 * t + 20,) * 3).save(folder / f"{t + 1}.png")
    return folder


def test_frames_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    folder = str(write_frames(tmp_path / "clip"))  # 10.png would come before 2.png by name.
    (tmp_path / "clip" / "._1.png").write_bytes(b"litter")
    (tmp_path / "clip" / "flow_x_00001.jpg").write_bytes(b"beside the frames in TSN's folders")
    assert READER.probe(folder) == VideoInfo(12, 12.0, 20, 30)
    found = READER.decode(folder, [3, 0, 11, 3])
    assert found.shape == (4, 20, 30, 3)
    assert found.dtype == np.uint8
    assert frame_numbers(found).tolist() == [3, 0, 11, 3]
    assert frame_numbers(np.stack([*READER.decode_all(folder)])).tolist() == list(range(12))
    assert READER.decode(folder, [0], short_side=10).shape == (1, 10, 15, 3)


def test_video_files_are_read_as_ever(tmp_path: Path) -> None:
    path = str(write_video(tmp_path / "a.avi", 5))
    assert READER.probe(path).num_frames == 5
    np.testing.assert_array_equal(READER.decode(path, [1, 3]), decode(path, [1, 3]))
    assert len([*READER.decode_all(path)]) == 5


def test_clips_and_streams_of_folders(tmp_path: Path) -> None:
    folder = write_frames(tmp_path / "clip")
    source = VideoSource((str(folder), str(tmp_path / "gone")), (4, 5), READER)
    decode_clip = DecodeClip(DenseClip(4), SpatialTransform((12, 12)), train=False)
    example = decode_clip(source[0], np.random.default_rng(0))
    assert frame_numbers(example["video"]).tolist() == [4, 5, 6, 7]
    assert example["label"] == 4
    assert not decode_clip(source[1], np.random.default_rng(0))["mask"]
    assert "gone" in decode_clip.explain(source[1])
    assert "does not exist" in source.explain(1)
    whole = WholeVideos(source, SpatialTransform((12, 12)))[0]
    assert frame_numbers(whole["video"][0]).tolist() == list(range(12))
    streams = StreamSource(source, ("rgb_whole",), 3, size=12, mirror=False)
    assert frame_numbers(streams[0]["video"][0]).tolist() == [2, 6, 10]


def test_a_digest_tells_contents_and_names(tmp_path: Path) -> None:
    folder = write_frames(tmp_path / "clip", 3)
    before = READER.digest(str(folder))
    assert before == READER.digest(str(folder.rename(tmp_path / "moved")))
    (tmp_path / "moved" / "3.png").rename(tmp_path / "moved" / "4.png")
    assert READER.digest(str(tmp_path / "moved")) != before


def test_frames_of_mixed_sizes(tmp_path: Path) -> None:
    folder = write_frames(tmp_path / "clip")
    Image.fromarray(random_image(24, 30)).save(folder / "7.png")
    message = r"expected frames of one size, received 1.png of 20 × 30 pixels and 7.png of 24 × 30"
    with pytest.raises(VideoError, match=message):
        READER.decode(str(folder), [0, 6])
    with pytest.raises(VideoError, match=message):
        list(READER.decode_all(str(folder), short_side=10))


def test_bad_folders(tmp_path: Path) -> None:
    folder = write_frames(tmp_path / "clip", 3)
    with pytest.raises(VideoError, match="it has 3 images, and number 3 is asked for"):
        READER.decode(str(folder), [3])
    with pytest.raises(ValueError, match=r"expected \(T,\) numbers from 0 on"):
        READER.decode(str(folder), [])
    (folder / "2.png").write_bytes((folder / "2.png").read_bytes()[:60])
    with pytest.raises(VideoError, match=r"clip: frame 2.png is unreadable"):
        READER.decode(str(folder), [1])
    (tmp_path / "empty").mkdir()
    with pytest.raises(VideoError, match=r"expected frames .*, received none"):
        READER.probe(str(tmp_path / "empty"))
    with pytest.raises(FileNotFoundError, match="expected a folder of frames"):
        list_frames(tmp_path / "gone")
    for name, message in (("cover.png", "a number"), ("img_1.png", "one series")):
        (folder / name).write_bytes(b"")
        with pytest.raises(VideoError, match=message):
            list_frames(folder)
        (folder / name).unlink()
