"""Images and videos as arrays: from files, bounded in pixels, frames and time, or from arrays."""

import dataclasses
import math
import os
import re
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError

from .containers import count_samples, find_boxes, has_declared_size

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
# A decoder may not return the last pictures of a stream, which its encoder held back for B-frames.
_HELD_BACK = 2
# A picture that is not coded, because nothing has changed, has at most so many bytes (N-VOP of
# MPEG-4 part 2). A decoder returns none for it.
_NOT_CODED_BYTES = 8
_LUMA_16_BITS = 65535


Source = str | os.PathLike[str] | np.ndarray
"""Path of a file, or an array: an image (H,W,3) or a video (T,H,W,3), uint8; a line of text (H,W),
(H,W,1) or (H,W,3), uint8; a recording (S,), float in [-1,1] or int16."""


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
    path = regular_file(source, "an image file")
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


def check_image(image: np.ndarray, limits: Limits = DEFAULT_LIMITS) -> np.ndarray:
    """Returns a grey or RGB image (H,W), (H,W,1) or (H,W,3) uint8 as one of rank 3.

    Raises:
      MediaError: more pixels than ``limits`` allow.
      ValueError: another shape or dtype.
    """
    found = image[..., None] if image.ndim == 2 else image
    if found.ndim != 3 or found.shape[2] not in (1, 3) or image.dtype != np.uint8 or not image.size:
        raise ValueError(
            f"image: expected (H,W), (H,W,1) or (H,W,3) uint8, received {image.shape} "
            f"{image.dtype.name}"
        )
    if math.prod(found.shape[:2]) > limits.max_pixels:
        raise MediaError("image", _too_large(found.shape[1], found.shape[0], limits))
    return found


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
            self.name = regular_file(source, "a video file")

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
                    if number < late <= number + _HELD_BACK:
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
        # FFmpeg would list all of them; several tracks may share the same bytes.
        samples, size = count_samples(path), os.path.getsize(path)
        if samples > _MAX_SAMPLES_A_BYTE * size:
            raise _Refused(f"damaged: {samples} samples are declared in {size} bytes")
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
            yield _Pictures(av, container, path, limits, check_time)
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
    """Iterator over the decoded pictures of a file's first video stream, in order of display.

    A file that has lost its end, or too much in between, is refused after its last picture, by the
    same rules as in training.
    """

    def __init__(
        self, av: Any, container: Any, path: str, limits: Limits, check_time: Callable[[], None]
    ) -> None:
        cover = av.stream.Disposition.attached_pic
        streams = [s for s in container.streams.video if not s.disposition & cover]
        if not streams:
            raise _Refused("no video stream")
        self._stream = streams[0]
        if self._stream.codec_context is None:
            raise _Refused("there is no decoder for its codec, or its index is missing")
        self._stream.codec_context.thread_count = 1
        self._av, self._container, self._path = av, container, path
        self._limits, self._check_time = limits, check_time
        self._kinds: list[str] = container.format.name.split(",")
        self._count = 0  # pictures so far
        self._damaged = self._lost = 0  # pictures; packets that the decoder refused
        self._num_packets = 0
        self._last_corrupt = 0  # Number of the last packet that the demuxer calls corrupt, from 1.
        self._since_corrupt: int | None = None  # packets of all streams after one that it calls so
        self._next_dts = 0
        self._first_pts: int | None = None  # of the first packet
        self._greatest_pts: int | None = None  # of all packets that must give a picture
        self._shown_pts: int | None = None  # of all pictures
        self._end = self._end_of_all = 0.0  # seconds, of this stream and of all
        self._ends_damaged = False

    @property
    def rate(self) -> float:
        """Average frames/s."""
        rate = self._stream.average_rate or self._stream.guessed_rate
        if not rate:
            raise _Refused("no frame rate")
        return float(rate)

    def __iter__(self) -> Iterator[Any]:
        decoder = self._stream.codec_context
        for packet in chain(self._packets(), [None]):
            try:
                pictures = self._stream.decode(packet)
            except self._av.FFmpegError as error:
                if isinstance(error, MemoryError):
                    raise
                self._lost += self._count > 0 and packet is not None
                self._ends_damaged = True
                continue
            if packet is None and decoder.name == "mpeg4" and not decoder.has_b_frames:
                continue  # Flushed, this decoder may only return its last picture once more.
            for picture in pictures:
                _check_frame(picture.width, picture.height, self._limits)
                self._ends_damaged = bool(picture.is_corrupt)
                self._damaged += self._ends_damaged
                self._shown_pts = _greatest(self._shown_pts, picture.pts)
                self._count += 1
                if self._count > self._limits.max_frames:
                    raise _Refused(
                        _too_long(f"more than {self._limits.max_frames} frames", self._limits)
                    )
                yield picture
        self._check_end()

    def _packets(self) -> Iterator[Any]:
        # All streams, because the sound, say, may end later than the pictures.
        streams = [s for s in self._container.streams if s.index != self._stream.index]
        for packet in self._container.demux(self._stream, *streams):
            self._check_time()
            if packet.size == 0:
                continue
            if packet.is_corrupt:
                self._since_corrupt = 0
            elif self._since_corrupt is not None:
                self._since_corrupt += 1
            end = 0.0
            if packet.pts is not None and packet.time_base:
                end = float((packet.pts + (packet.duration or 0)) * packet.time_base)
                self._end_of_all = max(self._end_of_all, end)
            if packet.stream.index != self._stream.index:
                continue
            self._num_packets += 1
            if packet.is_corrupt:
                self._last_corrupt = self._num_packets
            if packet.dts is not None:
                self._next_dts = packet.dts + 1
            if packet.pts is not None and packet.time_base and not packet.is_discard:
                self._end = max(self._end, end)
                if self._first_pts is None:
                    self._first_pts = packet.pts
                if packet.size > _NOT_CODED_BYTES:
                    self._greatest_pts = _greatest(self._greatest_pts, packet.pts)
                seconds = float((packet.pts - self._first_pts) * packet.time_base)
                if seconds > self._limits.max_seconds:
                    raise _Refused(_too_long(f"{seconds:.0f} s", self._limits))
            yield packet

    def _check_end(self) -> None:
        """Refuses a file, read to its end, that is not a whole video."""
        truncated = self._truncation()
        if truncated:
            raise _Refused(truncated)
        if not self._count:
            raise _Refused(f"no frames (none of {self._num_packets} packets could be decoded)")
        lost = self._lost + self._missing_packets()
        bad, most = self._damaged + lost, max(1, int(MAX_DAMAGED_SHARE * (self._count + lost)))
        if bad > most or self._damaged == self._count:
            raise _Refused(f"damaged: {bad} of {self._count + lost} frames")

    def _missing_packets(self) -> int:
        """Returns how many packets of the index of an mp4 or AVI file were not found."""
        if not {"mov", "avi"}.intersection(self._kinds):
            return 0
        index = self._stream.index_entries
        if len(index) <= self._num_packets:
            return 0
        return max(0, sum(entry.size > 0 for entry in index) - self._num_packets)

    def _truncation(self) -> str | None:
        """Returns the reason if the file's end is missing; None if nothing shows that it is."""
        kinds, stream, count = self._kinds, self._stream, self._count
        frame = float(1 / (stream.average_rate or stream.guessed_rate or 25))  # seconds
        of_declared = f" of {stream.frames}" if stream.frames else ""
        # A short read, which leaves the last packet incomplete; the demuxer of MPEG program streams
        # only sees it one packet later. In a transport stream the flag means a joint.
        is_cut = self._last_corrupt > 0 and self._num_packets - self._last_corrupt <= 1
        if "mpegts" not in kinds and is_cut:
            return f"truncated: {self._last_corrupt - 1}{of_declared} frames, the next is cut off"
        since = self._since_corrupt
        if "mpeg" in kinds and since is not None and since <= len(self._container.streams):
            # The sound is cut off; each stream may have a packet more, which was complete.
            return f"truncated: {count} frames, then the file breaks off"
        missing = self._missing_packets()
        if "mov" in kinds and missing > 0:
            return f"truncated: {self._num_packets} of {self._num_packets + missing} frames"
        if "mov" in kinds and stream.frames == 0:
            boxes, fill_file = find_boxes(self._path)
            if not fill_file and b"mfra" not in boxes:  # It follows the last fragment.
                return f"truncated or damaged: {count} frames, then no whole fragment"
        whole = has_declared_size(self._path, kinds)
        if "avi" in kinds and whole is False and self._next_dts < stream.frames:
            return f"truncated: {self._num_packets}{of_declared} frames"
        if whole is False and not {"avi", "matroska"}.intersection(kinds):
            return f"truncated: {count} frames, then the file breaks off"
        if {"matroska", "flv", "nut"}.intersection(kinds):
            lasts, declared = self._end_of_all, self._container.duration
            should_last = None if declared is None else declared / self._av.time_base
            of_stream = _duration_tag(stream) if "matroska" in kinds else None
            # Its tag may come from the file from which this one was cut, but then lasts too long.
            if of_stream is not None and (should_last is None or of_stream < should_last + frame):
                lasts, should_last = self._end, of_stream
            if should_last is None and whole is False:
                return f"truncated: {count} frames, the last cluster is cut off"
            is_short = (
                should_last is not None and lasts + max(_HELD_BACK * frame, 0.1) < should_last
            )
            if should_last is not None and (whole is False or is_short):
                how = "truncated" if whole is False else "truncated or damaged"
                return f"{how}: {lasts:.2f} of {should_last:.2f} seconds"
        first, last, shown = self._first_pts, self._greatest_pts, self._shown_pts
        if first is not None and last is not None and shown is not None:
            late = float((last - shown) * stream.time_base)
            # The declared rate may be far too high.
            frame = max(frame, float((last - first) * stream.time_base) / self._num_packets)
            if late > (_HELD_BACK + 0.5) * frame:
                return (
                    f"truncated or damaged: decoding ends {late:.2f} seconds before the last packet"
                )
        if self._ends_damaged and whole is None and "mov" not in kinds:
            return f"truncated: {count} frames, the last is incomplete"
        return None


def _duration_tag(stream: Any) -> float | None:
    """Returns the time at which a stream of Matroska ends by its tag, seconds."""
    tag = re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d*)?)", stream.metadata.get("DURATION", "").strip())
    if tag is None:
        return None
    hours, minutes, seconds = tag.groups()
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds)


def _greatest(first: int | None, second: int | None) -> int | None:
    return max((number for number in (first, second) if number is not None), default=None)


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


# ---- Checks -------------------------------------------------------------------------------------


def regular_file(source: Any, expected: str) -> str:
    """Returns a path as a text.

    Raises:
      FileNotFoundError: there is no such file, or it is a folder or pipe.
      MediaError: a path that cannot be looked up.
      TypeError: another type.
    """
    if not isinstance(source, str | os.PathLike):
        found = type(source).__name__
        is_array = hasattr(source, "__array__") or hasattr(source, "__array_interface__")
        hint = f"; numpy.asarray makes an array of this {found}" if is_array else ""
        raise TypeError(
            f"source: expected the path of {expected} or a NumPy array, received {found}{hint}"
        )
    path = os.fspath(source)
    try:
        if Path(path).is_file():
            return str(path)
    except (OSError, ValueError) as error:
        raise MediaError(str(path), f"cannot be opened ({error})") from error
    missing = not Path(path).exists()
    found = "which does not exist" if missing else "received a folder, pipe or device"
    raise FileNotFoundError(f"{path}: expected {expected}, {found}")


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
