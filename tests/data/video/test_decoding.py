"""Probing and decoding: exact frames, and every damage is reported."""

import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from data.video.decoding import VideoError, decode, probe
from tests.data.video_files import frame_numbers, truncate, write_video

UT_INTERACTION = Path(__file__).parents[3].parent / "shared/data/ut_interaction/set1/videos"

FORMATS: dict[str, dict[str, Any]] = {
    "avi": {"name": "a.avi"},
    "avi_b_frames": {"name": "b.avi", "b_frames": 2},
    "mp4": {"name": "a.mp4", "codec": "libx264", "b_frames": 2},
    "mp4_index_first": {
        "name": "f.mp4",
        "codec": "libx264",
        "options": {"movflags": "faststart"},
    },
    "mkv": {"name": "a.mkv", "codec": "libx264"},
    "webm": {"name": "a.webm", "codec": "libvpx"},
}


@pytest.fixture(params=FORMATS)
def video(request, tmp_path):
    settings = dict(FORMATS[request.param])
    if settings.get("codec", "mpeg4") not in av.codecs_available:
        pytest.skip(f"this FFmpeg has no {settings['codec']}")
    return write_video(tmp_path / settings.pop("name"), **settings)


def decode_all(path: Path) -> np.ndarray:
    """Returns all frames by FFmpeg's own loop and colour conversion, an independent reference."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_probe_says_what_is_there(video):
    info = probe(video)
    assert (info.num_frames, info.rate, info.height, info.width) == (20, 25.0, 48, 64)


def test_chosen_frames_are_those_of_a_full_decode(video):
    every = decode_all(video)
    assert frame_numbers(every).tolist() == list(range(20))
    for frames in ([0], [19], [3, 4, 11], [7, 2, 2, 19, 7], range(20)):
        np.testing.assert_array_equal(decode(video, np.asarray(frames)), every[list(frames)])


@pytest.mark.parametrize(("size", "scaled"), [((48, 64), (24, 32)), ((64, 48), (32, 24))])
def test_short_side_keeps_aspect(tmp_path, size, scaled):
    path = write_video(tmp_path / "a.avi", size=size)
    frames = decode(path, [0, 9], short_side=24)
    assert frames.shape == (2, *scaled, 3)
    assert frame_numbers(frames).tolist() == [0, 9]


def test_truncated_files_are_noticed(video, tmp_path):
    content = video.read_bytes()
    cut = tmp_path / f"cut{video.suffix}"
    for share in (0.0, 0.01, 0.1, 0.3, 0.5, 0.7, 0.8):
        cut.write_bytes(content[: int(share * len(content))])
        with pytest.raises(VideoError, match=str(cut)):
            probe(cut)
        with pytest.raises(VideoError, match=str(cut)):
            decode(cut, [0, 19])


def test_truncation_says_how_many_frames(tmp_path):
    path = write_video(tmp_path / "a.avi")
    truncate(path, 7)
    with pytest.raises(VideoError, match="truncated: 7 of 20 frames"):
        probe(path)
    truncate(path, 5, more=20)
    with pytest.raises(VideoError, match="truncated: 5 of 20 frames, the next is cut off"):
        probe(path)


def damage(path: Path, numbers: Iterable[int]) -> None:
    """Overwrites a part of these packets with noise."""
    with av.open(str(path)) as container:
        packets: list[Any] = [packet for packet in container.demux(video=0) if packet.size]
    content = bytearray(path.read_bytes())
    for number in numbers:
        middle = packets[number].pos + 8 + packets[number].size // 2
        content[middle : middle + 100] = np.random.default_rng(0).bytes(100)
    path.write_bytes(content)


def test_a_damaged_frame_costs_that_frame_and_is_said_once(tmp_path, caplog):
    path = write_video(tmp_path / "a.avi")
    whole = decode(path, range(20))
    damage(path, [10])
    assert probe(path).num_frames == 20
    decoded = decode(path, range(20))
    np.testing.assert_array_equal(decoded, decode_all(path))
    np.testing.assert_array_equal(decoded[:10], whole[:10])
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage() == f"{path}: 1 damaged frame (number 10) is shown as concealed"


def test_a_video_of_damaged_frames_is_refused(tmp_path):
    path = write_video(tmp_path / "a.avi")
    damage(path, range(2, 12))
    with pytest.raises(VideoError, match=r"damaged: 10 of 20 frames"):
        probe(path)


@pytest.mark.parametrize("at_end", [1, 10])
def test_empty_pictures_are_not_counted(tmp_path, at_end):
    """Xvid writes a packet of a few bytes to repeat the previous picture."""
    path = write_video(tmp_path / "a.avi")
    padded = tmp_path / "padded.avi"
    with av.open(str(path)) as source, av.open(str(padded), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        packets = [bytes(packet) for packet in source.demux(video=0) if packet.size]
        not_coded = b"\x00\x00\x01\xb6\x5b\x4f"
        contents = [*packets[:5], not_coded, *packets[5:], *[not_coded] * at_end]
        for number, content in enumerate(contents):
            packet = av.Packet(content)
            packet.stream, packet.pts, packet.dts = stream, number, number
            packet.is_keyframe = number == 0
            target.mux(packet)
    info = probe(padded)
    assert info.num_frames == 20
    np.testing.assert_array_equal(decode(padded, range(20)), decode_all(path))


def test_frames_beyond_the_end(tmp_path):
    path = write_video(tmp_path / "a.avi")
    assert frame_numbers(decode(path, [18, 20, 21])).tolist() == [18, 19, 19]
    with pytest.raises(VideoError, match="ends after 20 frames, before frame 22"):
        decode(path, [3, 22])


def test_missing_and_foreign_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        probe(tmp_path / "nowhere.avi")
    with pytest.raises(FileNotFoundError, match=str(tmp_path)):
        decode(tmp_path, [0])
    for name, content in (("text.avi", b"no video\n" * 50), ("empty.mp4", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(VideoError, match=f"{name}: not a readable video"):
            probe(tmp_path / name)


def test_sound_without_pictures(tmp_path):
    path = tmp_path / "sound.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        sound = np.zeros((1, 4000), np.int16)
        frame = av.AudioFrame.from_ndarray(sound, format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(VideoError, match="no video stream"):
        probe(path)


def test_wrong_arguments(tmp_path):
    path = write_video(tmp_path / "a.avi", 2)
    wrong: list[Any] = [[], [-1], [[0]]]
    for frames in wrong:
        with pytest.raises(ValueError, match="frames"):
            decode(path, frames)
    with pytest.raises(ValueError, match="short_side"):
        decode(path, [0], short_side=0)


def test_errors_survive_pickling():
    error = pickle.loads(pickle.dumps(VideoError("a/b.avi", "no frames")))
    assert str(error) == "a/b.avi: no frames"


@pytest.mark.skipif(not UT_INTERACTION.is_dir(), reason=f"no real videos in {UT_INTERACTION}")
def test_real_videos_with_packed_frames():
    for path in sorted(UT_INTERACTION.glob("*/*.avi"))[::7]:
        info, every = probe(path), decode_all(path)
        assert (info.num_frames, info.height, info.width) == every.shape[:3]
        frames = np.linspace(0, info.num_frames - 1, 5).astype(int)
        np.testing.assert_array_equal(decode(path, frames), every[frames])
