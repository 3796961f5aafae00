"""Log-mel spectrograms of sound, and patches of them for the frames of a video.

The defaults are VGGish's (Hershey et al., 2017, arXiv:1609.09430): mono at 16 kHz, windows of 25 ms
every 10 ms, 64 mel bands from 125 to 7500 Hz, log(x + 0.01).
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

LOG_OFFSET = 0.01
"""Added to each band before the logarithm; silence becomes log(0.01) = −4.6."""

NORMALISATIONS = ("none", "all", "band")
"""Values of ``LogMel.normalisation``."""

_LEAST_DEVIATION = 1e-3


def spectrogram(
    samples: np.ndarray, sample_rate: int, *, window: float = 0.025, hop: float = 0.01
) -> np.ndarray:
    """Returns the magnitudes of the short-time Fourier transform.

    Entry (k,j) is |Σ_n w_n x[j·h + n − ⌊N/2⌋] exp(−2πi·kn/P)|: the Hann window w_n = sin²(πn/N) of
    N samples is centred on the time j·hop, x is zero beyond its ends, and P is the least power of
    two >= N. N and the step h are ``window`` and ``hop`` in whole samples.

    Args:
      samples: (S,) float in [-1,1].
      sample_rate: samples/s.
      window: length of the window, seconds.
      hop: distance of the columns, seconds.

    Returns:
      (P/2 + 1, 1 + ⌊S/h⌋) float32, band k at k·sample_rate/P Hz.

    Raises:
      ValueError: samples of another rank or dtype, or a window or hop below one sample.
    """
    if samples.ndim != 1 or not np.issubdtype(samples.dtype, np.floating):
        raise ValueError(
            f"samples: expected (S,) float, received shape {samples.shape} {samples.dtype}"
        )
    length, step = round(window * sample_rate), round(hop * sample_rate)
    if length < 1 or step < 1:
        raise ValueError(
            f"window, hop: expected at least one sample of {sample_rate} Hz, "
            f"received {window} s and {hop} s"
        )
    hann = np.sin(np.pi * np.arange(length) / length).astype(np.float32) ** 2
    before = length // 2
    padded = np.pad(samples.astype(np.float32), (before, length - before))
    columns = np.lib.stride_tricks.sliding_window_view(padded, length)[::step]
    columns = columns[: 1 + len(samples) // step]  # (F,N)
    points = 1 << (length - 1).bit_length()
    return np.abs(np.fft.rfft(columns * hann, points)).T.astype(np.float32)


def mel_filters(
    sample_rate: int,
    num_bins: int,
    *,
    num_mels: int = 64,
    low: float = 125.0,
    high: float = 7500.0,
) -> np.ndarray:
    """Returns triangular filters over the bins of a spectrum, evenly spaced on the mel scale.

    M + 2 points are spaced evenly from ``low`` to ``high`` on HTK's scale,
    mel(f) = 2595·log10(1 + f/700). Band m rises from 0 at point m to 1 at point m+1 and falls to 0
    at point m+2, linearly in Hz as in librosa (HTK and TensorFlow: linearly in mel).

    Args:
      sample_rate: samples/s.
      num_bins: P/2 + 1 bins from 0 to half the sample rate.
      num_mels: M, number of bands.
      low: lower end of the lowest band, Hz.
      high: upper end of the highest band, Hz.

    Returns:
      (M,num_bins) float32 in [0,1].

    Raises:
      ValueError: ``low`` and ``high`` are not 0 <= low < high <= sample_rate/2, or a band contains
        no bin.
    """
    if not 0 <= low < high <= sample_rate / 2:
        raise ValueError(
            f"low, high: expected 0 <= low < high <= {sample_rate / 2} Hz, received {low}, {high}"
        )
    if num_mels < 1:
        raise ValueError(f"num_mels: expected at least 1, received {num_mels}")
    lowest, highest = (2595 * np.log10(1 + frequency / 700) for frequency in (low, high))
    mels = np.linspace(lowest, highest, num_mels + 2)
    feet = 700 * (10 ** (mels / 2595) - 1)  # Hz
    bins = np.linspace(0, sample_rate / 2, num_bins)
    rising = (bins - feet[:-2, None]) / (feet[1:-1] - feet[:-2])[:, None]
    falling = (feet[2:, None] - bins) / (feet[2:] - feet[1:-1])[:, None]
    filters = np.maximum(np.minimum(rising, falling), 0).astype(np.float32)
    empty = np.flatnonzero(~filters.any(axis=1))
    if len(empty):
        raise ValueError(
            f"num_mels: expected bands that hold a bin of {bins[1]:.1f} Hz, received {num_mels} "
            f"bands from {low} to {high} Hz, {len(empty)} of them empty"
        )
    return filters


def log_mel(
    samples: np.ndarray,
    sample_rate: int,
    *,
    window: float = 0.025,
    hop: float = 0.01,
    num_mels: int = 64,
    low: float = 125.0,
    high: float = 7500.0,
) -> np.ndarray:
    """Returns log(M·|STFT| + 0.01), M being ``mel_filters`` and |STFT| the ``spectrogram``.

    Args:
      samples: (S,) float in [-1,1].
      sample_rate: samples/s.
      window: length of the window, seconds.
      hop: distance of the columns, seconds.
      num_mels: number of bands.
      low: lower end of the lowest band, Hz.
      high: upper end of the highest band, Hz.

    Returns:
      (num_mels,F) float32, column j centred on the time j·hop.

    Raises:
      ValueError: as ``spectrogram`` and ``mel_filters``.
    """
    magnitudes = spectrogram(samples, sample_rate, window=window, hop=hop)
    filters = mel_filters(sample_rate, len(magnitudes), num_mels=num_mels, low=low, high=high)
    return np.log(filters @ magnitudes + np.float32(LOG_OFFSET))


def log_mel_patches(
    bands: np.ndarray, times: Sequence[float] | np.ndarray, width: int, *, hop: float = 0.01
) -> np.ndarray:
    """Returns a patch of the log-mel spectrogram around the time of each video frame.

    The patch of time t starts at column round(t/hop) − ⌊width/2⌋; beyond the ends of the sound it
    is silent.

    Args:
      bands: (M,F) float32, as ``log_mel`` returns them.
      times: (T,) seconds from the beginning of the sound, e.g. frame numbers / frame rate.
      width: W, columns of a patch.
      hop: distance of the columns, seconds.

    Returns:
      (T,M,W,1) float32.

    Raises:
      ValueError: bands or times of another rank or dtype, or a width below 1.
    """
    if bands.ndim != 2 or not np.issubdtype(bands.dtype, np.floating):
        raise ValueError(f"bands: expected (M,F) float, received {bands.shape} {bands.dtype}")
    times = np.asarray(times, np.float64)
    if times.ndim != 1 or not np.isfinite(times).all():
        raise ValueError(f"times: expected (T,) finite seconds, received {times}")
    if width < 1:
        raise ValueError(f"width: expected at least 1 column, received {width}")
    centres = np.round(times / hop).astype(int)
    columns = centres[:, None] - width // 2 + np.arange(width)  # (T,W)
    there = (columns >= 0) & (columns < bands.shape[1])
    silence = np.float32(np.log(LOG_OFFSET))
    patches = bands[:, np.where(there, columns, 0)]  # (M,T,W)
    patches = np.where(there, patches, silence)
    return np.moveaxis(patches, 0, 1)[..., None].astype(np.float32)


@dataclasses.dataclass(frozen=True)
class LogMel:
    """Log-mel spectrogram of a recording, with steps of time first, as networks read it.

    With L = log(M·|STFT| + 0.01), as ``log_mel``, the normalised spectrogram is

        none:  L[m,t]
        all:   (L[m,t] − μ) / max(σ, 0.001), μ and σ the mean and standard deviation over m and t
        band:  (L[m,t] − μ_m) / max(σ_m, 0.001), likewise over t alone, for each band m

    where σ² is divided by the number of values. ``all`` removes the level of a recording and keeps
    its colour; ``band`` also removes the microphone and the voice's average.

    >>> tone = np.sin(np.arange(8000) * 0.5).astype(np.float32)
    >>> TELEPHONE(tone).shape, TELEPHONE.num_frames(8000)
    ((101, 40), 101)

    Attributes:
      sample_rate: samples/s of the recordings.
      window: length of the window, seconds.
      hop: distance of the frames, seconds.
      num_mels: M, number of bands.
      low: lower end of the lowest band, Hz.
      high: upper end of the highest band, Hz.
      normalisation: ``none``, ``all`` or ``band``.

    Raises:
      ValueError: an unknown normalisation, or as ``spectrogram`` and ``mel_filters``.
    """

    sample_rate: int = 16_000
    window: float = 0.025
    hop: float = 0.01
    num_mels: int = 64
    low: float = 125.0
    high: float = 7500.0
    normalisation: str = "none"

    def __post_init__(self) -> None:
        if self.normalisation not in NORMALISATIONS:
            raise ValueError(
                f"normalisation: expected one of {', '.join(NORMALISATIONS)}, received "
                f"{self.normalisation!r}"
            )
        if self.sample_rate < 1 or round(self.hop * self.sample_rate) < 1:
            raise ValueError(
                "sample_rate, hop: expected frames of at least one sample, received "
                f"{self.sample_rate} Hz and {self.hop} s"
            )
        self._filters  # noqa: B018, refuses bands without bins before the first file is read.

    def __getstate__(self) -> dict[str, Any]:
        return dataclasses.asdict(self)  # Without the filters.

    def __call__(self, samples: np.ndarray) -> np.ndarray:
        """Returns (T,M) float32 of (S,) float samples in [-1,1], T = ``num_frames(S)``."""
        magnitudes = spectrogram(samples, self.sample_rate, window=self.window, hop=self.hop)
        bands = np.log(self._filters @ magnitudes + np.float32(LOG_OFFSET))  # (M,T)
        return np.ascontiguousarray(self.normalise(bands.T))

    def num_frames(self, num_samples: int) -> int:
        """Returns the number of frames of a recording, at least 1."""
        return 1 + num_samples // round(self.hop * self.sample_rate)

    def normalise(self, frames: np.ndarray) -> np.ndarray:
        """Returns (T,M) float32 frames normalised over the recording."""
        if self.normalisation == "none":
            return frames
        axes = 0 if self.normalisation == "band" else None
        mean = frames.mean(axes, dtype=np.float64)
        deviation = np.maximum(frames.std(axes, dtype=np.float64), _LEAST_DEVIATION)
        return ((frames - mean) / deviation).astype(np.float32)

    def describe(self) -> dict[str, Any]:
        """Returns all settings, for JSON."""
        return {"kind": "log_mel", **dataclasses.asdict(self), "log_offset": LOG_OFFSET}

    @functools.cached_property
    def _filters(self) -> np.ndarray:
        length = round(self.window * self.sample_rate)
        points = 1 << (max(length, 1) - 1).bit_length()
        return mel_filters(
            self.sample_rate,
            points // 2 + 1,
            num_mels=self.num_mels,
            low=self.low,
            high=self.high,
        )


TELEPHONE = LogMel(8_000, num_mels=40, low=64.0, high=3_800.0, normalisation="band")
"""Speech of 8 kHz: windows of 25 ms every 10 ms, 40 bands."""
SPEECH = LogMel(16_000, num_mels=80, low=64.0, high=7_600.0, normalisation="band")
"""Speech of 16 kHz: windows of 25 ms every 10 ms, 80 bands."""
SOUND = LogMel(16_000, window=0.04, hop=0.02, num_mels=64, low=50.0, high=8_000.0)
"""Sound of 16 kHz: windows of 40 ms every 20 ms (Çakır et al., 1702.06286, section IV.B)."""
