"""Where a captioner looked at each word: its attention over the photograph."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

COLUMNS = 5
"""Tiles in a row."""
TILE = 224
"""Longer side of a tile, pixels."""
GAP = 8
"""Pixels around tiles and texts."""
FONT_SIZE = 20
"""Of the words, pixels; longer ones are written smaller."""
UNATTENDED = 0.25
"""Brightness that is left of places without attention."""


def draw_attention(
    image: np.ndarray, words: Sequence[str], attention: np.ndarray, *, columns: int = COLUMNS
) -> Image.Image:
    """A sheet of tiles: the image, then for each word the image lit where the model looked.

    Under a word stands the weight of the place that is looked at most, under the image what each
    place has where all are looked at evenly.

    Args:
      image: (H,W,3) uint8, as the model sees it.
      words: n of them.
      attention: (n,h,w) float, at least 0.
      columns: tiles in a row.

    Raises:
      ValueError: an image or weights of another shape, dtype or sign.
    """
    _check(image, words, attention)
    tiles = [(image, f"\nevenly: {100 / attention[0].size:.0f} %" if len(attention) else "")]
    for word, weights in zip(words, attention, strict=True):
        tiles.append((light_up(image, weights), f"{word}\n{100 * weights.max():.0f} %"))
    scale = TILE / max(image.shape[:2])
    height, width = (max(round(side * scale), 1) for side in image.shape[:2])
    caption = int(2.8 * FONT_SIZE)
    columns = min(columns, len(tiles))
    rows = -(-len(tiles) // columns)
    sheet = Image.new(
        "RGB",
        (GAP + columns * (width + GAP), GAP + rows * (height + caption + GAP)),
        "white",
    )
    draw = ImageDraw.Draw(sheet)
    for place, (pixels, text) in enumerate(tiles):
        row, column = divmod(place, columns)
        left, top = GAP + column * (width + GAP), GAP + row * (height + caption + GAP)
        tile = Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS)
        sheet.paste(tile, (left, top))
        if text:
            word, _, share = text.rpartition("\n")
            middle = left + width / 2
            draw.text((middle, top + height + 4), word, "black", _font(word, width), anchor="ma")
            small = ImageFont.load_default(0.7 * FONT_SIZE)
            draw.text((middle, top + height + 1.6 * FONT_SIZE), share, "#555555", small, "ma")
    return sheet


def light_up(image: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """An image dim and grey where there is no weight, as it is where there is the most.

    Weights are scaled from 0 to their greatest; those of one size everywhere leave the image as it
    is. Between the middles of the places they are interpolated.

    Args:
      image: (H,W,3) uint8.
      weights: (h,w) float, at least 0.

    Returns:
      (H,W,3) uint8.
    """
    height, width = image.shape[:2]
    small = Image.fromarray(np.asarray(weights, np.float32))
    smooth = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))
    peak = smooth.max()
    light = np.clip(smooth / peak, 0, 1)[..., None] if peak > 0 else np.zeros((height, width, 1))
    dim = UNATTENDED * image.mean(axis=2, keepdims=True)
    return (dim + light * (image - dim)).round().astype(np.uint8)


def _font(word: str, width: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The largest font up to ``FONT_SIZE`` in which the word is no wider than a tile."""
    # Letters of other sizes are hinted, so widths are not quite in proportion.
    sizes = range(FONT_SIZE, 0, -1)
    fonts = (ImageFont.load_default(size) for size in sizes)
    return next(
        (font for font in fonts if font.getlength(word) <= width), ImageFont.load_default(1)
    )


def _check(image: np.ndarray, words: Sequence[str], attention: np.ndarray) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        raise ValueError(f"image: expected (H,W,3) uint8, received {image.shape} {image.dtype}")
    if attention.ndim != 3 or len(attention) != len(words) or 0 in attention.shape[1:]:
        raise ValueError(
            f"attention: expected (n,h,w) with n = {len(words)} words, received {attention.shape}"
        )
    if not np.all(attention >= 0):
        raise ValueError("attention: expected weights from 0 on, received others")
