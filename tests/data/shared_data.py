"""Real data beside the repository, which tests use where they are."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3] / "shared" / "data"


def shared(name: str) -> Path:
    """Returns a file or folder of the shared data; skips the test where it is missing."""
    path = ROOT / name
    if not path.exists():
        pytest.skip(f"{path} is missing")
    return path
