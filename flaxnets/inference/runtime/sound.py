"""Sound as arrays: from files, bounded in time, from arrays, or from a stream of samples.

Files are decoded and resampled by FFmpeg as in training (``data/audio/decoding.py``), whose samples
are equal.
"""

import functools
import logging
import math
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import numpy as np

from .containers import count_samples
from .media import (
    DEFAULT_LIMITS,
    IMAGE_FORMATS,
    VIDEO_FORMATS,
    Limits,
    MediaError,
    regular_file,
)

SOUND_FORMATS = (
    *VIDEO_FORMATS,
    *("aac", "ac3", "aiff", "amr", "ape", "au", "caf", "dts", "eac3", "flac", "mp3", "nistsphere"),
    *("tta", "voc", "w64", "wav", "wv"),
)
"""FFmpeg's names of the containers whose sound is read."""
SILENCE = 2.0**-15
"""A recording none of whose samples exceeds it, one step of 16 bits, is silent."""
BLOCK = 1 << 14
"""Bytes that are read of a stream at a time, at most."""
_MAX_SAMPLES_A_BYTE = 4

_logger = logging.getLogger(__name__)


def read_sound(
    source: str | os.PathLike[str] | np.ndarray,
    sample_rate: int,
    *,
    rate: float | None = None,
    max_seconds: float = math.inf,
    limits: Limits = DEFAULT_LIMITS,
) -> np.ndarray:
    """Returns the samples of a recording, mono, (S,) float32 in [-1,1].

    Args:
      source: a file with sound, of which the first stream is read as the mean of its channels; or
        an array (S,), float in [-1,1] or int16.
      sample_rate: samples/s of the result; others are resampled, which the log says once.
      rate: samples/s of an array.
      max_seconds: greatest length, beside that of ``limits``.
      limits: bounds of a file.

    Raises:
      FileNotFoundError: there is no such file.
      MediaError: the file is unreadable or damaged, has no sound, is too long, or has samples that
        are not finite.
      ValueError: an array of another shape, dtype or range, or without ``rate``.
      ModuleNotFoundError: PyAV is needed and not installed.
    """
    blocks: Iterable[np.ndarray]
    if isinstance(source, np.ndarray):
        blocks, name = _array_blocks(source, sample_rate, rate), "sound"
    else:
        blocks, name = FileSound(source, sample_rate, limits), str(source)
    most, count = min(max_seconds, limits.max_seconds), 0
    parts = []
    for block in blocks:
        count += len(block)
        if count > most * sample_rate:
            raise MediaError(
                name,
                f"expected at most {most:g} s, received more; cut the recording",
            )
        parts.append(block)
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)


def read_recording(
    source: str | os.PathLike[str] | np.ndarray,
    sample_rate: int,
    *,
    rate: float | None,
    max_seconds: float,
    limits: Limits,
) -> np.ndarray:
    """Returns the samples of a recording that a model can read; arguments as ``read_sound``.

    Raises:
      MediaError: as ``read_sound``; an image, or silence, of which a network that never heard it
        makes what it has learnt.
    """
    name = "sound"
    if not isinstance(source, np.ndarray):
        name = str(source)
        if (error := wrong_kind(name, "sound")) is not None:
            raise error
    samples = read_sound(source, sample_rate, rate=rate, max_seconds=max_seconds, limits=limits)
    if np.abs(samples).max(initial=0) <= SILENCE:
        raise silent(name)
    return samples


def silent(name: str) -> MediaError:
    """Returns the error of a recording without sound."""
    return MediaError(name, "silence: none of its samples exceeds one step of 16 bits")


class FileSound:
    """Iterator over blocks of a file's samples, mono, (n,) float32 in [-1,1].

    Float samples beyond are clipped, as by a sound card, and the log says so once. Sample 0 lies at
    the time of the first picture, or of the first sound in a file without pictures. One block is
    held at a time.

    Attributes:
      problem: always empty; a file that breaks off raises an error.
    """

    problem = ""

    def __init__(
        self,
        path: str | os.PathLike[str],
        sample_rate: int,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        """Opens nothing yet.

        Args:
          path: the file.
          sample_rate: samples/s of the blocks.
          limits: largest pictures of a file with pictures.

        Raises:
          FileNotFoundError: there is no such file, or it is a folder or pipe.
        """
        self._path = regular_file(path, "a file with sound")
        self._rate, self._limits = sample_rate, limits

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yields the blocks.

        Raises:
          MediaError: as ``read_sound``.
        """
        empty = True
        for block in self._decode():
            empty = False
            if not np.isfinite(block).all():
                raise MediaError(self._path, "its samples are not finite (NaN)")
            if block.size:
                yield block
        if empty:
            raise MediaError(self._path, "no sound in its audio stream")
        _log_missing_end(self._path)

    def _decode(self) -> Iterator[np.ndarray]:
        with _opened(self._path, self._limits) as (av, container):
            if not container.streams.audio:
                raise MediaError(self._path, "no audio stream")
            stream = container.streams.audio[0]
            if stream.codec_context is None:
                raise MediaError(self._path, "there is no decoder for the codec of its sound")
            resampler = av.AudioResampler(format="fltp", rate=self._rate)
            # Decoders of mp3 and others yield floats too, whose overshoot is no property of a file.
            is_float = stream.codec_context.name.startswith("pcm_f")
            late, there = 0, False
            for frame in container.decode(stream):
                if not there:
                    there = True
                    begin = frame.time or 0.0
                    late = round((begin - _first_picture(av, container, begin)) * self._rate)
                    if frame.sample_rate != self._rate:
                        tell_resampling(frame.sample_rate, self._rate)
                    if late > 0:
                        yield np.zeros(late, np.float32)
                if is_float and np.abs(frame.to_ndarray()).max(initial=0) > 1:
                    _tell_clipping()
                for piece in resampler.resample(frame):
                    block = _mono(piece)
                    skipped = min(max(-late, 0), len(block))
                    late += skipped
                    yield block[skipped:]
            for piece in resampler.resample(None) if there else ():
                yield _mono(piece)[max(-late, 0) :]


class RawSound:
    """Iterator over blocks of the samples of a stream: 16 bits, little-endian, mono (``s16le``).

    >>> import io
    >>> stream = RawSound(io.BytesIO(np.array([0, 16384, -32768], "<i2").tobytes() + b"x"), 8000)
    >>> np.concatenate(list(stream)).tolist(), stream.problem
    ([0.0, 0.5, -1.0], 'the stream ends in the middle of a sample')

    Attributes:
      problem: what was left out at the end, in words; empty if nothing was.
    """

    def __init__(self, file: BinaryIO, sample_rate: int, rate: int | None = None) -> None:
        """Reads nothing yet.

        Args:
          file: the stream.
          sample_rate: samples/s of the blocks.
          rate: samples/s of the stream; None: ``sample_rate``.

        Raises:
          ValueError: a rate that is not above 0.
        """
        self.problem = ""
        self._file, self._resample = file, _Resampler(rate or sample_rate, sample_rate)

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yields the blocks as they arrive, until the end of the stream."""
        rest = b""
        # As soon as there is something: read(n) would wait for n bytes.
        read = getattr(self._file, "read1", self._file.read)
        while content := read(BLOCK):
            content = rest + content
            whole = len(content) // 2 * 2
            rest = content[whole:]
            block = self._resample(np.frombuffer(content[:whole], "<i2"))
            if block.size:
                yield block
        if rest:
            self.problem = "the stream ends in the middle of a sample"
        block = self._resample(None)
        if block.size:
            yield block


def _array_blocks(
    samples: np.ndarray, sample_rate: int, rate: float | None
) -> Iterator[np.ndarray]:
    is_float = np.issubdtype(samples.dtype, np.floating)
    if samples.ndim != 1 or not (is_float or samples.dtype == np.int16):
        raise ValueError(
            f"sound: expected (S,) float in [-1,1] or int16, received {samples.shape} "
            f"{samples.dtype.name}; the mean of the channels makes one of several"
        )
    if rate is None or not 0 < rate < math.inf or rate != round(rate):
        raise ValueError(
            f"rate: expected the samples/s of the array, a whole number above 0, received {rate}"
        )
    if is_float and not (np.isfinite(samples).all() and np.abs(samples).max(initial=0) <= 1):
        raise ValueError("sound: expected finite samples in [-1,1], received others")
    resample = _Resampler(int(rate), sample_rate)
    yield resample(samples)
    yield resample(None)


class _Resampler:
    """Function from blocks of samples at one rate to those at another; None ends the sound."""

    def __init__(self, rate: int, sample_rate: int) -> None:
        if rate < 1:
            raise ValueError(f"rate: expected samples/s above 0, received {rate}")
        self._rate, self._resampler = rate, None
        if rate != sample_rate:
            self._resampler = import_av().AudioResampler(format="fltp", rate=sample_rate)
            tell_resampling(rate, sample_rate)

    def __call__(self, samples: np.ndarray | None) -> np.ndarray:
        if samples is not None:
            scale = np.float32(2**15) if samples.dtype.kind == "i" else np.float32(1)
            samples = samples.astype(np.float32) / scale
        if self._resampler is None:
            return np.zeros(0, np.float32) if samples is None else samples
        frame: Any = None
        if samples is not None:
            if not samples.size:
                return samples
            av = import_av()
            frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
            frame.sample_rate = self._rate
        pieces = [_mono(piece) for piece in self._resampler.resample(frame)]
        return np.concatenate(pieces) if pieces else np.zeros(0, np.float32)


def _mono(frame: Any) -> np.ndarray:
    block: np.ndarray = np.clip(frame.to_ndarray().mean(axis=0), -1.0, 1.0)
    return block.astype(np.float32)


@functools.cache
def tell_resampling(file_rate: int, rate: int) -> None:
    """Says once in the log that recordings of a rate are resampled."""
    _logger.warning(
        "recordings of %d samples/s are resampled to %d, the rate of the model", file_rate, rate
    )


@functools.cache
def _tell_clipping() -> None:
    """Says once in the log that float samples are clipped."""
    _logger.warning(
        "float samples beyond ±1 are clipped: divide the samples of such recordings by their peak, "
        "or write them as 16 bits"
    )


def import_av() -> Any:
    """Returns PyAV.

    Raises:
      ModuleNotFoundError: it is not installed.
    """
    try:
        import av
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "sound files are read, and sound is resampled, by PyAV, which is not installed: "
            "pip install av"
        ) from None
    return av


@contextmanager
def _opened(path: str, limits: Limits) -> Iterator[tuple[Any, Any]]:
    """Opens a file; whatever fails meanwhile becomes a ``MediaError``."""
    av = import_av()
    url = f"file:{path}"  # Without it, a colon in the name would make it an address.
    safe = {"format_whitelist": ",".join(SOUND_FORMATS), "protocol_whitelist": "file"}
    tags = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
    try:
        samples, size = count_samples(path), os.path.getsize(path)
        if samples > _MAX_SAMPLES_A_BYTE * size:
            raise MediaError(path, f"damaged: {samples} samples are declared in {size} bytes")
        # FFmpeg decodes pictures while it opens a file; so their sizes are read first, with no
        # decoder allowed.
        with av.open(url, container_options={**safe, "codec_whitelist": "none"}, **tags) as headers:
            for stream in headers.streams.video:
                context = stream.codec_context
                if context is not None and context.width * context.height > limits.max_pixels:
                    raise MediaError(
                        path,
                        f"expected pictures of at most {limits.max_pixels} pixels, received "
                        f"{context.width} × {context.height}",
                    )
        with av.open(url, container_options=safe, **tags) as container:
            yield av, container
    except MediaError:
        raise
    # PyAV raises what it finds, from AttributeError to MemoryError.
    except Exception as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise MediaError(path, f"its sound is not readable ({reason})") from error


def _log_missing_end(path: str) -> None:
    """Logs that a RIFF file is shorter than its header says, of which FFmpeg tells nothing."""
    with open(path, "rb") as file:
        header, size = file.read(8), os.path.getsize(path)
    declared = int.from_bytes(header[4:], "little")
    # Files that were written to a pipe have no size.
    if header[:4] == b"RIFF" and 0 < declared < 2**32 - 1 and declared + 8 > size:
        _logger.warning("%s: cut off: %d of %d bytes", path, size, declared + 8)


def _first_picture(av: Any, container: Any, otherwise: float) -> float:
    """Returns the start of a file's pictures, seconds."""
    cover = av.stream.Disposition.attached_pic
    streams = [stream for stream in container.streams.video if not stream.disposition & cover]
    if not streams or streams[0].start_time is None:
        return otherwise
    return float(streams[0].start_time * streams[0].time_base)


# First bytes of files, to say what a file is that a model does not read.
_IMAGES = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"P5", b"P6")
_SOUNDS = (b"fLaC", b"OggS", b"ID3", b"FORM", b".snd", b"caff", b"wvpk", b"\xff\xfb", b"\xff\xf3")


def kind_of_file(path: str | os.PathLike[str]) -> str:
    """Returns ``image`` or ``sound`` by the first bytes of a file; empty if they tell nothing."""
    try:
        with open(path, "rb") as file:
            head = file.read(12)
    except (OSError, ValueError):
        return ""
    if head.startswith(_IMAGES) or (head[:4] == b"RIFF" and head[8:] == b"WEBP"):
        return "image"
    if head.startswith(_SOUNDS) or (head[:4] == b"RIFF" and head[8:] == b"WAVE"):
        return "sound"
    return ""


def wrong_kind(path: str, expected: str) -> MediaError | None:
    """Returns the error of a file that is of another kind than a model reads; None if it is not.

    Args:
      path: the file.
      expected: ``image`` or ``sound``.
    """
    found = kind_of_file(path)
    if not found or found == expected:
        return None
    wanted = {
        "image": f"an image of a line of text ({', '.join(IMAGE_FORMATS)})",
        "sound": "a file with sound (wav, flac, ogg, mp3, …)",
    }[expected]
    article = "an image" if found == "image" else "a sound file"
    return MediaError(path, f"expected {wanted}, which this model reads, received {article}")
