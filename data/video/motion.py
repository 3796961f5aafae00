"""Motion images: differences of grey frames, and crops around the motion."""

from collections.abc import Sequence

import numpy as np

# ITU-R BT.601 luma.
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def grey(video: np.ndarray) -> np.ndarray:
    """Returns the luma of (T,H,W,3) uint8 RGB frames: (T,H,W) float32 in [0,255]."""
    return video.astype(np.float32) @ _LUMA


def difference_images(
    luma: np.ndarray, times: Sequence[int] | np.ndarray, *, gap: int = 8
) -> np.ndarray:
    """Returns images whose channels are three successive frame differences.

    Channel k at time t is ``(g[t + (k-1/2)·gap] − g[t + (k-3/2)·gap]) / 2 + 127`` for k = 0, 1, 2,
    so an encoder of photographs sees motion as colour. The first and last frame extend beyond the
    ends of the clip.

    Args:
      luma: g, (T,H,W) float32 in [0,255].
      times: (n,) frame numbers t.
      gap: distance of the subtracted frames, frames; even, at least 2.

    Returns:
      (n,H,W,3) uint8; 127 where nothing moves.

    Raises:
      ValueError: ``gap`` is odd or below 2.
    """
    if gap < 2 or gap % 2:
        raise ValueError(f"gap: expected an even number of at least 2, received {gap}")
    last = len(luma) - 1
    offsets = gap // 2 * np.array([-3, -1, 1, 3])
    frames = luma[np.clip(np.asarray(times)[:, None] + offsets, 0, last)]  # (n,4,H,W)
    differences = np.moveaxis(frames[:, 1:] - frames[:, :-1], 1, -1)
    return np.clip(differences / 2 + 127, 0, 255).astype(np.uint8)


def motion_centre(luma: np.ndarray, *, gap: int = 8, threshold: float = 20.0) -> int:
    """Returns the column with half of the clip's motion to its left.

    Args:
      luma: (T,H,W) float32 in [0,255].
      gap: distance of the compared frames, frames.
      threshold: grey levels; smaller differences count as noise.

    Returns:
      A column in [0,W); the middle one if nothing moves.
    """
    moved = np.abs(luma[gap:] - luma[:-gap]) if len(luma) > gap else np.zeros_like(luma)
    energy = np.clip(moved - threshold, 0, None).sum((0, 1)).astype(np.float64)
    if not energy.any():
        return luma.shape[2] // 2
    cumulated = np.cumsum(energy)
    return int(np.searchsorted(cumulated, cumulated[-1] / 2))


def square_around(video: np.ndarray, column: int) -> np.ndarray:
    """Returns the full-height square around a column.

    Args:
      video: (T,H,W,...) of any dtype; if W < H, it is widened by repeating its edge columns.
      column: the desired centre; the square stays within the frame.

    Returns:
      (T,H,H,...), a view of ``video`` if W >= H.
    """
    height, width = video.shape[1:3]
    if width < height:
        left = (height - width) // 2
        widths = [(0, 0), (0, 0), (left, height - width - left), *[(0, 0)] * (video.ndim - 3)]
        return np.pad(video, widths, "edge")
    start = min(max(column - height // 2, 0), width - height)
    return video[:, :, start : start + height]
