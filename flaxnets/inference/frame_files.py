"""Pictures of frame sequences, and their files: strips as PNG, and mp4 and gif to play.

Given frames have a grey border and predicted ones an orange border, so that a viewer tells them
apart in every form.
"""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

RATE = 10
"""Frames/s of the files."""
GIVEN, PREDICTED = (128, 128, 128), (230, 110, 20)
"""Colours of the borders, RGB."""

_BORDER = 2  # pixels; an even sum of both sides, which H.264 needs


def name_files(paths: Sequence[str]) -> list[str]:
    """Returns a name without ending for what is made of each file, no two of them the same.

    The first file of a name keeps it; further ones get a number that no other file has.

    >>> name_files(["a/clip.avi", "b/clip.avi", "clip-2.avi", "clip-2.avi"])
    ['clip', 'clip-3', 'clip-2', 'clip-2-2']
    """
    stems = [Path(path).stem for path in paths]
    names = dict[str, None]()
    for stem in stems:
        name, number = stem, 1
        while name in names or (number > 1 and name in stems):
            number += 1
            name = f"{stem}-{number}"
        names[name] = None
    return list(names)


def to_pictures(
    frames: np.ndarray,
    limits: tuple[float, float] = (0.0, 1.0),
    *,
    least_side: int = 0,
    border: tuple[int, int, int] | None = None,
) -> np.ndarray:
    """Returns frames as RGB pictures.

    Args:
      frames: (T,H,W,C) uint8 in [0,255], or float. RGB where C is 3, else the first channel, in
        grey.
      limits: values of float frames that are black and white.
      least_side: each pixel is repeated so often that the shorter side has at least so many pixels.
      border: colour of a border, RGB; None: none.

    Returns:
      (T,h,w,3) uint8; h and w are even where there is a border.
    """
    if frames.dtype != np.uint8:
        low, high = limits
        shares = (np.nan_to_num(frames) - low) / ((high - low) or 1.0)
        frames = np.round(255 * np.clip(shares, 0, 1)).astype(np.uint8)
    if frames.shape[-1] != 3:
        frames = np.repeat(frames[..., :1], 3, axis=-1)
    times = max(1, -(-least_side // min(frames.shape[1:3])))
    frames = frames.repeat(times, axis=1).repeat(times, axis=2)
    if border is None:
        return frames
    sides = [(_BORDER, _BORDER + size % 2) for size in frames.shape[1:3]]
    framed = np.empty(
        (len(frames), *(n + sum(s) for n, s in zip(frames.shape[1:3], sides, strict=True)), 3),
        np.uint8,
    )
    framed[:] = border
    height, width = frames.shape[1:3]
    framed[:, _BORDER : _BORDER + height, _BORDER : _BORDER + width] = frames
    return framed


def limits_of(*frames: np.ndarray) -> tuple[float, float]:
    """Returns the least and greatest value of float frames that are shown beside each other.

    Of uint8 frames and predictions of them, in [0,1], these are 0 and 1.
    """
    if any(array.dtype == np.uint8 for array in frames):
        return 0.0, 1.0
    shown = [array if array.shape[-1] == 3 else array[..., :1] for array in frames]
    return float(min(a.min() for a in shown)), float(max(a.max() for a in shown))


def draw_strip(rows: Sequence[np.ndarray]) -> Image.Image:
    """Returns rows of pictures as one image, each row from left to right.

    Args:
      rows: (T,h,w,3) uint8 each, of one size; T may differ.
    """
    height, width = rows[0].shape[1:3]
    image = np.full((height * len(rows), width * max(map(len, rows)), 3), 255, np.uint8)
    for number, row in enumerate(rows):
        for t, picture in enumerate(row):
            image[number * height : (number + 1) * height, t * width : (t + 1) * width] = picture
    return Image.fromarray(image)


def write_mp4(path: Path, pictures: np.ndarray, rate: int = RATE) -> None:
    """Writes pictures (T,h,w,3) uint8, h and w even, as H.264 in mp4."""
    import av

    with av.open(str(path), "w", format="mp4") as container:
        stream: Any = container.add_stream("libx264", rate=Fraction(rate), options={"crf": "12"})
        stream.height, stream.width = pictures.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def write_gif(path: Path, pictures: np.ndarray, rate: int = RATE) -> None:
    """Writes pictures (T,h,w,3) uint8 as a gif that repeats."""
    images = [Image.fromarray(picture) for picture in pictures]
    images[0].save(
        path,
        "GIF",
        save_all=True,
        append_images=images[1:],
        duration=round(1000 / rate),
        loop=0,
    )
