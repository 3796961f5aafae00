"""Files: text of any usual encoding, names in any Unicode form, shards of files, atomic writing.

A file that ``python -m data.convert`` has stored is one record of an ArrayRecord shard. Its path
is that of the shard, the number of the record, and the file's name::

    CONVERTED/data-00003-of-00016.arrayrecord/17/videos/Wave/1.avi

Decoders read it there (``open_file``, ``read_record``), and ``find_files`` finds it by its name
below the folder, ``CONVERTED/videos/Wave/1.avi``, where the data set itself would have it. So
readers of lists and splits read a converted data set as the original. A record of a data set that
TFDS has prepared is found likewise: the path of its shard, its number, and the key of its feature.
"""

import codecs
import errno
import functools
import hashlib
import io
import json
import os
import re
import secrets
import shlex
import threading
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),  # Before UTF-16's, with which it begins.
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_LINE_ENDS = re.compile(r"\r\n|\n|\r")

MANIFEST, INDEX = "manifest.json", "index.jsonl"
"""Files of a converted folder: its description, and a row for each stored file."""
FORMAT, VERSION = "flaxnets.converted", 1
"""Name and version of the format of converted folders."""
_HEADER_SIZE = 4  # bytes
_STORED = re.compile(
    r"(?P<shard>.*(?:\.arrayrecord|\.array_record-\d+-of-\d+))/(?P<row>\d+)/(?P<name>.+)", re.DOTALL
)
_TFDS_SHARD = ".array_record-"
_read_last = threading.local()


def read_text(path: str | os.PathLike[str]) -> str:
    """Returns the text of a file in UTF-8, or in UTF-16 or UTF-32 with a byte-order mark.

    Byte-order marks are left out, also those that joining files leaves in the middle. Other
    encodings are refused: Latin-1 cannot be told from its relatives, which would garble names.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: another encoding; the message names the line, the byte and a command that
        converts the file.
    """
    try:
        return _decode(path)
    except ValueError as error:
        raise ValueError(f"{path}, {error}") from None


def read_lines(path: str | os.PathLike[str]) -> list[tuple[int, str]]:
    r"""Returns (number, text) of the lines that are not blank, without spaces at either end.

    Lines end with ``\n``, ``\r\n`` or ``\r`` alone. Other characters that Unicode calls line ends,
    such as U+2028, NEL and the form feed, are part of the line.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: as ``read_text``.
    """
    lines = enumerate(_LINE_ENDS.split(read_text(path)), 1)
    return [(number, line.strip()) for number, line in lines if line.strip()]


def read_json(path: str | os.PathLike[str], expected: str) -> Any:
    """Returns the content of a JSON file, in an encoding of ``read_text``.

    Args:
      path: the file.
      expected: description of its format, for the error.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: no JSON, or another encoding; the message names the line.
    """
    try:
        return json.loads(_decode(path))
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise ValueError(f"{path}: expected {expected}; {where}: {error.msg}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected {expected}; {error}") from None


def _decode(path: str | os.PathLike[str]) -> str:
    """Returns a file's text; a ValueError begins with the line and does not name the file."""
    require_file(path, "a text file")
    content = Path(path).read_bytes()
    encoding = next((name for mark, name in _BYTE_ORDER_MARKS if content.startswith(mark)), "utf-8")
    zero = content.find(0) if encoding == "utf-8" else -1
    if zero >= 0:
        order = "UTF-16LE" if zero % 2 else "UTF-16BE"
        raise ValueError(
            f"line {_line_at(content, zero)}: expected text in UTF-8, received a zero byte; if it "
            f"is UTF-16 without a byte-order mark, convert it by: {_iconv(order, path)}"
        )
    try:
        # UTF-8 has marks, too; "utf-8-sig" would leave those in the middle of joined files.
        return content.decode(encoding).replace("\ufeff", "")
    except UnicodeDecodeError as error:
        if encoding != "utf-8":
            raise ValueError(
                f"byte {error.start}: damaged {encoding.upper()}: {error.reason}"
            ) from None
        before = (
            content[max(error.start - 20, 0) : error.start]
            .decode("utf-8", "ignore")
            .lstrip("\ufeff")
        )
        raise ValueError(
            f"line {_line_at(content, error.start)}: expected text in UTF-8, received the byte "
            f"0x{content[error.start]:02x} after {before!r}; if it is Latin-1, convert it by: "
            f"{_iconv('ISO-8859-1', path)}"
        ) from None


def require_file(path: str | os.PathLike[str], expected: str) -> None:
    """Raises FileNotFoundError for what is no file: opening a pipe would wait for its writer.

    Args:
      path: the file.
      expected: its kind, for the error.
    """
    if (stored := find_stored(path)) is not None:
        path = stored.shard
    if not Path(path).exists():
        raise FileNotFoundError(f"{path}: expected {expected}, which does not exist")
    if not Path(path).is_file():
        found = "a folder" if Path(path).is_dir() else "a pipe or device"
        raise FileNotFoundError(f"{path}: expected {expected}, received {found}")


def _iconv(encoding: str, path: str | os.PathLike[str]) -> str:
    return f"iconv -f {encoding} -t UTF-8 {shlex.quote(str(path))} > converted"


def _line_at(content: bytes, position: int) -> int:
    return len(_LINE_ENDS.findall(content[:position].decode("latin-1"))) + 1


def normal_name(name: str) -> str:
    """Returns a name in Unicode's composed form (NFC), in which equal names are equal strings.

    macOS and archives made there write decomposed names (NFD): "é" as "e" and an accent.
    """
    return unicodedata.normalize("NFC", name)


def check_names(names: Iterable[str], where: str) -> None:
    """Raises ValueError for names of files that are not Unicode, and so cannot stand in a list.

    Args:
      names: the names; bytes of another encoding are surrogates, as Python keeps them.
      where: begin of the error, as the folder of the files.
    """
    foreign = [name for name in names if any("\ud800" <= letter <= "\udfff" for letter in name)]
    if foreign:
        shown = [name.encode(errors="backslashreplace").decode() for name in foreign[:3]]
        raise ValueError(
            f"{where}: expected names in UTF-8, received {len(foreign)} in another encoding: "
            f"{', '.join(shown)}{', ...' if len(foreign) > 3 else ''}; rename them"
        )


def find_files(
    paths: Iterable[str | os.PathLike[str]], *, folders: bool = False
) -> list[Path | None]:
    """Returns existing files, whose names may be in another Unicode form (NFC or NFD) on disk.

    Args:
      paths: the files as a list names them.
      folders: whether folders, as of frames, are found as well.

    Returns:
      For each its path on disk; None where there is no such file.
    """
    entries: dict[Path, dict[str, list[str]]] = {}

    def in_folder(folder: Path) -> dict[str, list[str]]:
        if folder not in entries:
            entries[folder] = {}
            # A folder that may be entered, but not listed, holds no other names to try.
            names = sorted(os.listdir(folder)) if os.access(folder, os.R_OK) else []
            for name in names:
                entries[folder].setdefault(normal_name(name), []).append(name)
        return entries[folder]

    def variants(path: Path) -> list[Path]:
        """Returns the existing files and folders whose path has the same composed form."""
        folders = [path.parent]
        if path.parent != path and not (path.parent.name.isascii() and os.path.isdir(path.parent)):
            folders = variants(path.parent)
        name = normal_name(path.name)
        return [
            folder / variant
            for folder in folders
            if os.path.isdir(folder)
            for variant in in_folder(folder).get(name, ())
        ]

    def exists(path: Path) -> bool:
        # Unlike Path's, os.path's functions also answer for names that are too long.
        return os.path.isfile(path) or (folders and os.path.isdir(path))

    found: list[Path | None] = []
    indices: dict[Path, Mapping[str, Any] | None] = {}
    for path in map(Path, paths):
        if exists(path):
            found.append(path)
            continue
        if (stored := _find_record(path, indices)) is not None:
            found.append(stored)
            continue
        # ASCII has one form, so most missing files need no look into their folder.
        others = [] if str(path).isascii() else variants(path)
        found.append(next((other for other in others if exists(other)), None))
    return found


# ---- Files in shards -------------------------------------------------------------------------


class StoredFile(NamedTuple):
    """Place of a stored file: its shard, the number of its record, and its name."""

    shard: str
    row: int
    name: str


@dataclass(frozen=True)
class Record:
    """Content of one stored file.

    Attributes:
      content: the bytes of the file; empty where ``pictures`` are stored in their place.
      pictures: encoded images of a video's frames, or all frames, (T,H,W,3) uint8; None: the file
        itself is stored.
      info: of a video, (frames, frames/s, height, width) as ``data.video.probe`` found it; empty if
        unknown.
    """

    content: bytes
    pictures: Sequence[bytes] | Any = None
    info: tuple[int, float, int, int] | tuple[()] = ()


class _NamedBytes(io.BytesIO):
    """Bytes of a file with its name, by whose ending FFmpeg may tell the container."""

    def __init__(self, content: bytes, name: str):
        super().__init__(content)
        self.name = name


def find_stored(path: str | os.PathLike[str]) -> StoredFile | None:
    """Returns the place of a stored file by its path; None for any other file."""
    text = os.fspath(path)
    if "array" not in text:  # Before the expression: most paths.
        return None
    match = _STORED.fullmatch(text)
    return StoredFile(match["shard"], int(match["row"]), match["name"]) if match else None


def is_file(path: str | os.PathLike[str]) -> bool:
    """Returns True for a file, on disk or in a shard that is there."""
    stored = find_stored(path)
    return os.path.isfile(path if stored is None else stored.shard)


def open_file(path: str | os.PathLike[str]) -> BinaryIO:
    """Opens a file for reading, on disk or in a shard.

    Raises:
      FileNotFoundError: there is no such file or shard.
      OSError: it cannot be read, its record is damaged, or it was stored as pictures.
    """
    if find_stored(path) is None:
        return open(path, "rb")
    record = read_record(path)
    if record.pictures is not None:
        raise OSError(errno.EINVAL, "its frames are stored, not the file", os.fspath(path))
    return _NamedBytes(record.content, os.fspath(path))


def file_size(path: str | os.PathLike[str]) -> int:
    """Returns the number of bytes of a file, on disk or as it is stored in a shard.

    Raises:
      OSError: there is no such file, or its record is damaged.
    """
    stored = find_stored(path)
    if stored is None:
        return os.stat(path).st_size
    if _TFDS_SHARD not in stored.shard:
        return int(_entry(path, stored)["size"])
    record = read_record(path)
    return len(record.content) or sum(len(picture) for picture in record.pictures)


def stored_digest(path: str | os.PathLike[str]) -> str:
    """Returns the SHA-256 of a stored file's bytes, or of its pictures, 64 hexadecimal digits.

    Raises:
      OSError: there is no such file, or its record is damaged.
    """
    stored = _require_stored(path)
    if _TFDS_SHARD not in stored.shard:
        return str(_entry(path, stored)["sha256"])
    found = os.stat(stored.shard)
    return _digest_record(os.fspath(path), found.st_size, found.st_mtime_ns)


@functools.lru_cache(maxsize=1_000_000)
def _digest_record(path: str, size: int, changed: int) -> str:
    """Returns the digest of a record of TFDS, which has no index with digests."""
    del size, changed
    record = read_record(path)
    pictures = [record.content] if record.pictures is None else record.pictures
    digest = hashlib.sha256()
    for picture in pictures:
        digest.update(picture)
    return digest.hexdigest()


def read_record(path: str | os.PathLike[str]) -> Record:
    """Returns the content of a stored file; the last one of each thread is kept.

    Raises:
      FileNotFoundError: there is no such shard.
      OSError: the record is damaged, which ArrayRecord's checksums find, or is another file's.
    """
    stored = _require_stored(path)
    found = os.stat(stored.shard)
    key = (stored, found.st_size, found.st_mtime_ns)
    if getattr(_read_last, "key", None) == key:
        last: Record = _read_last.record
        return last
    packed = read_packed(path)
    try:
        if _TFDS_SHARD in stored.shard:
            record = _of_tfds(packed, os.path.dirname(stored.shard), stored.name)
        else:
            record = unpack_file(packed, stored.name)
    except Exception as error:  # Parsers of damaged bytes raise almost anything.
        reason = f"damaged record ({error})"
        raise OSError(errno.EIO, reason, os.fspath(path)) from error
    _read_last.key, _read_last.record = key, record
    return record


def read_packed(path: str | os.PathLike[str]) -> bytes:
    """Returns the bytes of a stored file's record.

    Raises:
      FileNotFoundError: there is no such shard.
      OSError: the record is damaged, which ArrayRecord's checksums find.
    """
    stored = _require_stored(path)
    found = os.stat(stored.shard)
    try:
        shard = _open_shard(stored.shard, found.st_size, found.st_mtime_ns)
        packed: bytes = shard[stored.row]
        return packed
    except (RuntimeError, ValueError, IndexError) as error:
        reason = f"damaged record ({error})"
        raise OSError(errno.EIO, reason, os.fspath(path)) from error


def _require_stored(path: str | os.PathLike[str]) -> StoredFile:
    stored = find_stored(path)
    if stored is None:
        raise FileNotFoundError(f"{path}: expected the path of a file in a shard")
    return stored


def pack_file(name: str, record: Record) -> bytes:
    """Serialises a file for a shard: length of the header, JSON header, bytes."""
    pictures = [record.content] if record.pictures is None else [*record.pictures]
    sizes = None if record.pictures is None else [len(picture) for picture in pictures]
    described = {"name": name, "info": list(record.info), "pictures": sizes}
    header = json.dumps(described, ensure_ascii=False).encode()
    return b"".join([len(header).to_bytes(_HEADER_SIZE, "little"), header, *pictures])


def unpack_file(packed: bytes, name: str) -> Record:
    """Returns what ``pack_file`` has serialised.

    Raises:
      ValueError: damaged bytes, or those of another file.
    """
    start = _HEADER_SIZE + int.from_bytes(packed[:_HEADER_SIZE], "little")
    header = json.loads(packed[_HEADER_SIZE:start])
    if header["name"] != name:
        raise ValueError(f"expected {name}, received {header['name']}, as if shards were swapped")
    info = tuple(header["info"])
    if header["pictures"] is None:
        return Record(packed[start:], None, info)
    pictures = []
    for size in header["pictures"]:
        pictures.append(packed[start : start + size])
        start += size
    return Record(b"", tuple(pictures), info)


def read_manifest(folder: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Returns the manifest of a converted folder; None for any other folder.

    Raises:
      ValueError: another version of the format, or a damaged manifest.
    """
    path = Path(folder, MANIFEST)
    if not os.path.isfile(path):  # Unlike Path's method, it answers for names that are too long.
        return None
    found = path.stat()
    return _read_manifest(path, found.st_size, found.st_mtime_ns)


def read_index(folder: str | os.PathLike[str]) -> Mapping[str, Mapping[str, Any]]:
    """Returns the stored files of a converted folder by name, in the order of their records.

    Each has ``shard`` (its name), ``row``, ``size`` (bytes) and ``sha256``.

    Raises:
      FileNotFoundError: no converted folder, or one without its index.
      ValueError: as ``read_manifest``, or an index of another conversion.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise FileNotFoundError(f"{folder}: expected a converted folder with its {MANIFEST}")
    path = Path(folder, INDEX)
    require_file(path, "the index of a converted folder")
    found = path.stat()
    return _read_index(path, found.st_size, found.st_mtime_ns, manifest["index_sha256"])


def manifest_text(content: Mapping[str, Any]) -> str:
    """Returns the text of a manifest, whose digest finds any other character in it."""
    described = {name: value for name, value in content.items() if name != "sha256"}
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
    return json.dumps({**described, "sha256": digest}, indent=1, ensure_ascii=False) + "\n"


@functools.lru_cache(maxsize=64)
def _read_manifest(path: Path, size: int, changed: int) -> dict[str, Any] | None:
    del size, changed  # They tell one content of the path from another.
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: damaged ({error}); convert the data set again") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        return None
    if content.get("version") != VERSION:
        raise ValueError(
            f"{path}: expected version {VERSION} of the format {FORMAT}, received "
            f"{content.get('version')!r}; convert the data set again by python -m data.convert"
        )
    if json.loads(manifest_text(content))["sha256"] != content.get("sha256"):
        raise ValueError(
            f"{path}: damaged (its digest differs); convert the data set again, or restore the file"
        )
    return content


@functools.lru_cache(maxsize=16)
def _read_index(path: Path, size: int, changed: int, digest: str) -> dict[str, dict[str, Any]]:
    del size, changed
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != digest:
        raise ValueError(
            f"{path}: expected the index of {MANIFEST} beside it, received one with another "
            "digest; restore the file or convert the data set again"
        )
    rows = map(json.loads, content.splitlines())
    return {row.pop("name"): row for row in rows}


def _entry(path: str | os.PathLike[str], stored: StoredFile) -> Mapping[str, Any]:
    """Returns the row of the index for a stored file."""
    try:
        entry = read_index(os.path.dirname(stored.shard)).get(stored.name)
    except ValueError as error:
        raise OSError(errno.EIO, str(error), os.fspath(path)) from error
    if entry is None or (entry["shard"], entry["row"]) != (
        os.path.basename(stored.shard),
        stored.row,
    ):
        raise FileNotFoundError(f"{path}: expected a stored file, which the index does not name")
    return entry


def _find_record(path: Path, known: dict[Path, Mapping[str, Any] | None]) -> Path | None:
    """Returns the path in its shard of a file below a converted folder, by its name there.

    Args:
      path: the file, as if it lay in the folder.
      known: indices of the folders that were looked at, which is added to.
    """
    if (stored := find_stored(path)) is not None:
        return path if os.path.isfile(stored.shard) else None
    for folder in path.parents:
        if folder not in known:
            known[folder] = None if read_manifest(folder) is None else read_index(folder)
        if (index := known[folder]) is not None:
            name = normal_name(Path(os.path.normpath(path.relative_to(folder))).as_posix())
            entry = index.get(name)
            return entry and folder / entry["shard"] / str(entry["row"]) / name
    return None


@functools.lru_cache(maxsize=512)
def _open_shard(path: str, size: int, changed: int) -> Any:
    del size, changed
    # Without them, a training from plain files needs no reader of shards.
    from array_record.python import array_record_data_source

    return array_record_data_source.ArrayRecordDataSource([path])


# ---- Records of TFDS -------------------------------------------------------------------------


def _of_tfds(packed: bytes, folder: str, key: str) -> Record:
    """Returns the feature ``key`` of a record that TFDS has written, as its images or bytes."""
    [value] = tfds_values(packed, folder, [key])
    if isinstance(value, bytes):
        return Record(value)
    if getattr(value, "ndim", 1) == 0:
        return Record(bytes(value.item()))
    if getattr(value, "dtype", None) == "uint8" and value.ndim == 3:
        from PIL import Image

        encoded = io.BytesIO()
        Image.fromarray(value[..., 0] if value.shape[2] == 1 else value).save(encoded, "PNG")
        return Record(encoded.getvalue())
    if getattr(value, "dtype", None) == "uint8":
        return Record(b"", value)
    return Record(b"", tuple(bytes(picture) for picture in value))


def tfds_values(packed: bytes, folder: str | os.PathLike[str], keys: Sequence[str]) -> list[Any]:
    """Returns the values of some keys in a record that TFDS has written; images stay encoded.

    Args:
      packed: the record.
      folder: of the version, with ``features.json``.
      keys: "/" between nested keys; a name with "/" of its own, as "image/id", does as well.
    """
    import tensorflow_datasets as tfds

    features, parser = tfds_features(os.fspath(folder))
    example = parser.parse_example(packed)
    values = []
    for key in keys:
        value, feature = example, features
        for part in [key] if key in features else key.split("/"):
            value = value[part]
            is_dict = isinstance(feature, tfds.features.FeaturesDict)
            feature = feature[part] if is_dict else None  # Steps of a sequence are not encoded.
        if isinstance(feature, tfds.features.Tensor):  # It may be compressed.
            value = feature.decode_example_np(value)
        values.append(value)
    return values


@functools.lru_cache(maxsize=16)
def tfds_features(folder: str) -> tuple[Any, Any]:
    """Returns the features of a prepared data set, and the parser of its records.

    A ``Video`` is its images, as which TFDS stores it: the class itself imports TensorFlow.
    """
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import example_parser

    described = _videos_as_images(json.loads(Path(folder, "features.json").read_bytes()))
    features = tfds.features.FeaturesDict.from_json(described)
    features.load_metadata(folder, feature_name=None)
    return features, example_parser.ExampleParserNp(features.get_serialized_info())


def _videos_as_images(value: Any) -> Any:
    """Returns the content of ``features.json`` with sequences of images in place of videos."""
    if isinstance(value, list):
        return [_videos_as_images(one) for one in value]
    if not isinstance(value, dict):
        return value
    name = value.get("pythonClassName", "")
    if not name.endswith(".video_feature.Video"):
        return {key: _videos_as_images(inner) for key, inner in value.items()}
    video, package = value["video"], name.removesuffix("video_feature.Video")
    dimensions = video.get("shape", {}).get("dimensions", ["-1"] * 3 + ["3"])
    image = {
        "shape": {"dimensions": dimensions[1:]},
        "dtype": video.get("dtype", "uint8"),
        "encodingFormat": video.get("encodingFormat", "png"),
    }
    frame = {"pythonClassName": f"{package}image_feature.Image", "image": image}
    return {
        "pythonClassName": f"{package}sequence_feature.Sequence",
        "sequence": {"feature": frame, "length": dimensions[0]},
    }


# ---- Writing ---------------------------------------------------------------------------------


def write_atomically(path: str | os.PathLike[str], write: Callable[[Path], object]) -> None:
    """Writes a file under a temporary name and renames it, so a kill leaves no partial file.

    Several processes may write the same file at once; the last rename wins.

    Args:
      path: the target, in an existing folder.
      write: called with the temporary path; writes the complete file there.

    Raises:
      OSError: the file, which it names, cannot be written; the temporary file is removed.
    """
    path = Path(path)
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}.unfinished")
    try:
        write(unfinished)
        with open(unfinished, "rb") as file:
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        # Python names no file where a write fails, as on a full disk.
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        unfinished.unlink(missing_ok=True)
