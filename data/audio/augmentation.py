"""Random changes of log-mel spectrograms in training, and windows of one length.

What draws is seeded by the generator that a ``Loader`` passes. Mixing of two recordings with shares
of their labels is ``VideoClassification.mixup``, on the device, where both are at hand.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from data.audio.sources import cut_windows


@dataclass(frozen=True)
class SpectrogramAugmentation:
    """Random changes of the ``spectrogram`` of an example, a ``Loader``'s ``transform``; picklable.

    In this order: speed, pitch and time warp, one linear interpolation; the shift; level; noise;
    masks. All is drawn anew for each example. Only ``speed`` changes the number of frames, by a
    factor of at most ``max_stretch``, and ``lengths`` follows; tokens never change. Units of
    ``level`` and ``noise`` are those of the spectrogram: nats of the magnitude, or its standard
    deviations where ``LogMel`` has normalised it.

    Masks are those of SpecAugment (Park et al., 1904.08779, section 2), and a masked entry becomes
    the mean of the spectrogram. The time warp is the paper's: a frame drawn from those that are at
    least W from both ends moves by w frames, drawn from −W..W, and what lies on either side
    stretches or shrinks; deviation: linear interpolation instead of a spline in two dimensions.

    Attributes:
        time_masks: number of masks over frames.
        time_mask_width: T, greatest width of one, frames.
        time_mask_share: greatest width of one as a share of the frames, in [0,1].
        band_masks: number of masks over bands.
        band_mask_width: F, greatest width of one, bands.
        time_warp: W, greatest displacement, frames.
        speed: greatest change of the number of frames, as a share of it, in [0,0.5].
        pitch: greatest displacement of the spectrum up or down, bands.
        shift: greatest circular shift in time, as a share of the frames, in [0,1]; for sounds, not
            for texts, whose order it would change.
        level: greatest constant that is added or subtracted.
        noise: greatest standard deviation of the Gaussian noise that is added to all entries.

    Raises:
        ValueError: a number out of its range.
    """

    time_masks: int = 2
    time_mask_width: int = 40
    time_mask_share: float = 0.2
    band_masks: int = 2
    band_mask_width: int = 8
    time_warp: int = 0
    speed: float = 0.0
    pitch: float = 0.0
    shift: float = 0.0
    level: float = 0.0
    noise: float = 0.0

    def __post_init__(self) -> None:
        most = {"time_mask_share": 1.0, "speed": 0.5, "shift": 1.0}
        for each in fields(self):
            value, high = getattr(self, each.name), most.get(each.name, math.inf)
            if not 0 <= value <= high:
                bound = "at least 0" if high == math.inf else f"0 to {high:g}"
                raise ValueError(f"{each.name}: expected {bound}, received {value}")

    @property
    def max_stretch(self) -> float:
        """Greatest factor by which the number of frames grows, at least 1."""
        return 1 + self.speed

    def __call__(self, example: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """Returns the example with another ``spectrogram`` (T',M) float32, and ``lengths`` = T'.

        Frames beyond ``lengths`` are cut off. An example with ``mask`` False stays as it is.

        Args:
            example: with ``spectrogram`` (T,M) float32 and ``lengths`` <= T.
            rng: random numbers.
        """
        if not example["mask"]:
            return dict(example)
        frames = np.asarray(example["spectrogram"])[: int(example["lengths"])]
        frames = self._warp(frames, rng)
        if self.shift:
            most = self.shift * len(frames)
            frames = np.roll(frames, round(rng.uniform(-most, most)), axis=0)
        if self.level:
            frames = frames + np.float32(rng.uniform(-self.level, self.level))
        if self.noise:
            drawn = rng.standard_normal(frames.shape, np.float32)
            frames = frames + np.float32(rng.uniform(0, self.noise)) * drawn
        frames = self._mask(frames, rng)
        return {
            **example,
            "spectrogram": frames.astype(np.float32, copy=False),
            "lengths": np.asarray(len(frames), np.int32),
        }

    def _warp(self, frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Returns the frames at other times and the bands at other frequencies."""
        if self.speed:
            # Up to a factor of 1 + speed either way, even on a logarithmic scale.
            factor = (1 + self.speed) ** rng.uniform(-1, 1)
            count = min(max(1, round(len(frames) * factor)), int(len(frames) * self.max_stretch))
        else:
            count = len(frames)
        times = np.linspace(0, len(frames) - 1, count)
        if self.time_warp and count > 2 * self.time_warp + 1:
            centre = rng.integers(self.time_warp, count - self.time_warp)
            moved = centre + rng.integers(-self.time_warp, self.time_warp + 1)
            # The output's frame ``moved`` shows what the input has at ``centre``.
            known = [0, min(max(moved, 1), count - 2), count - 1]
            times = np.interp(np.arange(count), known, times[[0, centre, count - 1]])
        if self.speed or self.time_warp:
            frames = _interpolate(frames, times)
        if self.pitch:
            moved = rng.uniform(-self.pitch, self.pitch)
            bands = np.clip(np.arange(frames.shape[1]) - moved, 0, frames.shape[1] - 1)
            frames = _interpolate(frames.T, bands).T
        return frames

    def _mask(self, frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Returns the frames with masks of time and of bands."""
        if not self.time_masks and not self.band_masks:
            return frames
        masked, mean = frames.copy(), frames.mean()
        most = min(self.time_mask_width, int(self.time_mask_share * len(frames)))
        for _ in range(self.time_masks):
            start, stop = _draw_mask(len(frames), most, rng)
            masked[start:stop] = mean
        for _ in range(self.band_masks):
            start, stop = _draw_mask(frames.shape[1], self.band_mask_width, rng)
            masked[:, start:stop] = mean
        return masked


@dataclass(frozen=True)
class CutSound:
    """Makes clips of one length of recordings, a ``Loader``'s ``transform``; picklable.

    A shorter recording is padded with zeros. Of a longer one training sees a window at random, and
    a test ``num_windows`` of them, evenly spaced from its begin to its end (one: its middle).

    Attributes:
        num_frames: T of the clips, at least 1.
        augmentation: of the window in training, before it is padded; None: none.
        train: random windows; False: evenly spaced ones.
        num_windows: V, windows of a recording at test, at least 1.

    Raises:
        ValueError: a number below 1.
    """

    num_frames: int
    augmentation: Callable[[Mapping[str, Any], np.random.Generator], Mapping[str, Any]] | None
    train: bool
    num_windows: int = 1

    def __post_init__(self) -> None:
        for name in ("num_frames", "num_windows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, received {getattr(self, name)}")

    def __call__(self, example: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """Returns the example with ``spectrogram`` (num_frames,M), or (V,num_frames,M) at test.

        At test ``lengths`` is (V,). An example with ``mask`` False is a window of zeros.

        Args:
            example: of ``SoundSource``.
            rng: random numbers, in training.
        """
        if self.train and self.augmentation is not None:
            example = self.augmentation(example, rng)
        frames = example["spectrogram"]
        last = max(len(frames) - self.num_frames, 0)
        if self.train:
            starts = [int(rng.integers(last + 1))]
        elif self.num_windows == 1:
            starts = [last // 2]
        else:
            starts = [view * last // (self.num_windows - 1) for view in range(self.num_windows)]
        windows, lengths = cut_windows(frames, self.num_frames, starts)
        if self.train:
            return {**example, "spectrogram": windows[0], "lengths": lengths[0]}
        return {**example, "spectrogram": windows, "lengths": lengths}


def _draw_mask(size: int, most: int, rng: np.random.Generator) -> tuple[int, int]:
    """Returns begin and end of a mask of 0 to ``most`` of ``size`` entries."""
    width = int(rng.integers(min(most, size) + 1))
    start = int(rng.integers(size - width + 1))
    return start, start + width


def _interpolate(rows: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Returns rows at fractional places in [0, len(rows) - 1], interpolated linearly."""
    lower = np.floor(places).astype(np.int64)
    upper = np.minimum(lower + 1, len(rows) - 1)
    share = (places - lower).astype(np.float32)[:, None]
    found: np.ndarray = rows[lower] * (1 - share) + rows[upper] * share
    return found
