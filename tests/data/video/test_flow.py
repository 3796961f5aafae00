"""Optical flow: a known translation, its images, the cache, published folders, and bad ones."""

import doctest
import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data import flow as program
from data.video import DecodeClip, StreamSource, UniformClip, VideoSource
from data.video import flow as flow_module
from data.video.decoding import VideoError
from data.video.flow import (
    FlowImages,
    FlowTransform,
    compute_flow,
    flow_to_image,
    join_components,
    make_reader,
    opencv,
)
from data.video.frame_folders import FrameFolders
from data.video.transforms import mirror_flow
from tests.data.pictures import random_image
from tests.data.shared_data import shared

try:
    opencv()
    HAS_OPENCV = True
except ImportError:
    HAS_OPENCV = False
needs_opencv = pytest.mark.skipif(not HAS_OPENCV, reason="OpenCV (extra flow) is not installed")

RIGHT, DOWN = 3, -2


def translated(count: int = 4, size: tuple[int, int] = (48, 64)) -> np.ndarray:
    """Returns smooth noise that moves by RIGHT and DOWN pixels a frame, (T,H,W,3) uint8."""
    (height, width), margin = size, 4 * count
    coarse = Image.fromarray(random_image((height + 2 * margin) // 4, (width + 2 * margin) // 4))
    whole = (width + 2 * margin, height + 2 * margin)
    texture = np.asarray(coarse.resize(whole, Image.Resampling.BICUBIC))
    return np.stack(
        [texture[margin - DOWN * t :, margin - RIGHT * t :][:height, :width] for t in range(count)]
    )


def write_clip(folder: Path, count: int = 4) -> Path:
    folder.mkdir(parents=True)
    for t, frame in enumerate(translated(count), 1):
        Image.fromarray(frame).save(folder / f"{t:05d}.png")
    return folder


def write_published(folder: Path, count: int = 5, size: tuple[int, int] = (10, 12)) -> Path:
    """Writes flow whose horizontal component is 100 + t and vertical one 150, t from 1."""
    folder.mkdir(parents=True)
    for t in range(1, count + 1):
        for letter, level in (("x", 100 + t), ("y", 150)):
            Image.new("L", size[::-1], level).save(folder / f"flow_{letter}_{t:05d}.jpg")
    return folder


def test_images_of_flow() -> None:
    rng = np.random.default_rng(0)
    flow = rng.uniform(-30, 30, (5, 7, 2)).astype(np.float32)
    image = flow_to_image(flow)
    assert image.dtype == np.uint8
    clipped = np.clip(flow, -20, 20)
    np.testing.assert_allclose((image[..., :2] - 128.0) * 20 / 127, clipped, atol=0.08)
    length = np.minimum(np.linalg.norm(flow, axis=-1), 20)
    np.testing.assert_allclose((image[..., 2] - 128.0) * 20 / 127, length, atol=0.08)
    # What is stored are the two components; the third is their magnitude.
    joined = join_components(image[..., 0], image[..., 1])
    assert np.abs(joined.astype(int) - image).max() <= 1
    assert (flow_to_image(np.zeros((2, 2, 2), np.float32)) == 128).all()


def test_the_mirror_image_of_flow_is_the_flow_of_the_mirrored_video() -> None:
    flow = np.random.default_rng(0).uniform(-25, 25, (1, 4, 6, 2)).astype(np.float32)
    image = flow_to_image(flow[0])[None]
    of_mirrored = flow[:, :, ::-1] * np.array([-1, 1], np.float32)
    np.testing.assert_array_equal(mirror_flow(image), flow_to_image(of_mirrored[0])[None])
    np.testing.assert_array_equal(mirror_flow(mirror_flow(image)), image)
    transform = FlowTransform((4, 4), flip=True, test_crops=10)
    views = transform.test_views(image)
    np.testing.assert_array_equal(views[5], mirror_flow(views[0]))
    # A random crop is mirrored half of the time, or not at all.
    always = FlowTransform((4, 6), scale=(1, 1), stretch=1, flip=True)
    seen = {always(image, np.random.default_rng(seed)).tobytes() for seed in range(20)}
    assert seen == {image.tobytes(), mirror_flow(image).tobytes()}


@needs_opencv
def test_flow_of_a_translation() -> None:
    before, after = translated(2)[..., 0]
    flow = compute_flow(before, after)
    assert flow.shape == (48, 64, 2)
    assert flow.dtype == np.float32
    inner = flow[8:-8, 8:-8]
    np.testing.assert_allclose(np.median(inner, (0, 1)), [RIGHT, DOWN], atol=0.1)
    assert np.abs(inner - [RIGHT, DOWN]).mean() < 0.5
    np.testing.assert_allclose(compute_flow(before, before), 0, atol=0.1)
    with pytest.raises(ValueError, match=r"after: expected \(H,W\) uint8 as before"):
        compute_flow(before, after[:-1])
    with pytest.raises(ValueError, match="at least 12 pixels"):
        compute_flow(before[:8], after[:8])


@needs_opencv
def test_flow_is_computed_once_and_read_as_clips(tmp_path: Path) -> None:
    videos, root = tmp_path / "videos", tmp_path / "flow"
    clip = write_clip(videos / "Wave" / "a.1")
    reader = FlowImages(str(root), str(videos), short_side=48)
    source = VideoSource((str(clip),), (2,), reader)
    info = reader.probe(str(clip))
    assert (info.num_frames, info.rate, info.height, info.width) == (3, 25.0, 48, 64)
    transform = FlowTransform((48, 64), keep_aspect=False)
    example = DecodeClip(UniformClip(3), transform, train=False)(
        source[0], np.random.default_rng(0)
    )
    assert example["label"] == 2
    assert example["video"].shape == (3, 48, 64, 3)
    expected = flow_to_image(np.array([[[RIGHT, DOWN]]], np.float32))[0, 0]
    for image in example["video"]:
        np.testing.assert_allclose(np.median(image[8:-8, 8:-8], (0, 1)), expected, atol=2)
    folder = root / "Wave" / "a.1"
    names = {f"flow_{c}_0000{t}.jpg" for c in "xy" for t in (1, 2, 3)}
    assert {path.name for path in folder.iterdir()} == {*names, "flow.json"}

    # It stays; other settings are refused, and those of the root hold where none are given.
    assert FlowImages(str(root), str(videos)).probe(str(clip)) == info
    changed = folder.stat().st_mtime_ns
    digest = reader.digest(str(clip))
    assert not reader.write(str(clip))
    assert folder.stat().st_mtime_ns == changed
    with pytest.raises(ValueError, match=r"short_side 48 there, 64 here"):
        FlowImages(str(root), str(videos), short_side=64).probe(str(clip))
    # Another video under the same name has other flow.
    Image.fromarray(translated(1)[0]).save(clip / "00005.png")
    assert reader.write(str(clip))
    assert reader.probe(str(clip)).num_frames == 4
    assert reader.digest(str(clip)) != digest


@needs_opencv
def test_damaged_flow_is_named_and_computed_again(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "videos" / "a")
    reader = FlowImages(str(tmp_path / "flow"), str(tmp_path / "videos"), short_side=48)
    assert reader.write(str(clip))
    frame = tmp_path / "flow" / "a" / "flow_y_00002.jpg"
    whole = frame.read_bytes()
    frame.write_bytes(whole[:-40])
    with pytest.raises(VideoError, match=r"a: flow frame flow_y_00002.jpg is truncated"):
        reader.decode(str(clip), [1])
    assert not reader.write(str(clip))  # Not read, and so not found.
    assert reader.write(str(clip), verify=True)
    assert frame.read_bytes() == whole
    frame.unlink()
    with pytest.raises(VideoError, match=r"flow frame flow_y_00002.jpg is missing"):
        reader.decode(str(clip), [0, 1])
    assert reader.write(str(clip))
    header = json.loads((tmp_path / "flow" / "a" / "flow.json").read_text())
    del header["files"]["flow_x_00001.jpg"]
    (tmp_path / "flow" / "a" / "flow.json").write_text(json.dumps(header))
    with pytest.raises(VideoError, match=r"flow.json is damaged"):
        reader.probe(str(clip))
    one = write_clip(tmp_path / "videos" / "one", 1)
    with pytest.raises(VideoError, match="one alone"):
        reader.probe(str(one))
    assert {path.name for path in (tmp_path / "flow").iterdir()} == {"a", "flow.json"}


@needs_opencv
def test_the_program_resumes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    videos, out = tmp_path / "videos", tmp_path / "flow"
    for name in ("Wave/a", "Clap/b"):
        write_clip(videos / name, 2)
    (videos / "Clap" / "broken.avi").write_bytes(b"no video")
    arguments = [str(videos), f"--out={out}", "--workers=1", "--short_side=48"]
    assert program.main(arguments) == 1  # One is broken.
    printed = capsys.readouterr()
    assert "2 videos computed, 0 were there, 1 failed" in printed.out
    assert "Clap/broken.avi: " in printed.err
    (videos / "Clap" / "broken.avi").unlink()
    (out / "Wave" / "a" / "flow_x_00001.jpg").unlink()
    for name, age in (("killed", 7200), ("running", 0)):
        folder = out / "Wave" / f".{name}.0123.unfinished"
        folder.mkdir()
        os.utime(folder, (time.time() - age,) * 2)
    assert program.main(arguments) == 0
    assert "1 videos computed, 1 were there, 0 failed" in capsys.readouterr().out
    assert {path.name for path in (out / "Wave").iterdir()} == {"a", ".running.0123.unfinished"}
    (videos / "Clap" / "b.avi").touch()
    assert program.main(arguments) == 1
    assert "differ in more than their ending" in capsys.readouterr().err
    assert program.main([str(tmp_path / "gone"), f"--out={out}"]) == 1
    assert "expected the folder of the videos" in capsys.readouterr().err
    # Published flow is never added to.
    published = write_published(tmp_path / "published" / "a").parent
    assert program.main([str(videos / "Wave"), f"--out={published}", "--workers=1"]) == 1
    assert "give another --out" in capsys.readouterr().err


@needs_opencv
@pytest.mark.stress
def test_workers_compute_the_same(tmp_path: Path) -> None:
    for k in range(4):
        write_clip(tmp_path / "videos" / str(k), 3)
    for out, workers in (("one", 1), ("two", 2)):
        program.compute_all(tmp_path / "videos", tmp_path / out, workers=workers, short_side=48)
    read = [FlowImages(str(tmp_path / out), str(tmp_path / "videos"), 48) for out in ("one", "two")]
    for k in range(4):
        one, two = (reader.digest(str(tmp_path / "videos" / str(k))) for reader in read)
        assert one == two


@needs_opencv
@pytest.mark.stress
def test_flow_of_a_real_video(tmp_path: Path) -> None:
    path = next(shared("ut_interaction/set1").rglob("*.avi"))
    reader = FlowImages(str(tmp_path), str(path.parent))
    frames = FrameFolders().probe(str(path)).num_frames
    assert reader.probe(str(path)).num_frames == frames - 1
    images = np.stack([*reader.decode_all(str(path), short_side=60)])
    assert abs(np.median(images[..., :2].astype(int)) - 128) <= 2  # The camera stands still.
    assert images[..., 2].max() > 160  # People move.


@pytest.mark.skipif(HAS_OPENCV, reason="OpenCV (extra flow) is installed")
def test_without_opencv_one_sentence_names_the_extra(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "videos" / "a", 2)
    with pytest.raises(ImportError, match=r"pip install 'flaxnets\[flow\]'"):
        FlowImages(str(tmp_path / "flow"), str(tmp_path / "videos")).probe(str(clip))
    assert program.main([str(tmp_path / "videos"), f"--out={tmp_path / 'flow'}"]) == 1


@pytest.mark.parametrize("layout", ["Wave/a", "a"])
def test_published_flow(tmp_path: Path, layout: str) -> None:
    root = tmp_path / "flow"
    write_published(root / layout)
    path = str(tmp_path / "videos" / "Wave" / "a.avi")  # It need not be there.
    reader = make_reader("flow", videos=tmp_path / "videos", flow=root)
    assert reader.probe(path).num_frames == 5
    found = reader.decode(path, [4, 0])
    assert found.shape == (2, 10, 12, 3)
    assert found[:, 0, 0, :2].tolist() == [[105, 150], [101, 150]]
    assert found[0, 0, 0, 2] == 128 + round(np.hypot(23, 22))
    assert len(reader.digest(path)) == 64
    with pytest.raises(FileNotFoundError, match=r"b.avi: no optical flow in .*flow_x_00001.jpg"):
        reader.probe(str(tmp_path / "videos" / "Wave" / "b.avi"))
    assert not (root / "flow.json").exists()


def test_components_in_two_folders(tmp_path: Path) -> None:
    for letter, level in (("u", 90), ("v", 160)):
        (tmp_path / letter / "a").mkdir(parents=True)
        for t in (1, 2):
            Image.new("L", (6, 5), level).save(tmp_path / letter / "a" / f"frame{t:06d}.jpg")
    found = FlowImages(str(tmp_path)).decode("somewhere/a.avi", [0, 1])
    assert found[:, 0, 0, :2].tolist() == [[90, 160]] * 2


def test_missing_and_truncated_frames_of_published_flow(tmp_path: Path) -> None:
    folder = write_published(tmp_path / "flow" / "a")
    reader = FlowImages(str(tmp_path / "flow"))
    damaged = folder / "flow_x_00003.jpg"
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:150])
    with pytest.raises(VideoError, match=r"flow frame flow_x_00003.jpg is truncated or damaged"):
        reader.decode("a.avi", [2])
    Image.new("L", (12, 14), 128).save(damaged)
    with pytest.raises(VideoError, match=r"frames of one size.*00003.jpg of 14 × 12.* of 10 × 12"):
        reader.decode("a.avi", [2])
    Image.new("L", (12, 14), 128).save(folder / "flow_y_00003.jpg")
    with pytest.raises(VideoError, match=r"flow_x_00001.jpg of 10 × 12.*flow_x_00003.jpg of 14"):
        reader.decode("a.avi", [0, 2])
    damaged.unlink()
    with pytest.raises(VideoError, match=r"1 of 5 flow frames are missing: flow_x_00003.jpg"):
        reader.decode("a.avi", [0])
    damaged.write_bytes(whole)
    for path in folder.glob("flow_y_*"):
        path.unlink()
    with pytest.raises(VideoError, match=r"flow_y_00001.jpg, flow_y_00002.jpg, flow_y_00003"):
        reader.probe("a.avi")


def test_streams_of_flow(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "videos" / "a", 4)
    write_published(tmp_path / "flow" / "a", 3, (24, 32))
    reader = make_reader("flow", videos=tmp_path / "videos", flow=tmp_path / "flow")
    videos = VideoSource((str(clip),), (1,), FrameFolders())
    streams = ("rgb_whole", "flow_whole", "flow_square")
    source = StreamSource(videos, streams, num_steps=4, size=8, gap=2, flow=reader)
    example = source[0]
    assert example["mask"]
    rgb, flow, square = example["video"][::2]
    # The last frame has no flow of its own.
    assert flow[:, 0, 0, 0].tolist() == square[:, 0, 0, 0].tolist() == [101, 102, 103, 103]
    np.testing.assert_array_equal(example["video"][3], mirror_flow(flow))
    alone = StreamSource(videos, ("rgb_whole",), num_steps=4, size=8, gap=2)
    np.testing.assert_array_equal(alone[0]["video"][0], rgb)
    assert source.digest(str(clip)) != alone.digest(str(clip))
    with pytest.raises(ValueError, match="flow: expected the reader of the optical flow"):
        StreamSource(videos, streams)
    with pytest.raises(ValueError, match="expected frames and differences alone"):
        source.images(translated())
    write_clip(tmp_path / "videos" / "long", 12)
    (tmp_path / "flow" / "a").rename(tmp_path / "flow" / "long")
    other = VideoSource((str(tmp_path / "videos" / "long"),), reader=FrameFolders())
    short = StreamSource(other, streams, num_steps=4, size=8, gap=2, flow=reader)
    assert not short[0]["mask"]
    assert "expected 11 flow frames of 12 frames, found 3" in short.explain(0)


def test_readers_by_name() -> None:
    assert doctest.testmod(flow_module).failed == 0
    assert make_reader("rgb") == FrameFolders()
    with pytest.raises(ValueError, match="images: expected rgb or flow, received 'grey'"):
        make_reader("grey")
    with pytest.raises(ValueError, match="expected the folder of the optical flow"):
        make_reader("flow")
