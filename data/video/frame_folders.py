"""Folders of frames, ``00001.jpg`` and so on, in the place of video files.

Jester is published in this form, and JHMDB as well; MMAction2 and TSN call it "rawframes".
"""

import functools
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from data.captions.images import ImageError, read_image
from data.features import digest_file
from data.video.decoding import VideoError, VideoInfo, decode, decode_all, probe

FRAME_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm")
"""Endings of the files that are frames, in any letter case."""

_NUMBER = re.compile(r"\d+(?=\D*$)")  # the last one in a name
_FLOW = re.compile(r"flow_[xy]_?\d")  # lies beside the frames in TSN's folders


@dataclass(frozen=True)
class FrameFolders:
    """Reader of folders of frames, and of video files beside them.

    The frames are the image files of a folder in the order of the last number in their names; it
    may begin anywhere and have gaps.

    Attributes:
        rate: frames/s of the folders, which do not tell it; at least ``DenseClip.rate`` needs it.
    """

    rate: float = 25.0

    def probe(self, path: str) -> VideoInfo:
        """Returns number, rate and size of the frames; those of a file as ``decoding.probe``.

        Raises:
            FileNotFoundError: there is no such folder or file.
            VideoError: no frames, frames of several series, or an unreadable first frame.
        """
        if not os.path.isdir(path):
            return probe(path)
        return _probe_folder(path, os.stat(path).st_mtime_ns, self.rate)

    def decode(
        self, path: str, frames: Sequence[int] | np.ndarray, *, short_side: int | None = None
    ) -> np.ndarray:
        """Returns chosen frames as ``decoding.decode``, (T,H,W,3) uint8.

        Args:
            path: the folder or file.
            frames: (T,) int, positions >= 0 in the order of the frames, repeats allowed.
            short_side: pixels to which the short side is scaled; None does not scale.

        Raises:
            FileNotFoundError: there is no such folder or file.
            VideoError: a frame is missing or damaged, or of another size than another one.
        """
        if not os.path.isdir(path):
            return decode(path, frames, short_side=short_side)
        names = list_frames(path)
        return stack_images(path, names, frames, functools.partial(_read, path), short_side)

    def decode_all(self, path: str, *, short_side: int | None = None) -> Iterator[np.ndarray]:
        """Yields all frames in order, each (H,W,3) uint8; errors as of ``decode``."""
        if not os.path.isdir(path):
            yield from decode_all(path, short_side=short_side)
            return
        names = list_frames(path)
        yield from each_image(path, names, functools.partial(_read, path), short_side)

    def digest(self, path: str) -> str:
        """Returns the SHA-256 of a file, or that of the names and digests of a folder's files."""
        return digest_file(path)


def list_frames(path: str | Path) -> tuple[str, ...]:
    """Returns the names of a folder's frames in their order.

    Raises:
        FileNotFoundError: there is no such folder.
        VideoError: no frames, one without a number, or frames of several series.
    """
    if not os.path.isdir(path):
        raise FileNotFoundError(f"{path}: expected a folder of frames, which does not exist")
    return _list_frames(str(path), os.stat(path).st_mtime_ns)


def stack_images(
    path: str,
    names: Sequence[str],
    frames: Sequence[int] | np.ndarray,
    read: Callable[[str], np.ndarray],
    short_side: int | None,
) -> np.ndarray:
    """Returns chosen images of a folder, (T,H,W,3) uint8, in the order of ``frames``.

    Args:
        path: the folder, for errors.
        names: of its images, in their order.
        frames: (T,) int, positions >= 0 in ``names``, in any order.
        read: returns the image (H,W,3) uint8 of a name.
        short_side: pixels to which the short side is scaled; None does not scale.

    Raises:
        VideoError: fewer images, or images of several sizes.
        ValueError: ``frames`` is empty or has negative numbers, or ``short_side`` is below 1.
    """
    requested = np.asarray(frames)
    if requested.ndim != 1 or requested.size == 0 or requested.min() < 0:
        raise ValueError(f"frames: expected (T,) numbers from 0 on, T >= 1, received {frames}")
    numbers, order = np.unique(requested, return_inverse=True)
    if numbers[-1] >= len(names):
        raise VideoError(path, f"it has {len(names)} images, and number {numbers[-1]} is asked for")
    images = [*each_image(path, [names[number] for number in numbers], read, short_side)]
    return np.stack([images[index] for index in order])


def each_image(
    path: str, names: Sequence[str], read: Callable[[str], np.ndarray], short_side: int | None
) -> Iterator[np.ndarray]:
    """Yields images of a folder, each (H,W,3) uint8; arguments as for ``stack_images``."""
    if short_side is not None and short_side < 1:
        raise ValueError(f"short_side: expected at least 1 pixel, received {short_side}")
    first: tuple[int, ...] = ()
    for name in names:
        image = read(name)
        first = first or image.shape
        if image.shape != first:
            raise VideoError(
                path,
                f"expected frames of one size, received {names[0]} of {first[0]} × {first[1]} "
                f"pixels and {name} of {image.shape[0]} × {image.shape[1]}; resize them, or join "
                "them into a video file",
            )
        yield _scaled(image, short_side)


def _scaled(image: np.ndarray, short_side: int | None) -> np.ndarray:
    height, width = image.shape[:2]
    if short_side is None or short_side == min(height, width):
        return image
    scale = short_side / min(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))


def _read(path: str, name: str) -> np.ndarray:
    try:
        return read_image(os.path.join(path, name))
    except ImageError as error:
        raise VideoError(path, f"frame {name} is unreadable ({error.reason})") from error
    except FileNotFoundError as error:
        raise VideoError(path, f"frame {name} is missing") from error


@functools.lru_cache(maxsize=2**16)
def _list_frames(path: str, changed: int) -> tuple[str, ...]:
    del changed  # It tells one content of the folder from another.
    numbered: list[tuple[int, str]] = []
    series: dict[str, str] = {}
    for name in sorted(os.listdir(path)):
        stem, ending = os.path.splitext(name)
        if name.startswith(".") or ending.lower() not in FRAME_ENDINGS or _FLOW.match(name):
            continue
        match = _NUMBER.search(stem)
        if match is None:
            raise VideoError(path, f"expected frames with a number in their names, received {name}")
        numbered.append((int(match[0]), name))
        series.setdefault(stem[: match.start()] + "…" + stem[match.end() :] + ending, name)
    if not numbered:
        raise VideoError(path, f"expected frames ({', '.join(FRAME_ENDINGS[:3])}), received none")
    if len(series) > 1:
        raise VideoError(
            path, f"expected frames of one series, received {' and '.join([*series.values()][:3])}"
        )
    return tuple(name for _, name in sorted(numbered))


@functools.lru_cache(maxsize=2**16)
def _probe_folder(path: str, changed: int, rate: float) -> VideoInfo:
    del changed
    names = list_frames(path)
    height, width = _read(path, names[0]).shape[:2]
    return VideoInfo(len(names), rate, height, width)
