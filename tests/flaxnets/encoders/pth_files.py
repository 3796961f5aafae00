"""Writers of files in the formats of ``torch.save``, opcode by opcode."""

import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

# The opcodes are written out here: Python's pickler would have to import torch to name it.
NONE, FALSE, EMPTY_TUPLE, STOP = b"N", b"\x89", b")", b"."
STORAGE = {
    "<f8": "torch.DoubleStorage",
    "<f4": "torch.FloatStorage",
    "<f2": "torch.HalfStorage",
    "bfloat16": "torch.BFloat16Storage",
    "<i8": "torch.LongStorage",
    "<i4": "torch.IntStorage",
    "<i2": "torch.ShortStorage",
    "i1": "torch.CharStorage",
    "u1": "torch.ByteStorage",
    "?": "torch.BoolStorage",
}
DICT = b"ccollections\nOrderedDict\n)R"


def named(name: str) -> bytes:
    module, attribute = name.rsplit(".", 1)
    return f"c{module}\n{attribute}\n".encode()


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def integer(value: int) -> bytes:
    encoded = pickle.encode_long(value)
    return b"\x8a" + bytes([len(encoded)]) + encoded


def several(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def storage(dtype: str, key: str, elements: int, *, legacy: bool = False) -> bytes:
    parts = (text("storage"), named(STORAGE[dtype]), text(key), text("cpu"), integer(elements))
    return several(*parts, *([NONE] if legacy else [])) + b"Q"


def tensor(stored: bytes, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> bytes:
    numbers = integer(offset), several(*map(integer, size)), several(*map(integer, stride))
    return named("torch._utils._rebuild_tensor_v2") + several(stored, *numbers, FALSE, DICT) + b"R"


def state(**items: bytes) -> bytes:
    return DICT + b"(" + b"".join(text(k) + v for k, v in items.items()) + b"u"


def write_zip(path: Path, body: bytes, *, byteorder: bytes = b"little", **data: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + body + STOP)
        archive.writestr("archive/byteorder", byteorder)
        for key, content in data.items():
            archive.writestr(f"archive/data/{key[1:]}", content)
    return path


def write_legacy(path: Path, body: bytes, *, little_endian: bool = True, **data: bytes) -> Path:
    heads: list[Any] = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": little_endian}]
    keys = [key[1:] for key in data]
    path.write_bytes(
        b"".join(pickle.dumps(head, 2) for head in heads)
        + (b"\x80\x02" + body + STOP)
        + pickle.dumps(keys, 2)
        + b"".join(struct.pack("<q", len(c) // 4) + c for c in data.values())
    )
    return path


def grid(*, legacy: bool) -> bytes:
    """Returns tensors over one storage of the numbers 0..23, and the other kinds of entries."""
    numbers = storage("<f4", "0", 24, legacy=legacy)
    return state(
        plain=tensor(numbers, 0, (2, 3, 4), (12, 4, 1)),
        transposed=tensor(numbers, 0, (4, 6), (1, 4)),
        part=tensor(numbers, 5, (2, 2), (8, 2)),
        scalar=tensor(numbers, 23, (), ()),
        empty=tensor(numbers, 0, (0, 3), (3, 1)),
        odd_stride=tensor(numbers, 20, (1, 4), (10**9, 1)),
        parameter=named("torch._utils._rebuild_parameter")
        + several(tensor(numbers, 0, (3,), (1,)), FALSE, DICT)
        + b"R",
        nested=b"}" + b"(" + text("list") + b"](" + tensor(numbers, 1, (2,), (1,)) + b"K\x07eu",
        size=named("torch.Size") + several(several(integer(2), integer(3))) + b"R",
        epoch=integer(90),
    ) + (b"}" + text("_metadata") + b"}s" + b"b")
