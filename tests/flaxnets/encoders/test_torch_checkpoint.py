"""Reader of ``.pth`` files: reads the formats of PyTorch, and executes nothing."""

import io
import os
import pickle
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from flaxnets.encoders.torch_checkpoint import PthError, UnsafePickleError, read_pth
from tests.flaxnets.encoders.pth_files import (
    DICT,
    EMPTY_TUPLE,
    NONE,
    STOP,
    STORAGE,
    grid,
    named,
    several,
    state,
    storage,
    tensor,
    text,
    write_legacy,
    write_zip,
)

NUMBERS = np.arange(24, dtype=np.float32)


@pytest.mark.parametrize("legacy", [False, True])
def test_reads_tensors_and_containers(tmp_path: Path, legacy: bool) -> None:
    write: Callable[..., Path] = write_legacy if legacy else write_zip
    read = read_pth(write(tmp_path / "a.pth", grid(legacy=legacy), _0=NUMBERS.tobytes()))
    np.testing.assert_array_equal(read["plain"], NUMBERS.reshape(2, 3, 4))
    np.testing.assert_array_equal(read["transposed"], NUMBERS.reshape(6, 4).T)
    np.testing.assert_array_equal(read["part"], [[5, 7], [13, 15]])
    np.testing.assert_array_equal(read["scalar"], 23)
    np.testing.assert_array_equal(read["odd_stride"], [[20, 21, 22, 23]])
    np.testing.assert_array_equal(read["parameter"], [0, 1, 2])
    np.testing.assert_array_equal(read["nested"]["list"][0], [1, 2])
    assert read["empty"].shape == (0, 3)
    assert read["nested"]["list"][1] == 7
    assert read["size"] == (2, 3)
    assert read["epoch"] == 90
    assert read["plain"].dtype == np.float32
    assert not read["plain"].flags.writeable


@pytest.mark.parametrize("dtype", STORAGE)
def test_reads_every_dtype(tmp_path: Path, dtype: str) -> None:
    numpy_dtype = np.dtype(jnp.bfloat16) if dtype == "bfloat16" else np.dtype(dtype)
    values = np.asarray([0, 1, 1, 0, 1]).astype(numpy_dtype) * np.asarray(1, numpy_dtype)
    body = state(x=tensor(storage(dtype, "0", 5), 0, (5,), (1,)))
    read = read_pth(write_zip(tmp_path / "a.pth", body, _0=values.tobytes()))["x"]
    assert read.dtype == numpy_dtype
    np.testing.assert_array_equal(read.astype(np.float64), values.astype(np.float64))


@pytest.mark.parametrize("zipped", [False, True])
def test_reads_what_torch_writes(tmp_path: Path, zipped: bool) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    saved = {
        "a": torch.randn(3, 4, 5).permute(2, 0, 1),
        "b": torch.randn(7).bfloat16(),
        "c": [torch.arange(5)[1:4], {"d": torch.nn.Parameter(torch.zeros(2, 0))}],
    }
    torch.save(saved, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    read = read_pth(tmp_path / "a.pth")
    np.testing.assert_array_equal(read["a"], saved["a"].numpy())
    np.testing.assert_array_equal(read["b"].astype(np.float32), saved["b"].float().numpy())
    np.testing.assert_array_equal(read["c"][0], [1, 2, 3])
    assert read["c"][1]["d"].shape == (2, 0)


class Evil:
    """Object that pickles as a call of a function."""

    def __init__(self, function: Any, *arguments: Any):
        self.reduced = (function, arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.reduced


def make_hostile(marker: Path) -> dict[str, tuple[bytes, str]]:
    """Returns pickles (without STOP) that would run a command, and the name in the error."""
    command = f"touch {marker}"
    run = text(command)
    changed = b"(" + NONE + b"}" + text("__code__") + run + b"st"
    return {
        "reduce": (pickle.dumps(Evil(os.system, command), 2)[2:-1], r"posix\.system"),
        "stack_global": (pickle.dumps(Evil(os.system, command), 4)[2:-1], r"posix\.system"),
        "eval": (
            pickle.dumps(Evil(eval, f"open({str(marker)!r}, 'w')"), 4)[2:-1],
            r"builtins\.eval",
        ),
        "nested": (state(x=b"](" + named("os.system") + several(run) + b"Re"), r"os\.system"),
        "inst": (f"(S'{command}'\nios\nsystem\n".encode(), r"os\.system"),
        "inst_allowed": (b"(icollections\nOrderedDict\n", r"collections\.OrderedDict"),
        "obj": (b"(" + named("os.system") + run + b"o", r"os\.system"),
        "obj_allowed": (b"(" + named("collections.OrderedDict") + b"o", "OBJ"),
        "newobj": (named("subprocess.Popen") + several(run) + b"\x81", r"subprocess\.Popen"),
        "newobj_allowed": (named("collections.OrderedDict") + EMPTY_TUPLE + b"\x81", "NEWOBJ"),
        "extension": (b"\x82\x01", "EXT1"),
        "build": (named("torch._utils._rebuild_tensor_v2") + changed + b"b", "Global"),
        "call_text": (run + several(run) + b"R", "str"),
        "dotted": (b"\x8c\x05torch\x8c\x10hub.os.system.x.\x93", r"torch\.hub\.os"),
        "lookalike": (named("torch._utils._rebuild_tensor_v3") + EMPTY_TUPLE + b"R", "_v3"),
        "arguments": (named("torch._utils._rebuild_tensor_v2") + several(run) + b"R", "_v2"),
        "persistent": (several(text("module"), named("torch.FloatStorage")) + b"Q", "unknown kind"),
        "persistent_text": (b"Pstorage\n", "PERSID"),
    }


@pytest.mark.parametrize("container", ["zip", "legacy", "bare"])
@pytest.mark.parametrize("name", make_hostile(Path("unused")))
def test_executes_nothing(tmp_path: Path, name: str, container: str) -> None:
    marker, path = tmp_path / "executed", tmp_path / "evil.pth"
    body, named_in_error = make_hostile(marker)[name]
    if container == "zip":
        write_zip(path, body)
    elif container == "legacy":
        write_legacy(path, body)
    else:
        path.write_bytes(b"\x80\x02" + body + STOP)
    expected = PthError if container == "bare" else UnsafePickleError
    with pytest.raises(expected) as error:
        read_pth(path)
    assert str(path) in str(error.value)
    if container != "bare":
        error.match(named_in_error)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [
        (24, (1,), (1,)),
        (0, (25,), (1,)),
        (1, (2, 12), (12, 1)),
        (0, (3,), (12,)),
        (-1, (2,), (1,)),
        (0, (-2,), (1,)),
        (3, (2,), (-1,)),
        (2**62, (2,), (1,)),
        (0, (2,), (2**62,)),
        (0, (2**40, 2**40), (0, 0)),
        (0, (25,), (0,)),
        (0, (0, 2**70), (1, 1)),
        (0, (2, 2), (1,)),
        (0, (1,) * 40, (1,) * 40),
    ],
)
@pytest.mark.parametrize("legacy", [False, True])
def test_no_element_lies_outside_the_storage(
    tmp_path: Path, offset: int, size: tuple[int, ...], stride: tuple[int, ...], legacy: bool
) -> None:
    write: Callable[..., Path] = write_legacy if legacy else write_zip
    body = state(x=tensor(storage("<f4", "0", 24, legacy=legacy), offset, size, stride))
    with pytest.raises(PthError):
        read_pth(write(tmp_path / "a.pth", body, _0=NUMBERS.tobytes()))


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("elements", [25, 2**60, -1])
def test_a_storage_larger_than_the_file(tmp_path: Path, elements: int, legacy: bool) -> None:
    write: Callable[..., Path] = write_legacy if legacy else write_zip
    body = state(x=tensor(storage("<f4", "0", elements, legacy=legacy), 0, (2,), (1,)))
    with pytest.raises(PthError):
        read_pth(write(tmp_path / "a.pth", body, _0=NUMBERS.tobytes()))


@pytest.mark.parametrize("legacy", [False, True])
def test_every_truncation_is_an_error(tmp_path: Path, legacy: bool) -> None:
    write: Callable[..., Path] = write_legacy if legacy else write_zip
    path = write(tmp_path / "a.pth", grid(legacy=legacy), _0=NUMBERS.tobytes())
    content = path.read_bytes()
    for end in range(0, len(content), 11):
        path.write_bytes(content[:end])
        with pytest.raises(PthError):
            read_pth(path)


@pytest.mark.parametrize("legacy", [False, True])
def test_damage_is_an_error_or_harmless(tmp_path: Path, legacy: bool) -> None:
    write: Callable[..., Path] = write_legacy if legacy else write_zip
    path = write(tmp_path / "a.pth", grid(legacy=legacy), _0=NUMBERS.tobytes())
    content = path.read_bytes()
    rng = random.Random(0)
    refused = 0
    for _ in range(600):
        damaged = bytearray(content)
        for _ in range(rng.randint(1, 4)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        path.write_bytes(damaged)
        try:
            assert isinstance(read_pth(path), dict)
        except PthError:
            refused += 1
    assert refused > 100


def test_names_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    with pytest.raises(FileNotFoundError, match=r"a\.pth"):
        read_pth(path)
    path.write_bytes(b"")
    with pytest.raises(PthError, match="not a pickle"):
        read_pth(path)
    path.write_bytes(pickle.dumps({"a": 1}, 2))
    with pytest.raises(PthError, match=r"not a file of torch\.save"):
        read_pth(path)
    with pytest.raises(PthError, match="dictionary of tensors, received list"):
        read_pth(write_zip(path, b"]"))
    with pytest.raises(PthError, match="little-endian"):
        read_pth(write_zip(path, DICT, byteorder=b"big"))
    with pytest.raises(PthError, match="little-endian"):
        read_pth(write_legacy(path, DICT, little_endian=False))
    with pytest.raises(PthError, match="lacks 'archive/data/0'"):
        read_pth(write_zip(path, state(x=tensor(storage("<f4", "0", 2), 0, (2,), (1,)))))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", DICT + STOP)
    path.write_bytes(buffer.getvalue())
    with pytest.raises(PthError, match="compressed"):
        read_pth(path)


def test_depth_and_size_do_not_crash(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    deep = EMPTY_TUPLE + b"\x85" * 100_000
    with pytest.raises(PthError, match="as keys"):
        read_pth(write_zip(path, b"}" + deep + NONE + b"s"))
    with pytest.raises(PthError):
        read_pth(write_zip(path, deep + deep + b"\x93"))
    with pytest.raises(PthError):
        read_pth(write_zip(path, deep + several(deep) + b"R"))
