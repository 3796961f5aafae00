"""Preprocessing of lines of text and of recordings as at test: columns that become steps.

``{"kind": "line", …}`` scales an image of a line to grey of one height (``LinePreprocessing``),
``"log_mel"`` makes the log-mel spectrogram of a recording, and windows of it for a classifier
(``SoundPreprocessing``). Both equal the preprocessing of training (``data/text_lines``,
``data/audio``). ``log_mel.py`` is a link to the one in ``data/audio``.
"""

import dataclasses
import functools
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from .log_mel import LogMel
from .media import MediaError

POLARITIES = ("dark", "light", "auto")


class Columns(NamedTuple):
    """Input of a reader: a line or a spectrogram, and where its columns were."""

    inputs: np.ndarray
    """(H,W,1) uint8 of a line, (W,M) float32 of a recording."""
    scale: float
    """Columns of the image as it was, or seconds, for each column of ``inputs``."""
    extent: float
    """Width of the image as it was, columns, or length of the recording, seconds."""

    @property
    def width(self) -> int:
        """W, columns or frames."""
        return self.inputs.shape[1 if self.inputs.ndim == 3 else 0]


@dataclasses.dataclass(frozen=True)
class LinePreprocessing:
    """Line of text as grey of one height, with its aspect ratio."""

    height: int
    """Of the result, pixels."""
    max_width: int = 4096
    """Greatest width of the result, pixels."""
    polarity: str = "dark"
    """``dark`` ink on light paper is kept, ``light`` ink inverted; ``auto`` inverts the images
    whose median is below 128."""

    def __post_init__(self) -> None:
        if self.polarity not in POLARITIES:
            raise ValueError(
                f"polarity: expected one of {', '.join(POLARITIES)}, received {self.polarity!r}"
            )

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of a line of 64 columns, (H,64,1)."""
        return self.height, 64, 1

    def __call__(self, image: np.ndarray, name: str = "image") -> Columns:
        """Returns a line at the height of the model.

        Args:
          image: (H,W,3) or (H,W,1) uint8 in [0,255].
          name: of the image, for the error.

        Raises:
          MediaError: the result would be wider than ``max_width``.
        """
        height, width = image.shape[:2]
        scaled = max(1, round(width * self.height / height))
        if scaled > self.max_width:
            raise MediaError(
                name,
                f"expected a line of at most {self.max_width} columns at a height of {self.height} "
                f"pixels, received {width} × {height}, which makes {scaled}; cut the line",
            )
        grey = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).convert("L")
        if self.polarity == "light" or (self.polarity == "auto" and _median(grey) < 128):
            grey = ImageOps.invert(grey)
        if grey.size != (scaled, self.height):
            grey = grey.resize((scaled, self.height), Image.Resampling.LANCZOS)
        return Columns(np.array(grey)[..., None], width / scaled, width)


def _median(grey: Image.Image) -> int:
    counts = np.bincount(np.asarray(grey).ravel(), minlength=256).cumsum()
    return int(np.searchsorted(counts, counts[-1] / 2))


@dataclasses.dataclass(frozen=True)
class SoundPreprocessing:
    """Log-mel spectrogram of a recording, or windows of it.

    The first seven settings are those of ``LogMel``.
    """

    sample_rate: int
    """Samples/s; recordings of another rate are resampled."""
    window: float
    """Seconds."""
    hop: float
    """Seconds."""
    num_mels: int
    low: float
    """Hz."""
    high: float
    """Hz."""
    normalisation: str = "none"
    max_seconds: float = 120.0
    """Greatest length of a recording."""
    num_frames: int | None = None
    """T of a classifier's windows, which shorter recordings fill up with zeros; None: the whole
    recording."""
    num_windows: int = 1
    """V, windows of a longer recording, from its begin to its end; one: its middle."""

    def __post_init__(self) -> None:
        self.log_mel  # noqa: B018, refuses settings that do not fit together.

    @functools.cached_property
    def log_mel(self) -> LogMel:
        """Function from samples to the spectrogram."""
        names = ("sample_rate", "window", "hop", "num_mels", "low", "high", "normalisation")
        return LogMel(**{name: getattr(self, name) for name in names})

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of a window, or of a recording of 64 frames, (T,M)."""
        return self.num_frames or 64, self.num_mels

    @property
    def clip_shape(self) -> tuple[int, ...]:
        """(T,M) of a window."""
        return self.input_shape

    @property
    def seconds_per_frame(self) -> float:
        """Distance of the frames as it is in whole samples, seconds."""
        return round(self.hop * self.sample_rate) / self.sample_rate

    def __call__(self, samples: np.ndarray, name: str = "sound") -> Columns:
        """Returns the spectrogram of (S,) float32 samples in [-1,1] at ``sample_rate``."""
        return Columns(
            self.log_mel(samples), self.seconds_per_frame, len(samples) / self.sample_rate
        )

    def windows(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns the windows of samples, padded with zeros, with their lengths and times.

        Args:
          samples: (S,) float32 in [-1,1] at ``sample_rate``.

        Returns:
          (V,T,M) float32; (V,) int32 in 1..T; (V,T) float32, seconds from the start of the
          recording.
        """
        frames = self.log_mel(samples)
        size = self.num_frames or len(frames)
        last = max(len(frames) - size, 0)
        starts = [last // 2]
        if self.num_windows > 1:
            starts = [view * last // (self.num_windows - 1) for view in range(self.num_windows)]
        parts = [frames[start : start + size] for start in starts]
        windows = np.zeros((len(parts), size, frames.shape[1]), np.float32)
        for window, part in zip(windows, parts, strict=True):
            window[: len(part)] = part
        times = (np.array(starts)[:, None] + np.arange(size)) * self.seconds_per_frame
        lengths = np.array([len(part) for part in parts], np.int32)
        return windows, lengths, times.astype(np.float32)
