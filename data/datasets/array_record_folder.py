"""Converted data sets: their checksums, and sources of stored examples.

``python -m data.convert`` writes a folder of shards, with the lists of the data set beside them;
the readers of labelled files, captions and lines read it as they would the original, by the names
of the files (``data.files.find_files``). What is stored of an arbitrary source is read here.
"""

import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

import numpy as np

from data.datasets.list_file import some
from data.features import digest_file, unpack_example
from data.files import find_stored, read_index, read_manifest, read_packed
from data.loader import available_cpus

MODES = ("fail", "skip", "trust")
"""Treatments of shards with a wrong checksum: an error, left out with a count, or not looked for.
A damaged record is found in any case when it is read, by ArrayRecord's own checksums."""


class _Files(Protocol):
    """Files in tuples of equal length, as ``LabelledFiles`` and ``TextLines``."""

    @property
    def paths(self) -> tuple[str, ...]: ...

    @property
    def notes(self) -> tuple[str, ...]: ...

    def take(self, indices: Sequence[int]) -> Self: ...


F = TypeVar("F", bound=_Files)


def find_bad_shards(root: str | os.PathLike[str]) -> dict[str, str]:
    """Returns the shards of a converted folder that are not those of its manifest, with a reason.

    All shards are read, once in a process.

    Raises:
      FileNotFoundError: no converted folder.
      ValueError: a damaged manifest, or one of another version.
    """
    manifest = read_manifest(root)
    if manifest is None:
        raise FileNotFoundError(f"{root}: expected a converted folder with its manifest.json")
    with ThreadPoolExecutor(min(available_cpus() + 1, 16)) as executor:
        shards = manifest["shards"]
        reasons = list(executor.map(functools.partial(_why_bad, Path(root)), shards))
    return {s["name"]: reason for s, reason in zip(shards, reasons, strict=True) if reason}


def _why_bad(root: Path, shard: Mapping[str, Any]) -> str:
    path = root / shard["name"]
    if not path.is_file():
        return "missing"
    if (size := path.stat().st_size) != shard["bytes"]:
        return f"{size:,} bytes instead of {shard['bytes']:,}"
    return "" if digest_file(path) == shard["sha256"] else "wrong checksum"


def bad_positions(paths: Sequence[str], mode: str) -> tuple[list[int], str]:
    """Returns the positions of files that lie in bad shards, and a sentence that counts them.

    Args:
      paths: files, of which some may be stored in shards.
      mode: one of ``MODES``.

    Raises:
      ValueError: an unknown mode; or bad shards, which it names, with ``mode`` "fail".
    """
    if mode not in MODES:
        raise ValueError(f"bad_shards: expected {', '.join(MODES)}, received {mode!r}")
    stored = [find_stored(path) for path in paths]
    folders = sorted({os.path.dirname(found.shard) for found in stored if found is not None})
    converted = [folder for folder in folders if read_manifest(folder) is not None]
    if mode == "trust" or not converted:
        return [], ""
    bad = {
        os.path.join(folder, name): reason
        for folder in converted
        for name, reason in find_bad_shards(folder).items()
    }
    if not bad:
        return [], ""
    told = some([f"{name} ({reason})" for name, reason in bad.items()])
    if mode == "fail":
        raise ValueError(
            f"bad_shards: {len(bad)} shards are not as they were written: {told}; copy or convert "
            "them again, or leave their files out by --config.data.bad_shards=skip"
        )
    lost = [i for i, found in enumerate(stored) if found is not None and found.shard in bad]
    return lost, (
        f"{len(lost)} of {len(paths)} files were left out with {len(bad)} shards that are not as "
        f"they were written: {told}"
    )


def keep_whole_shards(files: F, mode: str) -> F:
    """Returns the files without those of bad shards, and with a note that counts these.

    Args:
      files: ``LabelledFiles`` or ``TextLines``.
      mode: one of ``MODES``.

    Raises:
      ValueError: as ``bad_positions``, or no file is left.
    """
    lost, note = bad_positions(files.paths, mode)
    if not lost:
        return files
    left = sorted(set(range(len(files.paths))) - set(lost))
    if not left:
        raise ValueError(f"bad_shards: {note}; none is left")
    kept: Any = files.take(left)
    whole: F = dataclasses.replace(kept, notes=(*files.notes, note))
    return whole


class StoredExamples:
    """Random access to the examples of one split that ``data.convert.convert_sources`` stored.

    Picklable: a worker opens the shards by itself.

    Args:
      root: the converted folder.
      split: name of the split.
      bad_shards: one of ``MODES``.

    Raises:
      FileNotFoundError: no converted folder.
      ValueError: another kind of data, no such split, or bad shards with ``bad_shards`` "fail".
    """

    def __init__(self, root: str | os.PathLike[str], split: str, *, bad_shards: str = "fail"):
        index = read_index(root)
        manifest = read_manifest(root) or {}
        if manifest["kind"] != "examples":
            raise ValueError(
                f"{root}: expected stored examples, received a converted data set of the kind "
                f"{manifest['kind']}, which the experiments read by --config.data.root"
            )
        splits = sorted(manifest["splits"])
        if split not in splits:
            raise ValueError(f"split: expected one of {', '.join(splits)}, received {split!r}")
        self.root, self.split = str(root), split
        paths = [
            os.path.join(root, entry["shard"], str(entry["row"]), name)
            for name, entry in index.items()
            if name.rpartition("/")[0] == split
        ]
        lost, self.note = bad_positions(paths, bad_shards)
        left_out = set(lost)
        self.paths = tuple(path for i, path in enumerate(paths) if i not in left_out)
        if not self.paths:
            raise ValueError(f"bad_shards: {self.note}; none is left")

    def __len__(self) -> int:
        return len(self.paths)

    def __repr__(self) -> str:
        # grain compares sources by it when it restores an iterator.
        return f"StoredExamples({self.root!r}, {self.split!r}, {len(self)})"

    def __getitem__(self, index: int, /) -> dict[str, np.ndarray]:
        """Returns an example as it was stored.

        Raises:
          IndexError: the index is out of range.
          OSError: its record is damaged.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"index: expected 0 to {len(self) - 1}, received {index}")
        number, example = unpack_example(read_packed(self.paths[index]))
        name = self.paths[index].rpartition("/")[2]
        if number != int(name):
            raise OSError(f"{self.paths[index]}: holds example {number}, as if shards were swapped")
        return example
