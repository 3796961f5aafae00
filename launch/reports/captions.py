"""Captions in a report: galleries of examples, and attention weights drawn over the image."""

import dataclasses
import logging
import random
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from launch.reports.clips import (
    Frame,
    ShowsClips,
    make_frames,
    make_image,
)

PICTURES = 6
"""Examples of each gallery."""
PICTURES_WITH_ATTENTION = 2
"""First examples of each gallery, shown with the attention at each word."""
IMAGE_SIDE = 320
"""Longer side of an embedded image, pixels."""
TILE_SIDE = 112
"""Longer side of an embedded image with attention, pixels."""

# Of a drawing by ``draw_attention``.
COLUMNS = 5
"""Tiles in a row."""
TILE = 224
"""Longer side of a tile, pixels."""
GAP = 8
"""Space around tiles and text, pixels."""
FONT_SIZE = 20
"""Size of the words, pixels; long words are smaller."""
NOTE = (
    "Percentages: attention weight of the brightest position at the word; the weights of all "
    "positions sum to 100 %."
)
"""Line below a drawing."""
MIN_BRIGHTNESS = 0.25
"""Brightness that remains where the attention weight is zero."""

FindAttention = Callable[[Sequence[int]], Mapping[int, "CaptionAttention"]]
"""Maps indices of examples to their attention weights; examples without weights are left out."""

logger = logging.getLogger(__name__)


@runtime_checkable
class ShowsCaptions(ShowsClips, Protocol):
    """Configuration of a captioner whose predictions can be shown beside people's captions."""

    def references(self, split: str) -> Sequence[Sequence[str]]:
        """Returns the captions that people wrote, of each example of a split."""

    def score_examples(self, split: str, records: Sequence[Mapping[str, Any]]) -> list[float]:
        """Returns ``best_metric`` of each record of a split."""

    def crop_image(self, image: np.ndarray) -> np.ndarray:
        """Returns the part of an image (H,W,3) uint8 that the model sees."""


@dataclasses.dataclass(frozen=True)
class CaptionAttention:
    """Attention weights at each word of a caption.

    Attributes:
      words: the n words of the caption.
      attention: float weights, (n,h,w) over the positions of an image or (n,T) over the steps of a
        video.
      image: (H,W,3) uint8 input of the model; None for a video.
    """

    words: tuple[str, ...]
    attention: np.ndarray
    image: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Tile:
    """A word and the image highlighted by its attention; ``peak`` is the largest weight."""

    word: str
    peak: float
    frame: Frame


@dataclasses.dataclass(frozen=True)
class Picture:
    """An example with its captions.

    Attributes:
      index: index of the example in its split.
      caption: predicted caption.
      ended: True if the caption has an end token.
      log_probability: log-probability of the caption.
      references: reference captions.
      score: metric of the caption against the references.
      frames: the image, or frames of a video.
      tiles: attention over an image, at each word.
      steps: attention over a video: each word with the weights of the steps, in [0,1].
      problem: reason for missing frames.
    """

    index: int
    caption: str
    ended: bool
    log_probability: float
    references: tuple[str, ...]
    score: float
    frames: tuple[Frame, ...] = ()
    tiles: tuple[Tile, ...] = ()
    steps: tuple[tuple[str, tuple[float, ...]], ...] = ()
    problem: str = ""


@dataclasses.dataclass(frozen=True)
class Gallery:
    """Pictures with a title; ``choice`` tells how they were selected."""

    title: str
    choice: str
    pictures: list[Picture]


def make_galleries(
    predictions: Sequence[Mapping[str, Any]],
    references: Sequence[Sequence[str]],
    scores: Sequence[float],
    load_clip: Callable[[int], np.ndarray],
    find_attention: FindAttention | None = None,
    *,
    metric: str = "CIDEr",
) -> list[Gallery]:
    """Returns galleries of the best, the worst and random examples; none is shown twice.

    Args:
      predictions: records ``{"index", "caption", "log_probability", "ended"}``.
      references: reference captions of every example of the split, by index.
      scores: metric of each prediction.
      load_clip: maps an index to an image (1,H,W,3), or to a video's frames (T,H,W,3), uint8. If it
        raises, the example has no image.
      find_attention: returns attention weights; None: show none.
      metric: name of the metric.
    """
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    count = min(PICTURES, -(-len(order) // 3))
    best, rest = order[:count], order[count:]
    worst, rest = rest[::-1][:count], rest[: max(len(rest) - count, 0)]
    drawn = random.Random(0).sample(rest, min(count, len(rest)))
    chosen = [
        ("Best", f"the highest {metric} first", best),
        ("Worst", f"the lowest {metric} first", worst),
        ("Random", "a fixed random sample of the others", drawn),
    ]
    attended = [
        predictions[i]["index"]
        for _, _, indices in chosen
        for i in indices[:PICTURES_WITH_ATTENTION]
    ]
    attention = dict(find_attention(attended)) if find_attention and attended else {}
    return [
        Gallery(
            title,
            text,
            [
                _make_picture(predictions[i], references, scores[i], load_clip, attention)
                for i in indices
            ],
        )
        for title, text, indices in chosen
    ]


def _make_picture(
    record: Mapping[str, Any],
    references: Sequence[Sequence[str]],
    score: float,
    load_clip: Callable[[int], np.ndarray],
    attention: Mapping[int, CaptionAttention],
) -> Picture:
    index = record["index"]
    picture = Picture(
        index=index,
        caption=record["caption"],
        ended=record.get("ended", True),
        log_probability=record["log_probability"],
        references=tuple(references[index]),
        score=score,
    )
    try:
        clip = load_clip(index)
        frames = make_frames(clip, max_side=IMAGE_SIDE) if len(clip) == 1 else make_frames(clip)
    except Exception as error:  # Any error of a data set: one bad image must not stop the page.
        logger.warning("example %d has no image", index, exc_info=True)
        return dataclasses.replace(picture, problem=f"could not be loaded: {error}")
    picture = dataclasses.replace(picture, frames=tuple(frames))
    seen = attention.get(index)
    # A checkpoint newer than the predictions may find other words.
    if seen is None or "".join(seen.words) != picture.caption.replace(" ", ""):
        return picture
    if seen.image is None:
        steps = zip(seen.words, seen.attention.tolist(), strict=True)
        return dataclasses.replace(picture, steps=tuple((w, tuple(a)) for w, a in steps))
    image = seen.image
    tiles = (
        Tile(word, float(weights.max()), make_image(number, highlight(image, weights), TILE_SIDE))
        for number, (word, weights) in enumerate(zip(seen.words, seen.attention, strict=True))
    )
    return dataclasses.replace(picture, tiles=tuple(tiles))


def draw_attention(
    image: np.ndarray, words: Sequence[str], attention: np.ndarray, *, columns: int = COLUMNS
) -> Image.Image:
    """Draws tiles: the image, then for each word the image highlighted by its attention weights.

    The percentage under a word is the weight of its brightest position, of 100 % over all
    positions; under the image, the weight of each position if all were equal. A line below says so.

    Args:
      image: (H,W,3) uint8 input of the model.
      words: n words.
      attention: (n,h,w) float weights, at least 0.
      columns: tiles in a row.

    Raises:
      ValueError: image or weights of another shape, dtype or sign.
    """
    _check(image, words, attention)
    tiles = [(image, f"\nuniform: {100 / attention[0].size:.0f} %" if len(attention) else "")]
    for word, weights in zip(words, attention, strict=True):
        tiles.append((highlight(image, weights), f"{word}\n{100 * weights.max():.0f} %"))
    scale = TILE / max(image.shape[:2])
    height, width = (max(round(side * scale), 1) for side in image.shape[:2])
    caption = int(2.8 * FONT_SIZE)
    columns = min(columns, len(tiles))
    rows = -(-len(tiles) // columns)
    note = textwrap.wrap(NOTE, max(columns * width // (FONT_SIZE // 3), 20))
    note_height = GAP + len(note) * FONT_SIZE
    sheet = Image.new(
        "RGB",
        (GAP + columns * (width + GAP), GAP + rows * (height + caption + GAP) + note_height),
        "white",
    )
    draw = ImageDraw.Draw(sheet)
    for number, (pixels, text) in enumerate(tiles):
        row, column = divmod(number, columns)
        left, top = GAP + column * (width + GAP), GAP + row * (height + caption + GAP)
        tile = Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS)
        sheet.paste(tile, (left, top))
        if text:
            word, _, share = text.rpartition("\n")
            middle = left + width / 2
            draw.text((middle, top + height + 4), word, "black", _font(word, width), anchor="ma")
            small = ImageFont.load_default(0.7 * FONT_SIZE)
            draw.text((middle, top + height + 1.6 * FONT_SIZE), share, "#555555", small, "ma")
    small = ImageFont.load_default(0.7 * FONT_SIZE)
    for number, line in enumerate(note):
        top = sheet.height - note_height + number * FONT_SIZE
        draw.text((GAP, top), line, "#555555", small)
    return sheet


def highlight(image: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Returns an image that is dim and grey where weights are zero, unchanged at the largest one.

    Weights are divided by their maximum, so equal weights leave the image unchanged, and are
    interpolated between the centres of their positions.

    Args:
      image: (H,W,3) uint8.
      weights: (h,w) float weights, at least 0.

    Returns:
      (H,W,3) uint8.
    """
    height, width = image.shape[:2]
    small = Image.fromarray(np.asarray(weights, np.float32))
    smooth = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))
    peak = smooth.max()
    light = np.clip(smooth / peak, 0, 1)[..., None] if peak > 0 else np.zeros((height, width, 1))
    dim = MIN_BRIGHTNESS * image.mean(axis=2, keepdims=True)
    return (dim + light * (image - dim)).round().astype(np.uint8)


def _font(word: str, width: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Returns the largest font up to ``FONT_SIZE`` in which the word fits into a tile."""
    # Hinting makes widths not proportional to the size, so each size is tried.
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
        raise ValueError("attention: expected weights of at least 0, received negative ones or NaN")
