"""Crops: the right pixels, the same for all frames, no mirroring by default."""

import numpy as np
import pytest

from data.video.transforms import Crop, SpatialTransform, pad_clip


@pytest.fixture
def video():
    """Returns (5,24,32,3): red encodes the row, green the column, blue the frame."""
    t, y, x = np.meshgrid(np.arange(5), np.arange(24), np.arange(32), indexing="ij")
    return np.stack([y * 5, x * 5, t * 20], axis=-1).astype(np.uint8)


def test_crop_without_scaling_is_a_slice(video):
    crop = Crop(top=3, left=4, height=10, width=12)
    np.testing.assert_array_equal(crop.apply(video, (10, 12)), video[:, 3:13, 4:16])
    mirrored = Crop(top=3, left=4, height=10, width=12, mirror=True)
    np.testing.assert_array_equal(mirrored.apply(video, (10, 12)), video[:, 3:13, 15:3:-1])


def test_scaling_by_half_averages(video):
    halved = Crop(0, 0, 24, 32).apply(video, (12, 16)).astype(float)
    blocks = video.astype(float).reshape(5, 12, 2, 16, 2, 3).mean((2, 4))
    assert np.abs(halved - blocks)[:, 1:-1, 1:-1].max() <= 1


def test_all_frames_get_the_same_crop(video):
    still = np.repeat(video[:1], 5, axis=0)
    transform = SpatialTransform((8, 8), flip=True)
    rng = np.random.default_rng(0)
    for _ in range(20):
        out = transform(still, rng)
        assert out.shape == (5, 8, 8, 3)
        assert (out == out[:1]).all()


def test_the_same_random_numbers_give_the_same_crop(video):
    transform = SpatialTransform((8, 8), flip=True)
    first, again = (transform(video, np.random.default_rng(3)) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert (transform(video, np.random.default_rng(4)) != first).any()


@pytest.mark.parametrize("keep_aspect", [True, False])
def test_random_crops_lie_inside_and_keep_their_ranges(keep_aspect):
    transform = SpatialTransform((20, 20), scale=(0.3, 0.8), stretch=1.5, keep_aspect=keep_aspect)
    rng = np.random.default_rng(0)
    crops = [transform.random_crop(240, 320, rng) for _ in range(500)]
    base = (240, 240) if keep_aspect else (240, 320)
    shares = np.array([crop.height * crop.width / (base[0] * base[1]) for crop in crops])
    aspects = np.array([crop.width / crop.height / (base[1] / base[0]) for crop in crops])
    assert shares.min() > 0.29
    assert shares.max() < 0.81
    assert np.ptp(shares) > 0.45
    assert aspects.min() > 1 / 1.52
    assert aspects.max() < 1.52
    for crop in crops:
        assert crop.top >= 0
        assert crop.left >= 0
        assert crop.top + crop.height <= 240
        assert crop.left + crop.width <= 320
        assert not crop.mirror


def test_flip_mirrors_half_of_the_clips():
    rng = np.random.default_rng(0)
    transform = SpatialTransform((20, 20), flip=True)
    mirrored = sum(transform.random_crop(24, 32, rng).mirror for _ in range(1000))
    assert 430 < mirrored < 570


def test_the_crop_of_a_paper_needs_no_interpolation(video):
    share = (20 / 24) ** 2
    transform = SpatialTransform((20, 20), scale=(share, share), stretch=1, test_scale=share)
    rng = np.random.default_rng(0)
    corners = set()
    for _ in range(300):
        crop = transform.random_crop(24, 32, rng)
        assert (crop.height, crop.width) == (20, 20)
        corners.add((crop.top, crop.left))
    assert corners == {(top, left) for top in range(5) for left in range(13)}
    np.testing.assert_array_equal(transform(video), video[:, 2:22, 6:26])


def test_ten_crops(video):
    share = (20 / 24) ** 2
    transform = SpatialTransform((20, 20), flip=True, test_scale=share, test_crops=10)
    views = transform.test_views(video)
    assert views.shape == (10, 5, 20, 20, 3)
    for view, (top, left) in zip(views, [(2, 6), (0, 0), (0, 12), (4, 0), (4, 12)], strict=False):
        np.testing.assert_array_equal(view, video[:, top : top + 20, left : left + 20])
    np.testing.assert_array_equal(views[5:], views[:5, :, :, ::-1])
    five = SpatialTransform((20, 20), test_scale=share, test_crops=5)
    np.testing.assert_array_equal(five.test_views(video), views[:5])
    one = SpatialTransform((20, 20), test_scale=share)
    np.testing.assert_array_equal(one.test_views(video), views[:1])


def test_squeezing_keeps_the_whole_frame(video):
    transform = SpatialTransform((12, 12), keep_aspect=False)
    out = transform(video)[0]
    assert out[0, 0, 1] <= 10
    assert out[0, -1, 1] >= 145


def test_small_frames_are_enlarged(video):
    assert SpatialTransform((50, 40))(video).shape == (5, 50, 40, 3)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"size": (0, 4)}, "size"),
        ({"size": (4, 4), "scale": (0.0, 1.0)}, "scale"),
        ({"size": (4, 4), "scale": (0.5, 1.5)}, "scale"),
        ({"size": (4, 4), "stretch": 0.5}, "stretch"),
        ({"size": (4, 4), "test_scale": 0.0}, "test_scale"),
        ({"size": (4, 4), "test_crops": 3}, "test_crops"),
        ({"size": (4, 4), "test_crops": 10}, "flip"),
    ],
)
def test_wrong_arguments(arguments, named):
    with pytest.raises(ValueError, match=named):
        SpatialTransform(**arguments)


def test_pad_clip(video):
    padded, length = pad_clip(video, 8)
    assert (length, length.dtype, padded.shape) == (5, np.int32, (8, 24, 32, 3))
    np.testing.assert_array_equal(padded[:5], video)
    assert not padded[5:].any()
    np.testing.assert_array_equal(pad_clip(video, 5)[0], video)
    for frames, longest in ((video, 4), (video[:0], 4)):
        with pytest.raises(ValueError, match="1 to 4 frames"):
            pad_clip(frames, longest)
