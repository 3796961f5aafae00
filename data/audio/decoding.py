"""Decoding of the sound of audio and video files, by PyAV."""

import functools
import logging
import struct
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np

from data.files import file_size, open_file
from data.video.decoding import VideoError, open_media, picture_streams

_UNKNOWN_SIZES = (0, 2**32 - 1)  # Of a RIFF file that was written to a pipe.
_logger = logging.getLogger(__name__)


class AudioError(VideoError, ValueError):
    """Unreadable sound of a file; the message is "path: reason"."""


class Sound(NamedTuple):
    """Decoded sound."""

    samples: np.ndarray
    """(S,) float32 in [-1,1], the mean of the channels; what is beyond is clipped."""
    file_rate: int
    """samples/s of the file, before it was resampled."""
    channels: int
    """Number of channels of the file."""
    codec: str
    """Codec and container of the file, as ``flac in flac``."""
    peak: float = 0.0
    """Greatest magnitude in a file of float samples, where it may exceed 1; 0 for others."""


def read_audio(path: str | Path, sample_rate: int = 16_000) -> np.ndarray:
    """Reads the first audio stream of a file as mono; ``read_sound`` without the file's rate."""
    return read_sound(path, sample_rate).samples


def read_sound(path: str | Path, sample_rate: int | None = 16_000) -> Sound:
    """Reads the first audio stream of a file as mono, resampled by FFmpeg.

    Sample 0 lies at the time of the first picture, or of the first sound in a file without
    pictures. Sound that begins later is preceded by zeros; earlier sound is cut off. Later gaps are
    not filled. Of a wav file that was cut off, what is left is read, and the log says so. Float
    samples beyond [-1,1] are clipped, as by a sound card, and the log says so once.

    Args:
      path: the file, in one of ``data.video.decoding.FORMATS``.
      sample_rate: samples/s of the result, at least 1; None: the file's own.

    Returns:
      The samples, and rate, channels and codec of the file.

    Raises:
      FileNotFoundError: there is no such file.
      AudioError: the file is unreadable or damaged, has no sound, or samples that are not finite.
      ValueError: a sample rate below 1.
    """
    if sample_rate is not None and sample_rate < 1:
        raise ValueError(f"sample_rate: expected at least 1 Hz, received {sample_rate}")
    parts: list[np.ndarray] = []
    begin = start = peak = 0.0
    rate, channels = 1, 1
    with open_media(
        path,
        expected="a file with sound",
        unreadable="its sound is not readable",
        formats="those with sound (wav, flac, ogg, mp3, mp4, …)",
        error=AudioError,
    ) as container:
        if not container.streams.audio:
            raise AudioError(path, "no audio stream")
        stream = container.streams.audio[0]
        if stream.codec_context is None:
            raise AudioError(path, "there is no decoder for the codec of its sound")
        codec = f"{stream.codec_context.name} in {container.format.name.split(',')[0]}"
        # Decoders of mp3 and others yield floats too, whose overshoot is no property of the file.
        is_float = stream.codec_context.name.startswith("pcm_f")
        resampler = av.AudioResampler(format="fltp", rate=sample_rate)
        for number, frame in enumerate(container.decode(stream)):
            if number == 0:
                begin, rate = frame.time or 0.0, frame.sample_rate
                channels = frame.layout.nb_channels
                start = _first_picture(container, begin)
            if is_float:
                peak = max(peak, float(np.abs(frame.to_ndarray()).max(initial=0)))
            parts += [piece.to_ndarray() for piece in resampler.resample(frame)]  # (C,n)
        if parts:
            parts += [piece.to_ndarray() for piece in resampler.resample(None)]
    if not parts:
        raise AudioError(path, "no sound in its audio stream")
    samples = np.clip(np.concatenate(parts, axis=1).mean(axis=0), -1.0, 1.0)
    if not np.isfinite(samples).all():
        raise AudioError(path, "its samples are not finite (NaN)")
    _log_missing_end(path)
    if peak > 1:
        _tell_clipping()
    late = round((begin - start) * (sample_rate or rate))
    samples = np.pad(samples, (late, 0)) if late > 0 else samples[-late:]
    return Sound(samples.astype(np.float32), rate, channels, codec, peak)


@functools.cache
def _tell_clipping() -> None:
    """Says once in the log that float samples are clipped."""
    _logger.warning(
        "float samples beyond ±1 are clipped: divide the samples of such recordings, which "
        "python -m data.check names, by their peak, or write them as 16 bits"
    )


def _log_missing_end(path: str | Path) -> None:
    """Logs that a RIFF file is shorter than its header says, of which FFmpeg tells nothing."""
    with open_file(path) as file:
        header, size = file.read(8), file_size(path)
    if header[:4] == b"RIFF":
        (declared,) = struct.unpack("<I", header[4:])
        if declared not in _UNKNOWN_SIZES and declared + 8 > size:
            _logger.warning("%s: %s", path, f"cut off: {size:,} of {declared + 8:,} bytes")


def _first_picture(container: Any, otherwise: float) -> float:
    """Returns the start of a file's pictures, seconds."""
    streams = picture_streams(container)
    if not streams or streams[0].start_time is None:
        return otherwise
    return float(streams[0].start_time * streams[0].time_base)
