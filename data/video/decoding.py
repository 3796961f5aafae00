"""Probing and exact decoding of video files, by PyAV."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import av
import numpy as np

# MPEG-4 part 2: each picture starts with this code; a "not coded" picture (N-VOP) has at most this
# many bytes.
_VOP_START = b"\x00\x00\x01\xb6"
_EMPTY_VOP_BYTES = 8

# A stream may lack the last pictures that its packets announce, because the encoder held them back
# for B-frames; a player goes on showing the last one.
_HELD_BACK = 2


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
        num_frames: number of frames.
        rate: average frames/s.
        height: pixels.
        width: pixels.
    """

    num_frames: int
    rate: float
    height: int
    width: int


def probe(path: str | Path) -> VideoInfo:
    """Returns the properties of a video file; reads its packets without decoding them.

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
            if pending:  # a decoder returns at most one picture per packet, and none at the end
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
        # The edit list of an mp4 may hide frames, so fewer packets alone prove nothing there; AVI
        # has no trustworthy duration, Matroska no number of frames.
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

    The stream is decoded from its start to the last requested frame, which is exact for every
    codec; seeking is not. Up to 2 frames at the end that the encoder held back are replaced by the
    last decoded one, as in a player.

    Args:
        path: the file.
        frames: (T,) int, frame numbers >= 0 in any order, repeats allowed.
        short_side: pixels to which the frames' short side is scaled, keeping the aspect ratio;
            None does not scale.

    Returns:
        (T,H,W,3) uint8 in [0,255], RGB, in the order of ``frames``.

    Raises:
        FileNotFoundError: there is no such file.
        VideoError: the file is unreadable, damaged before the last requested frame, or ends early.
        ValueError: ``frames`` is empty or has negative numbers, or ``short_side`` is below 1.
    """
    requested = np.asarray(frames)
    if requested.ndim != 1 or requested.size == 0 or requested.min() < 0:
        raise ValueError(f"frames: expected (T,) numbers from 0 on, T >= 1, received {frames}")
    if short_side is not None and short_side < 1:
        raise ValueError(f"short_side: expected at least 1 pixel, received {short_side}")
    rows = {int(number): row for row, number in enumerate(np.unique(requested))}
    last = int(requested.max())
    pictures: np.ndarray | None = None
    picture = None
    count = 0
    with _open(path) as container:
        stream = _video_stream(container, path)
        for frame in _frames(container, stream, path):
            if pictures is None:
                height, width = _scaled(frame.height, frame.width, short_side)
                pictures = np.empty((len(rows), height, width, 3), np.uint8)
            picture = frame
            if count in rows:
                pictures[rows[count]] = _rgb(picture, height, width)
            count += 1
            if count > last:
                break
        if pictures is None or picture is None or count + _HELD_BACK <= last:
            raise VideoError(path, f"the stream ends after {count} frames, before frame {last}")
        for number, row in rows.items():
            if number >= count:
                pictures[row] = _rgb(picture, height, width)
    order = np.searchsorted(np.fromiter(rows, np.int64), requested)
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
    # The loader decodes clips in parallel; threads within each decoder would only compete.
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
    """Returns the number of pictures in a packet.

    It is one, except in MPEG-4 part 2 as DivX and Xvid write it into AVI: a packet may hold two
    pictures ("packed B-frames"), and the next packet an empty picture or a filler byte.
    """
    if packet.is_discard:
        return 0
    if codec != "mpeg4":
        return 1
    return bytes(packet).count(_VOP_START) if packet.size > _EMPTY_VOP_BYTES else 0


def _declared_duration(container: Any, stream: Any) -> float | None:
    """Returns the duration that the container declares, seconds; None if it declares none."""
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
