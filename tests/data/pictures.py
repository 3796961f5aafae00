"""Image arrays and empty files for tests."""

from pathlib import Path

import numpy as np


def random_image(height: int = 12, width: int = 10, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def touch(folder: Path, *names: str) -> None:
    """Creates empty files."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
