"""Atomic writing of files: complete or not at all."""

import os
import secrets
from collections.abc import Callable
from pathlib import Path


def write_atomically(path: str | os.PathLike[str], write: Callable[[Path], object]) -> None:
    """Writes a temporary file and renames it, so that a kill leaves no partial file.

    If several processes write the same file at once, the last rename wins.

    Args:
      path: of the file, in an existing folder.
      write: writes the complete file to the path that it is given.

    Raises:
      OSError: the file cannot be written; the temporary file is removed.
    """
    path = Path(path)
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}.unfinished")
    try:
        write(unfinished)
        with open(unfinished, "rb") as file:
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_text_atomically(path: str | os.PathLike[str], text: str) -> None:
    """Writes a text file, UTF-8, as ``write_atomically`` does."""
    write_atomically(path, lambda unfinished: unfinished.write_text(text, encoding="utf-8"))
