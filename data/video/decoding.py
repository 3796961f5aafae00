"""Probing and exact decoding of video files, by PyAV."""

import functools
import io
import logging
import os
import re
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.sidedata.sidedata import Type
from PIL import Image

from data.files import Record, file_size, find_stored, open_file, read_record, require_file
from data.video.containers import count_samples, find_boxes, has_declared_size, lacks_index

MAX_PIXELS = 8192 * 8192
"""Greatest number of pixels of a picture, 200 MB in RGB; a sixteenth of it where ``short_side``
enlarges pictures, as those of a strip. Larger ones are refused before any is allocated."""

MAX_DAMAGED_SHARE = 0.25
"""Greatest share of damaged pictures in a video that is used; a single one is always allowed."""

FORMATS = (
    *("asf", "avi", "dv", "flv", "gif", "gxf", "h264", "hevc", "ivf", "m4v", "matroska", "mjpeg"),
    *("mov", "mpeg", "mpegts", "mpegvideo", "mxf", "nut", "obu", "ogg", "rm", "vc1", "wtv"),
    *("yuv4mpegpipe",),
    # of sound alone
    *("aac", "ac3", "aiff", "amr", "ape", "au", "caf", "dts", "eac3", "flac", "mp3", "nistsphere"),
    *("tta", "voc", "w64", "wav", "wv"),
)
"""FFmpeg's names of the containers that are read. None opens a further file or an address, as
``concat``, ``hls`` and ``image2`` do; ``mov`` includes mp4 and 3gp, ``matroska`` includes WebM."""

# A decoder may not return the last pictures of a stream, which its encoder held back for B-frames;
# a player goes on showing the last one.
_HELD_BACK = 2

# A picture that is not coded, because nothing has changed, has at most so many bytes (N-VOP of
# MPEG-4 part 2). A decoder returns none for it.
_NOT_CODED_BYTES = 8

# Kinds of side data that FFmpeg may know beyond those of PyAV; there are four in FFmpeg 8.
_UNKNOWN_KINDS = 16

_MAX_SAMPLES_A_BYTE = 4

# A tag in another encoding is no reason to refuse a video; PyAV 19 accepts it by itself.
_TAGS: dict[str, Any] = (
    {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
)

# As git does: within this time a file may change without another time of modification.
_RACY_SECONDS = 2.0

_NO_INDEX = "truncated: its index (moov) is missing or cut off"

_logger = logging.getLogger(__name__)
_tell_lock = threading.Lock()


class VideoError(Exception):
    """Unreadable video file; the message is "path: reason"."""

    def __init__(self, path: str | Path, reason: str):
        super().__init__(f"{path}: {reason}")
        self.path = str(path)
        self.reason = reason

    def __reduce__(self) -> tuple[type["VideoError"], tuple[str, str]]:
        return type(self), (self.path, self.reason)


@dataclass(frozen=True)
class VideoInfo:
    """Properties of a video file.

    Attributes:
        num_frames: number of frames that the decoder returns.
        rate: average frames/s; 0 if a data set stores frames without a rate.
        height: of the first frame as it is shown, pixels.
        width: of the first frame as it is shown, pixels.
    """

    num_frames: int
    rate: float
    height: int
    width: int


def probe(path: str | Path) -> VideoInfo:
    """Returns the properties of a video file; decodes all of it, once in a process.

    Neither headers nor packets say how many frames a decoder returns: a packet may be empty or
    damaged, or hold two frames or one that is never shown. The result is kept until the file
    changes, so that the videos of a data set are counted once and not in every epoch.

    A damaged frame counts as one and looks as the decoder conceals it; a packet that gives no frame
    counts as none. One line of the log names such a file.

    Args:
        path: the file, in one of ``FORMATS``.

    Raises:
        FileNotFoundError: there is no such file.
        VideoError: the file is unreadable, has no video stream or no frames, is truncated, has
            frames above ``MAX_PIXELS``, or more damaged ones than ``MAX_DAMAGED_SHARE``.
    """
    if find_stored(path) is not None:
        record = _read_record(path)
        if record.info:
            return VideoInfo(*record.info)
        return _probe(str(path)) if record.pictures is None else _info_of(record, path)
    status = _status(path, "a video file", VideoError)
    if abs(time.time() - status.st_mtime) < _RACY_SECONDS:
        return _probe(str(path))
    content = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
    return _probe_once(str(path), content)


@dataclass(frozen=True)
class VideoSurvey:
    """Properties of a video file, and small pictures of it.

    Attributes:
        info: number of frames, rate and size.
        container: FFmpeg's name of the container, or several names of related ones.
        codec: FFmpeg's name of the codec.
        pictures: (n,h,w,3) uint8 in [0,255], RGB, spread over the video.
    """

    info: VideoInfo
    container: str
    codec: str
    pictures: np.ndarray


def survey(path: str | Path, num_pictures: int = 8, *, short_side: int = 32) -> VideoSurvey:
    """Decodes all of a video file once, for its properties and some small pictures.

    The pictures are those nearest to the centres of ``num_pictures`` parts of equal length, of 2 to
    4 times as many candidates: how many frames there are is known only at the end.

    Args:
        path: the file, in one of ``FORMATS``.
        num_pictures: n, at least 1; a shorter video repeats frames.
        short_side: pixels of the pictures' short side, at least 1.

    Raises:
        FileNotFoundError: there is no such file.
        VideoError: as ``probe``.
    """
    if (record := _pictures_of(path)) is not None:
        centres = (np.arange(num_pictures) + 0.5) * len(record.pictures) / num_pictures
        found = _decode_pictures(record, path, centres.astype(int), short_side)
        return VideoSurvey(_info_of(record, path), "shard", "pictures", found)
    to_rgb = _ToRgb(short_side)
    kept: dict[int, np.ndarray] = {}
    stride, shown = 1, (0, 0)
    with open_media(path) as container:
        pictures = _Pictures(container, path)
        for number, picture in enumerate(pictures):
            if number == 0:
                shown = _shown_size(picture)
            if number % stride == 0:
                kept[number] = to_rgb(picture)
                if len(kept) > 4 * num_pictures:
                    stride *= 2
                    kept = {n: image for n, image in kept.items() if n % stride == 0}
        pictures.check_end()
        pictures.log_damage()
        info = VideoInfo(pictures.count, pictures.rate, *shown)
        names = container.format.name, pictures.stream.codec_context.name
    centres = (np.arange(num_pictures) + 0.5) * info.num_frames / num_pictures - 0.5
    numbers = np.array(list(kept))
    chosen = [int(numbers[np.abs(numbers - centre).argmin()]) for centre in centres]
    return VideoSurvey(info, *names, np.stack([kept[number] for number in chosen]))


def decode(
    path: str | Path, frames: Sequence[int] | np.ndarray, *, short_side: int | None = None
) -> np.ndarray:
    """Decodes chosen frames.

    The stream is decoded from its start to the last requested frame, which is exact for every
    codec; seeking is not. Of a video that is stored as pictures (``python -m data.convert
    --frames=jpeg``) the requested ones alone are decoded. Frames are rotated and mirrored as the
    file's display matrix says. If their size changes within the video, all are scaled to the first
    one's. A damaged frame looks as the decoder conceals it. Up to 2 frames at the end that the
    encoder held back are replaced by the last decoded one, as in a player.

    Args:
        path: the file, in one of ``FORMATS``.
        frames: (T,) int, frame numbers >= 0 in any order, repeats allowed.
        short_side: pixels to which the frames' short side is scaled, keeping the aspect ratio;
            None does not scale.

    Returns:
        (T,H,W,3) uint8 in [0,255], RGB, in the order of ``frames``.

    Raises:
        FileNotFoundError: there is no such file.
        VideoError: the file is unreadable or ends early, or its frames are above ``MAX_PIXELS``, as
            stored or as enlarged.
        ValueError: ``frames`` is empty or has negative numbers, or ``short_side`` is below 1.
    """
    requested = np.asarray(frames)
    if requested.ndim != 1 or requested.size == 0 or requested.min() < 0:
        raise ValueError(f"frames: expected (T,) numbers from 0 on, T >= 1, received {frames}")
    if (record := _pictures_of(path)) is not None:
        return _decode_pictures(record, path, requested, short_side)
    numbers, order = np.unique(requested, return_inverse=True)
    to_rgb = _ToRgb(short_side)
    with open_media(path) as container:
        pictures = _Pictures(container, path)
        decoded: np.ndarray | None = None
        picture, filled = None, 0
        for number, picture in enumerate(pictures):
            if decoded is None:
                decoded = np.empty((len(numbers), *to_rgb.size_of(picture), 3), np.uint8)
            if number == numbers[filled]:
                decoded[filled] = to_rgb(picture)
                filled += 1
                if filled == len(numbers):
                    break
        else:
            pictures.check_end()
        if decoded is None or picture is None or pictures.count + _HELD_BACK <= numbers[-1]:
            raise VideoError(
                path, f"the stream ends after {pictures.count} frames, before frame {numbers[-1]}"
            )
        if filled < len(numbers):
            decoded[filled:] = to_rgb(picture)
        pictures.log_damage()
    return decoded if np.array_equal(numbers, requested) else decoded[order]


def decode_all(path: str | Path, *, short_side: int | None = None) -> Iterator[np.ndarray]:
    """Yields all frames in order, each as ``decode`` returns it, (H,W,3) uint8.

    Only one frame is in memory, whatever the length of the video. Arguments and errors are those of
    ``decode``.
    """
    if (record := _pictures_of(path)) is not None:
        for number in range(len(record.pictures)):
            yield _decode_pictures(record, path, [number], short_side)[0]
        return
    to_rgb = _ToRgb(short_side)
    with open_media(path) as container:
        pictures = _Pictures(container, path)
        for picture in pictures:
            yield to_rgb(picture)
        pictures.check_end()
        pictures.log_damage()


@contextmanager
def open_media(
    path: str | Path,
    *,
    expected: str = "a video file",
    unreadable: str = "not a readable video",
    formats: str = "data.video.decoding.FORMATS",
    error: type[VideoError] = VideoError,
) -> Iterator[Any]:
    """Opens a file with PyAV and closes it; whatever fails meanwhile becomes an ``error``.

    The path is never taken for an address, and nothing else is opened: only containers in
    ``FORMATS`` are read, by FFmpeg's ``file`` protocol.

    Args:
        path: the file.
        expected: its kind, for the message if there is no such file.
        unreadable: first words of the reason if it cannot be read.
        formats: the containers, for the message of another one.
        error: class of the errors.

    Yields:
        The ``av.container.InputContainer``, whose decoders refuse pictures above ``MAX_PIXELS``.

    Raises:
        FileNotFoundError: there is no such file.
        VideoError: an ``error``; the file, or what is done with it, fails.
    """
    _status(path, expected, error)
    safe = {"format_whitelist": ",".join(FORMATS), "protocol_whitelist": "file"}
    # Twice, because FFmpeg includes the margins of its buffers; each picture is measured below.
    limit = {"max_pixels": str(2 * MAX_PIXELS)}
    try:
        # FFmpeg would list all of them; several tracks may share the same bytes.
        samples, size = count_samples(_source(path)), file_size(path)
        if samples > _MAX_SAMPLES_A_BYTE * size:
            raise _Refused(f"damaged: {samples} samples are declared in {size} bytes")
        # FFmpeg decodes pictures while it opens a file, in some containers without a limit of their
        # size. So their sizes are read first, with no decoder allowed.
        undecoded = {**safe, "codec_whitelist": "none"}
        with _open(_url(path), formats, container_options=undecoded) as container:
            for stream in container.streams.video:
                if stream.codec_context is not None:
                    _check_size(stream.codec_context.height, stream.codec_context.width)
        with _open(_url(path), formats, options=limit, container_options=safe) as container:
            for stream in container.streams.video:
                if stream.codec_context is not None:
                    stream.codec_context.options = limit
            yield container
    except (VideoError, FileNotFoundError):
        raise
    except _Refused as refused:
        raise error(path, str(refused)) from None
    # PyAV raises what it finds, from AttributeError to MemoryError, and one bad file of thousands
    # must not end a run.
    except Exception as found:
        reason = _reason(found)
        if isinstance(found, av.error.InvalidDataError) and lacks_index(_source(path)):
            reason = _NO_INDEX
        raise error(path, f"{unreadable} ({reason})") from found


def picture_streams(container: Any) -> list[Any]:
    """Returns the video streams of an ``InputContainer`` without covers, which are no videos."""
    cover = av.stream.Disposition.attached_pic
    return [stream for stream in container.streams.video if not stream.disposition & cover]


class _Refused(Exception):
    """A file that is not read; the message is the reason."""


class _Pictures:
    """Iterator over the pictures of a file in the order of display, and what it met on the way.

    Attributes:
        stream: the file's first video stream.
        count: number of pictures so far.
    """

    def __init__(self, container: Any, path: str | Path):
        self._container, self._path = container, path
        self.stream = _video_stream(container, path)
        self.count = 0
        self._damaged: list[int] = []  # numbers of pictures
        self._lost = 0  # packets that the decoder refused
        # Likewise before its first picture. They are not damaged: a video that was cut without
        # encoding it anew cannot be decoded before its first keyframe.
        self._skipped = 0
        self._why_lost = ""
        self._missing = 0  # packets that the demuxer did not find
        self._num_packets = 0
        self._last_corrupt = 0  # Number of the last packet that the demuxer calls corrupt, from 1.
        self._since_corrupt: int | None = None  # packets of all streams after one that it calls so
        self._next_dts = 0
        self._first_pts: int | None = None  # of the first packet
        self._greatest_pts: int | None = None  # of all packets that must give a picture
        self._shown_pts: int | None = None  # of all pictures
        self._end = self._end_of_all = 0.0  # seconds, of this stream and of all
        self._ends_damaged = False

    def __iter__(self) -> Iterator[Any]:
        for packet in chain(self._packets(), [None]):
            try:
                pictures = self.stream.decode(packet)
            except av.FFmpegError as error:
                if isinstance(error, MemoryError):
                    raise
                if packet is not None and self.count > 0:
                    self._lost += 1
                elif packet is not None:
                    self._skipped += 1
                self._why_lost = self._why_lost or _reason(error)
                self._ends_damaged = True
                continue
            if packet is None and self._repeats_last():
                continue
            for picture in pictures:
                _check_size(picture.height, picture.width)
                self._ends_damaged = bool(picture.is_corrupt)
                if picture.is_corrupt:
                    self._damaged.append(self.count)
                self._shown_pts = _greatest(self._shown_pts, picture.pts)
                self.count += 1
                yield picture

    def _repeats_last(self) -> bool:
        """True if the decoder, flushed, can only return its last picture once more.

        FFmpeg's decoder of MPEG-4 part 2 does so after a picture that is not coded (N-VOP), with
        which Xvid fills up.
        """
        decoder = self.stream.codec_context
        return decoder.name == "mpeg4" and not decoder.has_b_frames

    def _packets(self) -> Iterator[Any]:
        # All streams, because the sound, say, may end later than the pictures.
        streams = [s for s in self._container.streams if s.index != self.stream.index]
        try:
            for packet in self._container.demux(self.stream, *streams):
                if packet.size == 0:
                    continue
                if packet.is_corrupt:
                    self._since_corrupt = 0
                elif self._since_corrupt is not None:
                    self._since_corrupt += 1
                if packet.pts is not None:
                    end = float((packet.pts + (packet.duration or 0)) * packet.time_base)
                    self._end_of_all = max(self._end_of_all, end)
                if packet.stream.index != self.stream.index:
                    continue
                self._num_packets += 1
                if packet.is_corrupt:
                    self._last_corrupt = self._num_packets
                if packet.dts is not None:
                    self._next_dts = packet.dts + 1
                if packet.pts is not None and not packet.is_discard:
                    self._end = max(self._end, end)
                    if self._first_pts is None:
                        self._first_pts = packet.pts
                    if packet.size > _NOT_CODED_BYTES:
                        self._greatest_pts = _greatest(self._greatest_pts, packet.pts)
                yield packet
        except av.FFmpegError as error:
            raise VideoError(
                self._path, f"damaged after frame {self.count} ({_reason(error)})"
            ) from error

    @property
    def rate(self) -> float:
        """Average frames/s.

        Raises:
            VideoError: the file has none.
        """
        rate = self.stream.average_rate or self.stream.guessed_rate
        if not rate:
            raise VideoError(self._path, "no frame rate")
        return float(rate)

    def check_end(self) -> None:
        """Raises a ``VideoError`` if the file, read to its end, is not a whole video."""
        truncated = self._truncation()
        if truncated:
            raise VideoError(self._path, truncated)
        if self.count == 0:
            found = f"none of {self._num_packets} packets could be decoded"
            detail = f"{found}, {self._why_lost}" if self._why_lost else found
            raise VideoError(self._path, f"no frames ({detail})")
        self._missing = self._missing_packets(self._container.format.name.split(","))
        lost = self._lost + self._missing
        damaged = len(self._damaged) + lost
        allowed = max(1, int(MAX_DAMAGED_SHARE * (self.count + lost)))
        if damaged > allowed or len(self._damaged) == self.count:
            reason = f"damaged: {damaged} of {self.count + lost} frames"
            if self._lost:  # FFmpeg gives a size that it refuses no reason of its own.
                reason += f" ({self._why_lost}, or above the {MAX_PIXELS} pixels of MAX_PIXELS)"
            raise VideoError(self._path, reason)

    def log_damage(self) -> None:
        """Writes a line to the log if there are damaged pictures, once for each file."""
        if self._damaged or self._lost or self._skipped or self._missing:
            parts = []
            if len(self._damaged) == 1:
                parts.append(f"1 damaged frame (number {self._damaged[0]}) is shown as concealed")
            elif self._damaged:
                first = ", ".join(map(str, self._damaged[:3]))
                parts.append(
                    f"{len(self._damaged)} damaged frames (first {first}) are shown as concealed"
                )
            if self._lost:
                parts.append(f"{self._lost} damaged packets gave no frame ({self._why_lost})")
            if self._missing:
                parts.append(f"{self._missing} packets are not where the index says")
            if self._skipped:
                parts.append(f"{self._skipped} packets before the first frame cannot be decoded")
            _log_once(str(self._path), "; ".join(parts))

    def _missing_packets(self, kinds: Sequence[str]) -> int:
        """Returns how many packets of the index of an mp4 or AVI file were not found."""
        if not {"mov", "avi"}.intersection(kinds):
            return 0
        index = self.stream.index_entries
        if len(index) <= self._num_packets:
            return 0
        return max(0, sum(entry.size > 0 for entry in index) - self._num_packets)

    def _truncation(self) -> str | None:
        """Returns the reason if the file's end is missing; None if nothing shows that it is."""
        kinds = self._container.format.name.split(",")
        frame = float(1 / (self.stream.average_rate or self.stream.guessed_rate or 25))  # seconds
        of_declared = f" of {self.stream.frames}" if self.stream.frames else ""
        # A short read, which leaves the last packet incomplete; the demuxer of MPEG program streams
        # only sees it one packet later. In a transport stream the flag means a joint.
        is_cut = self._last_corrupt > 0 and self._num_packets - self._last_corrupt <= 1
        if "mpegts" not in kinds and is_cut:
            return f"truncated: {self._last_corrupt - 1}{of_declared} frames, the next is cut off"
        since = self._since_corrupt
        if "mpeg" in kinds and since is not None and since <= len(self._container.streams):
            # The sound is cut off; each stream may have a packet more, which was complete.
            return f"truncated: {self.count} frames, then the file breaks off"
        missing = self._missing_packets(kinds)
        if "mov" in kinds and missing > 0:
            return f"truncated: {self._num_packets} of {self._num_packets + missing} frames"
        if "mov" in kinds and self.stream.frames == 0:
            boxes, fill_file = find_boxes(_source(self._path))
            if not fill_file and b"mfra" not in boxes:  # It follows the last fragment.
                return f"truncated or damaged: {self.count} frames, then no whole fragment"
        whole = has_declared_size(_source(self._path), kinds)
        if "avi" in kinds and whole is False and self._next_dts < self.stream.frames:
            return f"truncated: {self._num_packets}{of_declared} frames"
        if whole is False and not {"avi", "matroska"}.intersection(kinds):
            return f"truncated: {self.count} frames, then the file breaks off"
        if {"matroska", "flv", "nut"}.intersection(kinds):
            lasts, should_last = self._end_of_all, self._container.duration
            should_last = None if should_last is None else should_last / av.time_base
            of_stream = _duration_tag(self.stream, kinds)
            # Its tag may come from the file from which this one was cut, but then lasts too long.
            if of_stream is not None and (should_last is None or of_stream < should_last + frame):
                lasts, should_last = self._end, of_stream
            if should_last is None and whole is False:
                return f"truncated: {self.count} frames, the last cluster is cut off"
            is_short = (
                should_last is not None and lasts + max(_HELD_BACK * frame, 0.1) < should_last
            )
            if should_last is not None and (whole is False or is_short):
                how = "truncated" if whole is False else "truncated or damaged"
                return f"{how}: {lasts:.2f} of {should_last:.2f} seconds"
        first, last, shown = self._first_pts, self._greatest_pts, self._shown_pts
        if first is not None and last is not None and shown is not None:
            late = float((last - shown) * self.stream.time_base)
            # The declared rate may be far too high.
            frame = max(frame, float((last - first) * self.stream.time_base) / self._num_packets)
            if late > (_HELD_BACK + 0.5) * frame:
                return (
                    f"truncated or damaged: decoding ends {late:.2f} seconds before the last packet"
                )
        if self._ends_damaged and whole is None and "mov" not in kinds:
            return f"truncated: {self.count} frames, the last is incomplete"
        return None


class _ToRgb:
    """Conversion of decoded pictures to upright RGB arrays of one size, that of the first."""

    def __init__(self, short_side: int | None):
        if short_side is not None and short_side < 1:
            raise ValueError(f"short_side: expected at least 1 pixel, received {short_side}")
        self._short_side = short_side
        self._size: tuple[int, int] | None = None
        # By rotation. A frame whose side data was read is part of a reference cycle, so that the
        # garbage collector frees it much later.
        self._orientations: dict[int, tuple[bool, bool, bool]] = {}

    def size_of(self, picture: Any) -> tuple[int, int]:
        """Returns height and width of all results, given the first picture."""
        if self._size is None:
            height, width = _shown_size(picture)
            if self._short_side is not None:
                scale = self._short_side / min(height, width)
                height, width = max(1, round(height * scale)), max(1, round(width * scale))
                if scale > 1:
                    _check_size(height, width, "enlarged to", MAX_PIXELS // 16)
            self._size = height, width
        return self._size

    def __call__(self, picture: Any) -> np.ndarray:
        """Returns a picture, (H,W,3) uint8."""
        if picture.rotation not in self._orientations:
            self._orientations[picture.rotation] = _orientation(picture)
        turned, flip_rows, flip_columns = self._orientations[picture.rotation]
        height, width = self.size_of(picture)
        if turned:
            height, width = width, height
        rgb = picture.to_ndarray(format="rgb24", width=width, height=height, interpolation="AREA")
        if turned:
            rgb = rgb.transpose(1, 0, 2)
        return rgb[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1]


@functools.lru_cache(maxsize=2**18)
def _probe_once(path: str, content: tuple[int, ...]) -> VideoInfo:
    del content  # It tells one content of the path from another.
    return _probe(path)


def _probe(path: str) -> VideoInfo:
    shown = (0, 0)
    with open_media(path) as container:
        pictures = _Pictures(container, path)
        for picture in pictures:
            if pictures.count == 1:
                shown = _shown_size(picture)
        pictures.check_end()
        pictures.log_damage()
        return VideoInfo(pictures.count, pictures.rate, *shown)


def _source(path: str | Path) -> Any:
    """Returns the bytes of a stored file, and the path of any other."""
    return path if find_stored(path) is None else open_file(path)


def _url(path: str | Path) -> Any:
    """Returns what PyAV opens: the bytes of a stored file, and the address of any other."""
    # Without "file:", a colon in the name would make it another address.
    return f"file:{path}" if find_stored(path) is None else open_file(path)


def _read_record(path: str | Path) -> Record:
    """Returns the content of a stored video."""
    require_file(path, "a video file")
    try:
        return read_record(path)
    except OSError as error:
        raise VideoError(path, _reason(error)) from error


def _pictures_of(path: str | Path) -> Record | None:
    """Returns the record of a video that is stored as pictures; None for any other file."""
    if find_stored(path) is None:
        return None
    record = _read_record(path)
    return None if record.pictures is None else record


def _info_of(record: Record, path: str | Path) -> VideoInfo:
    """Returns the properties of a video that is stored as pictures."""
    if record.info:
        return VideoInfo(*record.info)
    if not len(record.pictures):
        raise VideoError(path, "no frames")
    height, width = _decode_pictures(record, path, [0], None).shape[1:3]
    return VideoInfo(len(record.pictures), 0.0, height, width)


def _decode_pictures(
    record: Record, path: str | Path, frames: Sequence[int] | np.ndarray, short_side: int | None
) -> np.ndarray:
    """Returns chosen frames of a video that is stored as pictures, as ``decode`` does."""
    if short_side is not None and short_side < 1:
        raise ValueError(f"short_side: expected at least 1 pixel, received {short_side}")
    last, count = max(frames), len(record.pictures)
    if last >= count:
        raise VideoError(path, f"the stream ends after {count} frames, before frame {last}")
    decoded: dict[int, np.ndarray] = {}
    size: tuple[int, int] | None = None  # of all frames, width and height
    try:
        for number in frames:
            if number in decoded:
                continue
            picture = record.pictures[number]
            with _open_picture(picture) as image:
                _check_size(image.height, image.width)
                if size is None:
                    size = image.size
                    if short_side is not None:
                        scale = short_side / min(size)
                        size = max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
                        if scale > 1:
                            _check_size(size[1], size[0], "enlarged to", MAX_PIXELS // 16)
                # Of a JPEG much larger than that, the decoder computes a half, quarter or eighth.
                image.draft("RGB", size)
                rgb = image.convert("RGB")
            if rgb.size != size:
                rgb = rgb.resize(size, Image.Resampling.BILINEAR)
            decoded[number] = np.asarray(rgb)
    except _Refused as refused:
        raise VideoError(path, str(refused)) from None
    # Pillow's parsers raise almost anything on damaged bytes.
    except Exception as found:
        raise VideoError(path, f"a stored frame is not readable ({_reason(found)})") from found
    return np.stack([decoded[number] for number in frames])


def _open_picture(picture: Any) -> Image.Image:
    if isinstance(picture, bytes):
        return Image.open(io.BytesIO(picture), formats=("JPEG", "PNG"))
    grey = picture.ndim == 3 and picture.shape[-1] == 1
    return Image.fromarray(picture[..., 0] if grey else picture)


def _status(path: str | Path, expected: str, error: type[VideoError]) -> os.stat_result:
    """Returns the status of a regular file; never one of a folder, device or pipe."""
    if (stored := find_stored(path)) is not None:
        path = stored.shard
    try:
        if Path(path).is_file():
            return Path(path).stat()
    except OSError as found:
        raise error(path, f"cannot be opened ({_reason(found)})") from found
    missing = not Path(path).exists()
    reason = "which does not exist" if missing else "received a folder, pipe or device"
    raise FileNotFoundError(f"{path}: expected {expected}, {reason}")


def _open(url: Any, formats: str, **settings: Any) -> Any:
    try:
        return av.open(url, **_TAGS, **settings)
    except av.error.ArgumentError as error:
        raise _Refused(f"its container is none of {formats} ({_reason(error)})") from error


def _video_stream(container: Any, path: str | Path) -> Any:
    streams = picture_streams(container)
    if not streams:
        raise VideoError(path, "no video stream")
    if streams[0].codec_context is None:
        cut_off = lacks_index(_source(path))
        raise VideoError(path, _NO_INDEX if cut_off else "there is no decoder for its codec")
    # The loader decodes clips in parallel; threads within each decoder would only compete.
    streams[0].codec_context.thread_count = 1
    return streams[0]


def _check_size(height: int, width: int, how: str = "of", limit: int | None = None) -> None:
    limit = MAX_PIXELS if limit is None else limit
    if height * width > limit:
        raise _Refused(
            f"frames {how} {height} × {width} pixels, more than the {limit} allowed (MAX_PIXELS)"
        )


def _orientation(picture: Any) -> tuple[bool, bool, bool]:
    """Returns whether to exchange rows and columns, then to flip rows, then columns.

    FFmpeg's display matrix [[a, b, u], [c, d, v], [x, y, w]] shows the pixel at column p and row q
    at column a·p + c·q + x and row b·p + d·q + y.
    """
    matrix = _side_data(picture).get("DISPLAYMATRIX")
    if matrix is None:
        return False, False, False
    (a, b, _), (c, d, _), _ = np.frombuffer(bytes(matrix), np.int32).reshape(3, 3).tolist()
    if abs(b) + abs(c) > abs(a) + abs(d):
        return True, b < 0, c < 0
    return False, d < 0, a < 0


def _side_data(picture: Any) -> Any:
    """Returns what comes with a picture, without the kinds that PyAV does not know.

    It raises ValueError if there is one of these, such as the EXIF data of a JPEG or TIFF picture.
    """
    try:
        return picture.side_data
    except ValueError:
        # "sidedata" deletes one kind, which FFmpeg counts from 0 on.
        values: list[Any] = [kind.value for kind in Type]
        last = max(values)
        graph = av.filter.Graph()
        nodes: list[Any] = [
            graph.add_buffer(
                width=picture.width,
                height=picture.height,
                format=picture.format,
                time_base=Fraction(1, 1000),
            )
        ]
        unknown = range(last + 1, last + 1 + _UNKNOWN_KINDS)
        nodes += [graph.add("sidedata", f"mode=delete:type={kind}") for kind in unknown]
        nodes.append(graph.add("buffersink"))
        graph.link_nodes(*nodes).configure()
        graph.push(picture)
        return graph.pull().side_data


def _shown_size(picture: Any) -> tuple[int, int]:
    turned, _, _ = _orientation(picture)
    return (picture.width, picture.height) if turned else (picture.height, picture.width)


def _duration_tag(stream: Any, kinds: Sequence[str]) -> float | None:
    """Returns the time at which a stream of Matroska ends by its tag, seconds."""
    if "matroska" not in kinds:  # Others keep the tags of the file from which they were copied.
        return None
    tag = re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d*)?)", stream.metadata.get("DURATION", "").strip())
    if tag is None:
        return None
    hours, minutes, seconds = tag.groups()
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds)


def _greatest(first: int | None, second: int | None) -> int | None:
    return max((number for number in (first, second) if number is not None), default=None)


def _log_once(path: str, message: str) -> None:
    with _tell_lock:
        _log(path, message)


@functools.lru_cache(maxsize=2**18)
def _log(path: str, message: str) -> None:
    _logger.warning("%s: %s", path, message)


def _reason(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error)
    if isinstance(error, av.FFmpegError | UnicodeError | OSError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
