"""Reads PyTorch's ``.pth`` files without PyTorch, and without executing anything in them.

A ``.pth`` file is a pickle that describes tensors, and the raw numbers beside it. Both formats of
``torch.save`` are read: the zip archive (PyTorch >= 1.6) and the older sequence of pickles followed
by the storages. Format: ``torch/serialization.py`` of PyTorch; the pickle: ``tensor_pickle.py``.
"""

import io
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from flaxnets.encoders.tensor_pickle import (
    STORAGE_DTYPES,
    Global,
    PthError,
    UnsafePickleError,
    interpret,
)

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_ZIP_MAGIC = b"PK\x03\x04"


def read_pth(path: str | Path) -> dict[Any, Any]:
    """Reads a file written by ``torch.save``, typically a ``state_dict``.

    Args:
      path: the ``.pth`` (``.pt``) file, zip or legacy format, little-endian.

    Returns:
      The dictionary in the file: names to arrays, or to nested dictionaries, lists and tuples of
      arrays and scalars. Arrays have the tensor's shape and dtype (bfloat16 as ``jnp.bfloat16``),
      are read-only, and may be non-contiguous; tensors that shared memory still do.

    Raises:
      FileNotFoundError: no such file.
      UnsafePickleError: the file names a global that is neither a tensor nor a container, or uses
        an opcode that only objects with code need. Nothing of it has been executed.
      PthError: not a ``.pth`` file, truncated, or with tensors that reach beyond their storage.
    """
    content = Path(path).read_bytes()
    try:
        if content.startswith(_ZIP_MAGIC):
            state = _read_zip(content)
        else:
            state = _read_legacy(content)
        if not isinstance(state, dict):
            raise PthError(f"expected a dictionary of tensors, received {type(state).__name__}")
    except PthError as error:
        raise type(error)(f"{path}: {error}") from None
    return state


def _read_zip(content: bytes) -> Any:
    """Reads the zip format: NAME/data.pkl, and one uncompressed member NAME/data/KEY a storage."""
    try:
        archive = zipfile.ZipFile(io.BytesIO(content))
        pickles = [n for n in archive.namelist() if n == "data.pkl" or n.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise PthError(f"expected one data.pkl in the zip archive, found {len(pickles)}")
        root = pickles[0].removesuffix("data.pkl")
        if f"{root}byteorder" in archive.namelist():
            _require_little_endian(_read_member(archive, f"{root}byteorder") == b"little")
        storages: dict[str, np.ndarray] = {}
        claimed = 0

        def load(persistent_id: Any) -> np.ndarray:
            nonlocal claimed
            key, dtype, numel = _parse_storage_id(persistent_id, fields=5)
            if key not in storages:
                data = _read_member(archive, f"{root}data/{key}")
                claimed += len(data)
                if claimed > len(content):
                    raise PthError("members of the zip archive overlap")
                if len(data) < numel * dtype.itemsize:
                    raise PthError(
                        f"storage {key!r}: expected {numel} elements of {dtype}, "
                        f"received {len(data)} bytes"
                    )
                storages[key] = np.frombuffer(data, dtype, numel)
            return _same_storage(storages[key], key, dtype, numel)

        return interpret(io.BytesIO(_read_member(archive, pickles[0])), load)
    except (zipfile.BadZipFile, NotImplementedError, EOFError, struct.error) as error:
        raise PthError(f"the zip archive is truncated or damaged ({error})") from None


def _read_member(archive: zipfile.ZipFile, name: str) -> bytes:
    try:
        info = archive.getinfo(name)
    except KeyError:
        raise PthError(f"the zip archive lacks {name!r}") from None
    # torch.save never compresses; a compressed member could grow without bound.
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
        raise PthError(f"{name!r} is compressed or encrypted, which torch.save never does")
    try:
        return archive.read(info)
    except (ValueError, OSError) as error:  # A damaged entry may point anywhere.
        raise PthError(f"{name!r} cannot be read from the zip archive ({error})") from None


def _read_legacy(content: bytes) -> Any:
    """Reads the format before PyTorch 1.6: five pickles, then the storages in the fifth's order."""
    stream = io.BytesIO(content)
    no_storages = _refuse_persistent_id
    magic = interpret(stream, no_storages)
    if type(magic) is not int or magic != _LEGACY_MAGIC:
        raise PthError("not a file of torch.save: neither a zip archive nor its older format")
    protocol = interpret(stream, no_storages)
    if protocol != _LEGACY_PROTOCOL:
        raise PthError(f"expected version {_LEGACY_PROTOCOL} of the older format, found another")
    system = interpret(stream, no_storages)
    _require_little_endian(isinstance(system, dict) and system.get("little_endian") is True)

    storages: dict[str, np.ndarray] = {}
    claimed = 0

    def load(persistent_id: Any) -> np.ndarray:
        nonlocal claimed
        key, dtype, numel = _parse_storage_id(persistent_id, fields=6)
        if key not in storages:
            claimed += numel * dtype.itemsize
            if claimed > len(content):
                raise PthError(
                    f"truncated: the storages need {claimed} bytes, the file has {len(content)}"
                )
            # Tensors are views of the storage, which is filled below: its bytes come last.
            storages[key] = np.zeros(numel, dtype)
        return _same_storage(storages[key], key, dtype, numel)

    state = interpret(stream, load)
    keys = interpret(stream, no_storages)
    if (
        not isinstance(keys, list)
        or not all(isinstance(key, str) for key in keys)
        or sorted(keys) != sorted(storages)
    ):
        raise PthError("the list of storages does not match the storages that the tensors use")
    for key in keys:
        storage = storages[key]
        header = stream.read(8)
        data = stream.read(storage.nbytes)
        if len(header) < 8 or len(data) < storage.nbytes:
            raise PthError(
                f"truncated: storage {key!r} needs {8 + storage.nbytes} bytes, "
                f"{len(header) + len(data)} are left"
            )
        if struct.unpack("<q", header)[0] != storage.size:
            raise PthError(f"storage {key!r} has another size than its tensors expect")
        storage[...] = np.frombuffer(data, storage.dtype)
    return state


def _require_little_endian(is_little_endian: bool) -> None:
    if not is_little_endian:
        raise PthError("expected little-endian numbers; the file was written on another machine")


def _refuse_persistent_id(persistent_id: Any) -> np.ndarray:
    raise PthError("a storage is named where the format has none")


def _parse_storage_id(persistent_id: Any, fields: int) -> tuple[str, np.dtype[Any], int]:
    """Reads ('storage', type, key, location, elements[, None]) into key, dtype and elements."""
    match persistent_id:
        case ("storage", Global(name), str(key), str(), int(numel), *view):
            if name in STORAGE_DTYPES and numel >= 0 and view == [None] * (fields - 5):
                return key, STORAGE_DTYPES[name], numel
    raise UnsafePickleError("a persistent id of unknown kind: only tensors' storages are read")


def _same_storage(storage: np.ndarray, key: str, dtype: np.dtype[Any], numel: int) -> np.ndarray:
    if storage.dtype != dtype or storage.size != numel:
        raise PthError(f"storage {key!r} is named with two different types or sizes")
    return storage
