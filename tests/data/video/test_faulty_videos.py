"""Whole videos with misleading headers, damaged, rotated, hostile and oversized ones."""

import logging
import os
import socket
import tracemalloc
from collections.abc import Callable, Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from data.audio import AudioError, read_audio
from data.captions.images import read_image
from data.loader import Loader, TooManyBadExamples
from data.video import decoding
from data.video.clips import DecodeClip, UniformClip, VideoSource
from data.video.decoding import VideoError, VideoInfo, decode, decode_all, probe
from data.video.feature_clips import WholeVideos
from data.video.streams import STREAMS, StreamSource
from data.video.transforms import SpatialTransform
from tests.data.generated_videos import GeneratedVideo, decode_plainly, write_generated
from tests.data.video_files import frame_numbers, write_video

SQUARE = SpatialTransform((24, 24), scale=(1, 1), stretch=1, keep_aspect=False)


def remux(
    source: Path,
    target: Path,
    keep: Callable[[int], bool] = lambda number: True,
    *,
    late: float = 0.0,
    sound: bool = False,
    metadata: dict[str, str] | None = None,
) -> Path:
    """Copies packets to another file, ``late`` seconds later, with sound from time 0 on."""
    with av.open(str(source)) as reads, av.open(str(target), "w") as writes:
        stream = reads.streams.video[0]
        copy = writes.add_stream_from_template(stream)
        copy.metadata.update(metadata or {})
        packets: list[Any] = [packet for packet in reads.demux(stream) if packet.size]
        packets = [packet for number, packet in enumerate(packets) if keep(number)]
        shift = round(late / packets[0].time_base)
        for packet in packets:
            packet.pts, packet.dts, packet.stream = packet.pts + shift, packet.dts + shift, copy
        if sound:
            noise = writes.add_stream("pcm_s16le", rate=8000, layout="mono")
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 8000, 0, Fraction(1, 8000)
            packets = [*noise.encode(frame), *packets]
        for packet in packets:
            writes.mux(packet)
    return target


def check_whole(path: Path, numbers: Iterable[int] = range(20)) -> None:
    """Checks that a file of ``write_video`` shows these frames, as a plain decoder sees them."""
    expected = list(numbers)
    info = probe(path)
    assert info.num_frames == len(expected)
    frames = decode(path, range(info.num_frames))
    assert frame_numbers(frames).tolist() == expected
    pictures, _ = decode_plainly(path)
    np.testing.assert_array_equal(frames, pictures)
    np.testing.assert_array_equal(frames, list(decode_all(path)))
    np.testing.assert_array_equal(frames[-1:], decode(path, [info.num_frames - 1]))


def patch_number(content: bytearray, chunk: bytes, offset: int, number: int) -> None:
    """Overwrites a 32-bit number within a chunk of an AVI file."""
    start = content.find(chunk) + 8 + offset
    content[start : start + 4] = number.to_bytes(4, "little")


# Headers


def test_null_frames_at_the_end_of_an_avi(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.avi")
    content = bytearray(path.read_bytes())
    patch_number(content, b"avih", 16, 23)
    patch_number(content, b"strh", 32, 23)
    path.write_bytes(content)
    check_whole(path)
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(VideoError, match="truncated"):
        probe(path)


def test_an_avi_that_was_written_to_a_pipe_declares_nothing(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.avi")
    content = bytearray(path.read_bytes())
    patch_number(content, b"RIFF", -4, 0xFFFFFFFF)
    patch_number(content, b"avih", 16, 2**30)
    patch_number(content, b"strh", 32, 2**30)
    path.write_bytes(content)
    check_whole(path)


@pytest.mark.parametrize("sound", [False, True])
@pytest.mark.parametrize(
    ("suffix", "codec"), [("mkv", "libx264"), ("mkv", "mpeg4"), ("webm", "libvpx")]
)
def test_matroska_whose_pictures_begin_late(
    tmp_path: Path, suffix: str, codec: str, sound: bool
) -> None:
    source = write_video(tmp_path / f"a.{suffix}", codec=codec)
    suffix = "mkv" if sound else suffix  # WebM knows no PCM.
    late = remux(source, tmp_path / f"late.{suffix}", late=0.32, sound=sound)
    check_whole(late)
    late.write_bytes(late.read_bytes()[: int(0.7 * late.stat().st_size)])
    with pytest.raises(VideoError, match=r"truncated: 0\.\d\d of 1\.12 seconds"):
        probe(late)


@pytest.mark.parametrize("rate", [10, 15, 30])
@pytest.mark.parametrize("b_frames", [2, 3])
def test_flv_with_b_frames(tmp_path: Path, rate: int, b_frames: int) -> None:
    path = write_video(tmp_path / "a.flv", codec="libx264", b_frames=b_frames, rate=rate)
    check_whole(path)
    path.write_bytes(path.read_bytes()[: int(0.7 * path.stat().st_size)])
    with pytest.raises(VideoError, match="truncated"):
        probe(path)


def test_hidden_frames_of_vp8_are_not_counted(tmp_path: Path) -> None:
    video = GeneratedVideo(
        container="webm",
        codec="libvpx",
        rate=Fraction(25),
        num_frames=60,
        start=0,
        b_frames=0,
        has_sound=False,
        jitter=False,
        rotation=0,
        mirrored=False,
        damage="hidden_frames",
        seed=0,
    )
    path = write_generated(video, tmp_path)
    with av.open(str(path)) as container:
        assert sum(packet.size > 0 for packet in container.demux(video=0)) > 60
    assert probe(path).num_frames == 60
    pictures, _ = decode_plainly(path)
    np.testing.assert_array_equal(decode(path, range(60)), pictures)


@pytest.mark.parametrize("sizes", [((48, 64), (96, 128)), ((96, 128), (48, 64), (96, 128))])
def test_a_transport_stream_that_changes_size(
    tmp_path: Path, sizes: tuple[tuple[int, int], ...]
) -> None:
    parts = [
        write_video(tmp_path / f"{n}.ts", codec="libx264", size=size, b_frames=2)
        for n, size in enumerate(sizes)
    ]
    path = tmp_path / "joined.ts"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    info = probe(path)
    assert (info.num_frames, info.height, info.width) == (20 * len(sizes), *sizes[0])
    frames = decode(path, range(info.num_frames))
    assert frames.shape == (20 * len(sizes), *sizes[0], 3)
    assert frame_numbers(frames).tolist() == list(range(20)) * len(sizes)


@pytest.mark.parametrize("cut", [0.4, 0.8])
def test_a_transport_stream_that_breaks_off_within_a_packet(tmp_path: Path, cut: float) -> None:
    path = write_video(tmp_path / "a.ts", codec="libx264", b_frames=2)
    content = path.read_bytes()
    path.write_bytes(content[: int(cut * len(content)) // 188 * 188 + 100])
    with pytest.raises(VideoError, match=r"truncated: .* breaks off"):
        probe(path)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts", "flv"])
def test_a_video_cut_between_keyframes(tmp_path: Path, suffix: str) -> None:
    source = write_video(tmp_path / "a.mp4", codec="libx264", b_frames=2)
    cut = remux(source, tmp_path / f"cut.{suffix}", lambda number: number >= 4)
    check_whole(cut, range(10, 20))  # The next keyframe is frame 10.


def test_a_video_whose_decoder_refuses_what_precedes_the_first_keyframe(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = write_video(tmp_path / "a.webm", codec="libvpx-vp9")
    cut = remux(source, tmp_path / "cut.webm", lambda number: number >= 4)
    check_whole(cut, range(10, 20))
    (record,) = caplog.records
    assert record.getMessage() == f"{cut}: 6 packets before the first frame cannot be decoded"


@pytest.mark.parametrize("name", ["a.avi", "a.mp4", "a.mkv", "a.ts"])
def test_a_single_frame_is_a_video(tmp_path: Path, name: str) -> None:
    codec = "mpeg4" if name == "a.avi" else "libx264"
    check_whole(write_video(tmp_path / name, 1, codec=codec), [0])


@pytest.mark.parametrize("tag", ["abc", "1:2", "00:00:99:00.5", "", "ten", "-1:00:00", "9:00:00"])
def test_strange_tags_are_no_durations(tmp_path: Path, tag: str) -> None:
    source = write_video(tmp_path / "a.avi")
    check_whole(remux(source, tmp_path / "a.nut", metadata={"DURATION": tag}))


def test_a_tag_of_the_file_from_which_a_part_was_cut(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv", codec="libx264")
    content = path.read_bytes()
    assert content.count(b"00:00:00.800000000") == 1
    for tag in (b"00:10:00.800000000", b"99:99:99.999999999", b"ten minutes, about"):
        path.write_bytes(content.replace(b"00:00:00.800000000", tag))
        check_whole(path)


def test_flv_that_breaks_off_in_its_sound(tmp_path: Path) -> None:
    path = tmp_path / "a.flv"
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("flv", rate=50)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        sound: Any = container.add_stream("pcm_s16le", rate=44100, layout="mono")
        for t in range(20):
            image = np.full((48, 64, 3), 11 * t, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            noise = np.zeros((1, 882), np.int16)
            frame = av.AudioFrame.from_ndarray(noise, format="s16", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 44100, 882 * t, Fraction(1, 44100)
            container.mux(sound.encode(frame))
        container.mux(stream.encode())
    assert probe(path).num_frames == 20
    with av.open(str(path)) as container:
        ends = [packet.pos for packet in container.demux(audio=0) if packet.size]
    path.write_bytes(path.read_bytes()[: ends[-2] + 200])
    with pytest.raises(VideoError, match=r"truncated: \d+ frames, then the file breaks off"):
        probe(path)


@pytest.mark.parametrize(("name", "codec"), [("a.gif", "gif"), ("a.ogv", "libvpx")])
def test_containers_without_declared_size_that_break_off(
    tmp_path: Path, name: str, codec: str
) -> None:
    pixels = "rgb8" if codec == "gif" else "yuv420p"
    path = write_video(tmp_path / name, codec=codec, pixels=pixels)
    content = path.read_bytes()
    assert probe(path).num_frames == 20
    path.write_bytes(content + b"more")
    assert probe(path).num_frames == 20
    for share in (0.5, 0.7, 0.9):
        path.write_bytes(content[: int(len(content) * share)])
        with pytest.raises(VideoError, match="truncated"):
            probe(path)


def test_mpeg_program_stream_that_breaks_off_in_its_sound(tmp_path: Path) -> None:
    path = tmp_path / "a.mpg"
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("mpeg1video", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        # On a machine of one core the pictures would all come before the sound.
        stream.codec_context.thread_count = 2
        sound = container.add_stream("mp2", rate=48000, layout="mono")
        for t in range(25):
            image = np.full((48, 64, 3), 10 * t, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        for t in range(42):
            noise = np.random.default_rng(t).integers(-9999, 9999, (1, 1152)).astype(np.int16)
            frame = av.AudioFrame.from_ndarray(noise, format="s16", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 48000, 1152 * t, Fraction(1, 48000)
            container.mux(sound.encode(frame))
        container.mux(stream.encode())
        container.mux(sound.encode())
    assert probe(path).num_frames == 25
    pack = path.read_bytes().index(b"\0\0\1\xba", path.stat().st_size // 2)
    path.write_bytes(path.read_bytes()[: pack + 1000])
    with pytest.raises(VideoError, match=r"truncated: \d+ frames, then the file breaks off"):
        probe(path)


# Rotation


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_rotated_and_mirrored_videos_are_upright(
    tmp_path: Path, rotation: int, mirrored: bool
) -> None:
    plain = write_video(tmp_path / "plain.mp4", 3, codec="libx264")
    path = tmp_path / "turned.mp4"
    with av.open(str(plain)) as reads, av.open(str(path), "w") as writes:
        stream = reads.streams.video[0]
        copy: Any = writes.add_stream_from_template(stream)
        copy.set_display_rotation(rotation, hflip=mirrored)
        for packet in reads.demux(stream):
            if packet.size:
                packet.stream = copy
                writes.mux(packet)
    expected = np.rot90(decode(plain, range(3)), rotation // 90, axes=(1, 2))
    expected = expected[:, :, ::-1] if mirrored else expected
    np.testing.assert_array_equal(decode(path, range(3)), expected)
    info = probe(path)
    assert (info.height, info.width) == expected.shape[1:3]
    small = decode(path, [1], short_side=24)
    assert small.shape == (1, 24, 32, 3) if rotation % 180 == 0 else (1, 32, 24, 3)
    example = DecodeClip(UniformClip(3), SQUARE, train=False)(
        VideoSource((str(path),))[0], np.random.default_rng(0)
    )
    np.testing.assert_array_equal(example["video"], SQUARE.test_views(expected)[0])


@pytest.mark.parametrize("suffix", ["avi", "mkv", "mov"])
@pytest.mark.parametrize("orientation", [1, 2, 6])
def test_pictures_with_exif_data_are_upright(tmp_path: Path, suffix: str, orientation: int) -> None:
    """FFmpeg passes on what a camera wrote into each JPEG, of a kind that PyAV does not know."""
    image = Image.new("RGB", (64, 48), "white")
    image.paste((0, 0, 0), (0, 0, 32, 48))
    exif = Image.Exif()
    exif[0x10F], exif[0x112] = "maker", orientation
    image.save(tmp_path / "a.jpg", exif=exif, quality=100, subsampling=0)
    path = tmp_path / f"a.{suffix}"
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("mjpeg", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj444p"
        for t in range(3):
            packet = av.Packet((tmp_path / "a.jpg").read_bytes())
            packet.stream, packet.time_base, packet.pts, packet.dts = stream, Fraction(1, 10), t, t
            container.mux(packet)
    expected = read_image(tmp_path / "a.jpg")
    info = probe(path)
    assert (info.num_frames, info.height, info.width) == (3, *expected.shape[:2])
    for frame in decode_all(path):
        np.testing.assert_allclose(frame, expected, atol=8)


# Damage


def overwrite_packet(path: Path, number: int) -> None:
    with av.open(str(path)) as container:
        packets: list[Any] = [packet for packet in container.demux(video=0) if packet.size]
    content = bytearray(path.read_bytes())
    start = content.find(bytes(packets[number])) + packets[number].size // 2
    content[start : start + 100] = np.random.default_rng(0).bytes(100)
    path.write_bytes(content)


def test_a_video_with_one_damaged_frame_is_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_video(tmp_path / "a.avi")
    overwrite_packet(path, 13)
    loader = Loader(
        VideoSource((str(path),), (3,)),
        transform=DecodeClip(UniformClip(20), SQUARE, train=True),
        batch_size=1,
        train=True,
        max_bad_share=0.0,
    )
    with loader.batches() as batches:
        for _ in range(3):
            batch = next(batches)
            assert batch["mask"].all()
            assert (batch["label"].item(), batch["lengths"].item()) == (3, 20)
    assert not loader.bad
    said = [record.getMessage() for record in caplog.records if str(path) in record.getMessage()]
    assert said == [f"{path}: 1 damaged frame (number 13) is shown as concealed"]


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("a.avi", {}, r"truncated: \d+ of 20 frames"),
        ("a.mp4", {}, r"truncated: its index \(moov\) is missing or cut off"),
        ("faststart.mp4", {"movflags": "faststart"}, "truncated or damaged: decoding ends"),
        ("a.mkv", {}, r"truncated or damaged: 0\.\d\d of 0\.80 seconds"),
        ("a.flv", {}, r"truncated or damaged: 0\.\d\d of 0\.8\d seconds"),
        ("a.ts", {}, r"truncated: \d+ frames, then the file breaks off"),
        ("a.nut", {}, "damaged after frame"),
        ("a.3gp", {"movflags": "frag_keyframe+empty_moov"}, "no whole fragment"),
    ],
)
def test_zeros_in_place_of_the_second_half_are_no_shorter_video(
    tmp_path: Path, name: str, options: dict[str, str], reason: str
) -> None:
    """An unfinished download may already have its full size."""
    path = write_video(
        tmp_path / name, codec="mpeg4" if name == "a.nut" else "libx264", options=options
    )
    check_whole(path)
    content = path.read_bytes()
    half = len(content) // 2
    path.write_bytes(content[:half] + bytes(len(content) - half))
    with pytest.raises(VideoError, match=reason):
        probe(path)


def test_packets_that_the_index_of_an_avi_names_are_missed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_video(tmp_path / "a.avi")
    with av.open(str(path)) as container:
        packets: list[Any] = [packet for packet in container.demux(video=0) if packet.size]
    content = bytearray(path.read_bytes())
    first, end = packets[8].pos - 8, packets[10].pos - 8  # with the chunks' headers
    content[first:end] = bytes(end - first)
    path.write_bytes(content)
    assert probe(path).num_frames < 20
    (record,) = caplog.records
    assert "packets are not where the index says" in record.getMessage()


# Hostile files


def unknown_codec(folder: Path) -> Path:
    path = write_video(folder / "unknown.mkv", codec="libx264")
    path.write_bytes(path.read_bytes().replace(b"V_MPEG4/ISO/AVC", b"V_MPEG9/ISO/XYZ"))
    return path


def vector_graphics(folder: Path) -> Path:
    path = folder / "svg.avi"
    path.write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    return path


def script_of_other_files(folder: Path) -> Path:
    write_video(folder / "secret.avi")
    path = folder / "concat.avi"
    path.write_text("ffconcat version 1.0\nfile 'secret.avi'\n")
    return path


def playlist(folder: Path) -> Path:
    write_video(folder / "part.ts", codec="libx264")
    path = folder / "list.ts"
    path.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\npart.ts\n#EXT-X-ENDLIST\n")
    return path


def noise(folder: Path) -> Path:
    path = folder / "noise.mkv"
    path.write_bytes(np.random.default_rng(0).bytes(5000))
    return path


def cover_of_a_song(folder: Path) -> Path:
    path = folder / "song.mp4"
    with av.open(str(path), "w") as container:
        sound = container.add_stream("aac", rate=8000, layout="mono")
        cover: Any = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 48, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        image = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")
        packets = cover.encode(image) + cover.encode()
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", layout="mono")
        frame.sample_rate = 8000
        for packet in [*packets, *sound.encode(frame), *sound.encode()]:
            container.mux(packet)
    return path


HOSTILE: dict[str, tuple[Callable[[Path], Path], str]] = {
    "unknown codec": (unknown_codec, "there is no decoder for its codec"),
    "vector graphics": (vector_graphics, "its container is none of data.video.decoding.FORMATS"),
    "script": (script_of_other_files, "its container is none of data.video.decoding.FORMATS"),
    "playlist": (playlist, "not a readable video"),
    "noise": (noise, "not a readable video"),
    "cover": (cover_of_a_song, "no video stream"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_file_is_a_bad_example_with_its_reason(tmp_path: Path, kind: str) -> None:
    write, reason = HOSTILE[kind]
    path = write(tmp_path)
    for read in (probe, lambda path: decode(path, [0]), lambda path: list(decode_all(path))):
        with pytest.raises(VideoError, match=reason) as caught:
            read(path)
        assert caught.value.path == str(path)
    good = write_video(tmp_path / "good.avi")
    source = VideoSource((str(good), str(path)), (0, 1))
    transform = DecodeClip(UniformClip(4), SQUARE, train=False)

    def loader(share: float) -> Loader:
        return Loader(source, transform=transform, batch_size=2, train=False, max_bad_share=share)

    allowing = loader(0.5)
    with allowing.batches() as batches:
        assert next(batches)["mask"].tolist() == [True, False]
    assert list(allowing.bad) == [1]
    assert allowing.bad[1].startswith(f"{path}: {reason}")
    with pytest.raises(TooManyBadExamples, match=reason), loader(0.4).batches() as batches:
        next(batches)


@pytest.mark.parametrize(
    "name",
    [
        *("2026-11-28T12:00:00.avi", "pipe:0", "http:a.avi", "file:a.avi", "concat:a.avi|b.avi"),
        *("data:text.avi", "subfile,,start,0,end,9,,:a.avi", "a%03d.avi", "-i.avi", "[a]*?.avi"),
        *("ä ö.avi", "\udcff.avi", "fd:0", "crypto:a.avi", "cache:a.avi"),
    ],
    ids=ascii,  # Processes of a test run cannot tell each other of half a surrogate.
)
def test_names_are_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    check_whole(write_video(tmp_path / "a.avi").rename(tmp_path / name))
    monkeypatch.chdir(tmp_path)
    assert probe(name).num_frames == 20
    assert decode(name, [19]).shape == (1, 48, 64, 3)


def test_an_address_is_never_opened(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        address = f"http://127.0.0.1:{server.getsockname()[1]}/a.avi"
        for read in (probe, read_audio):
            with pytest.raises(FileNotFoundError, match="expected a "):
                read(address)
        with pytest.raises(TimeoutError):
            server.accept()


def test_pipes_folders_and_impossible_names(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.avi")
    for path in (tmp_path / "pipe.avi", tmp_path, tmp_path / "a\0b.avi", Path("pipe:0")):
        for read in (probe, read_audio):
            with pytest.raises(FileNotFoundError, match="expected a "):
                read(path)
    with pytest.raises(VideoError, match="cannot be opened"):
        probe(tmp_path / ("x" * 300))
    with pytest.raises(AudioError, match="cannot be opened"):
        read_audio(tmp_path / ("x" * 300))


@pytest.mark.parametrize("raised", [MemoryError("26 GiB"), AttributeError("x"), ValueError("y")])
def test_whatever_a_decoder_raises_is_a_video_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raised: Exception
) -> None:
    path = write_video(tmp_path / "a.avi")

    def fail(*_: Any) -> None:
        raise raised

    monkeypatch.setattr(decoding._ToRgb, "__call__", fail)
    with pytest.raises(VideoError, match=f"{type(raised).__name__}: {raised}") as caught:
        decode(path, [0])
    assert caught.value.__cause__ is raised


# Sizes


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        *(("a.avi", "mpeg4"), ("a.mp4", "libx264"), ("a.mkv", "ffv1"), ("a.webm", "libvpx")),
        *(("a.ts", "libx264"), ("a.flv", "libx264"), ("a.mpg", "mpeg2video")),
    ],
)
def test_large_frames_are_refused_before_they_are_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, codec: str
) -> None:
    path = write_video(tmp_path / name, 5, codec=codec, size=(192, 256))
    monkeypatch.setattr(decoding, "MAX_PIXELS", 192 * 256)
    assert decode(path, [4]).shape == (1, 192, 256, 3)
    monkeypatch.setattr(decoding, "MAX_PIXELS", 192 * 256 - 1)
    monkeypatch.setattr(decoding, "_Pictures", None)  # Nothing is decoded.
    for read in (probe, lambda path: decode(path, [0])):
        with pytest.raises(VideoError, match="frames of 192 × 256 pixels, more than the 49151"):
            read(path)


@pytest.mark.parametrize("scale", [2, 4])
def test_frames_that_grow_too_large_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scale: int
) -> None:
    parts = [
        write_video(tmp_path / f"{n}.ts", codec="libx264", size=size).read_bytes()
        for n, size in enumerate([(48, 64), (64 * scale, 64 * scale)])
    ]
    path = tmp_path / "grows.ts"
    path.write_bytes(b"".join(parts))
    assert probe(path).num_frames == 40
    monkeypatch.setattr(decoding, "MAX_PIXELS", 96 * 128)
    with pytest.raises(
        VideoError,
        match="more than the 12288 allowed" if scale == 2 else "above the 12288 pixels",
    ):
        probe(path)


def test_a_strip_is_not_scaled_beyond_the_limit(tmp_path: Path) -> None:
    """2 × 16384 pixels with a short side of 256 are 537 million."""
    path = write_video(tmp_path / "strip.mkv", 2, codec="ffv1", size=(2, 16384))
    assert decode(path, [0]).shape == (1, 2, 16384, 3)
    with pytest.raises(VideoError, match="frames enlarged to 256 × 2097152 pixels, more than"):
        decode(path, [0], short_side=256)
    loader = Loader(
        VideoSource((str(path),)),
        transform=DecodeClip(UniformClip(2), SQUARE, train=False, short_side=256),
        batch_size=1,
        train=False,
        max_bad_share=1.0,
    )
    with loader.batches() as batches:
        assert not next(batches)["mask"].any()
    assert "enlarged to 256 × 2097152" in loader.bad[0]


@pytest.mark.parametrize(
    ("box", "place", "options"),
    [(b"trun", 8, {"movflags": "frag_keyframe+empty_moov"}), (b"stsz", 12, {})],
)
def test_an_index_longer_than_its_file_is_refused(
    tmp_path: Path, box: bytes, place: int, options: dict[str, str]
) -> None:
    """Listing 30 million samples would take a gigabyte."""
    path = write_video(tmp_path / "a.mp4", codec="libx264", options=options)
    check_whole(path)
    content = bytearray(path.read_bytes())
    start = content.index(box) + place
    content[start : start + 4] = (30_000_000).to_bytes(4, "big")
    path.write_bytes(content)
    for read in (probe, read_audio):
        with pytest.raises(VideoError, match=r"damaged: 300\d+ samples are declared in \d+ bytes"):
            read(path)


# Cost


def test_a_video_is_counted_once_until_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_video(tmp_path / "a.avi")
    counted = []
    count = decoding._probe

    def counting(path: str) -> VideoInfo:
        counted.append(path)
        return count(path)

    monkeypatch.setattr(decoding, "_probe", counting)
    for _ in range(2):
        assert probe(path).num_frames == 20
    assert len(counted) == 2  # It was written a moment ago and may still change.
    os.utime(path, (1e9, 1e9))
    for _ in range(3):
        assert probe(str(path)).num_frames == 20
    assert len(counted) == 3
    write_video(path, 7)
    os.utime(path, (1e9, 1e9))
    assert probe(path).num_frames == 7


@pytest.mark.parametrize("kind", ["frames", "streams", "whole"])
def test_long_videos_are_read_in_a_fraction_of_their_memory(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "long.avi"
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        for t in range(400):
            image = np.zeros((240, 320, 3), np.uint8)
            image[:, t % 300 : t % 300 + 20] = 200
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    videos = VideoSource((str(path),), (0,))
    read: dict[str, Callable[[], Any]] = {
        "frames": lambda: sum(1 for _ in decode_all(path)),
        "streams": lambda: StreamSource(videos, STREAMS, num_steps=8, size=32)[0]["mask"].all(),
        "whole": lambda: WholeVideos(videos, SQUARE)[0]["mask"].all(),
    }
    probe(path)
    tracemalloc.start()
    try:
        assert read[kind]()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 0.25 * 400 * 240 * 320 * 3


def test_nothing_is_said_about_whole_videos(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        check_whole(write_video(tmp_path / "a.avi"))
    assert not caplog.records
