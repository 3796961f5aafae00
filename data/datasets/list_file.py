"""List files of labelled videos, images or sounds: CSV, TSV, lists of Kinetics and MMAction2.

A table has a header, in any order and letter case, and any of ``,``, ``;`` and tab between the
cells; a list without a header has the path first and the label last::

    path,label,group,split                 abseiling/a b.mp4 0       abseiling/a b.mp4,abseiling
    Wave/1.mp4,Wave,anna,train             air_drumming/c.mp4 1      air_drumming/c.mp4,air_drumming

Text is in UTF-8, or UTF-16 with a byte-order mark; lines end with LF, CRLF or CR. Lines before the
first one that begin with "# " are comments.
"""

import csv
import io
import itertools
import os
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from data.files import normal_name, read_lines, read_text

PATH, LABEL, GROUP, SPLIT, FOLD = "path", "label", "group", "split", "fold"
COLUMNS = {
    PATH: (
        *("path", "file", "filename", "file_name", "filepath", "file_path", "video", "video_path"),
        *("image", "image_path", "clip", "img", "relpath", "video_file", "image_file"),
        *("video_name", "image_name", "clip_path", "audio", "audio_file", "audio_path"),
        *("wav", "wav_filename"),
    ),
    LABEL: ("label", "class", "class_name", "category", "action", "target", "label_name", "digit"),
    GROUP: (
        *("group", "speaker", "subject", "person", "actor", "sequence", "session", "scene"),
        "recording",
    ),
    SPLIT: ("split", "subset", "set", "partition"),
    FOLD: ("fold", "fold_id"),
}
"""Names of the columns that are read, lower-case, by what they mean; the first that is there
counts. Blanks and hyphens in a header are read as "_"."""

SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""Splits by their names in folders and lists, lower-case."""

_CLASS_HEADER = {*COLUMNS[LABEL], "id", "class_id", "label_id", "index", "number", "name"}
_LINES_TOLD = 3
_SNIFFED = 20  # lines that decide between separators
_SEPARATORS = ("\t", ",", ";", " ")


@dataclass(frozen=True)
class ListedFile:
    """One row of a list.

    Attributes:
        line: its number in the file, from 1.
        path: as it is written.
        label: name or number of the class, as it is written.
        group: recording group; "" without such a column.
        split: "train", "validation" or "test"; "" without such a column.
        fold: of a cross-validation, as it is written; "" without such a column.
    """

    line: int
    path: str
    label: str
    group: str = ""
    split: str = ""
    fold: str = ""


def read_list(path: str | os.PathLike[str], endings: Collection[str]) -> list[ListedFile]:
    """Reads a list file.

    Args:
        path: the list.
        endings: of the listed files, lower-case with the dot; they tell the separator of a list
            without a header.

    Returns:
        The rows, in the list's order, without blank lines.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no rows, no column of paths or labels, a row without one of them or with more
            cells than the header, an unknown split, or text that is not UTF-8; the message names
            the line.
    """
    separator, header = _sniff(path, endings)
    rows = _rows(path, separator)
    columns: dict[str, int] = {PATH: 0, LABEL: -1}
    names: list[str] = []
    if header:
        _, names = next(rows)
        columns = _columns(path, names)
    files: list[ListedFile] = []
    incomplete: list[str] = []
    for line, cells in rows:
        if header and any(cell.strip() for cell in cells[len(names) :]):
            raise ValueError(
                f"{path}: expected {len(names)} cells in each line, as in the header, received "
                f"{len(cells)} in line {line}; put a cell with {separator!r} between double quotes"
            )
        # Of a table, empty cells at the end may be left out.
        padded = [*cells, *[""] * (max(columns.values()) + 1 - len(cells))] if header else cells
        values = {kind: padded[column].strip() for kind, column in columns.items()}
        # Blanks around a path may be part of the name.
        name = normal_name(padded[columns[PATH]])
        if not values[PATH] or not values[LABEL] or (not header and len(cells) < 2):
            incomplete.append(f"line {line}")
            continue
        split = _split(path, line, values[SPLIT]) if SPLIT in values else ""
        files.append(
            ListedFile(
                line,
                name,
                normal_name(values[LABEL]),
                values.get(GROUP, ""),
                split,
                values.get(FOLD, ""),
            )
        )
    if incomplete:
        raise ValueError(
            f"{path}: expected a path and a label in each line, received {len(incomplete)} lines "
            f"without one: {some(incomplete)}"
        )
    if not files:
        raise ValueError(f"{path}: expected lines with a path and a label, received none")
    if any(file.split for file in files) and not all(file.split for file in files):
        lines = [f"line {file.line}" for file in files if not file.split]
        raise ValueError(
            f"{path}: expected a split in each line or in none, received {len(lines)} lines "
            f"without one: {some(lines)}"
        )
    return files


def read_class_list(path: str | os.PathLike[str]) -> dict[int, str]:
    """Returns the names of classes by number.

    Lines are names, numbered from 0 in their order, or numbers with names, as ``3 Archery``,
    ``3,Archery`` or ``Archery,3``, with a header or without.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no lines, or a name or number that stands twice.
    """
    names: dict[int, str] = {}
    lines = [(number, normal_name(line)) for number, line in read_lines(path) if line[:1] != "#"]
    numbered = [_numbered(line) for _, line in lines]
    words = set(re.split(r"[\s,;]+", lines[0][1].lower())) if lines else set()
    if words and words <= _CLASS_HEADER and len(words) > 1 and all(numbered[1:]):
        lines, numbered = lines[1:], numbered[1:]
    all_numbered = all(numbered)
    for index, ((line_number, line), found) in enumerate(zip(lines, numbered, strict=True)):
        number, name = found if all_numbered and found else (index, line)
        if number in names or name in names.values():
            raise ValueError(
                f"{path}: expected a name and number of its own in each line, received {line!r} "
                f"again in line {line_number}"
            )
        names[number] = name
    if not names:
        raise ValueError(f"{path}: expected the names of the classes, one a line, received none")
    return names


def some(items: Sequence[object]) -> str:
    """Returns the first three items in words."""
    shown = ", ".join(str(item) for item in items[:_LINES_TOLD])
    return shown + (", ..." if len(items) > _LINES_TOLD else "")


def _numbered(line: str) -> tuple[int, str] | None:
    for separator in ("\t", ",", None):
        first, *rest = line.split(separator, 1)
        if rest and first.strip().isdecimal():
            return int(first), rest[0].strip()
    *before, last = line.rsplit(",", 1)
    if before and last.strip().isdecimal():
        return int(last), before[0].strip()
    return None


def _sniff(path: str | os.PathLike[str], endings: Collection[str]) -> tuple[str, bool]:
    """Returns the separator, and True if the first line is a header."""
    lines = [line for _, line in read_lines(path)]
    lines = [*itertools.dropwhile(_is_comment, lines)][:_SNIFFED]
    if not lines:
        raise ValueError(f"{path}: expected lines with a path and a label, received an empty file")
    tables = {mark: list(csv.reader(lines, delimiter=mark)) for mark in _SEPARATORS[:-1]}
    for mark, table in tables.items():
        if len(table[0]) > 1 and _position(table[0], PATH) is not None:
            return mark, True
        if len(table[0]) > 1 and _is_header(table, endings):
            raise ValueError(
                f"{path}: expected a column of paths named {' or '.join(COLUMNS[PATH][:3])}, "
                f"received the columns {', '.join(name.strip() for name in table[0])}"
            )
    # Of blank-separated lists only this header is meant: a path may begin with such a word.
    words = lines[0].lower().split()
    if len(words) == 2 and words[0] in COLUMNS[PATH] and words[1] in COLUMNS[LABEL]:
        return " ", True
    for mark, table in tables.items():
        if all(len(row) > 1 and _ends(row[0], endings) for row in table if row):
            return mark, False
    if all(len(line.rsplit(maxsplit=1)) == 2 for line in lines) and not _ends(lines[0], endings):
        return " ", False
    for mark, table in tables.items():
        if all(len(row) > 1 for row in table if row):
            return mark, False
    if _position([lines[0]], PATH) is not None or all(_ends(line, endings) for line in lines):
        raise ValueError(f"{path}: expected a column of labels, received paths alone")
    raise ValueError(
        f"{path}: expected a header with the columns path and label, or a path and a label in each "
        f"line, received {lines[0][:60]!r}"
    )


def _is_header(table: Sequence[Sequence[str]], endings: Collection[str]) -> bool:
    """Returns True if the first row names a column of labels, or one of splits, but no file."""
    first = table[0]
    kinds = (LABEL, SPLIT)
    return (
        not any(_ends(cell, endings) for cell in first)
        and any(
            (column := _position(first, kind)) is not None
            # A class may be called "action".
            and all(row[column : column + 1] != first[column : column + 1] for row in table[1:])
            for kind in kinds
        )
    )


def _is_comment(line: str) -> bool:
    return line.startswith("# ")


def _ends(name: str, endings: Collection[str]) -> bool:
    return os.path.splitext(name.strip())[1].lower() in endings


def _rows(path: str | os.PathLike[str], separator: str) -> Iterator[tuple[int, list[str]]]:
    """Yields (line, cells) of the lines that are neither blank nor comments before the first."""
    if separator == " ":
        # The label is the last word, so that paths may have blanks.
        lines = itertools.dropwhile(lambda row: _is_comment(row[1]), read_lines(path))
        return ((number, line.rsplit(maxsplit=1)) for number, line in lines)
    text = read_text(path)
    # Quotes within a cell are no fault; one that is never closed swallows the lines behind it.
    for strict in (True, False):
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=strict)
        rows, began = [], 1
        try:
            for cells in reader:
                if any(cell.strip() for cell in cells):
                    rows.append((began, cells))
                began = reader.line_num + 1
        except csv.Error as error:
            if "unexpected end of data" in str(error):
                raise ValueError(
                    f"{path}: line {began} is damaged (a quote that is never closed)"
                ) from None
            if not strict:
                raise ValueError(f"{path}: line {began} is damaged ({error})") from None
        else:
            break
    return itertools.dropwhile(lambda row: _is_comment(row[1][0]), iter(rows))


def _position(names: Sequence[str], kind: str) -> int | None:
    found = [re.sub(r"[\s-]+", "_", name.strip().lower()) for name in names]
    return next((found.index(name) for name in COLUMNS[kind] if name in found), None)


def _columns(path: str | os.PathLike[str], names: Sequence[str]) -> dict[str, int]:
    columns = {kind: _position(names, kind) for kind in COLUMNS}
    if columns[LABEL] is None:
        raise ValueError(
            f"{path}: expected a column of labels named {' or '.join(COLUMNS[LABEL][:3])}, "
            f"received the columns {', '.join(name.strip() for name in names)}"
        )
    return {kind: column for kind, column in columns.items() if column is not None}


def _split(path: str | os.PathLike[str], line: int, name: str) -> str:
    if name and name.lower() not in SPLIT_NAMES:
        raise ValueError(
            f"{path}: expected train, validation or test in the column of splits, received "
            f"{name!r} in line {line}"
        )
    return SPLIT_NAMES[name.lower()] if name else ""
