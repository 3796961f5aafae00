"""Digests of a checkpoint's files, so that damage is found before it is trained on."""

import hashlib
import json
from pathlib import Path

FILE = "digests.json"
# Orbax writes these once more when it puts the folder in its place.
_UNSETTLED = ("_CHECKPOINT_METADATA", "commit_success.txt")


def write_digests(folder: Path) -> None:
    """Writes ``digests.json``: SHA-256 of every file in ``folder``, by its path in it."""
    digests = {
        path.relative_to(folder).as_posix(): _digest(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in _UNSETTLED
    }
    (folder / FILE).write_text(json.dumps(digests, indent=1) + "\n")


def damaged_files(folder: Path, under: str = "") -> list[str]:
    """What in ``folder`` differs from its digest or is missing.

    Digests that cannot be read are themselves damaged, where all of the folder is asked for.

    A folder without any, as older versions wrote it, passes.

    Args:
      folder: of one checkpoint.
      under: only paths that begin so.
    """
    if not (folder / FILE).exists():
        return []
    try:
        digests = dict(json.loads((folder / FILE).read_text()))
    except ValueError:
        return [] if under else [FILE]
    return [
        name
        for name, digest in digests.items()
        if name.startswith(under)
        and not ((folder / name).is_file() and _digest(folder / name) == digest)
    ]


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
