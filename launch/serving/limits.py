"""Limits of a server: what one request may cost, and how many may wait."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits of uploads, files and requests.

    Raises:
      ValueError: a limit that is not positive.
    """

    upload_bytes: int = 64 * 2**20
    """Largest body of an upload."""
    pixels: int = 50_000_000
    """Most pixels of a photograph, or of one frame."""
    clip_seconds: float = 120.0
    """Longest clip."""
    frames: int = 3600
    """Most frames of a clip that are decoded."""
    memory_bytes: int = 2 * 2**30
    """Address space that reading one file may take, beyond what the reader starts with."""
    request_seconds: float = 30.0
    """Longest time for one upload, and from the start of a request's work to its result."""
    queue: int = 32
    """Most requests that wait; further ones are refused."""
    concurrency: int = 2
    """Requests that are worked on at the same time."""
    stored_uploads: int = 32
    """Uploads of the largest size that are kept; further ones wait until old ones are deleted."""
    keep_seconds: float = 600.0
    """Time after which an upload is deleted."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not value > 0:
                raise ValueError(f"{field.name}: expected a positive number, received {value}")

    @property
    def stored_bytes(self) -> int:
        """Most bytes of all uploads together."""
        return self.stored_uploads * self.upload_bytes
