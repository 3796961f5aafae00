"""Reader of ``.pth`` files: reads the formats of PyTorch, and executes nothing."""

import argparse
import collections
import enum
import gzip
import io
import os
import pickle
import random
import tarfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from flaxnets.encoders.torch_checkpoint import (
    Global,
    PthError,
    Skipped,
    UnsafePickleError,
    read_pth,
)
from tests.flaxnets.encoders.pth_files import (
    DICT,
    EMPTY_TUPLE,
    FALSE,
    NONE,
    STOP,
    STORAGE,
    grid,
    integer,
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


class Color(enum.Enum):
    """Enumeration, as settings beside the weights hold them."""

    RED = 1


def pickled(value: Any, protocol: int) -> bytes:
    """Returns the opcodes of a value, without the first and the last."""
    return pickle.dumps(value, protocol)[2:-1]


EXTRAS: dict[str, tuple[Any, Any]] = {
    "namespace": (argparse.Namespace(lr=0.1, layers=[1, 2]), "argparse.Namespace"),
    "set": ({1, 2}, "builtins.set"),
    "frozenset": (frozenset([1]), "builtins.frozenset"),
    "numpy_scalar": (np.float64(3), "numpy._core.multiarray.scalar"),
    "numpy_array": (np.arange(3), "numpy._core."),
    "path": (Path("runs/a"), None),
    "enum": (Color.RED, None),
    "class": (argparse.Namespace, "argparse.Namespace"),
    "bytes": (bytearray(b"abc"), None),
    "nested": ([{"a": ({1},)}], "builtins.set"),
    "counter": (collections.Counter([1, 1]), {1: 2}),
    "default": (collections.defaultdict(list, a=[1]), {"a": [1]}),
    "ordered": (collections.OrderedDict(a=1), {"a": 1}),
    "tuple_keys": ({("a", 1): 2}, {("a", 1): 2}),
    "object_keys": ({Color.RED: 1, "a": 2}, {"a": 2}),
    "generator": (2**127 + 1, 2**127 + 1),
}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("name", EXTRAS)
def test_objects_beside_the_weights_are_skipped(
    tmp_path: Path, name: str, protocol: int, caplog: pytest.LogCaptureFixture
) -> None:
    value, expected = EXTRAS[name]
    body = state(extra=pickled(value, protocol), x=tensor(storage("<f4", "0", 24), 1, (2,), (1,)))
    read = read_pth(write_zip(tmp_path / "a.pth", body, _0=NUMBERS.tobytes()))
    np.testing.assert_array_equal(read["x"], [1, 2])
    if isinstance(expected, str):
        assert f"a.pth: skipped what is neither a tensor nor a container: {expected}" in caplog.text
    elif expected is not None:
        assert read["extra"] == expected
        assert not caplog.records


def test_names_of_torch_are_texts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    device = named("torch.device") + several(text("cuda"), integer(0)) + b"R"
    module = named("torch.nn.modules.linear.Linear") + EMPTY_TUPLE + b"\x81}b"
    body = state(dtype=named("torch.float32"), device=device, module=module)
    read = read_pth(write_zip(tmp_path / "a.pth", body))
    assert read == {
        "dtype": Global("torch.float32"),
        "device": Skipped("torch.device"),
        "module": Skipped("torch.nn.modules.linear.Linear"),
    }
    assert "torch.device, torch.float32, torch.nn.modules.linear.Linear" in caplog.text
    source = several(text("module"), named("models.Net"), text("net.py"), text("import os")) + b"Q"
    assert read_pth(write_legacy(tmp_path / "b.pth", state(cls=source))) == {
        "cls": Global("models.Net")
    }


def test_a_tensor_with_attributes_is_read_and_of_a_foreign_class_refused(tmp_path: Path) -> None:
    arguments = several(storage("<f4", "0", 24), integer(0), several(integer(2)), several(b"K\x01"))

    def typed(kind: str, rebuild: str = "torch._utils._rebuild_tensor_v2") -> bytes:
        inner = several(named(rebuild), named(kind), arguments, b"}")
        return named("torch._tensor._rebuild_from_type_v2") + inner + b"R"

    def read(body: bytes) -> Any:
        return read_pth(write_zip(tmp_path / "a.pth", state(x=body), _0=NUMBERS.tobytes()))["x"]

    np.testing.assert_array_equal(read(typed("torch.Tensor")), [0, 1])
    np.testing.assert_array_equal(
        read(named("torch._utils._rebuild_tensor") + arguments + b"R"), [0, 1]
    )
    with pytest.raises(UnsafePickleError, match=r"tensor of class 'lib\.Quantized'"):
        read(typed("lib.Quantized"))
    with pytest.raises(UnsafePickleError, match="refused to construct"):
        read(typed("torch.Tensor", "torch._tensor._rebuild_from_type_v2"))
    for kind in ("_rebuild_sparse_tensor", "_rebuild_qtensor", "_rebuild_meta_tensor_no_storage"):
        with pytest.raises(UnsafePickleError, match=f"{kind}.*only dense tensors are read"):
            read(named(f"torch._utils.{kind}") + arguments + b"R")
    with pytest.raises(UnsafePickleError, match="from the arguments"):
        read(
            named("torch._utils._rebuild_tensor_v2")
            + several(named("lib.storage"), integer(0), EMPTY_TUPLE, EMPTY_TUPLE)
            + b"R"
        )


def untyped(dtype: str, size: bytes) -> bytes:
    """Returns a tensor of one of PyTorch's newer types over the 96 bytes of the storage 0."""
    kind = named("torch.storage.UntypedStorage")
    parts = (text("storage"), kind, text("0"), text("cpu"), integer(96))
    arguments = (several(*parts) + b"Q", integer(0), several(size), several(b"K\x01"), FALSE, DICT)
    return named("torch._utils._rebuild_tensor_v3") + several(*arguments, named(dtype)) + b"R"


def test_newer_types(tmp_path: Path) -> None:
    path, content = tmp_path / "a.pth", np.arange(48, dtype="<u2").tobytes()
    read = read_pth(write_zip(path, state(x=untyped("torch.uint16", integer(48))), _0=content))
    np.testing.assert_array_equal(read["x"], np.arange(48, dtype=np.uint16))
    with pytest.raises(PthError, match="beyond its storage of 48"):
        read_pth(write_zip(path, state(x=untyped("torch.uint16", integer(49))), _0=content))
    for dtype in ("torch.float8_e4m3fn", "torch.float8_e5m2", "torch.bits8"):
        with pytest.raises(PthError, match=rf"{dtype} is not read: expected float64.*float\(\)"):
            read_pth(write_zip(path, state(x=untyped(dtype, integer(96))), _0=content))
    other = several(
        *(text("storage"), named("torch.ComplexFloatStorage"), text("0"), text("cpu"), b"K\x0c")
    )
    with pytest.raises(PthError, match=r"over 'torch\.ComplexFloatStorage' is not read"):
        read_pth(write_zip(path, state(x=tensor(other + b"Q", 0, (1,), (1,))), _0=content))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<!DOCTYPE html><html>", "page of HTML"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
        (gzip.compress(b"weights", mtime=0), "compressed by gzip"),
        (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
        (b"\x93NUMPY\x01\x00", "a NumPy array"),
    ],
)
def test_other_formats_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(PthError, match=message):
        read_pth(tmp_path / "a.pth")


def test_other_archives_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.pth.tar"
    with tarfile.open(path, "w") as archive:
        for name in ("sys_info", "pickle", "tensors", "storages"):
            archive.addfile(tarfile.TarInfo(name))
    with pytest.raises(PthError, match="a tar archive"):
        read_pth(path)
    with zipfile.ZipFile(path, "w") as script:
        for name in ("data.pkl", "constants.pkl", "code/__torch__.py"):
            script.writestr(f"a/{name}", b"")
    with pytest.raises(PthError, match="TorchScript"):
        read_pth(path)
    whole = named("models.Net") + EMPTY_TUPLE + b"\x81}" + b"b"
    with pytest.raises(UnsafePickleError, match=r"object of 'models\.Net'.*state_dict\(\)"):
        read_pth(write_zip(path, whole))


LONG = b"\x8b" + (250_000).to_bytes(4, "little") + b"\x7f" * 250_000
AGAIN = b"q\x07" + b"h\x07" * 62  # Fetched from the memo at two bytes each.


@pytest.mark.parametrize(
    "body",
    [
        tensor(b"", 0, (), ()).replace(several(), several(LONG + AGAIN), 1),
        several(text("storage"), named("torch.FloatStorage"), text("0"), text("cpu"), LONG) + b"Q",
        LONG + b"q\x070" + b"}(" + b"h\x07N" * 100_000 + b"u",
        b"]" + LONG + b"a",
        b"I" + b"7" * 2_000_000 + b"\n",
        b"L" + b"7" * 2_000_000 + b"L\n",
    ],
    ids=["sizes", "elements", "keys", "value", "int", "long"],
)
@pytest.mark.parametrize("legacy", [False, True])
def test_long_integers_take_no_time(tmp_path: Path, body: bytes, legacy: bool) -> None:
    write: Callable[..., Path] = write_legacy if legacy else write_zip
    path = write(tmp_path / "a.pth", state(x=body), _0=NUMBERS.tobytes())
    begin = time.process_time()
    with pytest.raises(PthError, match=r"integer of 1999999 bits|Exceeds the limit"):
        read_pth(path)
    assert time.process_time() - begin < 2


@pytest.mark.parametrize("bits", [64, 70, 1000])
@pytest.mark.parametrize("sizes", [True, False])
def test_sizes_are_checked_by_their_bits(tmp_path: Path, bits: int, sizes: bool) -> None:
    long = (2**bits,) * 3
    body = tensor(storage("<f4", "0", 24), 0, *((long, (1,) * 3) if sizes else ((2,) * 3, long)))
    with pytest.raises(PthError, match="at most 63 bits"):
        read_pth(write_zip(tmp_path / "a.pth", state(x=body), _0=NUMBERS.tobytes()))
    if sizes:
        stored = storage("<f4", "0", 2**bits, legacy=True)
        with pytest.raises(PthError):
            read_pth(write_legacy(tmp_path / "a.pth", state(x=tensor(stored, 0, (1,), (1,)))))


def test_a_list_is_not_copied_again_and_again(tmp_path: Path) -> None:
    pair = several(text("a"), NONE)
    pairs = b"](" + pair * 20_000 + b"eq\x070"
    copies = (named("collections.OrderedDict") + b"h\x07\x85R0") * 20_000
    begin = time.process_time()
    with pytest.raises(PthError, match="copies more items than it has"):
        read_pth(write_zip(tmp_path / "a.pth", pairs + copies + DICT))
    assert time.process_time() - begin < 5


def test_cycles_and_deep_nests(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    itself = b"}q\x07(" + text("model") + b"h\x07" + text("list") + b"]q\x08h\x08au"
    read = read_pth(write_zip(path, itself))
    assert read["model"] is read
    deep = (b"}" + text("model")) * 50_000 + b"}" + b"s" * 50_000
    assert isinstance(read_pth(write_zip(path, deep))["model"], dict)
    lists = b"]" * 50_000 + named("lib.f") + b"a" * 50_000
    assert read_pth(write_zip(path, state(x=lists)))["x"]
    twice = b"]q\x00" + b"".join(b"]h%ch%caq%c" % (i, i, i + 1) for i in range(200))
    assert isinstance(read_pth(write_zip(path, state(x=b"(" + twice + b"l")))["x"], list)


def test_repeated_elements_are_called_so(tmp_path: Path) -> None:
    body = state(x=tensor(storage("<f4", "0", 1), 0, (64, 3), (0, 0)))
    with pytest.raises(PthError, match=r"repeats elements.*contiguous\(\)"):
        read_pth(write_zip(tmp_path / "a.pth", body, _0=NUMBERS.tobytes()))
