"""Writing of shards: many files or examples as the records of a few ArrayRecord files.

Which records a shard holds follows from the items alone, so that workers write shards in any order
and a conversion that was killed continues with the first one that is missing. The result is the
same byte for byte, whatever the number of workers and interruptions.

    FOLDER/data-00003-of-00016.arrayrecord          one record for each item
    FOLDER/.progress/…                              what is finished; gone at the end
    FOLDER/index.jsonl                              place, size and SHA-256 of each item
    FOLDER/manifest.json                            counts, SHA-256 of each shard, failed items
"""

import hashlib
import json
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from array_record.python import array_record_module
from filelock import FileLock, Timeout

from data.features import digest_file
from data.files import FORMAT, INDEX, MANIFEST, VERSION, manifest_text, read_manifest
from data.files import write_atomically as write_file
from data.loader import exit_with_parent

_PLAN, _PROGRESS = "plan.json", ".progress"


class Item(NamedTuple):
    """One file or example to be stored.

    Attributes:
      name: unique among all items; path of a file relative to the data set's folder.
      source: what ``Make`` reads, as the path of the file; picklable.
      size: bytes, by which items are spread over shards.
      changed: time of the last change, ns; a conversion of files that have changed since is neither
        continued nor taken for finished.
    """

    name: str
    source: Any
    size: int
    changed: int = 0


class Packed(NamedTuple):
    """A record, with the number of bytes that are stored of the item and their SHA-256."""

    record: bytes
    size: int
    sha256: str


Make = Callable[[Item], Packed]
"""Reads an item; picklable. An ``OSError`` or ``ValueError`` (or ``data.video.VideoError``) says
why the item cannot be stored; it is left out and named in the manifest."""


@dataclass(frozen=True)
class Written:
    """Content of the finished shards.

    Attributes:
      rows: of the index, in the order of the items: ``name``, ``shard``, ``row``, ``size`` and
        ``sha256``.
      failed: items that could not be stored, with ``file`` and ``reason``.
      shards: of the manifest: ``name``, ``files``, ``bytes`` and ``sha256``.
    """

    rows: tuple[dict[str, Any], ...]
    failed: tuple[dict[str, str], ...]
    shards: tuple[dict[str, Any], ...]


def write_shards(
    folder: str | os.PathLike[str],
    items: Sequence[Item],
    make: Make,
    *,
    described: Mapping[str, Any],
    finish: Callable[[Written], Mapping[str, Any]] | None = None,
    shard_bytes: int = 2**28,
    workers: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Stores items in shards, by parallel workers, and continues what was interrupted.

    Args:
      folder: of the result: new, empty, or one that the same call has begun.
      items: in the order of the records.
      make: packs one item.
      described: what the result depends on besides the items, for JSON, as ``kind``,
        ``preprocessing`` and a digest of the labels; part of the manifest.
      finish: called when all shards are there, before the manifest is written; returns further
        entries of it.
      shard_bytes: bytes of items in a shard, about.
      workers: processes; 0: this one.
      on_progress: called with (items done, items) after each shard.

    Returns:
      The manifest. A folder that is finished is left as it is.

    Raises:
      ValueError: no items, names that are not unique, a folder with something else or with the
        result of other or changed items, or no item that could be stored.
      RuntimeError: a worker was killed; the same call continues.
    """
    if shard_bytes < 1 or workers < 0:
        raise ValueError(
            f"shard_bytes, workers: expected at least 1 and 0, received {shard_bytes} and {workers}"
        )
    if not items:
        raise ValueError("items: expected at least one, received none")
    if len({item.name for item in items}) < len(items):
        raise ValueError("items: expected names of their own, received some twice")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    source = _digest([[item.name, item.size] for item in items], described, shard_bytes)
    changed = _digest([item.changed for item in items], source)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(f"{folder}: another conversion writes there; wait for its end") from None
    try:
        manifest = read_manifest(folder)
        if manifest is not None:
            if manifest["source_sha256"] != source:
                raise ValueError(
                    f"{folder}: expected a new folder, received the result of another conversion, "
                    "of other files or labels or with other options; give another --out"
                )
            if manifest["changed_sha256"] != changed:
                raise ValueError(
                    f"{folder}: expected a new folder, received the result of these files before "
                    "they were written anew; delete the folder, or give another --out"
                )
            return manifest
        _begin(folder, {"source": source, "changed": changed})
        written = _write_missing(folder, items, make, shard_bytes, workers, on_progress)
        if not written.rows:
            raise ValueError(
                f"{folder}: none of {len(items)} files could be stored; the first: "
                f"{written.failed[0]['file']}: {written.failed[0]['reason']}"
            )
        further = {} if finish is None else finish(written)
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in written.rows]
        index = "".join(lines).encode()
        write_file(folder / INDEX, lambda path: path.write_bytes(index))
        text = manifest_text(
            {
                "format": FORMAT,
                "version": VERSION,
                **described,
                "files": len(written.rows),
                "bytes": sum(row["size"] for row in written.rows),
                **further,
                "failed": written.failed,
                "shards": written.shards,
                "index_sha256": hashlib.sha256(index).hexdigest(),
                "source_sha256": source,
                "changed_sha256": changed,
            }
        )
        write_file(folder / MANIFEST, lambda path: path.write_text(text, encoding="utf-8"))
        shutil.rmtree(folder / _PROGRESS)
        manifest = read_manifest(folder)
        assert manifest is not None
        return manifest
    finally:
        lock.release()


def _begin(folder: Path, plan: Mapping[str, str]) -> None:
    """Begins a conversion, or finds the one that was interrupted; only the lock's holder may."""
    path = folder / _PROGRESS / _PLAN
    if path.is_file():
        begun = json.loads(path.read_bytes())
        if begun != plan:
            what = (
                "options, files or labels"
                if begun["source"] != plan["source"]
                else "files, changed"
            )
            raise ValueError(
                f"{folder}: an interrupted conversion with other {what} since is there; delete "
                "the folder, or give another --out"
            )
        for unfinished in folder.glob(".*.unfinished"):  # Of a dead writer.
            unfinished.unlink()
        return
    strange = [entry.name for entry in folder.iterdir() if entry.name not in (".lock", _PROGRESS)]
    if strange:
        raise ValueError(
            f"{folder}: expected a new or empty folder, received one with {sorted(strange)[0]}; "
            "give another --out"
        )
    path.parent.mkdir(exist_ok=True)
    write_file(path, lambda place: place.write_text(json.dumps(plan), encoding="utf-8"))


def _write_missing(
    folder: Path,
    items: Sequence[Item],
    make: Make,
    shard_bytes: int,
    workers: int,
    on_progress: Callable[[int, int], None] | None,
) -> Written:
    parts = plan_shards([item.size for item in items], shard_bytes)
    names = [f"data-{i:05d}-of-{len(parts):05d}.arrayrecord" for i in range(len(parts))]
    reports = [_read_report(folder, name) for name in names]
    done = sum(len(part) for part, report in zip(parts, reports, strict=True) if report)
    if on_progress is not None:
        on_progress(done, len(items))
    missing = [number for number, report in enumerate(reports) if report is None]
    tasks = ((n, folder / names[n], [items[i] for i in parts[n]]) for n in missing)
    for number, report in _run(tasks, make, min(workers, len(missing))):
        reports[number] = report
        done += len(parts[number])
        if on_progress is not None:
            on_progress(done, len(items))
    found = [report for report in reports if report is not None]
    return Written(
        tuple(row for report in found for row in report["rows"]),
        tuple(row for report in found for row in report["failed"]),
        tuple(
            {
                "name": name,
                "files": len(report["rows"]),
                "bytes": report["bytes"],
                "sha256": report["sha256"],
            }
            for name, report in zip(names, found, strict=True)
            if report["rows"]
        ),
    )


_Task = tuple[int, Path, Sequence[Item]]


def _run(tasks: Iterator[_Task], make: Make, workers: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields the number and the report of each shard as it is finished."""
    if workers == 0:
        for number, path, items in tasks:
            yield number, _write_shard(path, items, make)
        return
    context = multiprocessing.get_context("spawn")  # Decoders' threads do not survive a fork.
    with ProcessPoolExecutor(workers, context, initializer=_keep, initargs=(make,)) as executor:
        running: dict[Any, int] = {}
        try:
            while True:
                # No more than are worked on, so that few items wait in memory.
                while len(running) < 2 * workers and (task := next(tasks, None)) is not None:
                    number, path, items = task
                    running[executor.submit(_write_kept, path, items)] = number
                if not running:
                    return
                finished, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    yield running.pop(future), future.result()
        except BrokenProcessPool:
            raise RuntimeError(
                "a worker ended before its shard was written, as one that the system kills for "
                "want of memory; the same command continues, --workers=1 needs least memory"
            ) from None
        finally:
            for future in running:
                future.cancel()


_kept: list[Make] = []


def _keep(make: Make) -> None:
    exit_with_parent()
    _kept[:] = [make]


def _write_kept(path: Path, items: Sequence[Item]) -> dict[str, Any]:
    return _write_shard(path, items, _kept[0])


def _write_shard(path: Path, items: Sequence[Item], make: Make) -> dict[str, Any]:
    """Writes a shard and its report; items that cannot be read are in the report alone."""
    from data.video.decoding import VideoError

    rows: list[dict[str, Any]] = []
    failed: list[dict[str, str]] = []

    def write(place: Path) -> None:
        # Media are compressed already, and the bytes of a shard shall not depend on a compressor.
        writer = array_record_module.ArrayRecordWriter(str(place), "group_size:1,uncompressed")
        try:
            for item in items:
                try:
                    packed = make(item)
                except (OSError, ValueError, VideoError) as error:
                    reason = str(error).removeprefix(f"{item.source}: ")
                    failed.append({"file": item.name, "reason": reason})
                    continue
                place_of = {"name": item.name, "shard": path.name, "row": len(rows)}
                rows.append({**place_of, "size": packed.size, "sha256": packed.sha256})
                writer.write(packed.record)
        finally:
            writer.close()

    write_file(path, write)
    report: dict[str, Any] = {"rows": rows, "failed": failed, "bytes": 0, "sha256": ""}
    if rows:
        report |= {"bytes": path.stat().st_size, "sha256": digest_file(path)}
    else:
        path.unlink()
    text = json.dumps(report)
    progress = path.parent / _PROGRESS / f"{path.name}.json"
    write_file(progress, lambda place: place.write_text(text, encoding="utf-8"))
    return report


def _read_report(folder: Path, name: str) -> dict[str, Any] | None:
    """Returns the report of a finished shard; None if it has to be written."""
    path = folder / _PROGRESS / f"{name}.json"
    if not path.is_file():
        return None
    report: dict[str, Any] = json.loads(path.read_bytes())
    shard = folder / name
    if report["rows"] and not (shard.is_file() and shard.stat().st_size == report["bytes"]):
        return None
    return report


def plan_shards(sizes: Sequence[int], shard_bytes: int) -> list[range]:
    """Returns the items of each shard: in order, up to ``shard_bytes``, and at least one.

    >>> plan_shards([3, 3, 3, 9, 1], shard_bytes=6)
    [range(0, 2), range(2, 3), range(3, 4), range(4, 5)]
    """
    parts, first, total = [], 0, 0
    for index, size in enumerate(sizes):
        if index > first and total + size > shard_bytes:
            parts.append(range(first, index))
            first, total = index, 0
        total += size
    return [*parts, range(first, len(sizes))]


def _digest(*values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
