"""Properties of many files, read in threads; an unreadable one is a row as well."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data.audio.decoding import read_sound
from data.captions.images import FORMATS, decode_image
from data.files import file_size, open_file, require_file
from data.likeness import NUM_PICTURES, make_signature
from data.video.decoding import survey
from data.video.frame_folders import FrameFolders, list_frames
from data.video.streams import segment_centres


@dataclass(frozen=True)
class Inspection:
    """Properties of a file; numbers are 0 where there is none.

    Attributes:
        error: reason why it cannot be read; "" if it can be.
        num_bytes: size of the file; -1 if there is none.
        num_frames: frames of a video, 1 of an image, samples of a sound.
        rate: average frames/s of a video, samples/s of a sound.
        height: pixels.
        width: pixels.
        channels: of a sound.
        peak: greatest magnitude of a sound, above 1 only in files of floating-point samples.
        codec: container and codec of a video or sound, format of an image.
        signature: for ``data.likeness``, (T,16,16) uint8; None if it cannot be read.
    """

    error: str = ""
    num_bytes: int = -1
    num_frames: int = 0
    rate: float = 0.0
    height: int = 0
    width: int = 0
    channels: int = 0
    peak: float = 0.0
    codec: str = ""
    signature: np.ndarray | None = None

    @property
    def seconds(self) -> float:
        """Duration of a video or sound."""
        return self.num_frames / self.rate if self.rate else 0.0

    def describe(self) -> dict[str, Any]:
        """Returns the properties for JSON."""
        sound = {"channels": self.channels, "peak": round(self.peak, 6)} if self.channels else {}
        return {
            "error": self.error,
            "num_bytes": self.num_bytes,
            "num_frames": self.num_frames,
            "rate": self.rate,
            "height": self.height,
            "width": self.width,
            "codec": self.codec,
            **sound,
        }


def inspect_video(path: str) -> Inspection:
    """Decodes a video, or folder of frames, once; never raises an exception of its contents."""
    if os.path.isdir(path):
        return _inspect_frames(path)
    size = _size(path)
    try:
        found = survey(path, NUM_PICTURES)
        signature = make_signature(found.pictures)
    except Exception as error:  # One hostile file of thousands must not end the check.
        return Inspection(_reason(error), size)
    info = found.info
    return Inspection(
        num_bytes=size,
        num_frames=info.num_frames,
        rate=info.rate,
        height=info.height,
        width=info.width,
        codec=f"{found.codec} in {found.container.split(',')[0]}",
        signature=signature,
    )


def _inspect_frames(path: str) -> Inspection:
    reader = FrameFolders()
    try:
        info = reader.probe(path)
        chosen = set(segment_centres(NUM_PICTURES, info.num_frames).tolist())
        pictures = [
            make_signature(frame[None])
            for number, frame in enumerate(reader.decode_all(path))
            if number in chosen
        ]
    except Exception as error:  # As above.
        return Inspection(_reason(error))
    # A folder of fewer frames repeats them, as a video does.
    numbers = np.linspace(0, len(pictures) - 1, NUM_PICTURES).round().astype(int)
    return Inspection(
        num_bytes=sum(_size(os.path.join(path, name)) for name in list_frames(path)),
        num_frames=info.num_frames,
        rate=info.rate,
        height=info.height,
        width=info.width,
        codec="folder of frames",
        signature=np.concatenate([pictures[number] for number in numbers]),
    )


def inspect_image(path: str) -> Inspection:
    """Decodes an image once; never raises an exception of a file's contents."""
    size = _size(path)
    try:
        require_file(path, "an image file")
        with open_file(path) as file:
            pixels = decode_image(file, path)
            file.seek(0)
            with Image.open(file, formats=FORMATS) as image:
                kind = str(image.format)
    except Exception as error:
        return Inspection(_reason(error), size)
    height, width = pixels.shape[:2]
    return Inspection(
        num_bytes=size,
        num_frames=1,
        height=height,
        width=width,
        codec=kind,
        signature=make_signature(pixels[None]),
    )


def inspect_sound(path: str) -> Inspection:
    """Decodes a sound once, at its own rate; never raises an exception of a file's contents."""
    size = _size(path)
    try:
        found = read_sound(path, None)
    except Exception as error:
        return Inspection(_reason(error), size)
    return Inspection(
        num_bytes=size,
        num_frames=len(found.samples),
        rate=found.file_rate,
        channels=found.channels,
        peak=found.peak or float(np.abs(found.samples).max(initial=0)),
        codec=found.codec,
    )


def inspect_all(
    paths: Sequence[str], inspect: Callable[[str], Inspection], executor: Executor, ahead: int
) -> Iterator[tuple[int, Inspection]]:
    """Yields the index and the properties of each file, as they are found.

    Args:
        paths: the files.
        inspect: ``inspect_video``, ``inspect_image`` or ``inspect_sound``.
        executor: of threads.
        ahead: greatest number of files that wait or are read, so that memory does not grow with the
            number of files.
    """
    running: dict[Future[Inspection], int] = {}
    following = iter(enumerate(paths))
    while True:
        while len(running) < ahead and (item := next(following, None)) is not None:
            running[executor.submit(inspect, item[1])] = item[0]
        if not running:
            return
        done, _ = wait(running, return_when=FIRST_COMPLETED)
        for future in done:
            yield running.pop(future), future.result()


def _size(path: str) -> int:
    try:
        return file_size(path)
    except OSError:
        return -1


def _reason(error: Exception) -> str:
    """Returns the message of an error without the path, which stands beside it."""
    reason = getattr(error, "reason", None)
    text = str(reason) if isinstance(reason, str) else str(error) or type(error).__name__
    return text.removeprefix(f"{Path(getattr(error, 'path', ''))}: ").splitlines()[0]
