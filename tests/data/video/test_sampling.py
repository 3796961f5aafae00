"""Clip samplers against the plain definition."""

import numpy as np
import pytest

from data.video.clips import DenseClip, UniformClip

SAMPLERS = [UniformClip(8), DenseClip(8), DenseClip(8, stride=3), DenseClip(8, rate=10.0)]


@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
@pytest.mark.parametrize("num_video_frames", [1, 2, 7, 8, 9, 50])
def test_frames_are_in_the_video_and_ascend(sampler, num_video_frames):
    clips = [sampler.sample(num_video_frames, 25.0)]
    rng = np.random.default_rng(0)
    clips += [sampler.sample(num_video_frames, 25.0, rng) for _ in range(50)]
    clips += list(sampler.views(num_video_frames, 25.0, 4))
    for clip in clips:
        assert 1 <= len(clip) <= 8
        assert clip.min() >= 0
        assert clip.max() < num_video_frames
        assert (np.diff(clip) > 0).all()


def test_uniform_takes_one_frame_of_each_segment():
    sampler, rng = UniformClip(4), np.random.default_rng(0)
    drawn = np.stack([sampler.sample(22, 25.0, rng) for _ in range(500)])
    segments = [range(0, 5), range(5, 11), range(11, 16), range(16, 22)]
    for column, segment in zip(drawn.T, segments, strict=True):
        assert set(column) == set(segment)
    assert sampler.sample(22, 25.0).tolist() == [2, 7, 13, 18]


def test_uniform_of_a_short_video_is_the_video():
    rng = np.random.default_rng(0)
    assert UniformClip(8).sample(5, 25.0, rng).tolist() == [0, 1, 2, 3, 4]


def test_uniform_views_cover_every_frame():
    assert np.sort(UniformClip(4).views(24, 25.0, 6), axis=None).tolist() == list(range(24))


def test_dense_follows_the_stride_from_every_start():
    sampler, rng = DenseClip(4, stride=3), np.random.default_rng(0)
    drawn = np.stack([sampler.sample(20, 25.0, rng) for _ in range(500)])
    assert (np.diff(drawn) == 3).all()
    assert set(drawn[:, 0]) == set(range(11))
    assert sampler.sample(20, 25.0).tolist() == [5, 8, 11, 14]
    assert sampler.sample(7, 25.0, rng).tolist() == [0, 3, 6]


def test_dense_views_reach_both_ends():
    views = DenseClip(4).views(20, 25.0, 3)
    assert views.tolist() == [[0, 1, 2, 3], [8, 9, 10, 11], [16, 17, 18, 19]]
    assert DenseClip(4).views(20, 25.0, 1).tolist() == [[8, 9, 10, 11]]


def test_dense_at_a_rate_shows_the_same_moments_of_videos_of_other_rates():
    sampler = DenseClip(6, rate=10.0)
    for rate in (10.0, 20.0, 25.0, 29.97, 60.0):
        frames = sampler.sample(int(rate), rate)
        seconds = (frames - frames[0]) / rate
        assert np.all(np.abs(seconds - np.arange(6) / 10.0) <= 1 / rate)
    assert np.diff(sampler.sample(10, 5.0)).tolist() == [0, 1, 0, 1, 0]


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: UniformClip(0), "num_frames"),
        (lambda: DenseClip(0), "num_frames"),
        (lambda: DenseClip(4, stride=0), "stride"),
        (lambda: DenseClip(4, rate=0.0), "rate"),
        (lambda: DenseClip(4, stride=2, rate=5.0), "both"),
        (lambda: UniformClip(4).sample(0, 25.0), "num_video_frames"),
        (lambda: DenseClip(4).views(9, 25.0, 0), "num_views"),
        (lambda: DenseClip(4, rate=5.0).sample(9, 0.0), "rate"),
    ],
)
def test_wrong_arguments(make, named):
    with pytest.raises(ValueError, match=named):
        make()
