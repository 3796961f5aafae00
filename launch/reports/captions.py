"""The captions that a report shows: the best, the worst and some drawn by chance."""

import dataclasses
import logging
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from launch.reports.clips import Frame, ShowsClips, make_frames, make_image

PICTURES = 6
"""Examples under each heading."""
ATTENDED = 2
"""Of these the first, with attention at each word."""
IMAGE_SIDE = 320
"""Longer side of an embedded image, pixels."""
TILE_SIDE = 112
"""Longer side of an image with attention, pixels."""

Look = Callable[[Sequence[int]], Mapping[int, "Looked"]]
"""Indices of examples to where the model looked, of those for which that can be told."""

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
class Looked:
    """Where a model looked while it found a caption.

    Attributes:
      words: n of the caption.
      attention: (n,h,w) float of an image's places, or (n,T) of a video's steps.
      image: (H,W,3) uint8, what the model sees of the image; None for a video.
    """

    words: tuple[str, ...]
    attention: np.ndarray
    image: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Tile:
    """A word and the image lit where the model looked; ``peak`` is the weight there."""

    word: str
    peak: float
    frame: Frame


@dataclasses.dataclass(frozen=True)
class Picture:
    """An example with its captions; ``problem`` tells why it has no image.

    Attributes:
      index: of the example in its split.
      caption: what the model found.
      ended: whether the caption reached its end.
      log_probability: of it.
      references: what people wrote.
      score: of the caption against them.
      frames: the image, or frames of a video.
      tiles: of attention over an image.
      steps: of attention over a video: words, and the weight of each step, in [0,1].
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
    """Pictures under one heading, and how they were chosen."""

    title: str
    choice: str
    pictures: list[Picture]


def make_galleries(
    predictions: Sequence[Mapping[str, Any]],
    references: Sequence[Sequence[str]],
    scores: Sequence[float],
    load_clip: Callable[[int], np.ndarray],
    look: Look | None = None,
    *,
    metric: str = "CIDEr",
) -> list[Gallery]:
    """The best and the worst examples by score, and others drawn by chance.

    No example is shown twice.

    Args:
      predictions: ``{"index", "caption", "log_probability", "ended"}`` each.
      references: captions by people of each example of the split, by ``index``.
      scores: of each prediction.
      load_clip: an index to an image (1,H,W,3), or a video's frames (T,H,W,3), uint8. An example
        that it fails for has no image.
      look: where the model looked; None: not told.
      metric: the name of the score.
    """
    order = sorted(range(len(scores)), key=lambda place: -scores[place])
    count = min(PICTURES, -(-len(order) // 3))
    best, rest = order[:count], order[count:]
    worst, rest = rest[::-1][:count], rest[: max(len(rest) - count, 0)]
    drawn = random.Random(0).sample(rest, min(count, len(rest)))
    chosen = [
        ("Best", f"the highest {metric} first", best),
        ("Worst", f"the lowest {metric} first", worst),
        ("Random", "drawn by chance from the others, the same ones each time", drawn),
    ]
    attended = [
        predictions[place]["index"] for _, _, places in chosen for place in places[:ATTENDED]
    ]
    looked = dict(look(attended)) if look is not None and attended else {}
    return [
        Gallery(
            title,
            text,
            [
                _make_picture(predictions[p], references, scores[p], load_clip, looked)
                for p in places
            ],
        )
        for title, text, places in chosen
    ]


def _make_picture(
    record: Mapping[str, Any],
    references: Sequence[Sequence[str]],
    score: float,
    load_clip: Callable[[int], np.ndarray],
    looked: Mapping[int, Looked],
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
    except Exception as error:  # Whatever a data set raises, one image must not cost the page.
        logger.warning("example %d has no image", index, exc_info=True)
        return dataclasses.replace(picture, problem=f"could not be loaded: {error}")
    picture = dataclasses.replace(picture, frames=tuple(frames))
    seen = looked.get(index)
    # A newer checkpoint may have found other words since.
    if seen is None or " ".join(seen.words) != picture.caption:
        return picture
    if seen.image is None:
        steps = zip(seen.words, seen.attention.tolist(), strict=True)
        return dataclasses.replace(picture, steps=tuple((w, tuple(a)) for w, a in steps))
    image = seen.image
    tiles = (
        Tile(word, float(weights.max()), make_image(place, light_up(image, weights), TILE_SIDE))
        for place, (word, weights) in enumerate(zip(seen.words, seen.attention, strict=True))
    )
    return dataclasses.replace(picture, tiles=tuple(tiles))


# Where a captioner looked at each word: its attention over the photograph.

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
