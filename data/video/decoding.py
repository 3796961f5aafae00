"""Video files: what is in them (``probe``) and chosen frames of them (``decode``), by PyAV."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import av
import numpy as np

# MPEG-4 part 2: each picture starts with this code, and a picture "not coded" (N-VOP) is no longer
# than this many bytes.
_VOP_START = b"\x00\x00\x01\xb6"
_EMPTY_VOP_BYTES = 8

# A stream may end without the last pictures that its packets promise, since the encoder held them
# back for B-frames; a player goes on showing the last one.
_HELD_BACK = 2


class VideoError(Exception):
    """A video file cannot be read; the message is "path: reason"."""

    def __init__(self, path: str | Path, reason: str):
        super().__init__(f"{path}: {reason}")
        self.path = str(path)
        self.reason = reason

    def __reduce__(self) -> tuple[type["VideoError"], tuple[str, str]]:
        return type(self), (self.path, self.reason)


@dataclass(frozen=True)
class VideoInfo:
    """What a video file holds.

    Attributes:
        num_frames: number of pictures.
        rate: frames/s, the average.
        height: pixels.
        width: pixels.
    """

    num_frames: int
    rate: float
    height: int
    width: int


def probe(path: str | Path) -> VideoInfo:
    """Says what a video file holds, by reading its packets without decoding them.

    Args:
        path: the file, in any container that FFmpeg knows.

    Raises:
        FileNotFoundError: there is no such file.
        VideoError: the file is unreadable, has no video stream or no frames, or is truncated.
    """
    with _open(path) as container:
        stream = _video_stream(container, path)
        num_packets = num_frames = pending = end = 0
        for packet in _packets(container, stream, path):
            num_packets += 1
            pending += _pictures(packet, stream.codec_context.name)
            if pending:  # a decoder gives one picture for a packet, and none for the end
                pending -= 1
                num_frames += 1
            end = max(end, (packet.pts or 0) + (packet.duration or 0))
        declared = stream.frames
        if num_frames == 0:
            declared_frames = f" of {declared}" if declared else ""
            raise VideoError(path, f"no frames{declared_frames}")
        rate = stream.average_rate or stream.guessed_rate
        if not rate:
            raise VideoError(path, "no frame rate")
        lasts = float((end - (stream.start_time or 0)) * stream.time_base)
        should_last = _declared_duration(container, stream)
        is_short = should_last is not None and lasts + _HELD_BACK / rate < should_last
        is_mp4 = "mp4" in container.format.name.split(",")
        # An mp4 may hide frames by an edit list, so there fewer packets alone prove nothing; AVI
        # gives no trustworthy duration, Matroska no number of frames.
        if declared > 0 and num_packets < declared and (is_short or not is_mp4):
            raise VideoError(path, f"truncated: {num_packets} of {declared} frames")
        if declared == 0 and is_short:
            raise VideoError(path, f"truncated: {lasts:.2f} of {should_last:.2f} seconds")
        height, width = stream.codec_context.height, stream.codec_context.width
        return VideoInfo(num_frames, float(rate), height, width)


def decode(
    path: str | Path, frames: Sequence[int] | np.ndarray, *, short_side: int | None = None
) -> np.ndarray:
    """Decodes chosen frames.

    The stream is decoded from its start to the last wanted frame, which is exact for every
    codec; seeking is not. A frame that the stream promised and the encoder held back (at most 2, at
    the end) is shown as a player does, by the one before.

    Args:
        path: the file.
        frames: (T,) int, numbers of frames from 0 on, in any order, repeats allowed.
        short_side: pixels; the frames are scaled to it and keep their aspect. None keeps them.

    Returns:
        (T,H,W,3) uint8 in [0,255], RGB, in the order of ``frames``.

    Raises:
        FileNotFoundError: there is no such file.
        VideoError: the file is unreadable, damaged before the last wanted frame, or ends early.
        ValueError: ``frames`` is empty or has negative numbers, or ``short_side`` is below 1.
    """
    wanted = np.asarray(frames)
    if wanted.ndim != 1 or wanted.size == 0 or wanted.min() < 0:
        raise ValueError(f"frames: expected (T,) numbers from 0 on, T >= 1, received {frames}")
    if short_side is not None and short_side < 1:
        raise ValueError(f"short_side: expected at least 1 pixel, received {short_side}")
    places = {int(number): place for place, number in enumerate(np.unique(wanted))}
    last = int(wanted.max())
    pictures: np.ndarray | None = None
    picture = None
    count = 0
    with _open(path) as container:
        stream = _video_stream(container, path)
        for frame in _frames(container, stream, path):
            if pictures is None:
                height, width = _scaled(frame.height, frame.width, short_side)
                pictures = np.empty((len(places), height, width, 3), np.uint8)
            picture = frame
            if count in places:
                pictures[places[count]] = _rgb(picture, height, width)
            count += 1
            if count > last:
                break
        if pictures is None or picture is None or count + _HELD_BACK <= last:
            raise VideoError(path, f"the stream ends after {count} frames, frame {last} is wanted")
        for number, place in places.items():
            if number >= count:
                pictures[place] = _rgb(picture, height, width)
    order = np.searchsorted(np.fromiter(places, np.int64), wanted)
    return pictures[order]


def _open(path: str | Path) -> Any:
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: expected a video file")
    try:
        return av.open(str(path))
    except (av.FFmpegError, UnicodeDecodeError) as error:
        raise VideoError(path, f"not a readable video ({_reason(error)})") from error


def _video_stream(container: Any, path: str | Path) -> Any:
    if not container.streams.video:
        raise VideoError(path, "no video stream")
    stream = container.streams.video[0]
    # Clips are decoded side by side; threads within each would only get in each other's way.
    stream.codec_context.thread_count = 1
    return stream


def _packets(container: Any, stream: Any, path: str | Path) -> Iterator[Any]:
    try:
        for number, packet in enumerate(container.demux(stream)):
            if packet.size == 0:
                continue
            if packet.is_corrupt:
                declared = f" of {stream.frames}" if stream.frames else ""
                raise VideoError(path, f"truncated: {number}{declared} frames, the next is cut off")
            yield packet
    except av.FFmpegError as error:
        raise VideoError(path, f"damaged ({_reason(error)})") from error


def _frames(container: Any, stream: Any, path: str | Path) -> Iterator[Any]:
    count = 0
    try:
        for packet in chain(_packets(container, stream, path), [None]):
            for frame in stream.decode(packet):
                if frame.is_corrupt:
                    raise VideoError(path, f"frame {count} is damaged")
                yield frame
                count += 1
    except av.FFmpegError as error:
        raise VideoError(path, f"damaged after frame {count} ({_reason(error)})") from error


def _pictures(packet: Any, codec: str) -> int:
    """The number of pictures in a packet.

    It is one but in MPEG-4 part 2 as DivX and Xvid write it into AVI: there a packet may hold two
    pictures ("packed B-frames"), and the next one an empty picture or a filler byte.
    """
    if packet.is_discard:
        return 0
    if codec != "mpeg4":
        return 1
    return bytes(packet).count(_VOP_START) if packet.size > _EMPTY_VOP_BYTES else 0


def _declared_duration(container: Any, stream: Any) -> float | None:
    """Seconds that the container says the video lasts, None where it doesn't."""
    tag = stream.metadata.get("DURATION")
    if tag:
        hours, minutes, seconds = tag.split(":")
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    if stream.duration is not None:
        return float(stream.duration * stream.time_base)
    if container.duration is not None and len(container.streams) == 1:
        return float(container.duration / av.time_base)
    return None


def _scaled(height: int, width: int, short_side: int | None) -> tuple[int, int]:
    if short_side is None:
        return height, width
    scale = short_side / min(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def _rgb(frame: Any, height: int, width: int) -> np.ndarray:
    return frame.to_ndarray(format="rgb24", width=width, height=height, interpolation="AREA")


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
