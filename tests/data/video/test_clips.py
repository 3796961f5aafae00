"""Examples of video files: frames, views, padding, unreadable files."""

import pickle

import numpy as np
import pytest

from data.video.clips import DecodeClip, VideoSource
from data.video.sampling import DenseClip, UniformClip
from data.video.transforms import SpatialTransform
from tests.data.video_files import frame_numbers, truncate, write_video

SQUARE = SpatialTransform((24, 24), scale=(1, 1), stretch=1, keep_aspect=False)


@pytest.fixture
def source(tmp_path):
    paths = [write_video(tmp_path / "a.avi"), write_video(tmp_path / "short.avi", 3)]
    broken = write_video(tmp_path / "broken.avi")
    truncate(broken, 12)
    return VideoSource((*map(str, paths), str(broken), str(tmp_path / "gone.avi")), (4, 5, 6, 7))


def check_contract(example, views, num_frames):
    assert example["video"].shape == (*views, num_frames, 24, 24, 3)
    assert example["video"].dtype == np.uint8
    assert example["lengths"].shape == views
    assert example["lengths"].dtype == np.int32
    for key, dtype in (("label", np.int32), ("mask", bool), ("index", np.int32)):
        assert example[key].shape == ()
        assert example[key].dtype == dtype


def test_training_clip_holds_the_sampled_frames(source):
    decode_clip = DecodeClip(UniformClip(5), SQUARE, train=True)
    starts = set()
    for seed in range(10):
        example = decode_clip(source[0], np.random.default_rng(seed))
        check_contract(example, (), 5)
        drawn = UniformClip(5).sample(20, 25.0, np.random.default_rng(seed))
        assert frame_numbers(example["video"]).tolist() == drawn.tolist()
        assert (example["lengths"], example["label"], example["index"]) == (5, 4, 0)
        assert example["mask"]
        starts.add(int(drawn[0]))
    assert len(starts) > 1


def test_test_clip_is_not_random(source):
    decode_clip = DecodeClip(UniformClip(5), SpatialTransform((24, 24), flip=True), train=False)
    first, again = (decode_clip(source[0], np.random.default_rng(seed)) for seed in (0, 1))
    check_contract(first, (), 5)
    np.testing.assert_array_equal(first["video"], again["video"])
    assert frame_numbers(first["video"]).tolist() == [1, 5, 9, 13, 17]


def test_short_video_is_padded(source):
    example = DecodeClip(UniformClip(5), SQUARE, train=False)(source[1], np.random.default_rng(0))
    assert example["lengths"] == 3
    assert frame_numbers(example["video"][:3]).tolist() == [0, 1, 2]
    assert not example["video"][3:].any()


def test_views_are_clips_times_crops(source):
    transform = SpatialTransform((24, 24), flip=True, test_scale=0.5, test_crops=10)
    decode_clip = DecodeClip(DenseClip(4), transform, train=False, num_clips=3)
    example = decode_clip(source[0], np.random.default_rng(0))
    check_contract(example, (30,), 4)
    assert (example["lengths"] == 4).all()
    for clip, start in enumerate((0, 8, 16)):
        upper_left = example["video"][clip * 10 + 1]
        assert frame_numbers(upper_left).tolist() == list(range(start, start + 4))


@pytest.mark.parametrize(("train", "num_clips", "views"), [(True, 1, ()), (False, 2, (2,))])
@pytest.mark.parametrize("index", [2, 3])
def test_unreadable_video_counts_nowhere(source, index, train, num_clips, views):
    decode_clip = DecodeClip(UniformClip(5), SQUARE, train=train, num_clips=num_clips)
    example = decode_clip(source[index], np.random.default_rng(0))
    check_contract(example, views, 5)
    assert not example["mask"]
    assert not example["video"].any()
    assert (example["lengths"] == 1).all()
    assert (example["label"], example["index"]) == (-1, index)


def test_source_explains(source):
    assert "truncated" in source.explain(2)
    assert "gone.avi: expected a video file" in source.explain(3)
    assert "succeeds now" in source.explain(0)


def test_source_without_labels(source):
    unlabelled = VideoSource(source.paths)
    assert [unlabelled[i]["label"] for i in range(len(unlabelled))] == [-1] * 4
    assert pickle.loads(pickle.dumps(source))[1] == source[1]
    with pytest.raises(ValueError, match="labels: expected one for each of 4"):
        VideoSource(source.paths, (1,))


@pytest.mark.parametrize(("train", "num_clips"), [(True, 2), (False, 0)])
def test_wrong_number_of_clips(train, num_clips):
    with pytest.raises(ValueError, match="num_clips"):
        DecodeClip(UniformClip(5), SQUARE, train=train, num_clips=num_clips)
