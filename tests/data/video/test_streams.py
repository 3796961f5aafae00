"""Streams of images of whole videos, and the clips cut from their features."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.video.clips import VideoSource
from data.video.decoding import decode
from data.video.streams import (
    STREAMS,
    CutFeatures,
    CutJoined,
    JoinedFeatures,
    StreamSource,
    difference_images,
    grey,
    segment_centres,
    select_examples,
)
from tests.data.video_files import frame_numbers, truncate, write_video

S, T, D = 2, 12, 3


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> StreamSource:
    folder = tmp_path_factory.mktemp("videos")
    broken = write_video(folder / "broken.avi")
    truncate(broken, 12)
    paths = (str(write_video(folder / "a.avi")), str(broken), str(folder / "gone.avi"))
    return StreamSource(VideoSource(paths, (4, 5, 6)), STREAMS, num_steps=5, size=24, gap=2)


def coded_features() -> np.ndarray:
    """Returns (2·S,T,D) float16 whose channels are stream, mirror and step."""
    features = np.zeros((2 * S, T, D), np.float16)
    for view in range(2 * S):
        for step in range(T):
            features[view, step] = view // 2, view % 2, step
    return features


def example_of(features: np.ndarray) -> dict[str, np.ndarray]:
    return {
        "features": features,
        "lengths": np.full(len(features), T, np.int32),
        "label": np.asarray(3, np.int32),
        "mask": np.asarray(True),
        "index": np.asarray(7, np.int32),
    }


def test_without_mirror_the_plain_streams_are_the_same(source: StreamSource) -> None:
    plain = StreamSource(source.videos, STREAMS, num_steps=5, size=24, gap=2, mirror=False)
    np.testing.assert_array_equal(plain[0]["video"], source[0]["video"][::2])
    assert plain[1]["video"].shape == plain[0]["video"].shape  # of a video that is unreadable
    np.testing.assert_array_equal(plain[0]["lengths"], np.full(len(STREAMS), 5))
    features, rng = coded_features()[::2], np.random.default_rng(0)
    cut = CutFeatures(False, num_steps=4, num_views=3, mirror=False)(example_of(features), rng)
    both = CutFeatures(False, num_steps=4, num_views=3)(example_of(coded_features()), rng)
    np.testing.assert_array_equal(cut["features"], both["features"][::2])
    one = CutFeatures(False, num_steps=4, num_views=1, mirror=False)(example_of(features), rng)
    assert one["features"].shape == (4, S, D)
    assert one["lengths"].shape == ()
    train = CutFeatures(True, num_steps=4, mirror=False)(example_of(features), rng)
    assert (train["features"][..., 1] == 0).all()  # never mirrored


def test_a_video_gives_each_stream_plain_and_mirrored(source: StreamSource) -> None:
    example = source[0]
    video = example["video"]
    assert video.shape == (2 * len(STREAMS), 5, 24, 24, 3)
    assert video.dtype == np.uint8
    np.testing.assert_array_equal(video[1::2], video[::2, :, :, ::-1])
    np.testing.assert_array_equal(example["lengths"], np.full(8, 5))
    assert example["lengths"].dtype == example["label"].dtype == example["index"].dtype == np.int32
    assert example["mask"].dtype == bool
    assert (example["label"], example["index"], bool(example["mask"])) == (4, 0, True)


def test_rgb_shows_the_frames_in_the_middle_of_equal_parts(source: StreamSource) -> None:
    views = dict(zip(STREAMS, source[0]["video"][::2], strict=True))
    for name in ("rgb_whole", "rgb_square"):
        assert frame_numbers(views[name]).tolist() == [2, 6, 10, 14, 18]


def test_differences_show_how_much_brighter_the_upper_half_grows(source: StreamSource) -> None:
    views = dict(zip(STREAMS, source[0]["video"][::2], strict=True))
    for name in ("difference_whole", "difference_square"):
        # Each frame is 11 brighter than the one before: 22 over a gap of 2, halved. The first and
        # the last step reach beyond the video's ends.
        upper = views[name][1:-1, 2:10].astype(float)
        assert abs(upper.mean((1, 2)) - (127 + 11)).max() < 2


def test_whole_squeezes_and_square_cuts(source: StreamSource) -> None:
    # Half of the frame is black, so the square lies entirely on one side.
    video = np.zeros((20, 24, 60, 3), np.uint8)
    video[:, :, 40:] = np.arange(20)[:, None, None, None] * 12
    views = dict(zip(STREAMS, source.images(video)[::2], strict=True))
    last = views["rgb_whole"][-1]
    assert not last[:, :14].any()
    assert last[:, 18:].all()
    np.testing.assert_array_equal(views["rgb_square"], video[[2, 6, 10, 14, 18], :, 36:60])


def test_difference_images_are_those_of_the_decoded_video(source: StreamSource) -> None:
    video = decode(source.videos.paths[0], np.arange(20))
    expected = difference_images(grey(video), segment_centres(5, 20), gap=2)
    # The video's own size, so nothing is resized.
    square = StreamSource(source.videos, ("difference_square",), 5, size=48, gap=2)
    images = square[0]["video"][0]
    starts = [s for s in range(17) if np.array_equal(images, expected[:, :, s : s + 48])]
    assert starts


@pytest.mark.parametrize("index", [1, 2])
def test_an_unreadable_file_counts_nowhere(source: StreamSource, index: int) -> None:
    example: dict[str, Any] = dict(source[index])
    readable: dict[str, Any] = dict(source[0])
    assert not example["mask"]
    assert not example["video"].any()
    assert (example["label"], example["index"]) == (-1, index)
    for key in ("video", "lengths", "label", "mask", "index"):
        assert example[key].shape == readable[key].shape
        assert example[key].dtype == readable[key].dtype


def test_a_high_strip_is_not_widened_to_a_square(tmp_path: Path) -> None:
    path = write_video(tmp_path / "strip.mkv", 2, codec="ffv1", size=(16384, 16))
    strip = StreamSource(VideoSource((str(path),)), ("rgb_square",), 2, size=8)
    assert not strip[0]["mask"]
    assert strip.explain(0) == f"{path}: frames of 16384 × 16 pixels are too high"


def test_the_reason_of_an_unreadable_file_is_told(source: StreamSource) -> None:
    assert "truncated: 12 of 20 frames" in source.explain(1)
    assert "gone.avi: expected a video file" in source.explain(2)


def test_without_labels_they_are_unknown(source: StreamSource) -> None:
    unlabelled = StreamSource(VideoSource(source.videos.paths[:1]), ("rgb_whole",), 2, size=8)
    assert len(unlabelled) == 1
    assert unlabelled[0]["label"] == -1
    assert unlabelled[0]["mask"]


def test_a_source_is_picklable(source: StreamSource) -> None:
    assert pickle.loads(pickle.dumps(source)) == source


@pytest.mark.parametrize("streams", [(), ("flow",), ("rgb_whole", "rgb")])
def test_unknown_streams_are_refused(streams: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=r"streams: expected some of rgb_whole, .*received"):
        StreamSource(VideoSource(("a.avi",)), streams)


@pytest.mark.parametrize(("num_steps", "num_frames"), [(1, 1), (4, 3), (5, 20), (7, 100), (32, 5)])
def test_segment_centres_are_the_middles_of_equal_parts(num_steps: int, num_frames: int) -> None:
    centres = segment_centres(num_steps, num_frames)
    assert centres.shape == (num_steps,)
    for step, centre in enumerate(centres):
        # The frame that contains the middle, in integer arithmetic.
        assert centre == (2 * step + 1) * num_frames // (2 * num_steps)


def test_training_cuts_one_video_alike_for_all_streams() -> None:
    cut = CutFeatures(train=True, num_steps=6, max_trim=0.25)
    mirrors = set()
    for seed in range(30):
        example = cut(example_of(coded_features()), np.random.default_rng(seed))
        clip = example["features"]
        assert clip.shape == (6, S, D)
        assert clip.dtype == np.float32
        assert example["lengths"].shape == ()
        assert example["lengths"].dtype == np.int32
        assert (example["lengths"], example["label"], example["index"]) == (6, 3, 7)
        np.testing.assert_array_equal(clip[..., 0], np.broadcast_to(np.arange(S), (6, S)))
        assert len(np.unique(clip[..., 1])) == 1
        np.testing.assert_array_equal(clip[:, 0, 2], clip[:, 1, 2])
        steps = clip[:, 0, 2]
        assert (np.diff(steps) >= 0).all()
        mirrors.add(int(clip[0, 0, 1]))
    assert mirrors == {0, 1}


def test_training_stays_within_the_trim_and_reaches_it() -> None:
    features = np.broadcast_to(np.arange(100.0)[None, :, None], (2, 100, 1))
    firsts, lasts = [], []
    for seed in range(200):
        cut = CutFeatures(train=True, num_steps=50, max_trim=0.2)
        clip = cut({"features": features}, np.random.default_rng(seed))["features"]
        firsts.append(clip[0, 0, 0])
        lasts.append(clip[-1, 0, 0])
    assert min(firsts) <= 2
    assert 15 <= max(firsts) <= 21
    assert 78 <= min(lasts) <= 84
    assert max(lasts) >= 97


def test_training_without_trim_draws_one_step_from_each_segment() -> None:
    cut = CutFeatures(train=True, num_steps=4, max_trim=0.0)
    drawn = [
        cut(example_of(coded_features()), np.random.default_rng(seed))["features"][:, 0, 2]
        for seed in range(60)
    ]
    for segment, steps in enumerate(np.stack(drawn, 1)):
        assert set(steps) == {3 * segment, 3 * segment + 1, 3 * segment + 2}


def test_training_is_random_in_rng_only() -> None:
    cut = CutFeatures(train=True, num_steps=6)
    example = example_of(coded_features())
    first, again, other = (
        cut(example, np.random.default_rng(seed))["features"] for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    np.testing.assert_array_equal(example["features"], coded_features())


def test_test_views_stand_phase_by_phase_each_plain_then_mirrored() -> None:
    cut = CutFeatures(train=False, num_steps=3, num_views=2)
    rng = np.random.default_rng(0)
    before = rng.bit_generator.state
    example = cut(example_of(coded_features()), rng)
    assert rng.bit_generator.state == before
    views = example["features"]
    assert views.shape == (4, 3, S, D)
    np.testing.assert_array_equal(example["lengths"], [3, 3, 3, 3])
    assert example["lengths"].dtype == np.int32
    # Segments of 4 steps; phases 1/4 and 3/4 of each.
    expected = [([1, 5, 9], 0), ([1, 5, 9], 1), ([3, 7, 11], 0), ([3, 7, 11], 1)]
    for view, (steps, mirror) in zip(views, expected, strict=True):
        for stream in range(S):
            np.testing.assert_array_equal(view[:, stream, 0], stream)
            np.testing.assert_array_equal(view[:, stream, 1], mirror)
            np.testing.assert_array_equal(view[:, stream, 2], steps)


def test_select_numbers_the_named_examples_anew() -> None:
    examples = [{"index": np.asarray(i, np.int32), "label": np.asarray(10 * i)} for i in range(5)]
    chosen = select_examples(examples, [4, 1, 4])
    assert [int(example["label"]) for example in chosen] == [40, 10, 40]
    assert [int(example["index"]) for example in chosen] == [0, 1, 2]
    assert {example["index"].dtype for example in chosen} == {np.dtype(np.int32)}
    assert [int(example["index"]) for example in examples] == [0, 1, 2, 3, 4]


def joined_features() -> JoinedFeatures:
    """Returns vectors and maps of three videos, whose values are video, mirror and step."""
    codes = np.zeros((3, 2, T, D), np.float16)
    for video, mirror, step in np.ndindex(3, 2, T):
        codes[video, mirror, step] = video, mirror, step
    maps = np.broadcast_to(codes[:, :, :, None, None], (3, 2, T, 4, 5, D))
    sources = {
        name: [{**example_of(each), "mask": np.asarray(n != 1)} for n, each in enumerate(values)]
        for name, values in (("vectors", codes), ("maps", maps))
    }
    return JoinedFeatures(sources, (4, 5, 6), (2, 0, 1), VideoSource(("a", "b", "c")))


@pytest.mark.parametrize("train", [True, False])
def test_joined_features_are_cut_at_the_same_steps(train: bool) -> None:
    cut = CutJoined(CutFeatures(train, num_steps=4, num_views=2), ("vectors", "maps"))
    example = cut(joined_features()[0], np.random.default_rng(3))
    views = () if train else (2 * 2,)
    assert example["vectors"].shape == (*views, 4, D)
    assert example["maps"].shape == (*views, 4, 4, 5, D)
    np.testing.assert_array_equal(example["maps"][..., 2, 3, :], example["vectors"])
    assert (example["vectors"][..., 0] == 2).all()
    assert (example["label"], example["index"]) == (6, 0)
    np.testing.assert_array_equal(example["lengths"], np.full(views, 4))


def test_an_unreadable_video_has_no_label_in_joined_features() -> None:
    example = joined_features()[2]
    assert (example["label"], bool(example["mask"])) == (-1, False)
    assert pickle.loads(pickle.dumps(joined_features()))[1]["label"] == 4
