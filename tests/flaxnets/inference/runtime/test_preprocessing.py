"""Preprocessing of models in use: the pixels of training's preprocessing at test."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data.captions.images import ImageTransform
from data.captions.images import read_image as read_for_training
from data.captions.vocabulary import join_words as join_for_training
from data.captions.vocabulary import split_words
from data.video.clips import DecodeClip, DenseClip, UniformClip, VideoSource
from data.video.feature_clips import FeatureClip, WholeVideos
from data.video.streams import CutFeatures, StreamSource
from data.video.transforms import SpatialTransform
from flaxnets.inference.runtime.media import Limits, MediaError, Video, read_image
from flaxnets.inference.runtime.preprocessing import make_preprocessing
from flaxnets.inference.runtime.words import join_words
from tests.data.generated_videos import GeneratedVideo, draw_video, write_generated

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module", params=[0, 1, 2, 3, 4, 5])
def video(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generated video of some container, codec, rate and rotation, without damage."""
    drawn = draw_video(request.param)
    whole = {**vars(drawn), "damage": "none", "num_frames": 12 + 9 * request.param}
    return write_generated(GeneratedVideo(**whole), tmp_path_factory.mktemp("videos"))


@pytest.mark.parametrize("num_clips", [1, 3])
@pytest.mark.parametrize("crops", [1, 10])
@pytest.mark.parametrize(
    ("sampler", "described"),
    [
        (DenseClip(8), {"sampler": "dense"}),
        (DenseClip(8, stride=3), {"sampler": "dense", "stride": 3}),
        (DenseClip(8, rate=12.0), {"sampler": "dense", "rate": 12.0}),
        (UniformClip(8), {"sampler": "uniform"}),
    ],
)
def test_clips_of_decoded_videos_are_equal(
    video: Path, sampler: Any, described: dict[str, Any], num_clips: int, crops: Any
) -> None:
    transform = SpatialTransform((20, 24), flip=True, test_scale=0.8, test_crops=crops)
    decode = DecodeClip(sampler, transform, train=False, num_clips=num_clips, short_side=32)
    expected = decode(VideoSource((str(video),))[0], RNG)
    preprocessing = make_preprocessing(
        {
            "kind": "clip",
            **described,
            "num_frames": 8,
            "num_clips": num_clips,
            "short_side": 32,
            "size": [20, 24],
            "scale": 0.8,
            "crops": 5 if crops == 10 else 1,
            "mirror": crops == 10,
        }
    )
    views = preprocessing(Video(video))
    frames = expected["video"]
    np.testing.assert_array_equal(views.frames, frames if frames.ndim == 5 else frames[None])
    np.testing.assert_array_equal(views.lengths, np.atleast_1d(expected["lengths"]))


@pytest.mark.parametrize("flip", [False, True])
def test_clips_of_encoded_videos_are_equal(video: Path, flip: bool) -> None:
    whole = WholeVideos(VideoSource((str(video),)), SpatialTransform((20, 20), flip=flip), 32)
    example = whole[0]
    # The pixels stand for the features.
    features = {**example, "features": example["video"]}
    expected = FeatureClip(DenseClip(8), train=False, num_clips=3)(features, RNG)
    preprocessing = make_preprocessing(
        {
            "kind": "clip",
            "num_frames": 8,
            "num_clips": 3,
            "short_side": 32,
            "size": [20, 20],
            "mirror": flip,
        }
    )
    np.testing.assert_array_equal(preprocessing(Video(video)).frames, expected["features"])


@pytest.mark.parametrize(
    "streams", [("rgb_whole", "difference_square"), ("difference_whole",), ("rgb_square",)]
)
@pytest.mark.parametrize("mirror", [False, True])
def test_streams_are_equal(video: Path, streams: tuple[str, ...], mirror: bool) -> None:
    source = VideoSource((str(video),))
    example = StreamSource(source, streams, num_steps=6, size=24, mirror=mirror)[0]
    assert example["mask"]
    pixels = {**example, "features": example["video"].reshape(len(example["video"]), 6, -1)}
    cut = CutFeatures(False, num_steps=4, num_views=2, mirror=mirror)
    expected = cut(pixels, RNG)["features"]
    preprocessing = make_preprocessing(
        {
            "kind": "streams",
            "streams": list(streams),
            "num_steps": 4,
            "stored_steps": 6,
            "num_views": 2,
            "mirror": mirror,
            "size": 24,
        }
    )
    views = preprocessing(Video(video))
    np.testing.assert_array_equal(views.frames.reshape(expected.shape), expected)


@pytest.mark.parametrize("size", [(40, 61), (61, 40), (33, 33), (3, 200)])
@pytest.mark.parametrize(
    "settings_of", [{"stretch": True}, {}, {"short_side": 36, "resampling": "bicubic"}]
)
def test_images_are_equal(size: tuple[int, int], settings_of: dict[str, Any]) -> None:
    image = np.random.default_rng(1).integers(0, 256, (*size, 3), np.uint8)
    expected = ImageTransform(32, **settings_of)(image)
    found = make_preprocessing({"kind": "image", "size": 32, **settings_of})(image)
    np.testing.assert_array_equal(found, expected)


MODES = ("RGB", "L", "P", "RGBA", "LA", "CMYK", "1", "I;16", "YCbCr")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("orientation", [1, 6])
def test_images_are_read_as_in_training(mode: str, orientation: int, tmp_path: Path) -> None:
    pixels = np.random.default_rng(2).integers(0, 256, (9, 14, 3), np.uint8)
    if mode == "I;16":
        image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    else:
        image = Image.fromarray(pixels).convert(mode)
    path = tmp_path / ("a.jpg" if mode in ("CMYK", "YCbCr") else "a.png")
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(path, exif=exif)
    np.testing.assert_array_equal(read_image(path), read_for_training(path))


def test_arrays_are_read_as_files_without_loss(tmp_path: Path) -> None:
    frames = np.random.default_rng(3).integers(0, 256, (30, 32, 40, 3), np.uint8)
    settings_of = {"kind": "clip", "num_frames": 4, "size": [16, 16], "rate": 5.0}
    views = make_preprocessing(settings_of)(Video(frames, rate=10.0))
    np.testing.assert_allclose(views.times, [[1.1, 1.3, 1.5, 1.7]], rtol=1e-6)
    # The same frames, of which every second one is left out before.
    half = make_preprocessing(settings_of)(Video(frames[1::2], rate=5.0))
    np.testing.assert_array_equal(views.frames, half.frames)


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        (Limits(max_pixels=100), "at most 100 pixels"),
        (Limits(max_frames=5), "at most 600 s and 5 frames"),
        (Limits(max_seconds=0.2), "at most 0.2 s"),
        (Limits(timeout=1e-9), "takes more than the 1e-09 s allowed"),
    ],
)
def test_what_is_beyond_the_limits_is_refused(video: Path, limits: Limits, reason: str) -> None:
    with pytest.raises(MediaError, match=reason):
        Video(video, limits=limits).probe()


def test_damaged_and_foreign_files_have_a_reason(video: Path, tmp_path: Path) -> None:
    cut = tmp_path / f"cut{video.suffix}"
    cut.write_bytes(video.read_bytes()[:200])
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "empty.mp4").write_bytes(b"")
    for path in (cut, tmp_path / "text.mp4", tmp_path / "empty.mp4"):
        with pytest.raises(MediaError, match=f"^{path}: "):
            Video(path).probe()
        with pytest.raises(MediaError, match=f"^{path}: "):
            read_image(path)
    with pytest.raises(FileNotFoundError, match="expected a video file"):
        Video(tmp_path)


def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.png"
    Image.new("1", (9_000, 9_000)).save(bomb)
    with pytest.raises(MediaError, match="at most 50000000 pixels"):
        read_image(bomb)


@pytest.mark.parametrize(
    ("settings_of", "message"),
    [
        ({"kind": "text"}, "expected one of image, clip, streams"),
        ({"kind": "clip", "sise": 3}, "unexpected keyword argument 'sise'"),
        ({"kind": "clip", "num_frames": 3, "size": [4, 4], "sampler": "all"}, "uniform or dense"),
        ({"kind": "image", "resampling": "lanczos"}, "bilinear or bicubic"),
    ],
)
def test_settings_that_do_not_exist_are_refused(settings_of: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_preprocessing(settings_of)


LETTERS = st.sampled_from(
    [
        *"ab'-1éß한Ā両只狗々〇〆",
        *"ひらがカタナーﾊﾞ",
        *"สวัดีำๆກຂຄមြန်ខ្មែរ",
        "\u200d",
    ]
)


@settings(max_examples=300)
@given(st.text(LETTERS | st.just(" "), max_size=14))
def test_words_are_joined_as_in_training(text: str) -> None:
    words = split_words(text)
    assert join_words(words) == join_for_training(words)


def test_a_rate_is_exact_for_rates_of_television(tmp_path: Path) -> None:
    drawn = {**vars(draw_video(0)), "container": "mp4", "codec": "libx264", "damage": "none"}
    whole = GeneratedVideo(**{**drawn, "rate": Fraction(30000, 1001), "rotation": 90})
    info = Video(write_generated(whole, tmp_path)).probe()
    assert info.rate == pytest.approx(30000 / 1001)
    assert info.height > info.width
