"""Warps, blur and strokes against plain loops."""

import numpy as np
import pytest

from data.text_lines.distortion import (
    blur,
    median_level,
    smooth_field,
    thicken,
    to_uint8,
    warp,
)


def random_image(height: int = 9, width: int = 14, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, 255, (height, width)).astype(np.float32)


def test_warp_interpolates_as_a_loop_does() -> None:
    image, rng = random_image(), np.random.default_rng(1)
    xs = rng.uniform(-3, 17, (7, 20)).astype(np.float32)
    ys = rng.uniform(-3, 12, (7, 20)).astype(np.float32)
    expected = np.empty((7, 20))
    for index in np.ndindex(7, 20):
        # Outside, one pixel of the fill lies around the image, and nothing but it beyond.
        x, y = np.clip(xs[index], -1, 14), np.clip(ys[index], -1, 9)
        left, top = int(np.floor(x)), int(np.floor(y))

        def value(row: int, column: int) -> float:
            inside = 0 <= row < 9 and 0 <= column < 14
            return float(image[row, column]) if inside else 200.0

        upper = value(top, left) * (left + 1 - x) + value(top, left + 1) * (x - left)
        lower = value(top + 1, left) * (left + 1 - x) + value(top + 1, left + 1) * (x - left)
        expected[index] = upper * (top + 1 - y) + lower * (y - top)
    found = warp(image, xs, ys, 200)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=0.3)


def test_warp_to_the_same_place_changes_nothing() -> None:
    image = random_image()
    ys, xs = np.mgrid[:9, :14].astype(np.float32)
    np.testing.assert_allclose(warp(image, xs, ys, 0), image, atol=1e-4)
    moved = warp(image, xs + 2, ys, 7)
    np.testing.assert_allclose(moved[:, :-2], image[:, 2:], atol=1e-4)
    np.testing.assert_array_equal(moved[:, -2:], 7)


def test_blur_is_a_convolution_with_a_gaussian() -> None:
    image, sigma = random_image(), 1.1
    places = np.arange(-3, 4)
    weights = np.exp(-0.5 * (places / sigma) ** 2)
    weights /= weights.sum()
    padded = np.pad(image.astype(float), 3, "edge")
    expected = [
        [(np.outer(weights, weights) * padded[y : y + 7, x : x + 7]).sum() for x in range(14)]
        for y in range(9)
    ]
    np.testing.assert_allclose(blur(image, sigma), expected, atol=1e-3)
    np.testing.assert_array_equal(blur(image, 0), image)


@pytest.mark.parametrize("amount", [1.0, 0.4, -1.0, -0.3])
def test_strokes_become_thicker_or_thinner(amount: float) -> None:
    image = random_image()
    before = image.copy()
    found = thicken(image, amount)
    padded = np.pad(image, 1, constant_values=np.nan)
    around = [padded[1:-1, 1:-1], padded[:-2, 1:-1], padded[2:, 1:-1]]
    around += [padded[1:-1, :-2], padded[1:-1, 2:]]
    extreme = (np.nanmin if amount > 0 else np.nanmax)(around, axis=0)
    np.testing.assert_allclose(found, image + abs(amount) * (extreme - image), atol=1e-3)
    np.testing.assert_array_equal(image, before)


def test_smooth_fields_have_their_strength_and_no_jumps() -> None:
    rng = np.random.default_rng(0)
    fields = np.stack([smooth_field(rng, 24, 200, 12, 2.0) for _ in range(60)])
    assert fields.shape == (60, 24, 200)
    assert fields.dtype == np.float32
    assert abs(fields.mean()) < 0.15
    # Between the nodes the mean of two independent values varies less.
    assert 1.1 < fields.std() < 2.0
    # The weights' slope is at most 1.5 / spacing, the values differ by less than 10 strengths.
    assert np.abs(np.diff(fields, axis=2)).max() < 1.5 / 12 * 20
    assert smooth_field(rng, 1, 1, 50, 1.0).shape == (1, 1)


def test_levels() -> None:
    image = np.random.default_rng(0).integers(0, 256, (5, 9), np.uint8)
    assert median_level(image) == np.median(image)
    assert to_uint8(np.float32([[-3, 0.4, 0.6, 254.6, 300]])).tolist() == [[0, 0, 1, 255, 255]]
