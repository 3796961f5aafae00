"""Log-mel spectrograms of sound, and patches of them for the frames of a video.

The defaults are VGGish's (Hershey et al., 2017, arXiv:1609.09430): mono at 16 kHz, windows of 25 ms
every 10 ms, 64 mel bands from 125 to 7500 Hz, log(x + 0.01).
"""

from collections.abc import Sequence

import numpy as np

LOG_OFFSET = 0.01
"""Added to each band before the logarithm; silence becomes log(0.01) = −4.6."""


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
