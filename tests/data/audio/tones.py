"""Tones for tests of sound."""

import numpy as np

RATE = 16_000


def tone(frequency: float, seconds: float = 1.0, rate: int = RATE) -> np.ndarray:
    """Returns a sine of amplitude 0.5, (seconds·rate,) float32."""
    return (0.5 * np.sin(2 * np.pi * frequency * np.arange(int(seconds * rate)) / rate)).astype(
        np.float32
    )
