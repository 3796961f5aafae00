"""Atomic writing of files."""

import os
import secrets
from collections.abc import Callable
from pathlib import Path


def write_atomically(path: str | os.PathLike[str], write: Callable[[Path], object]) -> None:
    """Writes a file under a temporary name and renames it, so a kill leaves no partial file.

    Several processes may write the same file at once; the last rename wins.

    Args:
      path: the target, in an existing folder.
      write: called with the temporary path; writes the complete file there.

    Raises:
      OSError: the file, which it names, cannot be written; the temporary file is removed.
    """
    path = Path(path)
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}.unfinished")
    try:
        write(unfinished)
        with open(unfinished, "rb") as file:
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        # Python names no file where a write fails, as on a full disk.
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        unfinished.unlink(missing_ok=True)
