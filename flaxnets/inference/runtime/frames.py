"""Frames of a stream with their time stamps: raw or JPEG frames of a pipe, a file, a camera."""

import dataclasses
import io
import math
import os
import stat
import time
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
from PIL import Image

from .media import DEFAULT_LIMITS, Limits, MediaError, Video

_BLOCK = 1 << 16
_MOST_JPEG_BYTES = 64 << 20
_SOI, _EOI, _SOS = 0xD8, 0xD9, 0xDA


@dataclasses.dataclass(frozen=True, eq=False)
class TimedFrame:
    """One frame of a stream."""

    time: float
    """Seconds from any origin."""
    frame: np.ndarray
    """(H,W,3) uint8, RGB."""


class FrameSource:
    """Iterator over the frames of a stream, of which one is held at a time.

    Attributes:
      problem: what was left out at the end, in words, as a frame that was cut off; empty if nothing
        was.
      damaged: frames that could not be decoded and were left out.
    """

    def __init__(self) -> None:
        self.problem = ""
        self.damaged = 0

    def __iter__(self) -> Iterator[TimedFrame]:
        """Yields the frames; raises ``MediaError`` where the stream is none."""
        raise NotImplementedError


class RawFrames(FrameSource):
    """Frames of 3 bytes a pixel, red, green and blue, one after the other (FFmpeg's ``rgb24``).

    >>> frames = RawFrames(io.BytesIO(bytes(range(12)) + b"cut"), (1, 2), rate=10.0)
    >>> [(timed.time, timed.frame.shape) for timed in frames]
    [(0.0, (1, 2, 3)), (0.1, (1, 2, 3))]
    >>> frames.problem
    'the stream ends in the middle of frame 2, after 3 of 6 bytes'
    """

    def __init__(self, file: BinaryIO, size: tuple[int, int], *, rate: float) -> None:
        """Reads nothing yet.

        Args:
          file: the stream.
          size: height and width of all frames, pixels.
          rate: frames/s.

        Raises:
          ValueError: a size or rate that is not above 0.
        """
        super().__init__()
        if min(size) < 1 or not rate > 0:
            raise ValueError(
                f"size, rate: expected numbers above 0, received {size[0]}x{size[1]}, {rate}"
            )
        self._file, self._size, self._rate = file, size, rate

    def __iter__(self) -> Iterator[TimedFrame]:
        """Yields the frames until the end of the stream."""
        count, number = self._size[0] * self._size[1] * 3, 0
        while True:
            content = bytearray()
            while len(content) < count:
                block = self._file.read(count - len(content))
                if not block:
                    break
                content += block
            if len(content) < count:
                if content:
                    self.problem = (
                        f"the stream ends in the middle of frame {number}, after {len(content)} of "
                        f"{count} bytes"
                    )
                return
            frame = np.frombuffer(content, np.uint8).reshape(*self._size, 3)
            yield TimedFrame(number / self._rate, frame)
            number += 1


class JpegFrames(FrameSource):
    """JPEG images one after the other, as FFmpeg's ``mjpeg`` or ``image2pipe`` writes them.

    Each image may have another size. One that cannot be decoded is counted and left out.
    """

    def __init__(
        self, file: BinaryIO, *, rate: float, name: str = "-", limits: Limits = DEFAULT_LIMITS
    ) -> None:
        """Reads nothing yet.

        Args:
          file: the stream.
          rate: frames/s.
          name: of the stream, for messages.
          limits: largest number of pixels of a frame.

        Raises:
          ValueError: a rate that is not above 0.
        """
        super().__init__()
        if not rate > 0:
            raise ValueError(f"rate: expected a number above 0, received {rate}")
        self._file, self._rate, self._name, self._limits = file, rate, name, limits

    def __iter__(self) -> Iterator[TimedFrame]:
        """Yields the frames until the end of the stream.

        Raises:
          MediaError: the stream does not begin with a JPEG image.
        """
        for number, content in enumerate(self._images()):
            try:
                frame = _decode_jpeg(content, self._limits)
            except Exception:  # On damaged files Pillow's parsers raise almost anything.
                self.damaged += 1
                continue
            yield TimedFrame(number / self._rate, frame)

    def _images(self) -> Iterator[bytes]:
        """Yields the bytes of each image."""
        buffer, number = bytearray(), 0
        splitter = _JpegSplitter()
        while True:
            end = splitter.find_end(buffer)
            if end > 0:
                yield bytes(buffer[:end])
                del buffer[:end]
                splitter, number = _JpegSplitter(), number + 1
                continue
            if end < 0 and not number:
                raise MediaError(
                    self._name,
                    "expected JPEG frames, whose first bytes are ff d8; for raw frames give their "
                    "size (--frame_size=HEIGHTxWIDTH)",
                )
            if end < 0:  # Rubbish between two images.
                start = buffer.find(b"\xff\xd8", 1)
                del buffer[: start if start > 0 else max(len(buffer) - 1, 1)]
                splitter = _JpegSplitter()
                if len(buffer) >= 2:
                    continue
            if len(buffer) > _MOST_JPEG_BYTES:
                raise MediaError(self._name, f"frame {number} has more than 64 MiB")
            # As soon as there is something: read(n) would wait for n bytes.
            block = getattr(self._file, "read1", self._file.read)(_BLOCK)
            if not block:
                if buffer:
                    self.problem = f"the stream ends in the middle of frame {number}"
                return
            buffer += block


class _JpegSplitter:
    """Search for the end of a JPEG image, which continues where the bytes ended before.

    Segments are skipped by their lengths: a thumbnail inside of one is an image with an end, too.
    """

    def __init__(self) -> None:
        self._position = 0
        self._in_scan = False

    def find_end(self, buffer: bytearray) -> int:
        """Returns the number of bytes of the image; 0: not yet known; -1: this is no JPEG."""
        while len(buffer) >= self._position + 2:
            if self._position == 0:
                if buffer[0] != 0xFF or buffer[1] != _SOI:
                    return -1
                self._position = 2
                continue
            if self._in_scan:
                marker = buffer.find(b"\xff", self._position)
                if marker < 0 or marker + 1 >= len(buffer):
                    self._position = len(buffer) if marker < 0 else marker
                    return 0
                kind = buffer[marker + 1]
                if kind == 0 or 0xD0 <= kind <= 0xD7:  # A byte ff of the data, or a restart.
                    self._position = marker + 2
                    continue
                self._position, self._in_scan = marker + (kind == 0xFF), kind == 0xFF
                continue
            if buffer[self._position] != 0xFF:
                return -1
            kind = buffer[self._position + 1]
            if kind == 0xFF:  # Filling.
                self._position += 1
                continue
            if kind == _EOI:
                return self._position + 2
            if len(buffer) < self._position + 4:
                return 0
            length = int.from_bytes(buffer[self._position + 2 : self._position + 4], "big")
            if length < 2:
                return -1
            if len(buffer) < self._position + 2 + length:
                return 0
            self._position += 2 + length
            self._in_scan = kind == _SOS
        return 0


def _decode_jpeg(content: bytes, limits: Limits) -> np.ndarray:
    with Image.open(io.BytesIO(content), formats=("JPEG",)) as image:
        if image.width * image.height > limits.max_pixels:
            raise ValueError("too large")
        return np.asarray(image.convert("RGB"))


class FileFrames(FrameSource):
    """Frames of a video file, with its time stamps; all are scaled to the size of the first."""

    def __init__(
        self, path: str, *, short_side: int | None = None, limits: Limits = DEFAULT_LIMITS
    ) -> None:
        """Opens nothing yet.

        Args:
          path: the file.
          short_side: pixels to which the frames' short side is scaled; None: as they are.
          limits: largest number of pixels; a stream may be of any length.

        Raises:
          FileNotFoundError: there is no such file.
        """
        super().__init__()
        endless = dataclasses.replace(limits, max_seconds=math.inf, max_frames=1 << 62)
        self._video, self._short_side = Video(path, limits=endless), short_side

    def __iter__(self) -> Iterator[TimedFrame]:
        """Yields the frames until the end of the file.

        Raises:
          MediaError: the file cannot be read, or ends too early.
        """
        for seconds, frame in self._video.timed_frames(short_side=self._short_side):
            yield TimedFrame(seconds, frame)


class CameraFrames(FrameSource):
    """Frames of a camera of Video4Linux, with the times at which they arrive."""

    def __init__(self, device: str, *, rate: float | None = None) -> None:
        """Opens nothing yet.

        Args:
          device: as ``/dev/video0``.
          rate: frames/s that the camera is asked for; None: its own.
        """
        super().__init__()
        self._device = device
        self._options = {} if rate is None else {"framerate": f"{rate:g}"}

    def __iter__(self) -> Iterator[TimedFrame]:
        """Yields the frames until the camera is taken away.

        Raises:
          MediaError: the camera cannot be opened or read.
          ModuleNotFoundError: PyAV is not installed.
        """
        import av

        try:
            with av.open(self._device, format="v4l2", options=self._options) as container:
                for picture in container.decode(video=0):
                    yield TimedFrame(time.monotonic(), picture.to_ndarray(format="rgb24"))
        except (OSError, ValueError) as error:  # PyAV's errors are both.
            raise MediaError(self._device, f"cannot be read as a camera ({error})") from error


def open_frames(
    source: str,
    standard_input: BinaryIO,
    *,
    size: tuple[int, int] | None = None,
    rate: float = 30.0,
    short_side: int | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> FrameSource:
    """Returns the frames of a source.

    Args:
      source: a video file, a camera's device, or ``-`` for standard input.
      standard_input: the stream that ``-`` stands for.
      size: height and width of raw frames on standard input; None: these are JPEG images.
      rate: frames/s of standard input.
      short_side: pixels to which frames of a file are scaled while they are decoded.
      limits: largest number of pixels of a frame.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: a size for a source that has its own.
    """
    if source == "-" and size is not None:
        return RawFrames(standard_input, size, rate=rate)
    if source == "-":
        return JpegFrames(standard_input, rate=rate, limits=limits)
    if size is not None:
        raise ValueError(
            f"frame_size: expected none for {source}, which tells its own, received "
            f"{size[0]}x{size[1]}"
        )
    try:
        is_device = stat.S_ISCHR(os.stat(source).st_mode)
    except OSError:
        is_device = False
    if is_device:
        return CameraFrames(source)
    return FileFrames(source, short_side=short_side, limits=limits)
