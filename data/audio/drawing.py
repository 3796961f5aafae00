"""Pictures of spectrograms, for people to look at."""

import numpy as np
from PIL import Image

HEIGHT = 128
"""Rows of a picture, pixels."""
PIXELS_PER_SECOND = 120
"""Columns of a second of sound."""
MAX_WIDTH = 1600
"""Most columns of a picture, pixels; a longer recording has fewer for each second."""
MARK = 5
"""Rows of the marks of seconds, pixels."""
COLOURS = ((8, 8, 24), (64, 28, 100), (170, 50, 90), (245, 130, 50), (255, 240, 170))
"""Evenly spaced colours from the quietest to the loudest, RGB."""
_QUIET, _LOUD = 5.0, 99.9  # Percentiles of a recording with the first and the last colour.


def draw_spectrogram(frames: np.ndarray, hop: float) -> np.ndarray:
    """Returns a spectrogram as a picture: time to the right, high bands above, loud is bright.

    Colours are relative to the recording. White marks at the lower edge are one second apart.

    >>> draw_spectrogram(np.zeros((101, 40), np.float32), 0.01).shape
    (128, 121, 3)

    Args:
        frames: (T,M) float, a log-mel spectrogram of at least one frame.
        hop: distance of the frames, seconds.

    Returns:
        (H,W,3) uint8 in [0,255].

    Raises:
        ValueError: frames of another rank, without entries or not finite, or a hop that is not
            above 0.
    """
    if frames.ndim != 2 or not frames.size or not np.isfinite(frames).all():
        raise ValueError(f"frames: expected (T,M) finite, T and M >= 1, received {frames.shape}")
    if not hop > 0:
        raise ValueError(f"hop: expected more than 0 s, received {hop}")
    seconds = len(frames) * hop
    width = min(max(round(seconds * PIXELS_PER_SECOND), 1), MAX_WIDTH)
    low, high = np.percentile(frames, (_QUIET, _LOUD))
    levels = np.clip((frames.T[::-1] - low) / max(high - low, 1e-6), 0, 1)  # (M,T), low bands below
    grey = Image.fromarray((255 * levels).round().astype(np.uint8))
    rows = np.asarray(grey.resize((width, HEIGHT), Image.Resampling.BILINEAR))
    stops = np.linspace(0, 255, len(COLOURS))
    table = [np.interp(np.arange(256), stops, channel) for channel in zip(*COLOURS, strict=True)]
    picture = np.stack(table, axis=-1).round().astype(np.uint8)[rows]
    marks = (np.arange(1, int(seconds) + 1) * width / seconds).astype(int)
    picture[-MARK:, marks[marks < width]] = 255
    return picture
