"""Small file systems in memory, for tests of full and of damaged disks."""

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def mounted(path: Path, options: str = "size=2m") -> Iterator[Path]:
    """Mounts a file system in memory at a new folder; skips the test where that is not allowed."""
    path.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("no mount")
    if "superuser" in done.stderr or "denied" in done.stderr or "not permitted" in done.stderr:
        pytest.skip(f"mounting is not allowed: {done.stderr}")
    assert done.returncode == 0, done.stderr  # Another failure, as of wrong options, is no reason.
    try:
        yield path
    finally:
        # Lazily: a process that was killed may not have left the folder yet.
        subprocess.run(["umount", "--lazy", str(path)], check=True)
