"""Reader of PyTorch's ``.pth`` files without PyTorch, which executes nothing in them.

A ``.pth`` file is a pickle that describes tensors, and the raw numbers beside it. Both formats of
``torch.save`` are read: the zip archive (PyTorch >= 1.6) and the older sequence of pickles followed
by the storages.

Security: unpickling calls whatever the pickle names, and even an unpickler with a list of allowed
globals lets a file set attributes of the objects that it may build. Here the opcodes are read by an
interpreter that cannot import, call or set an attribute: it builds dictionaries, lists, tuples and
scalars, and NumPy views of storages where the file asks for a tensor. A global is a name that is
compared with the few known ones. Checkpoints hold other objects beside the weights (a
``Namespace`` of flags, a ``torch.float32``): such an object becomes a ``Skipped``, which knows its
class's name and nothing else. A tensor that needs an unknown global is refused, and so is every
file that names what only an attack needs, as ``os.system``. Sizes are checked against the length
of the file before memory is allocated, every tensor against the bounds of its storage, and
integers by their number of bits before anything is computed with them.

Formats: ``torch/serialization.py`` and ``torch/_utils.py`` of PyTorch; opcodes: ``pickletools`` of
Python's library.
"""

import dataclasses
import io
import logging
import math
import pickletools
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO

import jax.numpy as jnp
import numpy as np

logger = logging.getLogger(__name__)

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_ZIP_MAGIC = b"PK\x03\x04"
# Offset, bytes and description of what else is found under the names of checkpoints.
_FOREIGN = (
    (257, b"ustar", "a tar archive (of PyTorch before 0.1.10, or packed by hand); unpack it"),
    (0, b"\x1f\x8b", "compressed by gzip; unpack it first"),
    (0, b"BZh", "compressed by bzip2; unpack it first"),
    (0, b"\xfd7zXZ", "compressed by xz; unpack it first"),
    (0, b"7z\xbc\xaf", "a 7z archive; unpack it first"),
    (0, b"\x89HDF", "an HDF5 file, as Keras writes"),
    (0, b"\x93NUMPY", "a NumPy array"),
    (0, b"version https://git-lfs", "a pointer of Git LFS; fetch the file by git lfs pull"),
    (0, b"<", "a page of HTML or XML, as a failed download leaves"),
)

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
    # Bytes, whose type stands beside the tensor: PyTorch's way for its newer types.
    "torch.storage.UntypedStorage": np.dtype("u1"),
}
_UNTYPED_DTYPES: dict[str, np.dtype[Any]] = {
    "torch.uint16": np.dtype("<u2"),
    "torch.uint32": np.dtype("<u4"),
    "torch.uint64": np.dtype("<u8"),
}
_DTYPE_NAMES = "float64, float32, float16, bfloat16, bool and integers"
_CONSTRUCTORS = frozenset(
    {
        "collections.Counter",
        "collections.OrderedDict",
        "collections.defaultdict",
        "torch.Size",
        "torch._tensor._rebuild_from_type_v2",
        "torch._utils._rebuild_parameter",
        "torch._utils._rebuild_parameter_with_state",
        "torch._utils._rebuild_tensor",
        "torch._utils._rebuild_tensor_v2",
        "torch._utils._rebuild_tensor_v3",
    }
)
# Other functions that make tensors: sparse, quantized, nested, distributed ones.
_REBUILD = ("torch._utils._rebuild", "torch._tensor._rebuild")
_TENSOR_CLASSES = frozenset(
    {"torch.Tensor", "torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer"}
)

# Nothing in a file is executed whatever it names. A file that names one of these was made to attack
# those who unpickle it, however, and its weights deserve no trust either: it is refused whole.
_HOSTILE_MODULES = frozenset(
    {
        *("asyncio", "bdb", "commands", "ctypes", "imp", "importlib", "marshal", "nt", "os", "pdb"),
        *("pickle", "pip", "posix", "pty", "runpy", "shutil", "socket", "subprocess", "sys"),
        *("timeit", "webbrowser"),
    }
)
_HOSTILE_BUILTINS = frozenset(
    {"__import__", "breakpoint", "compile", "eval", "exec", "execfile", "input", "open"}
)

_MAX_BITS = 1024
"""Longest integer that is read; states of random generators have 128 bits, sizes at most 64."""
_MAX_KEY_LENGTH = 16
_MAX_NAMED = 10

_LITERALS = frozenset(
    {
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
        "BYTEARRAY8",
        *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    }
)
_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class PthError(ValueError):
    """Error: not a ``.pth`` file, or a damaged or inconsistent one."""


class UnsafePickleError(PthError):
    """Error: the ``.pth`` file asks for something other than tensors and containers."""


@dataclasses.dataclass(frozen=True, slots=True)
class Global:
    """Name of a global: text to compare with, not the object it names."""

    name: str


@dataclasses.dataclass(frozen=True, slots=True)
class Skipped:
    """Stand-in for an object that is neither a tensor nor a container: the name of its class."""

    name: str


PersistentLoad = Callable[[Any], Any]
"""A persistent id of the pickle to the storage (elements,) that it names."""


def read_pth(path: str | Path) -> dict[Any, Any]:
    """Reads a file written by ``torch.save``, typically a ``state_dict``, executing nothing in it.

    Args:
      path: the file (``.pth``, ``.pt``, ``.ckpt``, …), zip or legacy format, little-endian.

    Returns:
      The dictionary in the file: names to arrays, or to nested dictionaries, lists and tuples of
      arrays and scalars. Arrays have the tensor's shape and dtype (bfloat16 as ``jnp.bfloat16``),
      are read-only, and may be non-contiguous; tensors that shared memory still do. Every other
      object is a ``Skipped``, every class or function a ``Global``; a warning is logged that names
      them. Entries whose key is such an object or a tensor are left out.

    Raises:
      FileNotFoundError: no such file.
      UnsafePickleError: the file names what only an attack needs, makes a tensor of an unknown
        global, uses an opcode that no checkpoint needs, or holds one object of another class
        instead of a dictionary. Nothing in it has been executed.
      PthError: not a ``.pth`` file, truncated, with tensors that reach beyond their storage, or of
        a type that NumPy does not have (float8).
    """
    if not Path(path).is_file():  # Opening a pipe would wait for its writer.
        raise FileNotFoundError(f"{path}: expected a file of torch.save")
    content = Path(path).read_bytes()
    try:
        if content.startswith(_ZIP_MAGIC):
            state = _read_zip(content)
        else:
            state = _read_legacy(content)
        if isinstance(state, Global | Skipped):
            raise UnsafePickleError(
                f"expected a dictionary of tensors, received an object of {state.name!r:.200}, "
                "which is not read; save the model's state_dict() instead"
            )
        if not isinstance(state, dict):
            raise PthError(f"expected a dictionary of tensors, received {type(state).__name__}")
    except PthError as error:
        raise type(error)(f"{path}: {error}") from None
    skipped = _find_skipped(state)
    if skipped:
        logger.warning(
            "%s: skipped what is neither a tensor nor a container: %s%s",
            path,
            ", ".join(f"{name:.80}" for name in skipped[:_MAX_NAMED]),
            ", …" if len(skipped) > _MAX_NAMED else "",
        )
    return state


def _find_skipped(state: Any) -> list[str]:
    """Returns the sorted names of all skipped objects, whatever cycles the containers form."""
    names: set[str] = set()
    seen: set[int] = set()
    rest = [state]
    while rest:
        value = rest.pop()
        if isinstance(value, Global | Skipped):
            names.add(value.name)
        elif isinstance(value, dict | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            rest.extend(value.values() if isinstance(value, dict) else value)
    return sorted(names)


def _read_zip(content: bytes) -> Any:
    """Reads the zip format: NAME/data.pkl, and one uncompressed member NAME/data/KEY a storage."""
    try:
        archive = zipfile.ZipFile(io.BytesIO(content))
        if any(n.endswith("/constants.pkl") for n in archive.namelist()):
            raise PthError("a TorchScript program; save the state_dict() of its module instead")
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
                        f"storage {key!r:.80}: expected {numel} elements of {dtype}, "
                        f"received {len(data)} bytes"
                    )
                storages[key] = np.frombuffer(data, dtype, numel)
            return _same_storage(storages[key], key, dtype, numel)

        return interpret(io.BytesIO(_read_member(archive, pickles[0])), load)
    except PthError:
        raise
    except (
        *(zipfile.BadZipFile, NotImplementedError, EOFError, struct.error),
        *(ValueError, OverflowError, OSError),  # Of seeking where a damaged entry points.
    ) as error:
        raise PthError(f"the zip archive is truncated or damaged ({error!s:.200})") from None


def _read_member(archive: zipfile.ZipFile, name: str) -> bytes:
    try:
        info = archive.getinfo(name)
    except KeyError:
        raise PthError(f"the zip archive lacks {name!r:.120}") from None
    # torch.save never compresses; a compressed member could grow without bound.
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
        raise PthError(
            f"{name!r:.120} is compressed or encrypted, which torch.save never does; "
            "store the archive's members uncompressed"
        )
    try:
        return archive.read(info)
    except (ValueError, OSError) as error:  # A damaged entry may point anywhere.
        raise PthError(
            f"{name!r:.120} cannot be read from the zip archive ({error!s:.200})"
        ) from None


def _read_legacy(content: bytes) -> Any:
    """Reads the format before PyTorch 1.6: five pickles, then the storages in the fifth's order."""
    for offset, magic, description in _FOREIGN:
        if content.startswith(magic, offset):
            raise PthError(f"not a file of torch.save, but {description}")
    stream = io.BytesIO(content)
    no_storages = _refuse_persistent_id
    first = interpret(stream, no_storages)
    if type(first) is not int or first != _LEGACY_MAGIC:
        raise PthError("not a file of torch.save: neither a zip archive nor its older format")
    protocol = interpret(stream, no_storages)
    if protocol != _LEGACY_PROTOCOL:
        raise PthError(f"expected version {_LEGACY_PROTOCOL} of the older format, found another")
    system = interpret(stream, no_storages)
    _require_little_endian(isinstance(system, dict) and system.get("little_endian") is True)

    storages: dict[str, np.ndarray] = {}
    claimed = 0

    def load(persistent_id: Any) -> Any:
        nonlocal claimed
        match persistent_id:
            # A class derived from nn.Module, with the file and the text of its source.
            case ("module", Global(name) as module, str() | None, str() | None) if not _is_known(
                name
            ):
                return module
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
                f"truncated: storage {key!r:.80} needs {8 + storage.nbytes} bytes, "
                f"{len(header) + len(data)} are left"
            )
        if struct.unpack("<q", header)[0] != storage.size:
            raise PthError(f"storage {key!r:.80} has another size than its tensors expect")
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
        case ("storage", Global(name), str(key), str(), int(numel), *view) if _is_size(
            numel
        ) and view == [None] * (fields - 5):
            if name in STORAGE_DTYPES:
                return key, STORAGE_DTYPES[name], numel
            raise PthError(
                f"a tensor over {name!r:.120} is not read: expected {_DTYPE_NAMES}; "
                "convert it before it is saved, as by tensor.float()"
            )
    raise UnsafePickleError("a persistent id of unknown kind: only tensors' storages are read")


def _is_size(value: Any) -> bool:
    """Returns whether a value is an integer from 0 on that fits into 63 bits."""
    return type(value) is int and value >= 0 and value.bit_length() < 64


def _same_storage(storage: np.ndarray, key: str, dtype: np.dtype[Any], numel: int) -> np.ndarray:
    if storage.dtype != dtype or storage.size != numel:
        raise PthError(f"storage {key!r:.80} is named with two different types or sizes")
    return storage


def interpret(stream: BinaryIO, load: PersistentLoad) -> Any:
    """Interprets one pickle and leaves the stream just behind it.

    Args:
      stream: of the file.
      load: returns the storage for a persistent id.

    Returns:
      Dictionaries, lists, tuples, scalars and read-only arrays; ``Skipped`` for other objects.

    Raises:
      UnsafePickleError: an opcode or a global that no checkpoint needs.
      PthError: a damaged or truncated pickle.
    """
    try:
        with warnings.catch_warnings():
            # Python warns about invalid escapes in damaged names; they need no warning here.
            warnings.simplefilter("ignore", DeprecationWarning)
            return _run(stream, load)
    except PthError:
        raise
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, EOFError) as error:
        raise PthError(f"not a pickle of torch.save, or damaged ({error!s:.200})") from None


def _run(stream: BinaryIO, load: PersistentLoad) -> Any:
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[Any, Any] = {}
    copied = 0

    def pop_to_mark() -> list[Any]:
        begin = marks.pop()
        if begin > len(stack):
            raise PthError("the pickle takes more from its stack than it put there")
        operands: list[Any] = stack[begin:]
        del stack[begin:]
        return operands

    argument: Any
    for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
        match opcode.name:
            case "PROTO" | "FRAME":
                pass
            case name if name in _LITERALS:
                # Long integers would make all that is computed with them slow, as hashes are.
                if isinstance(argument, int) and argument.bit_length() > _MAX_BITS:
                    raise PthError(
                        f"an integer of {argument.bit_length()} bits; expected at most {_MAX_BITS}"
                    )
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
                _append(stack[-1], [value])
            case "APPENDS":
                values = pop_to_mark()
                _append(stack[-1], values)
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                _set_items(stack[-1], [key, value])
            case "SETITEMS":
                operands = pop_to_mark()
                _set_items(stack[-1], operands)
            case "EMPTY_SET":
                stack.append(Skipped("builtins.set"))
            case "ADDITEMS":
                pop_to_mark()
                _require(Skipped, stack[-1])
            case "FROZENSET":
                pop_to_mark()
                stack.append(Skipped("builtins.frozenset"))
            case "POP":
                # As in Python's: where a mark is on top, the mark goes.
                if marks and marks[-1] == len(stack):
                    marks.pop()
                else:
                    stack.pop()
            case "POP_MARK":
                pop_to_mark()
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "GLOBAL" | "INST":
                # INST would also call the global: _inert_global always refuses it.
                module, _, attribute = argument.partition(" ")
                stack.append(_inert_global(module, attribute, opcode.name))
            case "STACK_GLOBAL":
                attribute, module = _require(str, stack.pop()), _require(str, stack.pop())
                stack.append(_inert_global(module, attribute, opcode.name))
            case "BINPERSID":
                stack.append(load(stack.pop()))
            case "REDUCE":
                arguments, function = stack.pop(), stack.pop()
                match function, arguments:
                    case Global("collections.OrderedDict"), (list(pairs),):
                        # A list that the memo returns again and again would be copied each time.
                        copied += len(pairs)
                        if copied > count:
                            raise PthError("the pickle copies more items than it has")
                stack.append(_construct(function, arguments))
            case "NEWOBJ" | "NEWOBJ_EX" as name:
                del stack[-1 if name == "NEWOBJ" else -2 :]
                function = stack.pop()
                if not isinstance(function, Global | Skipped) or _is_known(function.name):
                    raise UnsafePickleError(
                        f"refused pickle opcode {name}, which tensors and containers do not need"
                    )
                stack.append(Skipped(function.name))
            case "BUILD":
                # BUILD sets attributes. A state_dict uses it for its version (``_metadata``) only,
                # which is dropped.
                stack.pop()
                _require((dict, Skipped), stack[-1])
            case "STOP":
                if len(stack) != 1:
                    raise PthError("the pickle leaves more than one object")
                return stack.pop()
            case name:
                raise UnsafePickleError(
                    f"refused pickle opcode {name}, which tensors and containers do not need"
                )
    raise PthError("truncated: the pickle has no end")


def _is_known(name: str) -> bool:
    return name in _CONSTRUCTORS or name in STORAGE_DTYPES


def _inert_global(module: str, attribute: str, opcode: str) -> Global:
    if module == "__builtin__":  # Its name in Python 2, which protocol 2 keeps.
        module = "builtins"
    parts = attribute.split(".")
    hostile = (
        module.split(".", 1)[0] in _HOSTILE_MODULES
        or not _HOSTILE_MODULES.isdisjoint(parts[:-1])
        or (module == "builtins" and not _HOSTILE_BUILTINS.isdisjoint(parts))
    )
    name = f"{module}.{attribute}"
    if opcode == "INST" or hostile:
        raise UnsafePickleError(
            f"refused global {name!r:.200}: only tensors and containers are read, nothing is "
            "executed"
        )
    return Global(name)


def _require(kind: type | tuple[type, ...], value: Any) -> Any:
    if not isinstance(value, kind):
        wanted = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
        raise UnsafePickleError(f"refused a {type(value).__name__} where a {wanted} belongs")
    return value


def _append(target: Any, values: list[Any]) -> None:
    if isinstance(_require((list, Skipped), target), list):
        target.extend(values)


def _set_items(target: Any, operands: list[Any]) -> Any:
    if isinstance(_require((dict, Skipped), target), dict):
        for key, value in zip(operands[::2], operands[1::2], strict=True):
            if _is_key(key):
                target[key] = value
    return target


def _is_key(key: Any) -> bool:
    """Returns whether a key can be kept; False for a tensor or an unknown object.

    Raises:
      PthError: a key whose hash would take long, or overflow the C stack: of a tuple nested a
        million times, or of a long integer.
    """
    if isinstance(key, Global | Skipped | np.ndarray):
        return False
    parts: Iterable[Any] = key if isinstance(key, tuple) and len(key) <= _MAX_KEY_LENGTH else (key,)
    for part in parts:
        if not isinstance(part, str | int | float | bytes | None):
            raise PthError(f"expected text or numbers as keys, received {type(key).__name__}")
        if isinstance(part, int) and part.bit_length() > 64:
            raise PthError(f"a key of {part.bit_length()} bits; expected at most 64")
    return True


def _construct(function: Any, arguments: Any) -> Any:
    """Builds the tensor or container that the file asks for by name."""
    match function, arguments:
        case Global("collections.OrderedDict"), ():
            return {}
        case Global("collections.OrderedDict"), (list(pairs),):
            return _set_items({}, [item for key, value in pairs for item in (key, value)])
        case Global("collections.defaultdict"), () | (Global(_) | Skipped(_) | None,):
            return {}
        case Global("collections.Counter"), ():
            return {}
        case Global("collections.Counter"), (dict(counts),):
            return counts
        case Global("torch.Size"), (tuple(size),):
            return size
        case (
            Global(
                "torch._utils._rebuild_parameter" | "torch._utils._rebuild_parameter_with_state"
            ),
            (np.ndarray() as array, *_),
        ):
            return array
        case (
            Global("torch._utils._rebuild_tensor" | "torch._utils._rebuild_tensor_v2"),
            (np.ndarray() as storage, int(offset), tuple(size), tuple(stride), *_),
        ):
            return _make_view(storage, offset, size, stride)
        case (
            Global("torch._utils._rebuild_tensor_v3"),
            (np.ndarray() as data, offset, tuple(size), tuple(stride), _, _, Global(dtype), *_),
        ):
            return _make_view(_view_as(data, dtype), offset, size, stride)
        case (
            Global("torch._tensor._rebuild_from_type_v2"),
            # A tensor with attributes of its own, which are dropped.
            (Global(rebuild) as inner, Global(kind), tuple(rest), *_),
        ) if rebuild != "torch._tensor._rebuild_from_type_v2" and rebuild.startswith(_REBUILD):
            if kind not in _TENSOR_CLASSES:
                raise UnsafePickleError(
                    f"refused a tensor of class {kind!r:.200}, which is unknown; save it as a "
                    "plain tensor"
                )
            return _construct(inner, rest)
    if isinstance(function, Global | Skipped) and not _is_known(function.name):
        if function.name.startswith(_REBUILD):
            raise UnsafePickleError(
                f"refused a tensor made by {function.name!r:.200}: only dense tensors are read"
            )
        return Skipped(function.name)
    name = function.name if isinstance(function, Global) else type(function).__name__
    raise UnsafePickleError(f"refused to construct {name!r:.200} from the arguments in the file")


def _view_as(data: np.ndarray, dtype: str) -> np.ndarray:
    """Returns a storage of bytes as one of the type that stands beside it."""
    if dtype not in _UNTYPED_DTYPES:
        raise PthError(
            f"a tensor of {dtype:.120} is not read: expected {_DTYPE_NAMES}; "
            "convert it before it is saved, as by tensor.float()"
        )
    kind = _UNTYPED_DTYPES[dtype]
    if data.dtype != np.uint8 or data.ndim != 1:
        raise PthError(f"a tensor of {dtype} over a storage that has a type of its own")
    return data[: data.size // kind.itemsize * kind.itemsize].view(kind)


def _make_view(
    storage: np.ndarray, offset: int, size: tuple[Any, ...], stride: tuple[Any, ...]
) -> np.ndarray:
    """Returns a read-only view of a storage, after checking that no element lies outside it."""
    if storage.ndim != 1 or len(size) != len(stride) or len(size) > 32:
        raise PthError("a tensor's size and strides have different or too many axes")
    # Checked by their bits: the product of a few long integers took most of a minute.
    if not all(map(_is_size, (offset, *size, *stride))):
        raise PthError(
            "a tensor's offset, size and strides must be integers from 0 on of at most 63 bits"
        )
    # The stride of an axis of length 0 or 1 is never used and may be any number.
    stride = tuple(s if n > 1 else 0 for n, s in zip(size, stride, strict=True))
    elements = math.prod(size)
    last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
    if storage.size > last and storage.size < elements:
        raise PthError(
            f"a tensor of size {size} and strides {stride} repeats elements of its storage of "
            f"{storage.size}; save tensor.contiguous() instead"
        )
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
