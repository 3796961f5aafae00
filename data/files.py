"""Files: text of any usual encoding, names in any Unicode form, atomic writing."""

import codecs
import json
import os
import re
import secrets
import shlex
import unicodedata
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),  # Before UTF-16's, with which it begins.
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_LINE_ENDS = re.compile(r"\r\n|\n|\r")


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
    for path in map(Path, paths):
        if exists(path):
            found.append(path)
            continue
        # ASCII has one form, so most missing files need no look into their folder.
        others = [] if str(path).isascii() else variants(path)
        found.append(next((other for other in others if exists(other)), None))
    return found


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
