"""Motion images against a plain loop, and the position of motion in the frame."""

import numpy as np
import pytest

from data.video.streams import (
    difference_images,
    grey,
    motion_centre,
    square_around,
)

RNG = np.random.default_rng(0)


def moving_block(columns: np.ndarray, *, height: int = 20, width: int = 50) -> np.ndarray:
    """Returns (T,H,W) luma of a bright block of 6 columns, centred on ``columns``."""
    luma = np.full((len(columns), height, width), 30, np.float32)
    for frame, column in zip(luma, columns, strict=True):
        frame[5:15, column - 3 : column + 3] = 200
    return luma


def test_grey_is_the_weighted_sum_of_the_colours() -> None:
    video = RNG.integers(0, 256, (2, 5, 7, 3), np.uint8)
    red, green, blue = np.moveaxis(video.astype(np.float64), -1, 0)
    luma = grey(video)
    assert luma.dtype == np.float32
    np.testing.assert_allclose(luma, 0.299 * red + 0.587 * green + 0.114 * blue, atol=1e-3)


@pytest.mark.parametrize("gap", [2, 8])
def test_differences_equal_a_loop(gap: int) -> None:
    luma = RNG.uniform(0, 255, (30, 3, 4)).astype(np.float32)
    times = [0, 3, 15, 29]
    images = difference_images(luma, times, gap=gap)
    assert images.shape == (4, 3, 4, 3)
    assert images.dtype == np.uint8
    for n, t in enumerate(times):
        for k in range(3):
            late = min(max(t + (2 * k - 1) * gap // 2, 0), 29)
            early = min(max(t + (2 * k - 3) * gap // 2, 0), 29)
            for y, x in np.ndindex(3, 4):
                value = (float(luma[late, y, x]) - float(luma[early, y, x])) / 2 + 127
                assert abs(min(max(value, 0), 255) - images[n, y, x, k]) <= 1


def test_a_still_clip_is_127_everywhere() -> None:
    frame = RNG.integers(0, 256, (37, 43, 3), np.uint8)
    luma = grey(np.broadcast_to(frame, (21, *frame.shape)))
    assert (difference_images(luma, range(21)) == 127).all()


def test_beyond_its_ends_the_clip_stands_still() -> None:
    luma = RNG.uniform(0, 255, (30, 4, 5)).astype(np.float32)
    extended = np.concatenate([luma[:1].repeat(12, 0), luma, luma[-1:].repeat(12, 0)])
    times = np.array([0, 1, 14, 28, 29])
    np.testing.assert_array_equal(
        difference_images(luma, times), difference_images(extended, times + 12)
    )
    # Nothing moves before the first frame, so the first difference at time 0 is zero.
    assert (difference_images(luma, [0])[..., 0] == 127).all()
    assert (difference_images(luma, [0])[..., 2] != 127).any()


def test_brightening_lies_above_127_and_darkening_below() -> None:
    ramp = np.broadcast_to(np.arange(20, dtype=np.float32)[:, None, None] * 10, (20, 2, 2))
    assert (difference_images(ramp, [10], gap=4) == 127 + 4 * 10 // 2).all()
    assert (difference_images(ramp[::-1], [10], gap=4) == 127 - 4 * 10 // 2).all()


@pytest.mark.parametrize("gap", [0, 3, -2])
def test_a_gap_that_cannot_be_halved_is_refused(gap: int) -> None:
    with pytest.raises(ValueError, match=rf"gap: expected an even number.*received {gap}"):
        difference_images(np.zeros((5, 2, 2), np.float32), [0], gap=gap)


@pytest.mark.parametrize("centre", [10, 25, 40])
def test_the_motion_centre_is_where_the_block_moves(centre: int) -> None:
    columns = centre + np.tile([-4, 4], 8).repeat(3)
    assert abs(motion_centre(moving_block(columns)) - centre) <= 2


def test_a_moved_block_moves_the_centre_by_as_much() -> None:
    columns = 15 + RNG.integers(-5, 6, 24)
    first = motion_centre(moving_block(columns))
    assert motion_centre(moving_block(columns + 17)) == first + 17


@pytest.mark.parametrize("num_frames", [1, 8, 9, 30])
def test_without_motion_the_centre_is_the_middle(num_frames: int) -> None:
    assert motion_centre(moving_block(np.full(num_frames, 8))) == 25


def test_noise_below_the_threshold_is_no_motion() -> None:
    noise = RNG.uniform(0, 19, (20, 6, 30)).astype(np.float32)
    noise[:, :, :5] *= 0
    assert motion_centre(noise) == 15
    assert motion_centre(noise, threshold=0) > 15


def test_the_motion_centre_is_found_frame_by_frame() -> None:
    video = moving_block(15 + RNG.integers(-5, 6, 24))
    assert motion_centre(iter(video)) == motion_centre(video)
    with pytest.raises(ValueError, match="luma: expected at least one frame, received none"):
        motion_centre([])


@pytest.mark.parametrize(
    ("column", "start"), [(0, 0), (5, 0), (12, 7), (13, 8), (15, 10), (19, 10)]
)
def test_the_square_of_a_wide_frame_is_cut_out_and_stays_within(column: int, start: int) -> None:
    video = RNG.integers(0, 256, (2, 10, 20, 3), np.uint8)
    square = square_around(video, column)
    np.testing.assert_array_equal(square, video[:, :, start : start + 10])
    assert np.shares_memory(square, video)


@pytest.mark.parametrize("width", [1, 4, 7])
def test_a_narrow_frame_is_widened_by_its_edges(width: int) -> None:
    video = RNG.integers(0, 256, (2, 8, width, 3), np.uint8)
    square = square_around(video, 0)
    assert square.shape == (2, 8, 8, 3)
    left = (8 - width) // 2
    for column in range(8):
        source = min(max(column - left, 0), width - 1)
        np.testing.assert_array_equal(square[:, :, column], video[:, :, source])


def test_a_square_frame_stays_as_it_is() -> None:
    video = RNG.integers(0, 256, (2, 6, 6, 3), np.uint8)
    np.testing.assert_array_equal(square_around(video, 1), video)
