"""Images and videos as arrays: from files, bounded in pixels, frames and time, or from arrays."""

import dataclasses
import math
import os
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError

IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""Formats of images that are read, as Pillow names them. Others start foreign programs (EPS), are
no photographs, or may decode into more pixels than their header says (AVIF)."""
VIDEO_FORMATS = (
    *("asf", "avi", "dv", "flv", "gif", "gxf", "h264", "hevc", "ivf", "m4v", "matroska", "mjpeg"),
    *("mov", "mpeg", "mpegts", "mpegvideo", "mxf", "nut", "obu", "ogg", "rm", "vc1", "wtv"),
    "yuv4mpegpipe",
)
"""FFmpeg's names of the containers that are read. None opens a further file or an address, as
``concat``, ``hls`` and ``image2`` do; ``mov`` includes mp4, ``matroska`` includes WebM."""
MAX_DAMAGED_SHARE = 0.25
"""Greatest share of damaged frames in a video that is used; a single one is always allowed."""

_BAND = 1 << 20  # pixels that are converted at once, so that conversion needs no further copies
_MAX_SCANS = 100  # of a JPEG: encoders write about ten, and each takes time for all pixels
_TILE_WIDTH, _TILE_LENGTH = 322, 323  # tags of TIFF
_MAX_SAMPLES_A_BYTE = 4
_LUMA_16_BITS = 65535


class MediaError(OSError):
    """File that cannot be read as an image or video; the message is "path: reason"."""

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = str(path)
        self.reason = reason

    def __reduce__(self) -> tuple[type["MediaError"], tuple[str, str]]:
        return type(self), (self.path, self.reason)


@dataclasses.dataclass(frozen=True)
class Limits:
    """Bounds of what is read of one file; one that exceeds them raises ``MediaError``."""

    max_pixels: int = 50_000_000
    """Of an image, or of each frame of a video; checked before anything is decoded."""
    max_seconds: float = 600.0
    """Length of a video."""
    max_frames: int = 36_000
    """Frames of a video."""
    timeout: float = math.inf
    """Seconds that reading may take."""

    def __post_init__(self) -> None:
        for name in ("max_pixels", "max_seconds", "max_frames", "timeout"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: expected more than 0, received {getattr(self, name)}")


DEFAULT_LIMITS = Limits()


def read_image(
    source: str | os.PathLike[str] | np.ndarray, limits: Limits = DEFAULT_LIMITS
) -> np.ndarray:
    """Returns an image, (H,W,3) uint8 in [0,255].

    Grey, palette, CMYK and other colour modes are converted, transparency is blended with white, 16
    bits are scaled to 8, an animation yields its first frame, and the EXIF orientation is applied.

    Args:
      source: a file in one of ``IMAGE_FORMATS``, whatever its name ends with; or an array (H,W,3)
        uint8, returned as it is.
      limits: largest number of pixels.

    Raises:
      FileNotFoundError: there is no such file, or it is a folder or pipe.
      MediaError: the file is no image in one of the formats, damaged, or too large.
      ValueError: an array of another shape or dtype.
    """
    if isinstance(source, np.ndarray):
        _check_array("image", source, 3, "(H,W,3)")
        if math.prod(source.shape[:2]) > limits.max_pixels:
            raise MediaError("image", _too_large(source.shape[1], source.shape[0], limits))
        return source
    path = _regular_file(source, "an image file")
    try:
        with open(path, "rb") as file, Image.open(file, formats=IMAGE_FORMATS) as image:
            _check_image(image, file, limits)
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            return _to_rgb(image)
    except Exception as error:
        # On damaged files Pillow's parsers raise almost anything: SyntaxError, struct.error,
        # zlib.error, IndexError, DecompressionBombError ...
        raise MediaError(path, _image_reason(error, limits)) from error


@dataclasses.dataclass(frozen=True)
class VideoInfo:
    """Properties of a video: those of the frames that a decoder returns, not of its header."""

    num_frames: int
    rate: float
    """Average frames/s."""
    height: int
    """Of the first frame as it is shown, pixels."""
    width: int
    """Of the first frame as it is shown, pixels."""


class Video:
    """Video of a file or array, whose frames are read from the start as often as wanted.

    Attributes:
      name: path of the file, for messages.
    """

    def __init__(
        self,
        source: str | os.PathLike[str] | np.ndarray,
        *,
        rate: float = 30.0,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        """Sets the source; a file is opened when it is read.

        Args:
          source: a file in one of ``VIDEO_FORMATS``; or an array (T,H,W,3) uint8.
          rate: frames/s of an array.
          limits: bounds of a file.

        Raises:
          FileNotFoundError: there is no such file, or it is a folder or pipe.
          ValueError: an array of another shape or dtype, or a rate that is not above 0.
        """
        self._array: np.ndarray | None = None
        self._limits = limits
        self._deadline = time.monotonic() + limits.timeout
        if isinstance(source, np.ndarray):
            _check_array("video", source, 4, "(T,H,W,3)")
            if not 0 < rate < math.inf:
                raise ValueError(f"rate: expected frames/s above 0, received {rate}")
            self._array, self._rate, self.name = source, float(rate), "video"
            if len(source) > limits.max_frames:
                raise MediaError("video", _too_long(f"{len(source)} frames", limits))
        else:
            self.name = _regular_file(source, "a video file")

    def probe(self) -> VideoInfo:
        """Returns the properties; decodes all of a file, since no header tells them.

        Raises:
          MediaError: the file is unreadable, truncated, mostly damaged, or beyond the limits.
        """
        if self._array is not None:
            return VideoInfo(len(self._array), self._rate, *self._array.shape[1:3])
        count, size = 0, (0, 0)
        with _opened(self.name, self._limits, self._check_time) as pictures:
            for picture in pictures:
                if count == 0:
                    size = _shown_size(picture)
                count += 1
            return VideoInfo(count, pictures.rate, *size)

    def frames(
        self, wanted: Collection[int] | None = None, *, short_side: int | None = None
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Yields the number and pixels (H,W,3) uint8 of frames, in order; all of one size.

        Args:
          wanted: numbers of the frames that are yielded; None: all. After the last one nothing more
            is decoded. Up to 2 frames at the end that a decoder held back are the last one again.
          short_side: pixels to which the short side is scaled; None: as they are.

        Raises:
          MediaError: as ``probe``; or the file ends before the last wanted frame.
        """
        last = max(wanted) if wanted is not None else None
        if self._array is not None:
            for number, frame in enumerate(self._array):
                if wanted is None or number in wanted:
                    yield number, _scale(frame, short_side)
            return
        convert, number, picture = _ToRgb(short_side, self._limits), -1, None
        with _opened(self.name, self._limits, self._check_time) as pictures:
            for number, picture in enumerate(pictures):
                if wanted is None or number in wanted:
                    yield number, convert(picture)
                if number == last:
                    return
            if wanted is not None and picture is not None:
                for late in sorted(wanted):
                    if number < late <= number + 2:
                        yield late, convert(picture)

    def timed_frames(self, *, short_side: int | None = None) -> Iterator[tuple[float, np.ndarray]]:
        """Yields the time stamp in seconds, and the pixels (H,W,3) uint8, of all frames of a file.

        Frames of a file are decoded one at a time, however many there are within ``limits``. A
        frame without a time stamp comes one frame after the one before.

        Args:
          short_side: pixels to which the short side is scaled; None: as they are.

        Raises:
          MediaError: as ``probe``.
        """
        if self._array is not None:
            for number, frame in self.frames(short_side=short_side):
                yield number / self._rate, frame
            return
        convert, seconds = _ToRgb(short_side, self._limits), -math.inf
        with _opened(self.name, self._limits, self._check_time) as pictures:
            for picture in pictures:
                # Pictures that a decoder held back may have neither a time stamp nor a time base.
                if picture.pts is not None and picture.time_base:
                    seconds = float(picture.pts * picture.time_base)
                else:
                    seconds = seconds + 1 / pictures.rate if seconds > -math.inf else 0.0
                yield seconds, convert(picture)

    def _check_time(self) -> None:
        if time.monotonic() > self._deadline:
            raise _Refused(f"reading takes more than the {self._limits.timeout:g} s allowed")


# ---- Images -------------------------------------------------------------------------------------


def _check_image(image: Image.Image, file: Any, limits: Limits) -> None:
    """Refuses an image that is opened, but not yet decoded, for its size or number of scans."""
    sizes = [image.size]
    if isinstance(image, TiffImagePlugin.TiffImageFile) and _TILE_WIDTH in image.tag_v2:
        # A tile is decoded as a whole, however little of it lies inside of the image.
        sizes.append((image.tag_v2[_TILE_WIDTH], image.tag_v2[_TILE_LENGTH]))
    width, height = max(sizes, key=math.prod)
    if width * height > limits.max_pixels:
        raise ValueError(_too_large(width, height, limits))
    if image.format in ("JPEG", "MPO"):
        position = file.tell()
        file.seek(0)
        scans = file.read().count(b"\xff\xda")
        file.seek(position)
        if scans > _MAX_SCANS:
            raise ValueError(f"expected at most {_MAX_SCANS} scans of a JPEG, received {scans}")


def _image_reason(error: Exception, limits: Limits) -> str:
    if isinstance(error, UnidentifiedImageError):
        return f"no image in a format that is read ({', '.join(IMAGE_FORMATS)})"
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return f"expected at most {limits.max_pixels} pixels; {error}"  # Pillow's own limits.
    return str(error) or type(error).__name__


def _to_rgb(image: Image.Image) -> np.ndarray:
    """Returns (H,W,3) uint8, converted band by band."""
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers of unknown range")
    width, height = image.size
    pixels = np.empty((height, width, 3), np.uint8)
    rows = max(_BAND // width, 1)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        pixels[top:bottom] = _band_to_rgb(image.crop((0, top, width, bottom)))
    return pixels


def _band_to_rgb(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I"):
        # Files of more than 8 bits (PNG, PGM, TIFF) use 0..65535; convert() would clip at 255.
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > _LUMA_16_BITS:
            raise ValueError("its pixels are integers beyond 16 bits, of unknown range")
        return ((values + 128) // 257).astype(np.uint8)[..., None]
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return np.asarray(image.convert("RGB"))


# ---- Videos -------------------------------------------------------------------------------------


class _Refused(Exception):
    """A file that is not read; the message is the reason."""


def _import_av() -> Any:
    try:
        import av
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "videos are read by PyAV, which is not installed: pip install av"
        ) from None
    return av


@contextmanager
def _opened(path: str, limits: Limits, check_time: Callable[[], None]) -> Iterator["_Pictures"]:
    """Opens a video file; whatever fails meanwhile becomes a ``MediaError``."""
    av = _import_av()
    url = f"file:{path}"  # Without it, a colon in the name would make it an address.
    safe = {"format_whitelist": ",".join(VIDEO_FORMATS), "protocol_whitelist": "file"}
    tags = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
    try:
        _check_samples(path)
        # FFmpeg decodes pictures while it opens a file, in some containers without a limit of their
        # size. So their sizes are read first, with no decoder allowed.
        with av.open(url, container_options={**safe, "codec_whitelist": "none"}, **tags) as headers:
            for stream in headers.streams.video:
                if stream.codec_context is not None:
                    _check_frame(stream.codec_context.width, stream.codec_context.height, limits)
        # Twice, because FFmpeg includes the margins of its buffers; each picture is measured below.
        options = {"max_pixels": str(2 * limits.max_pixels)}
        with av.open(url, options=options, container_options=safe, **tags) as container:
            for stream in container.streams.video:
                if stream.codec_context is not None:
                    stream.codec_context.options = options
            yield _Pictures(av, container, limits, check_time)
    except MediaError:
        raise
    except _Refused as refused:
        raise MediaError(path, str(refused)) from None
    except av.error.ArgumentError as error:
        formats = "none of the containers that are read, as mp4, mkv, webm, avi"
        raise MediaError(path, f"not a readable video (it is {formats})") from error
    # PyAV raises what it finds, from AttributeError to MemoryError.
    except Exception as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise MediaError(path, f"not a readable video ({reason})") from error


class _Pictures:
    """Iterator over the decoded pictures of a file's first video stream, in order of display."""

    def __init__(
        self, av: Any, container: Any, limits: Limits, check_time: Callable[[], None]
    ) -> None:
        cover = av.stream.Disposition.attached_pic
        streams = [s for s in container.streams.video if not s.disposition & cover]
        if not streams:
            raise _Refused("no video stream")
        self._stream = streams[0]
        if self._stream.codec_context is None:
            raise _Refused("there is no decoder for its codec, or its index is missing")
        self._stream.codec_context.thread_count = 1
        self._av, self._container = av, container
        self._limits, self._check_time = limits, check_time

    @property
    def rate(self) -> float:
        """Average frames/s."""
        rate = self._stream.average_rate or self._stream.guessed_rate
        if not rate:
            raise _Refused("no frame rate")
        return float(rate)

    def __iter__(self) -> Iterator[Any]:
        av, limits, stream = self._av, self._limits, self._stream
        count = damaged = lost = packets = last_corrupt = 0
        seconds, first_pts = 0.0, None
        decoder = stream.codec_context
        for packet in self._container.demux(stream):
            self._check_time()
            flush = packet.size == 0
            packets += not flush
            if packet.is_corrupt:
                last_corrupt = packets
            if packet.pts is not None and packet.time_base:
                first_pts = packet.pts if first_pts is None else first_pts
                seconds = max(seconds, float((packet.pts - first_pts) * packet.time_base))
            if seconds > limits.max_seconds:
                raise _Refused(_too_long(f"{seconds:.0f} s", limits))
            try:
                pictures = stream.decode(None if flush else packet)
            except av.FFmpegError as error:
                if isinstance(error, MemoryError):
                    raise
                lost += count > 0 and not flush
                continue
            if flush and decoder.name == "mpeg4" and not decoder.has_b_frames:
                break  # Flushed, this decoder may only return its last picture once more.
            for picture in pictures:
                _check_frame(picture.width, picture.height, limits)
                damaged += bool(picture.is_corrupt)
                count += 1
                if count > limits.max_frames:
                    raise _Refused(_too_long(f"more than {limits.max_frames} frames", limits))
                yield picture
            if flush:
                break
        if not count:
            raise _Refused(f"no frames (none of {packets} packets could be decoded)")
        if last_corrupt and packets - last_corrupt <= 1 and "mpegts" not in self._format:
            raise _Refused(f"truncated: {count} frames, the next is cut off")
        index = stream.index_entries if {"mov", "avi"} & set(self._format) else []
        missing = max(0, sum(entry.size > 0 for entry in index) - packets)
        if missing and "mov" in self._format:
            raise _Refused(f"truncated: {packets} of {packets + missing} frames")
        bad = damaged + lost + missing
        if bad > max(1, int(MAX_DAMAGED_SHARE * (count + lost + missing))) or damaged == count:
            raise _Refused(f"damaged: {bad} of {count + lost + missing} frames")

    @property
    def _format(self) -> list[str]:
        return list(self._container.format.name.split(","))


class _ToRgb:
    """Conversion of decoded pictures to upright RGB arrays of one size, that of the first."""

    def __init__(self, short_side: int | None, limits: Limits) -> None:
        self._short_side, self._limits = short_side, limits
        self._size: tuple[int, int] | None = None
        # By rotation: reading the side data of every picture is slow.
        self._orientations: dict[int, tuple[bool, bool, bool]] = {}

    def __call__(self, picture: Any) -> np.ndarray:
        """Returns a picture, (H,W,3) uint8."""
        if self._size is None:
            self._size = self._target(*_shown_size(picture))
        if picture.rotation not in self._orientations:
            self._orientations[picture.rotation] = _orientation(picture)
        turned, flip_rows, flip_columns = self._orientations[picture.rotation]
        height, width = self._size[::-1] if turned else self._size
        rgb = picture.to_ndarray(format="rgb24", width=width, height=height, interpolation="AREA")
        if turned:
            rgb = rgb.transpose(1, 0, 2)
        return rgb[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1]

    def _target(self, height: int, width: int) -> tuple[int, int]:
        if self._short_side is None:
            return height, width
        scale = self._short_side / min(height, width)
        height, width = max(1, round(height * scale)), max(1, round(width * scale))
        if scale > 1:
            _check_frame(width, height, self._limits)
        return height, width


def _orientation(picture: Any) -> tuple[bool, bool, bool]:
    """Returns whether to exchange rows and columns, then to flip rows, then columns.

    FFmpeg's display matrix [[a, b, u], [c, d, v], [x, y, w]] shows the pixel at column p and row q
    at column a·p + c·q + x and row b·p + d·q + y.
    """
    try:
        matrix = picture.side_data.get("DISPLAYMATRIX")
    except ValueError:  # There is side data of a kind that PyAV does not know.
        # Of a rotation by 90° counterclockwise: column = q, row = −p.
        by_rotation = {90: (True, True, False), 180: (False, True, True), 270: (True, False, True)}
        return by_rotation.get(picture.rotation % 360, (False, False, False))
    if matrix is None:
        return False, False, False
    (a, b, _), (c, d, _), _ = np.frombuffer(bytes(matrix), np.int32).reshape(3, 3).tolist()
    if abs(b) + abs(c) > abs(a) + abs(d):
        return True, b < 0, c < 0
    return False, d < 0, a < 0


def _shown_size(picture: Any) -> tuple[int, int]:
    turned, _, _ = _orientation(picture)
    return (picture.width, picture.height) if turned else (picture.height, picture.width)


def _check_samples(path: str) -> None:
    """Refuses an mp4 whose tables declare far more samples than it has bytes.

    FFmpeg would list all of them. The declared counts stand in its boxes ``stsz`` and ``stz2``.
    """
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        if file.read(12)[4:8] not in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
            return
        samples = 0
        for start, end in _boxes(file, 0, size, (b"moov", b"trak", b"mdia", b"minf", b"stbl")):
            file.seek(start)
            content = file.read(min(end - start, 12))
            samples += int.from_bytes(content[8:12], "big")
    if samples > _MAX_SAMPLES_A_BYTE * size:
        raise _Refused(f"damaged: {samples} samples are declared in {size} bytes")


def _boxes(file: Any, start: int, end: int, path: tuple[bytes, ...]) -> Iterator[tuple[int, int]]:
    """Yields start and end of the contents of the boxes ``stsz`` or ``stz2`` below a path."""
    visited = 0
    while start + 8 <= end and visited < 10_000:
        visited += 1
        file.seek(start)
        head = file.read(16)
        length, kind, content = int.from_bytes(head[:4], "big"), head[4:8], start + 8
        if length == 1:
            length, content = int.from_bytes(head[8:16], "big"), start + 16
        stop = end if length == 0 else min(start + length, end)
        if stop <= start:
            return
        if path and kind == path[0]:
            yield from _boxes(file, content, stop, path[1:])
        elif not path and kind in (b"stsz", b"stz2"):
            yield content, stop
        start = stop


# ---- Checks -------------------------------------------------------------------------------------


def _regular_file(source: str | os.PathLike[str], expected: str) -> str:
    path = os.fspath(source)
    try:
        if Path(path).is_file():
            return str(path)
    except (OSError, ValueError) as error:
        raise MediaError(str(path), f"cannot be opened ({error})") from error
    raise FileNotFoundError(f"{path}: expected {expected}")


def _check_array(name: str, array: np.ndarray, rank: int, shape: str) -> None:
    if array.ndim != rank or array.shape[-1] != 3 or array.dtype != np.uint8 or not array.size:
        raise ValueError(
            f"{name}: expected {shape} uint8, received {array.shape} {array.dtype.name}"
        )


def _check_frame(width: int, height: int, limits: Limits) -> None:
    if width * height > limits.max_pixels:
        raise _Refused(_too_large(width, height, limits))


def _too_large(width: int, height: int, limits: Limits) -> str:
    return f"expected at most {limits.max_pixels} pixels, received {width} × {height}"


def _too_long(length: str, limits: Limits) -> str:
    return (
        f"expected a video of at most {limits.max_seconds:g} s and {limits.max_frames} frames, "
        f"received {length}"
    )


def _scale(frame: np.ndarray, short_side: int | None) -> np.ndarray:
    """Returns a frame whose short side has the given length, averaged over areas."""
    height, width = frame.shape[:2]
    if short_side is None or short_side == min(height, width):
        return frame
    scale = short_side / min(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    resampling = Image.Resampling.BOX if scale < 1 else Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(np.ascontiguousarray(frame)).resize(size, resampling))
