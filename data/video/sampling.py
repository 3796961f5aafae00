"""Clip samplers: the choice of a clip's frames from a video."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np


class ClipSampler(Protocol):
    """Clip-sampler interface; a video that is too short yields a shorter clip."""

    @property
    def num_frames(self) -> int:
        """T, greatest number of frames in a clip."""

    def sample(
        self, num_video_frames: int, rate: float, rng: np.random.Generator | None = None
    ) -> np.ndarray:
        """Returns the frame numbers of one clip.

        Args:
            num_video_frames: number of frames in the video, at least 1.
            rate: frames/s of the video.
            rng: random numbers for training; None takes the middle.

        Returns:
            (T',) int64 in [0, num_video_frames), ascending, 1 <= T' <= ``num_frames``.
        """

    def views(self, num_video_frames: int, rate: float, num_views: int) -> np.ndarray:
        """Returns the frame numbers of V = ``num_views`` evenly spaced clips, for test.

        Returns:
            (V,T') int64 in [0, num_video_frames), each row ascending.
        """


@dataclass(frozen=True)
class UniformClip:
    """Sampler over the whole video: one frame of each of ``num_frames`` equal segments.

    In training a random frame of each segment (TSN, Wang et al., 2016, arXiv:1608.00859,
    section 3.1), otherwise the middle one.

    >>> UniformClip(4).sample(20, rate=25.0)
    array([ 2,  7, 12, 17])

    Attributes:
        num_frames: T, the number of segments, at least 1.
    """

    num_frames: int

    def __post_init__(self) -> None:
        _check_positive("num_frames", self.num_frames)

    def sample(
        self, num_video_frames: int, rate: float, rng: np.random.Generator | None = None
    ) -> np.ndarray:
        """Returns one clip as ``ClipSampler.sample``; ``rate`` is not used."""
        edges = self._edges(num_video_frames)
        if rng is None:
            return (edges[:-1] + edges[1:] - 1) // 2
        return rng.integers(edges[:-1], edges[1:])

    def views(self, num_video_frames: int, rate: float, num_views: int) -> np.ndarray:
        """Returns clips as ``ClipSampler.views``; view v is at (v + 1/2) / V of each segment."""
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
    """Sampler of a window of the video at a constant frame rate.

    In training the window starts at a random frame; otherwise it is the middle one.

    >>> DenseClip(4, stride=2).sample(20, rate=25.0)
    array([ 6,  8, 10, 12])

    Attributes:
        num_frames: T, at least 1.
        stride: takes every ``stride``-th frame of the video, whatever its rate.
        rate: frames/s of the clip, in place of ``stride``, so that videos of several rates agree;
            frames of a slower video are repeated.
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
        """Returns one clip as ``ClipSampler.sample``."""
        offsets, last_start = self._window(num_video_frames, rate)
        start = last_start // 2 if rng is None else rng.integers(last_start + 1)
        return start + offsets

    def views(self, num_video_frames: int, rate: float, num_views: int) -> np.ndarray:
        """Returns clips as ``ClipSampler.views``, from the first window to the last."""
        _check_positive("num_views", num_views)
        offsets, last_start = self._window(num_video_frames, rate)
        if num_views == 1:
            return (last_start // 2 + offsets)[None]
        starts = np.arange(num_views, dtype=np.int64) * last_start // (num_views - 1)
        return starts[:, None] + offsets

    def _window(self, num_video_frames: int, rate: float) -> tuple[np.ndarray, int]:
        """Returns the frames' offsets from the window's start, and the last possible start."""
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
