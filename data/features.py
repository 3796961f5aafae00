"""Cache of a frozen encoder's features on disk, in ArrayRecord files.

A frozen encoder returns the same features in every epoch, so it runs over the data once. The
cache's directory is named by a hash of everything that the features depend on and stores this
description: a cache of another encoder, or of other weights, preprocessing or data, is never read.

    ROOT/HASH/key.json                              everything that the features depend on
    ROOT/HASH/features-00003-of-00012.arrayrecord   one record per example

Damage is found when it is read: ``key.json`` ends in its own digest, ArrayRecord has checksums, and
each record holds the index of its example, so that swapped files are no other examples.

Each file is written under a temporary name and renamed when it is complete: after a kill, the same
call resumes with the first missing file. A lock on the directory admits one writer at a time.
"""

import functools
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python import array_record_data_source, array_record_module
from filelock import FileLock

from data.batches import Source
from data.files import find_stored, stored_digest, write_atomically
from data.loader import available_cpus

Encode = Callable[[np.ndarray], np.ndarray]
"""Frozen encoder of single frames: (n,H,W,3) uint8 in [0,255] to (n,...) float."""

_Example = Mapping[str, np.ndarray]

_FORMAT = 3

_HEADER_SIZE = 4  # bytes

_REQUIRED = ("encoder", "weights", "preprocessing", "source")


def digest_file(path: str | Path) -> str:
    """Returns the SHA-256 of a file, 64 hexadecimal digits; it identifies weights in a key.

    A process reads a file once, unless it changes: its videos are digested for several splits. The
    digest of a folder is that of the names and digests of its files, without hidden ones; that of a
    file in a shard (``data.files.find_stored``) is the stored file's, or that of its pictures.
    """
    if find_stored(path) is not None:
        return stored_digest(path)
    if os.path.isdir(path):
        names = sorted(name for name in os.listdir(path) if not name.startswith("."))
        files = [name for name in names if os.path.isfile(os.path.join(path, name))]
        listed = [[name, digest_file(os.path.join(path, name))] for name in files]
        return hashlib.sha256(json.dumps(listed).encode()).hexdigest()
    found = os.stat(path)
    return _digest(os.path.abspath(path), found.st_size, found.st_mtime_ns)


@functools.lru_cache(maxsize=1_000_000)
def _digest(path: str, size: int, changed: int) -> str:
    """Returns the digest of a file of this size and time of change."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_features(
    root: str | Path,
    examples: Source,
    encode: Encode,
    *,
    key: Mapping[str, Any],
    dtype: str = "float16",
    shard_size: int = 64,
    chunk: int = 32,
    on_progress: Callable[[int, int], None] | None = None,
) -> "FeatureSource":
    """Encodes every example once and stores the features; skips files that exist already.

    Args:
      root: directory of all caches, created if missing.
      examples: the source. Examples have ``image`` (H,W,3) uint8, or ``video`` (T,H,W,3) or
        (V,T,H,W,3) uint8 with ``lengths``; ``mask``; and other numeric arrays, which are stored
        unchanged.
      encode: the frozen encoder; called with all frames of one video, (T,H,W,3) or (V·T,H,W,3), or
        with ``chunk`` images, the last of which may be blank.
      key: everything that the features depend on, JSON-serialisable: at least ``encoder`` (its
        name), ``weights`` (their ``digest_file``), ``preprocessing`` and ``source`` (files and
        clips).
      dtype: stored type, 'float16' or 'float32'.
      shard_size: examples per file, >= 1; a kill loses at most so many. An existing cache keeps
        the value that it was started with.
      chunk: images encoded at once, >= 1, at most ``shard_size``. Videos are encoded one by one.
      on_progress: called with (examples done, examples) after each encoded example.

    Returns:
      The features as a source; frames beyond ``lengths``, and examples whose ``mask`` is False,
      are zero.

    Raises:
      ValueError: an incomplete key, another dtype, no examples, examples without pixels or with
        images of several sizes, an encoder that returns another number of features, features that
        are not finite in ``dtype``, or a directory that holds another key.
    """
    if shard_size < 1:
        raise ValueError(f"shard_size: expected at least 1, received {shard_size}")
    if chunk < 1:
        raise ValueError(f"chunk: expected at least 1, received {chunk}")
    if len(examples) == 0:
        raise ValueError("examples: expected at least one, received none")
    described = _describe(key, dtype, len(examples))
    directory = cache_directory(root, key, dtype=dtype, examples=len(examples))
    directory.mkdir(parents=True, exist_ok=True)
    with FileLock(directory / ".lock"):
        # Only the holder of the lock writes, so unfinished files belong to a dead writer.
        for unfinished in directory.glob(".*.unfinished"):  # names of write_atomically
            unfinished.unlink()
        header = directory / "key.json"
        if header.exists():
            stored = _read_header(directory)
            _require_same_key(directory, stored["key"], described)
            shard_size = stored["shard_size"]
        else:
            text = _header_text(described, shard_size)
            write_atomically(header, lambda path: path.write_bytes(text))
        chunk = min(chunk, shard_size, len(examples))
        for shard, path in enumerate(_shard_paths(directory, len(examples), shard_size)):
            if not path.exists():
                first = shard * shard_size
                indices = range(first, min(first + shard_size, len(examples)))

                def write(path: Path, indices: range = indices) -> None:
                    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
                    try:
                        for index, example in _encode_examples(
                            examples, indices, encode, dtype, chunk
                        ):
                            writer.write(pack_example(index, example))
                            if on_progress is not None:
                                on_progress(index + 1, len(examples))
                    finally:
                        writer.close()

                write_atomically(path, write)
    return FeatureSource(directory, described)


def find_features(
    root: str | Path, key: Mapping[str, Any], *, dtype: str = "float16", examples: int
) -> "FeatureSource | None":
    """Returns the complete cache of a key, or None; arguments as for ``write_features``.

    Raises:
      ValueError: as ``FeatureSource``.
    """
    directory = cache_directory(root, key, dtype=dtype, examples=examples)
    try:
        return FeatureSource(directory, _describe(key, dtype, examples))
    except FileNotFoundError:
        return None


class FeatureSource:
    """Random access to the stored features of one split; picklable.

    Examples are those of ``write_features`` with ``features`` (...), (T,...) or (V,T,...), float16
    or float32, in place of ``image`` or ``video``.

    Args:
      directory: a cache's directory (``cache_directory``).
      key: the complete stored description that is expected; None accepts any.

    Raises:
      FileNotFoundError: no cache there, or an unfinished one.
      ValueError: the cache has another key, or a file is damaged, which is named. Reading an
        example raises it, too, if its file is damaged or not in its place.
    """

    def __init__(self, directory: str | Path, key: Mapping[str, Any] | None = None):
        self.directory = Path(directory)
        header = _read_header(self.directory)
        self.key: dict[str, Any] = header["key"]
        if key is not None:
            _require_same_key(self.directory, self.key, key)
        paths = _shard_paths(self.directory, self.key["examples"], header["shard_size"])
        missing = [path.name for path in paths if not path.exists()]
        if missing:
            raise FileNotFoundError(
                f"{self.directory}: {len(missing)} of {len(paths)} files are not written yet, "
                f"first {missing[0]}; run the extraction again to resume it"
            )
        self._shard_size: int = header["shard_size"]
        try:
            self._records = array_record_data_source.ArrayRecordDataSource([str(p) for p in paths])
        except RuntimeError:
            for path in paths:  # One by one, since the error names no file.
                _count_records(path)
            raise
        if len(self._records) != len(self):
            for shard, path in enumerate(paths):
                expected = min(self._shard_size, len(self) - shard * self._shard_size)
                if (found := _count_records(path)) != expected:
                    raise _damaged(path, f"expected {expected} examples, received {found}")

    def __len__(self) -> int:
        return self.key["examples"]

    def __getitem__(self, index: int, /) -> dict[str, np.ndarray]:
        if not 0 <= index < len(self):
            raise IndexError(f"index: expected 0 to {len(self) - 1}, received {index}")
        try:
            number, example = unpack_example(self._records[index])
        except (RuntimeError, ValueError, OSError) as error:
            raise _damaged(self._path_of(index), f"example {index}: {error}") from error
        if number != index:
            raise _damaged(
                self._path_of(index),
                f"holds example {number} where {index} belongs, as if files were swapped",
            )
        return example

    def _path_of(self, index: int) -> Path:
        paths = _shard_paths(self.directory, len(self), self._shard_size)
        return paths[index // self._shard_size]


def cache_directory(
    root: str | Path, key: Mapping[str, Any], *, dtype: str = "float16", examples: int
) -> Path:
    """Returns the directory of a key's features; arguments and errors as for ``write_features``."""
    described = _describe(key, dtype, examples)
    canonical = json.dumps(described, sort_keys=True, separators=(",", ":"))
    return Path(root) / hashlib.sha256(canonical.encode()).hexdigest()[:24]


def _encode_examples(
    examples: Source, indices: range, encode: Encode, dtype: str, chunk: int
) -> Iterator[tuple[int, _Example]]:
    """Yields each index with its example, ``features`` in place of the pixels.

    Images are encoded in chunks while threads prefetch the next chunk; videos one by one.
    """
    first = examples[indices[0]]
    if "image" not in first:
        yield indices[0], _encode_video(first, encode, dtype, indices[0])
        for index in indices[1:]:
            yield index, _encode_video(examples[index], encode, dtype, index)
        return
    parts = [indices[start : start + chunk] for start in range(0, len(indices), chunk)]
    with ThreadPoolExecutor(max_workers=min(available_cpus(), 16)) as readers:
        prefetched = [readers.submit(examples.__getitem__, index) for index in parts[0]]
        for part, next_part in zip(parts, [*parts[1:], ()], strict=True):
            read = [example.result() for example in prefetched]
            prefetched = [readers.submit(examples.__getitem__, index) for index in next_part]
            yield from _encode_images(read, part, encode, dtype, chunk)


def _encode_images(
    examples: Sequence[_Example], indices: range, encode: Encode, dtype: str, chunk: int
) -> Iterator[tuple[int, _Example]]:
    expected = examples[0]["image"].shape
    for index, example in zip(indices, examples, strict=True):
        shape = example["image"].shape if "image" in example else None
        if shape != expected or len(expected) != 3:
            raise ValueError(
                f"image of example {index}: expected (H,W,3) as of example {indices[0]}, "
                f"{expected}, received shape {shape}"
            )
    # The last chunk is padded: a jitted encoder would be compiled again for another batch size.
    images = np.zeros((chunk, *expected), np.uint8)
    images[: len(examples)] = [example["image"] for example in examples]
    features = _call(encode, images)
    for index, example, encoded in zip(indices, examples, features, strict=False):
        valid = np.asarray(example["mask"])
        yield index, _with_features(example, encoded, valid, dtype, index)


def _encode_video(example: _Example, encode: Encode, dtype: str, index: int) -> _Example:
    if "video" not in example:
        raise ValueError(
            f"example {index}: expected 'image' or 'video', received {', '.join(example)}"
        )
    video = np.asarray(example["video"])  # (T,H,W,3) or (V,T,H,W,3)
    if video.ndim not in (4, 5):
        raise ValueError(
            f"video of example {index}: expected (T,H,W,3) or (V,T,H,W,3), "
            f"received shape {video.shape}"
        )
    leading = video.shape[:-3]
    encoded = _call(encode, video.reshape(-1, *video.shape[-3:]))
    encoded = encoded.reshape(*leading, *encoded.shape[1:])
    valid = np.arange(leading[-1]) < np.asarray(example["lengths"])[..., None]  # (T,) or (V,T)
    valid &= np.asarray(example["mask"])
    return _with_features(example, encoded, valid, dtype, index)


def _call(encode: Encode, frames: np.ndarray) -> np.ndarray:
    encoded = np.asarray(encode(frames))
    if encoded.ndim < 2 or len(encoded) != len(frames):
        raise ValueError(
            f"encode: expected ({len(frames)},...) features of {len(frames)} frames, "
            f"received shape {encoded.shape}"
        )
    return encoded


def _with_features(
    example: _Example, encoded: np.ndarray, valid: np.ndarray, dtype: str, index: int
) -> _Example:
    """Returns the example with ``features`` in place of its pixels, zero where not ``valid``."""
    valid = valid.reshape(*valid.shape, *(1,) * (encoded.ndim - valid.ndim))
    with np.errstate(over="ignore"):
        features = np.where(valid, encoded, 0).astype(dtype)
    if not np.isfinite(features).all():
        raise ValueError(
            f"features of example {index} are not finite in {dtype}: "
            f"the largest is {np.abs(encoded).max():.3g}"
        )
    others = {
        name: np.asarray(array) for name, array in example.items() if name not in ("image", "video")
    }
    return {"features": features, **others}


def _describe(key: Mapping[str, Any], dtype: str, examples: int) -> dict[str, Any]:
    lacking = [name for name in _REQUIRED if name not in key]
    if lacking:
        raise ValueError(f"key: expected {', '.join(_REQUIRED)}; lacks {', '.join(lacking)}")
    if dtype not in ("float16", "float32"):
        raise ValueError(f"dtype: expected 'float16' or 'float32', received {dtype!r}")
    described = {**key, "dtype": dtype, "examples": examples, "format": _FORMAT}
    try:
        # Through JSON and back, so that it compares equal to the key read from the file.
        plain: dict[str, Any] = json.loads(json.dumps(described, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"key: expected values that JSON can hold ({error})") from None
    return plain


def pack_example(index: int, example: Mapping[str, np.ndarray]) -> bytes:
    """Serialises an example: header length, JSON header, raw arrays.

    The header is ``[index, [[name, dtype, shape], …]]``.
    """
    # NumPy's own archives take eight times as long to read, half of the total time per record.
    arrays = {name: np.asarray(array) for name, array in example.items()}
    if objects := [name for name, array in arrays.items() if array.dtype.hasobject]:
        raise ValueError(f"examples: expected numeric arrays, received objects in {objects}")
    described = [[name, a.dtype.str, a.shape] for name, a in arrays.items()]
    header = json.dumps([index, described]).encode()
    size = len(header).to_bytes(_HEADER_SIZE, "little")
    return b"".join([size, header, *(array.tobytes() for array in arrays.values())])


def unpack_example(record: bytes) -> tuple[int, dict[str, np.ndarray]]:
    """Returns the index and the example that ``pack_example`` has serialised."""
    start = _HEADER_SIZE + int.from_bytes(record[:_HEADER_SIZE], "little")
    index, described = json.loads(record[_HEADER_SIZE:start])
    example = {}
    for name, dtype, shape in described:
        flat = np.frombuffer(record, dtype, math.prod(shape), start)
        example[name] = flat.reshape(shape).copy()
        start += flat.nbytes
    return index, example


def _header_text(key: Mapping[str, Any], shard_size: int) -> bytes:
    """Returns the text of ``key.json``, whose digest finds any other byte in it."""
    content = {"key": key, "shard_size": shard_size}
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    return json.dumps({**content, "sha256": digest}, indent=1).encode()


def _read_header(directory: Path) -> dict[str, Any]:
    path = directory / "key.json"
    if not path.exists():
        raise FileNotFoundError(f"{directory}: expected a cache of features with its key.json")
    text = path.read_bytes()
    try:
        header: dict[str, Any] = json.loads(text)
        if _header_text(header["key"], header["shard_size"]) == text:
            return header
        reason = "its digest differs"
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}"
    raise ValueError(
        f"{path}: damaged ({reason}), so it is unknown what the features are of; delete the "
        "directory and extract again"
    )


def _count_records(path: Path) -> int:
    try:
        return len(array_record_data_source.ArrayRecordDataSource([str(path)]))
    except RuntimeError as error:
        raise _damaged(path, str(error)) from error


def _damaged(path: Path, reason: str) -> ValueError:
    return ValueError(
        f"{path}: damaged ({reason or 'no ArrayRecord file'}); delete the file and extract again, "
        "which writes the missing one"
    )


def _require_same_key(directory: Path, stored: Mapping[str, Any], key: Mapping[str, Any]) -> None:
    names = sorted(n for n in {*stored, *key} if stored.get(n) != key.get(n))
    if names:
        differences = "; ".join(f"{n}: {stored.get(n)!r} there, {key.get(n)!r} here" for n in names)
        raise ValueError(f"{directory} holds the features of something else: {differences}")


def _shard_paths(directory: Path, examples: int, shard_size: int) -> list[Path]:
    shards = -(-examples // shard_size)
    return [directory / f"features-{i:05d}-of-{shards:05d}.arrayrecord" for i in range(shards)]
