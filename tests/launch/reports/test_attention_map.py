"""Drawings of attention weights: bright where weights are large, one tile per word."""

import numpy as np
import pytest

from launch.reports.captions import (
    GAP,
    MIN_BRIGHTNESS,
    TILE,
    draw_attention,
    highlight,
)


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (56, 84, 3), np.uint8)


def test_equal_weights_leave_the_image_and_no_weight_dims_it(image: np.ndarray) -> None:
    np.testing.assert_array_equal(highlight(image, np.full((7, 7), 1 / 49)), image)
    grey = MIN_BRIGHTNESS * image.mean(-1, keepdims=True)
    dimmed = highlight(image, np.zeros((7, 7)))
    np.testing.assert_allclose(dimmed, np.broadcast_to(grey, image.shape), atol=0.51)


def test_one_place_is_lit_where_it_lies(image: np.ndarray) -> None:
    white = np.full_like(image, 255)
    for row, column in ((0, 0), (3, 5), (6, 2)):
        weights = np.zeros((7, 7))
        weights[row, column] = 0.4
        lit = highlight(white, weights)[..., 0].astype(float)
        lit -= lit.min()
        rows, columns = np.arange(56) + 0.5, np.arange(84) + 0.5
        middle = (lit.sum(1) @ rows / lit.sum() / 8, lit.sum(0) @ columns / lit.sum() / 12)
        # Interpolation stops at the edge, which moves the centre inwards.
        np.testing.assert_allclose(middle, (row + 0.5, column + 0.5), atol=0.25)
        assert lit.max() == lit[8 * row + 4, 12 * column + 6] or row in (0, 6)
        far = np.abs(rows[:, None] / 8 - row - 0.5) > 2.1
        assert (lit[far.repeat(84, 1)] == 0).all()


def test_scale_of_the_weights_changes_nothing(image: np.ndarray) -> None:
    weights = np.random.default_rng(1).random((3, 4))
    np.testing.assert_allclose(highlight(image, weights), highlight(image, weights / 100), atol=1)


def test_a_sheet_has_a_tile_for_the_image_and_each_word(image: np.ndarray) -> None:
    words = ["a", "dog", "runs", "incomprehensibilities-of-antidisestablishmentarianism", "by", "x"]
    weights = np.random.default_rng(2).random((6, 7, 7))
    sheet = draw_attention(image, words, weights)
    assert sheet.width == GAP + 5 * (TILE + GAP)
    pixels = np.asarray(sheet)
    height = round(56 * TILE / 84)
    for place in range(7):
        row, column = divmod(place, 5)
        top = GAP + row * (sheet.height - GAP) // 2
        left = GAP + column * (TILE + GAP)
        tile = pixels[top : top + height, left : left + TILE]
        assert tile.std() > 10
        below = pixels[top + height : top + height + 40, left : left + TILE]
        assert (below.min() < 80) == (place > 0)  # The photograph has no word.
        between = pixels[top : top + height + 40, left - GAP : left]
        assert (between == 255).all()  # No word is wider than its tile.
    assert draw_attention(image, [], weights[:0]).width == TILE + 2 * GAP


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": np.zeros((8, 8, 3))}, r"image: expected \(H,W,3\) uint8, received .* float64"),
        ({"image": np.zeros((8, 8), np.uint8)}, r"image: expected .* received \(8, 8\)"),
        ({"attention": np.ones((2, 7, 7))}, r"attention: expected \(n,h,w\) with n = 1 words"),
        ({"attention": np.ones((1, 49))}, r"attention: expected .* received \(1, 49\)"),
        ({"attention": -np.ones((1, 7, 7))}, "attention: expected weights of at least 0"),
        ({"attention": np.full((1, 7, 7), np.nan)}, "attention: expected weights of at least 0"),
    ],
)
def test_what_does_not_go_together_is_refused(
    image: np.ndarray, change: dict[str, np.ndarray], message: str
) -> None:
    given = {"image": image, "attention": np.ones((1, 7, 7)), **change}
    with pytest.raises(ValueError, match=message):
        draw_attention(given["image"], ["dog"], given["attention"])
