"""Motion images: differences of grey frames, and crops around the motion."""

from collections import deque
from collections.abc import Iterable, Sequence

import numpy as np

# ITU-R BT.601 luma.
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def grey(video: np.ndarray) -> np.ndarray:
    """Returns the luma of (...,H,W,3) uint8 RGB frames: (...,H,W) float32 in [0,255]."""
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
    return np.stack(
        [difference_image(luma[frames]) for frames in difference_frames(times, len(luma), gap=gap)]
    )


def difference_frames(
    times: Sequence[int] | np.ndarray, num_frames: int, *, gap: int = 8
) -> np.ndarray:
    """Returns the numbers of the frames that ``difference_images`` compares, (n,4) int.

    Args:
      times: (n,) frame numbers t.
      num_frames: number of frames of the clip.
      gap: as in ``difference_images``.

    Raises:
      ValueError: ``gap`` is odd or below 2.
    """
    if gap < 2 or gap % 2:
        raise ValueError(f"gap: expected an even number of at least 2, received {gap}")
    offsets = gap // 2 * np.array([-3, -1, 1, 3])
    return np.clip(np.asarray(times)[:, None] + offsets, 0, num_frames - 1)


def difference_image(luma: np.ndarray) -> np.ndarray:
    """Returns the image (H,W,3) uint8 of the differences of four frames, (4,H,W) float32."""
    differences = np.moveaxis(luma[1:] - luma[:-1], 0, -1)
    return np.clip(differences / 2 + 127, 0, 255).astype(np.uint8)


def motion_centre(luma: Iterable[np.ndarray], *, gap: int = 8, threshold: float = 20.0) -> int:
    """Returns the column with half of the clip's motion to its left.

    Args:
      luma: frames (H,W) float32 in [0,255], at least one; ``gap`` of them are kept at a time.
      gap: distance of the compared frames, frames.
      threshold: grey levels; smaller differences count as noise.

    Returns:
      A column in [0,W); the middle one if nothing moves.

    Raises:
      ValueError: no frames.
    """
    recent: deque[np.ndarray] = deque(maxlen=gap)
    energy: np.ndarray | None = None  # (W,) float32
    for frame in luma:
        if energy is None:
            energy = np.zeros(frame.shape[1], np.float32)
        if len(recent) == gap:
            moved = np.clip(np.abs(frame - recent[0]) - threshold, 0, None)
            # Row by row, as a sum over all frames at once adds up: the same rounding.
            energy = np.concatenate([energy[None], moved]).sum(0)
        recent.append(frame)
    if energy is None:
        raise ValueError("luma: expected at least one frame, received none")
    if not energy.any():
        return len(energy) // 2
    cumulated = np.cumsum(energy.astype(np.float64))
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
