"""Clip samplers: which frames of a video make up a clip."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np


class ClipSampler(Protocol):
    """Chooses frames of a video; a video that is too short gives fewer, never repeats."""

    @property
    def num_frames(self) -> int:
        """T, the most frames that a clip has."""

    def sample(
        self, num_video_frames: int, rate: float, rng: np.random.Generator | None = None
    ) -> np.ndarray:
        """Chooses one clip.

        Args:
            num_video_frames: frames in the video, at least 1.
            rate: frames/s of the video.
            rng: random numbers for training; None takes the middle.

        Returns:
            (T',) int64 in [0, num_video_frames), ascending, 1 <= T' <= ``num_frames``.
        """

    def views(self, num_video_frames: int, rate: float, num_views: int) -> np.ndarray:
        """Chooses ``num_views`` clips, evenly spaced, for test.

        Returns:
            (V,T') int64 in [0, num_video_frames), each row ascending.
        """


@dataclass(frozen=True)
class UniformClip:
    """Frames from all over the video: one of each of ``num_frames`` equal segments.

    With random numbers it is any frame of the segment (TSN, Wang et al., 2016, arXiv:1608.00859,
    section 3.1), without them the middle one.

    Attributes:
        num_frames: T, the number of segments.
    """

    num_frames: int

    def __post_init__(self) -> None:
        _check_positive("num_frames", self.num_frames)

    def sample(
        self, num_video_frames: int, rate: float, rng: np.random.Generator | None = None
    ) -> np.ndarray:
        """See ``ClipSampler.sample``; ``rate`` is not used."""
        edges = self._edges(num_video_frames)
        if rng is None:
            return (edges[:-1] + edges[1:] - 1) // 2
        return rng.integers(edges[:-1], edges[1:])

    def views(self, num_video_frames: int, rate: float, num_views: int) -> np.ndarray:
        """See ``ClipSampler.views``: view v takes the frame (v + 1/2) / V into each segment."""
        _check_positive("num_views", num_views)
        edges = self._edges(num_video_frames)
        share = (np.arange(num_views) + 0.5)[:, None] / num_views
        return edges[:-1] + np.floor(share * np.diff(edges)).astype(np.int64)

    def _edges(self, num_video_frames: int) -> np.ndarray:
        _check_positive("num_video_frames", num_video_frames)
        segments = min(self.num_frames, num_video_frames)
        return np.arange(segments + 1, dtype=np.int64) * num_video_frames // segments


@dataclass(frozen=True)
class DenseClip:
    """Frames that follow each other: a window of the video at a steady rate.

    The window starts anywhere with random numbers, and is the middle one without.

    Attributes:
        num_frames: T.
        stride: take every ``stride``-th frame of the video, whatever its rate.
        rate: frames/s of the clip instead of ``stride``, so that videos of other rates agree; a
            video slower than that repeats frames.
    """

    num_frames: int
    stride: int = 1
    rate: float | None = None

    def __post_init__(self) -> None:
        _check_positive("num_frames", self.num_frames)
        _check_positive("stride", self.stride)
        if self.rate is not None and not self.rate > 0:
            raise ValueError(f"rate: expected more than 0 frames/s, received {self.rate}")
        if self.rate is not None and self.stride != 1:
            raise ValueError(
                f"expected stride or rate, received both: stride {self.stride}, rate {self.rate}"
            )

    def sample(
        self, num_video_frames: int, rate: float, rng: np.random.Generator | None = None
    ) -> np.ndarray:
        """See ``ClipSampler.sample``."""
        offsets, last_start = self._window(num_video_frames, rate)
        start = last_start // 2 if rng is None else rng.integers(last_start + 1)
        return start + offsets

    def views(self, num_video_frames: int, rate: float, num_views: int) -> np.ndarray:
        """See ``ClipSampler.views``: from the first window to the last; one view is the middle."""
        _check_positive("num_views", num_views)
        offsets, last_start = self._window(num_video_frames, rate)
        if num_views == 1:
            return (last_start // 2 + offsets)[None]
        starts = np.arange(num_views, dtype=np.int64) * last_start // (num_views - 1)
        return starts[:, None] + offsets

    def _window(self, num_video_frames: int, rate: float) -> tuple[np.ndarray, int]:
        """The frames' distances from the window's start, and the last possible start."""
        _check_positive("num_video_frames", num_video_frames)
        if self.rate is not None and not rate > 0:
            raise ValueError(f"rate: expected the video's frames/s, received {rate}")
        step = self.stride if self.rate is None else rate / self.rate
        offsets = np.floor(np.arange(self.num_frames) * step + 1e-6).astype(np.int64)
        offsets = offsets[offsets < num_video_frames]
        return offsets, num_video_frames - 1 - int(offsets[-1])


def _check_positive(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name}: expected at least 1, received {value}")
