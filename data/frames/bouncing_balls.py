"""Bouncing balls: an embedded data set of generated sequences, without files.

After Sutskever, Hinton and Taylor (The Recurrent Temporal Restricted Boltzmann Machine, 2008,
section 5, and their code): balls of equal mass move without friction in a box of 10×10 units,
bounce off its walls and off one another, and are drawn as soft discs, exp(−(d²/r²)⁴) at the
distance d from the centre of a ball of radius r = 1.2.

Deviation: all balls start with the same speed, each in a direction of its own; theirs are normal
random numbers scaled to one total speed.
"""

from typing import Any

import numpy as np

from data.frames.sequences import GeneratedSequences

NUM_SEQUENCES: dict[str, int] = {"train": 1_000, "validation": 100, "test": 100}
"""Split -> usual number of sequences; of train, those of an epoch."""

_BOX = 10.0
_RADIUS = 1.2
_STEPS_A_FRAME = 2
_TRIES = 1_000


class BouncingBalls(GeneratedSequences):
    """One split of bouncing balls, a source of ``FrameExample``; picklable.

    ``frames`` (T,S,S,1) uint8 in [0,255], S = ``size``.

    Args:
        split: "train", "validation" or "test".
        num_sequences: number of examples; None takes that of ``NUM_SEQUENCES``.
        num_frames: T, at least 1.
        num_balls: 1 to 6.
        size: S, side of the frames, pixels, at least 8.
        speed: of each ball at the start, in sides of the box a frame, in (0,0.1].
        seed: of the split's sequences.

    Raises:
        ValueError: numbers out of range.
    """

    def __init__(
        self,
        split: str = "train",
        num_sequences: int | None = None,
        *,
        num_frames: int = 20,
        num_balls: int = 3,
        size: int = 32,
        speed: float = 0.05,
        seed: int = 0,
    ):
        if num_sequences is None:
            num_sequences = NUM_SEQUENCES.get(split, 0)
        super().__init__(split, num_sequences, num_frames, seed)
        if not 1 <= num_balls <= 6 or size < 8 or not 0 < speed <= 0.1:
            raise ValueError(
                "num_balls, size, speed: expected 1 to 6 balls, at least 8 pixels and a speed in "
                f"(0,0.1], received {num_balls}, {size} and {speed}"
            )
        self.num_balls = num_balls
        self.size = size
        self.speed = speed

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """(H,W,C) of the frames."""
        return self.size, self.size, 1

    def describe(self) -> dict[str, Any]:
        """Returns what identifies the sequences, for JSON; a ``Loader``'s ``identity``."""
        return {
            **super().describe(),
            "num_balls": self.num_balls,
            "size": self.size,
            "speed": self.speed,
        }

    def generate(self, rng: np.random.Generator) -> np.ndarray:
        """Returns one sequence, (T,S,S,1) uint8 in [0,255]."""
        return _draw_discs(self.positions(rng), self.size)

    def positions(self, rng: np.random.Generator) -> np.ndarray:
        """Returns the centres of the balls, (T,K,2) float64, in units of the box of 10×10."""
        places = _place(rng, self.num_balls)
        angles = rng.uniform(0, 2 * np.pi, self.num_balls)
        speeds = _BOX * self.speed * np.stack([np.cos(angles), np.sin(angles)], -1)
        track = np.empty((self.num_frames, self.num_balls, 2))
        for frame in track:
            frame[:] = places
            for _ in range(_STEPS_A_FRAME):
                places = places + speeds / _STEPS_A_FRAME
                # A ball beyond a wall moves inwards, whichever way it moved.
                speeds = np.where(places < _RADIUS, np.abs(speeds), speeds)
                speeds = np.where(places > _BOX - _RADIUS, -np.abs(speeds), speeds)
                _collide(places, speeds)
        return track


def _place(rng: np.random.Generator, count: int) -> np.ndarray:
    """Returns centres inside the box whose discs do not overlap, (K,2)."""
    for _ in range(_TRIES):
        places = rng.uniform(_RADIUS, _BOX - _RADIUS, (count, 2))
        distances = np.linalg.norm(places[:, None] - places[None], axis=-1)
        if (distances[~np.eye(count, dtype=bool)] >= 2 * _RADIUS).all():
            return places
    raise RuntimeError(f"num_balls: no room found for {count} balls in {_TRIES} draws")


def _collide(places: np.ndarray, speeds: np.ndarray) -> None:
    """Exchanges, in place, the speeds of touching balls along the line between their centres."""
    for i in range(len(places)):
        for j in range(i):
            between = places[i] - places[j]
            distance = float(np.hypot(*between))
            if not 0 < distance < 2 * _RADIUS:
                continue
            axis = between / distance
            closing = float((speeds[i] - speeds[j]) @ axis)
            if closing < 0:  # Balls that overlap and part already must not be drawn together.
                speeds[i] -= closing * axis
                speeds[j] += closing * axis


def _draw_discs(track: np.ndarray, size: int) -> np.ndarray:
    """Returns frames of soft discs, (T,S,S,1) uint8."""
    grid = (np.arange(size) + 0.5) * (_BOX / size)
    across = (grid[None, None] - track[..., :1]) ** 2  # (T,K,S), columns
    down = (grid[None, None] - track[..., 1:]) ** 2  # (T,K,S), rows
    squared = (down[..., :, None] + across[..., None, :]) / _RADIUS**2  # (T,K,S,S)
    light = np.minimum(np.exp(-(squared**4)).sum(1), 1.0)
    return np.round(255 * light).astype(np.uint8)[..., None]
