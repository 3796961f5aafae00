"""Structure of container files: what they declare, read without FFmpeg.

A file that has been cut off may still be decoded without an error; what its container declares of
its size and index tells it from a whole one.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

# Boxes of mp4 files that lead to lists of samples.
_BOXES_OF_BOXES = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"moof", b"traf")

_ASF_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
_SEGMENT, _CLUSTER = bytes.fromhex("18538067"), bytes.fromhex("1f43b675")  # of Matroska
_NUT_INDEX = bytes.fromhex("4e58dd672f23e64e")

# A hostile file may consist of nothing but headers; what follows so many is not looked at.
_MAX_ELEMENTS = 100_000


def has_declared_size(path: str | Path | BinaryIO, kinds: Sequence[str]) -> bool | None:
    """Returns whether a file has all bytes that its container declares; None if it declares none.

    A whole file may hold fewer pictures, or shorter ones, than its headers say.

    Args:
        path: the file, or the file opened for reading.
        kinds: FFmpeg's names of its container.
    """
    with _opened(path) as (file, actual):
        if "avi" in kinds:
            declared = _avi_size(file, actual)
        elif "matroska" in kinds:
            return _has_whole_clusters(file, actual)
        elif "mpegts" in kinds:
            declared = _transport_size(file, actual)
        elif "asf" in kinds:
            declared = _asf_size(file.read(4096))
        elif "flv" in kinds:
            declared = _flv_size(file)
        elif "ogg" in kinds:
            declared = _ogg_size(file)
        elif "gif" in kinds:
            declared = _gif_size(file.read())
        elif "nut" in kinds:
            # An index ends the file, and a pointer to it ends the index.
            file.seek(-min(12, actual), 2)
            index = actual - int.from_bytes(file.read(8), "big")
            file.seek(index if 0 < index < actual else 0)
            declared = actual if file.read(8) == _NUT_INDEX else actual + 1
        else:
            declared = None
    return None if declared is None else actual >= declared


def find_boxes(path: str | Path | BinaryIO) -> tuple[list[bytes], bool]:
    """Returns the names of an mp4 file's whole boxes, and whether nothing else is in the file."""
    start = 0
    names: list[bytes] = []
    with _opened(path) as (file, actual):
        while len(head := file.read(16)) >= 8 and len(names) < _MAX_ELEMENTS:
            size, name = int.from_bytes(head[:4], "big"), head[4:8]
            if size == 1:
                size = int.from_bytes(head[8:], "big")
            elif size == 0 and name == b"mdat":  # It extends to the end.
                size = actual - start
            if size < 8 or start + size > actual:
                break
            names.append(name)
            start += size
            file.seek(start)
    return names, start == actual


def lacks_index(path: str | Path | BinaryIO) -> bool:
    """Returns True for an mp4 or QuickTime file whose ``moov`` box is missing or cut off."""
    with _opened(path) as (file, _):
        is_mp4 = file.read(8)[4:] in (b"ftyp", b"moov", b"wide", b"mdat")
    return is_mp4 and b"moov" not in find_boxes(path)[0]


def count_samples(path: str | Path | BinaryIO) -> int:
    """Returns how many samples the boxes of an mp4 file declare; 0 for other files."""
    samples = 0
    with _opened(path) as (file, actual):
        rest = [(0, actual)]
        for _ in range(_MAX_ELEMENTS):
            if not rest:
                break
            start, end = rest.pop()
            if start + 8 > end:
                continue
            file.seek(start)
            head = file.read(20)
            size, name = int.from_bytes(head[:4], "big"), head[4:8]
            body = start + 8
            if size == 1:
                size, body = int.from_bytes(head[8:16], "big"), start + 16
            elif size == 0:
                size = end - start
            if size < 8:
                continue
            rest.append((start + size, end))
            if name in _BOXES_OF_BOXES:
                rest.append((body, min(start + size, end)))
            elif name in (b"trun", b"stsz"):
                file.seek(body + (4 if name == b"trun" else 8))
                samples += int.from_bytes(file.read(4), "big")
    return samples


@contextmanager
def _opened(path: str | Path | BinaryIO) -> Iterator[tuple[BinaryIO, int]]:
    """Opens a file; yields it, at its begin, and its number of bytes. Leaves an open one open."""
    if isinstance(path, str | Path):
        with open(path, "rb") as file:
            yield file, Path(path).stat().st_size
    else:
        size = path.seek(0, 2)
        path.seek(0)
        yield path, size


def _avi_size(file: BinaryIO, actual: int) -> int | None:
    """Returns the end of the last RIFF chunk; AVI above 1 GB has several.

    It lies beyond the end of a file in which something else takes the place of the index, zeros for
    example.
    """
    end = 0
    while len(header := file.read(12)) == 12 and header[:4] == b"RIFF":
        size = int.from_bytes(header[4:8], "little")
        if size in (0, 0xFFFFFFFF):  # The recording was never finished, so nothing is declared.
            return None
        start, end = end + 12, end + 8 + size
        for _ in range(_MAX_ELEMENTS):
            file.seek(start)
            chunk = file.read(8)
            if len(chunk) < 8 or start >= end:
                break
            if min(chunk[:4]) < ord(" "):
                return actual + 1
            start += 8 + int.from_bytes(chunk[4:], "little") + chunk[4] % 2
        file.seek(end)
    return end or None


def _has_whole_clusters(file: BinaryIO, actual: int) -> bool | None:
    """Returns whether all clusters of a Matroska file end within it; None if one has no size."""
    start = 0
    for _ in range(_MAX_ELEMENTS):
        file.seek(start)
        head = file.read(12)
        if not head:
            return True
        name_bytes = 9 - head[0].bit_length()
        if name_bytes > 4 or len(head) <= name_bytes or head[name_bytes] == 0:
            return None
        size_bytes = 9 - head[name_bytes].bit_length()
        unknown = 2 ** (7 * size_bytes) - 1
        size = int.from_bytes(head[name_bytes : name_bytes + size_bytes], "big") & unknown
        start += name_bytes + size_bytes
        if head.startswith(_SEGMENT):
            continue  # Its elements follow.
        if size == unknown:
            return None
        start += size
        if head.startswith(_CLUSTER) and start > actual:
            return False
    return None


def _asf_size(head: bytes) -> int | None:
    """Returns the size of the file by its "file properties object", given the first bytes."""
    start = head.find(_ASF_PROPERTIES)
    if start < 0 or start + 92 > len(head) or head[start + 88] & 1:  # The flag of broadcasts.
        return None
    return int.from_bytes(head[start + 40 : start + 48], "little") or None


def _flv_size(file: BinaryIO) -> int | None:
    """Returns the end of the last tag of an FLV file; None if something else follows."""
    start = int.from_bytes(file.read(9)[5:], "big") + 4
    for _ in range(_MAX_ELEMENTS):
        file.seek(start)
        head = file.read(11)
        if not head:
            return start
        if head[0] & 0x1F not in (8, 9, 18):  # sound, picture, metadata
            return None
        start += 11 + int.from_bytes(head[1:4], "big") + 4
    return None


def _ogg_size(file: BinaryIO) -> int | None:
    """Returns the end of the last page of an Ogg file; None if something else follows."""
    start = 0
    for _ in range(_MAX_ELEMENTS):
        file.seek(start)
        head = file.read(27)
        if not head:
            return start
        if not head.startswith(b"OggS"):
            return None
        sizes = file.read(head[26]) if len(head) == 27 else b""
        start += 27 + len(sizes) + sum(sizes)
    return None


def _gif_size(content: bytes) -> int | None:
    """Returns the end of a GIF file, which lies beyond it within a block that is cut off.

    None if something else than a block follows.
    """
    start = 13
    if content[10:11] and content[10] & 0x80:
        start += 3 << (content[10] & 7) + 1  # the colours of all pictures
    while start < len(content):
        kind = content[start]
        if kind == 0x3B:
            return start + 1
        if kind == 0x21:
            start += 2
        elif kind == 0x2C and start + 9 < len(content):
            flags = content[start + 9]
            start += 11 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
        elif kind == 0x2C:
            return len(content) + 1
        else:
            return None
        while start < len(content) and content[start]:
            start += content[start] + 1
        start += 1
    # The trailer may be missing.
    return start


def _transport_size(file: BinaryIO, actual: int) -> int | None:
    """Returns the size of a transport stream with all of its last packet."""
    head = file.read(4096)
    for size, offset in ((188, 0), (192, 4), (204, 0)):
        marks = head[offset::size]
        if len(marks) > 1 and set(marks) == {0x47}:
            file.seek((actual - 1) // size * size + offset)
            ends_marked = file.read(1) == b"\x47"
            return -(-actual // size) * size if ends_marked else actual + 1
    return None
