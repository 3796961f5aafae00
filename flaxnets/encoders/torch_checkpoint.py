"""Reader of PyTorch's ``.pth`` files without PyTorch, which executes nothing in them.

A ``.pth`` file is a pickle that describes tensors, and the raw numbers beside it. Both formats of
``torch.save`` are read: the zip archive (PyTorch >= 1.6) and the older sequence of pickles followed
by the storages.

Security: unpickling calls whatever the pickle names, and even an unpickler with a list of allowed
globals lets a file set attributes of the objects that it may build. Here the opcodes are read by an
interpreter that cannot import, call or set an attribute: it builds dictionaries, lists, tuples and
scalars, and NumPy views of storages where the file asks for a tensor. A global is a name that is
compared with the few known ones; everything else is refused with ``UnsafePickleError``. Sizes are
checked against the length of the file before memory is allocated, and every tensor against the
bounds of its storage.

Formats: ``torch/serialization.py`` and ``torch/_utils.py`` of PyTorch; opcodes: ``pickletools`` of
Python's library.
"""

import io
import math
import pickletools
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import jax.numpy as jnp
import numpy as np

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_ZIP_MAGIC = b"PK\x03\x04"

STORAGE_DTYPES: dict[str, np.dtype[Any]] = {
    "torch.DoubleStorage": np.dtype("<f8"),
    "torch.FloatStorage": np.dtype("<f4"),
    "torch.HalfStorage": np.dtype("<f2"),
    "torch.BFloat16Storage": np.dtype(jnp.bfloat16),
    "torch.LongStorage": np.dtype("<i8"),
    "torch.IntStorage": np.dtype("<i4"),
    "torch.ShortStorage": np.dtype("<i2"),
    "torch.CharStorage": np.dtype("i1"),
    "torch.ByteStorage": np.dtype("u1"),
    "torch.BoolStorage": np.dtype("?"),
}
_CONSTRUCTORS = frozenset(
    {
        "collections.OrderedDict",
        "torch.Size",
        "torch._utils._rebuild_parameter",
        "torch._utils._rebuild_tensor_v2",
    }
)

_LITERALS = frozenset(
    {
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
        *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    }
)
_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class PthError(ValueError):
    """Error: not a ``.pth`` file, or a damaged or inconsistent one."""


class UnsafePickleError(PthError):
    """Error: the ``.pth`` file asks for something other than tensors and containers."""


class Global(NamedTuple):
    """Name of an allowed global: text to compare with, not the object it names."""

    name: str


PersistentLoad = Callable[[Any], np.ndarray]
"""A persistent id of the pickle to the storage (elements,) that it names."""


def read_pth(path: str | Path) -> dict[Any, Any]:
    """Reads a file written by ``torch.save``, typically a ``state_dict``, executing nothing in it.

    Args:
      path: the ``.pth`` (``.pt``) file, zip or legacy format, little-endian.

    Returns:
      The dictionary in the file: names to arrays, or to nested dictionaries, lists and tuples of
      arrays and scalars. Arrays have the tensor's shape and dtype (bfloat16 as ``jnp.bfloat16``),
      are read-only, and may be non-contiguous; tensors that shared memory still do.

    Raises:
      FileNotFoundError: no such file.
      UnsafePickleError: the file names a global that is neither a tensor nor a container, or uses
        an opcode that only other objects need. Nothing in it has been executed.
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
    """Parses ('storage', type, key, location, elements[, None]) to key, dtype and elements."""
    match persistent_id:
        case ("storage", Global(name), str(key), str(), int(numel), *view):
            if name in STORAGE_DTYPES and numel >= 0 and view == [None] * (fields - 5):
                return key, STORAGE_DTYPES[name], numel
    raise UnsafePickleError("a persistent id of unknown kind: only tensors' storages are read")


def _same_storage(storage: np.ndarray, key: str, dtype: np.dtype[Any], numel: int) -> np.ndarray:
    if storage.dtype != dtype or storage.size != numel:
        raise PthError(f"storage {key!r} is named with two different types or sizes")
    return storage


def interpret(stream: BinaryIO, load: PersistentLoad) -> Any:
    """Interprets one pickle and leaves the stream just behind it.

    Args:
      stream: of the file.
      load: returns the storage for a persistent id.

    Returns:
      Dictionaries, lists, tuples, scalars and read-only arrays.

    Raises:
      UnsafePickleError: an opcode or a global that tensors and containers do not need.
      PthError: a damaged or truncated pickle.
    """
    try:
        with warnings.catch_warnings():
            # Python warns about invalid escapes in damaged names; they need no warning here.
            warnings.simplefilter("ignore", DeprecationWarning)
            return _run(stream, load)
    except PthError:
        raise
    except (ValueError, IndexError, KeyError, TypeError, OverflowError) as error:
        raise PthError(f"not a pickle of torch.save, or damaged ({error!s:.200})") from None


def _run(stream: BinaryIO, load: PersistentLoad) -> Any:
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[Any, Any] = {}

    def pop_to_mark() -> list[Any]:
        begin = marks.pop()
        if begin > len(stack):
            raise PthError("the pickle takes more from its stack than it put there")
        operands = stack[begin:]
        del stack[begin:]
        return operands

    argument: Any
    for opcode, argument, _ in pickletools.genops(stream):
        match opcode.name:
            case "PROTO" | "FRAME":
                pass
            case name if name in _LITERALS:
                stack.append(argument)
            case name if name in _CONSTANTS:
                stack.append(_CONSTANTS[name])
            case "MARK":
                marks.append(len(stack))
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "DICT":
                stack.append(_set_items({}, pop_to_mark()))
            case "LIST":
                stack.append(pop_to_mark())
            case "TUPLE":
                stack.append(tuple(pop_to_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3" as name:
                operands = [stack.pop() for _ in range(_TUPLES[name])]
                stack.append(tuple(reversed(operands)))
            case "APPEND":
                value = stack.pop()
                _require(list, stack[-1]).append(value)
            case "APPENDS":
                values = pop_to_mark()
                _require(list, stack[-1]).extend(values)
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                _set_items(_require(dict, stack[-1]), [key, value])
            case "SETITEMS":
                operands = pop_to_mark()
                _set_items(_require(dict, stack[-1]), operands)
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "GLOBAL" | "INST":
                # INST would also call the global: _allowed_global always refuses it.
                stack.append(_allowed_global(argument.replace(" ", "."), opcode.name))
            case "STACK_GLOBAL":
                attribute, module = _require(str, stack.pop()), _require(str, stack.pop())
                stack.append(_allowed_global(f"{module}.{attribute}", opcode.name))
            case "BINPERSID":
                stack.append(load(stack.pop()))
            case "REDUCE":
                arguments, function = stack.pop(), stack.pop()
                stack.append(_construct(function, arguments))
            case "BUILD":
                # BUILD sets attributes. A state_dict uses it for its version (``_metadata``) only,
                # which is dropped.
                stack.pop()
                _require(dict, stack[-1])
            case "STOP":
                if len(stack) != 1:
                    raise PthError("the pickle leaves more than one object")
                return stack.pop()
            case name:
                raise UnsafePickleError(
                    f"refused pickle opcode {name}, which tensors and containers do not need"
                )
    raise PthError("truncated: the pickle has no end")


def _allowed_global(name: str, opcode: str) -> Global:
    if opcode == "INST" or (name not in _CONSTRUCTORS and name not in STORAGE_DTYPES):
        raise UnsafePickleError(
            f"refused global {name!r}: only tensors and containers are read, nothing is executed"
        )
    return Global(name)


def _require(kind: type, value: Any) -> Any:
    if not isinstance(value, kind):
        raise UnsafePickleError(f"refused a {type(value).__name__} where a {kind.__name__} belongs")
    return value


def _set_items(target: dict[Any, Any], operands: list[Any]) -> dict[Any, Any]:
    for key, value in zip(operands[::2], operands[1::2], strict=True):
        # Only scalars: hashing a tuple nested a million times would overflow the C stack.
        if not isinstance(key, str | int | float | bytes | None):
            raise PthError(f"expected text or numbers as keys, received {type(key).__name__}")
        target[key] = value
    return target


def _construct(function: Any, arguments: Any) -> Any:
    """Builds the tensor or container that the file asks for by name."""
    match function, arguments:
        case Global("collections.OrderedDict"), ():
            return {}
        case Global("collections.OrderedDict"), (list(pairs),):
            return _set_items({}, [item for key, value in pairs for item in (key, value)])
        case Global("torch.Size"), (tuple(size),):
            return size
        case Global("torch._utils._rebuild_parameter"), (np.ndarray() as array, *_):
            return array
        case (
            Global("torch._utils._rebuild_tensor_v2"),
            (np.ndarray() as storage, int(offset), tuple(size), tuple(stride), *_),
        ):
            return _make_view(storage, offset, size, stride)
    name = function.name if isinstance(function, Global) else type(function).__name__
    raise UnsafePickleError(f"refused to construct {name!r} from the arguments in the file")


def _make_view(
    storage: np.ndarray, offset: int, size: tuple[Any, ...], stride: tuple[Any, ...]
) -> np.ndarray:
    """Returns a read-only view of a storage, after checking that no element lies outside it."""
    if storage.ndim != 1 or len(size) != len(stride) or len(size) > 32:
        raise PthError("a tensor's size and strides have different or too many axes")
    numbers = (offset, *size, *stride)
    if any(type(n) is not int or n < 0 for n in numbers):
        raise PthError("a tensor's offset, size and strides must be integers from 0 on")
    # The stride of an axis of length 0 or 1 is never used and may be any number.
    stride = tuple(s if n > 1 else 0 for n, s in zip(size, stride, strict=True))
    elements = math.prod(size)
    last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
    if elements > storage.size or (elements and last >= storage.size):
        raise PthError(
            f"a tensor of size {size}, strides {stride} and offset {offset} "
            f"reaches beyond its storage of {storage.size} elements"
        )
    return np.lib.stride_tricks.as_strided(
        storage[offset:] if elements else storage[:0],
        size,
        [s * storage.itemsize for s in stride],
        writeable=False,
    )
