"""Columns of numbers and texts from CSV, NPZ and Parquet files.

No data-frame library is used: an error must name line and column of a cell, which the readers of
pandas and PyArrow do only in part, and training needs neither for anything else. Python's ``csv``
finds the cells and NumPy converts them column by column. Parquet is read by PyArrow, an extra.
"""

import csv
import io
import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from data.datasets.list_file import some
from data.files import read_text, require_file

MISSING = ("", "nan", "na", "n/a", "null", "none", "?")
"""Texts of missing values, in any letter case."""
BLANKS = " "
"""Separator of files whose cells stand between any number of blanks and tabs."""

_SEPARATORS = ("\t", ";", "|", ",", BLANKS)
_BLOCK = 4_096  # rows that are held as texts at a time
_SAMPLED = 200  # rows that decide on the decimal mark
_NUMBER = re.compile(r"[+-]?(\d+([.,]\d*)?|[.,]\d+)([eE][+-]?\d+)?")
_MIXED = "?!"  # Makes no number of a cell with a point where the decimal mark is a comma.
_THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2}(,\d{3})+")


@dataclass(frozen=True, eq=False)
class Columns:
    """Values of columns, row by row.

    Attributes:
        numbers: (T,C) float64, NaN where a value is missing.
        texts: T texts of each of the other columns.
        places: (T,) line of each row, from 1; of files without lines its number, from 0.
        unit: "line" or "row", as ``places`` counts.
    """

    numbers: np.ndarray
    texts: tuple[list[str], ...]
    places: np.ndarray
    unit: str


class ColumnFile(Protocol):
    """A file of columns.

    Attributes:
        names: of the columns, "" of one without; their numbers, from 0, in files without names.
        has_names: False in files without names.
    """

    names: tuple[str, ...]
    has_names: bool

    def read(self, numbers: Sequence[int], texts: Sequence[int]) -> Columns:
        """Returns columns of numbers and columns of texts."""
        ...


def open_columns(
    path: str | os.PathLike[str],
    *,
    separator: str = "",
    decimal: str = "",
    header: bool | None = None,
    missing: Sequence[str] = MISSING,
) -> ColumnFile:
    """Returns a file of columns, of the kind that its name's ending tells.

    Args:
        path: ``.npz``, ``.parquet``, or any other ending for a text file in an encoding of
            ``data.files.read_text``.
        separator: of text files: one character, ``BLANKS``, or "" to find it.
        decimal: mark in the numbers of text files, ".", "," or "" to find it.
        header: the first line holds names; None: it does where none of its cells is a number.
        missing: texts of missing values in text files, compared without regard to letter case;
            numbers, as "-999", by their value.

    Raises:
        FileNotFoundError: there is no such file.
        ModuleNotFoundError: Parquet without the extra ``parquet``.
        ValueError: an empty or damaged file, or a separator or decimal mark that cannot be.
    """
    require_file(path, "a table of numbers (CSV, NPZ or Parquet)")
    ending = Path(path).suffix.lower()
    if ending == ".npz":
        return _read_npz(path)
    if ending in (".parquet", ".pq"):
        return _read_parquet(path)
    return _TextFile(path, separator, decimal, header, missing)


class _TextFile:
    """Text file of cells between separators, with a header or without."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        separator: str,
        decimal: str,
        header: bool | None,
        missing: Sequence[str],
    ) -> None:
        if (
            len(separator) > 1
            or decimal not in ("", ".", ",")
            or (separator and separator == decimal)
        ):
            raise ValueError(
                "separator, decimal: expected one character and '.' or ',', not the same, or '' to "
                f"find them, received {separator!r} and {decimal!r}"
            )
        self._path = path
        self._decimal = decimal
        self._missing = {text.strip().lower() for text in missing}
        numbers = [self._finite(text) for text in self._missing]
        # A number that stands for no value may be written in several ways: -999 and -999.0.
        self._sentinels = [n for n in numbers if n is not None and not math.isnan(n)]
        self._text = read_text(path)
        if not self._text.strip():
            raise ValueError(f"{path}: expected rows of numbers, received an empty file")
        self._separator = separator or _find_separator(self._text)
        _, first = next(self._rows(), (0, []))
        if not first:
            raise ValueError(f"{path}: expected rows of numbers, received comments alone")
        cells = [cell.strip() for cell in first]
        if header is None:
            header = not any(_NUMBER.fullmatch(cell) for cell in cells)
        if not header:
            self.names: tuple[str, ...] = tuple(map(str, range(len(cells))))
        else:
            # Lines of some programs end with a separator.
            last = max((i for i, cell in enumerate(cells, 1) if cell), default=0)
            self.names = tuple(cells[:last])
        self.has_names = header

    def read(self, numbers: Sequence[int], texts: Sequence[int]) -> Columns:
        """Returns columns; see ``ColumnFile``.

        Raises:
            ValueError: no rows, a row with another number of cells, or text in a number's place;
                the message names line and column.
        """
        rows = self._rows()
        if self.has_names:
            next(rows)
        blocks: list[np.ndarray] = []
        found: tuple[list[str], ...] = tuple([] for _ in texts)
        places: list[int] = []
        decimal = self._decimal
        width = len(self.names)
        while block := list(_take(rows, _BLOCK)):
            for line, cells in block:
                if len(cells) != width and (
                    len(cells) < width or any(cell.strip() for cell in cells[width:])
                ):
                    raise ValueError(self._ragged(line, len(cells)))
            if not decimal:
                decimal = self._find_decimal(block[:_SAMPLED], numbers)
            lines = [line for line, _ in block]
            blocks.append(
                np.stack(
                    [self._parse([c[j] for _, c in block], lines, j, decimal) for j in numbers], 1
                )
                if numbers
                else np.zeros((len(block), 0))
            )
            for texts_of, j in zip(found, texts, strict=True):
                texts_of += [cells[j].strip() for _, cells in block]
            places += lines
        if not places:
            raise ValueError(f"{self._path}: expected rows of numbers, received a header alone")
        return Columns(np.concatenate(blocks), found, np.array(places), "line")

    def _rows(self) -> Iterator[tuple[int, list[str]]]:
        """Yields (line, cells) of the lines but blank ones and comments at the top.

        Rows of empty cells are rows of missing values between others, but nothing at either end,
        where spreadsheets leave them.
        """
        top, waiting = True, []
        for line, cells in self._all_rows():
            if top and cells[0].lstrip().startswith("# "):
                continue
            if not any(cell.strip() for cell in cells):
                if not top and len(cells) > 1:
                    waiting.append((line, cells))
                continue
            top = False
            yield from waiting
            waiting = []
            yield line, cells

    def _all_rows(self) -> Iterator[tuple[int, list[str]]]:
        if self._separator == BLANKS:
            for line, text in enumerate(io.StringIO(self._text, newline=None), 1):
                if cells := text.split():
                    yield line, cells
            return
        reader = csv.reader(
            io.StringIO(self._text, newline=""), delimiter=self._separator, strict=True
        )
        began = 1
        try:
            for cells in reader:
                if cells:
                    yield began, cells
                began = reader.line_num + 1
        except csv.Error as error:
            raise ValueError(f"{self._path}: line {began} is damaged ({error})") from None

    def _parse(
        self, cells: list[str], lines: Sequence[int], column: int, decimal: str
    ) -> np.ndarray:
        """Returns the numbers of one column, (rows,) float64."""
        if decimal == ",":
            points = ["." in c and c.strip().lower() not in self._missing for c in cells]
            cells = [
                cell + _MIXED if point else cell.replace(",", ".")
                for cell, point in zip(cells, points, strict=True)
            ]
        try:
            if any("_" in cell for cell in cells):  # Python takes 1_000 for a number.
                raise ValueError
            found = np.array(cells, np.float64)
        except ValueError:
            found = np.array([self._number(cell) for cell in cells], np.float64)
        if self._sentinels:
            found[np.isin(found, self._sentinels)] = np.nan
        bad = np.isinf(found)
        if bad.any():
            row = int(np.argmax(bad))
            cell = cells[row].removesuffix(_MIXED)
            fix = "name the column as time, group or label, or name the columns to read"
            if self._finite(cell) is not None:
                fix = "leave infinite values empty, which is missing"
            elif _NUMBER.fullmatch(cell.strip()) and decimal != ",":
                fix = "set decimal=','"
            elif cell != cells[row] or _THOUSANDS.fullmatch(cell.strip()):
                fix = "write numbers without marks of thousands"
            raise ValueError(
                f"{self._path}: line {lines[row]}, column {self.names[column]!r}: expected a "
                f"number, received {cell!r}; {fix}, or list the text in missing= if it stands "
                "for no value"
            )
        return found

    def _number(self, cell: str) -> float:
        """Returns a number, NaN for a missing one, infinity for what is none."""
        if cell.strip().lower() in self._missing:
            return math.nan
        found = self._finite(cell)
        return math.inf if found is None else found

    @staticmethod
    def _finite(cell: str) -> float | None:
        try:
            return None if "_" in cell else float(cell)
        except ValueError:
            return None

    def _find_decimal(self, block: Sequence[tuple[int, list[str]]], numbers: Sequence[int]) -> str:
        if self._separator == ",":
            return "."
        cells = [(line, j, cells[j].strip()) for line, cells in block for j in numbers]
        commas = [(line, j, cell) for line, j, cell in cells if "," in cell]
        if not commas:
            return "."
        points = [cell for _, _, cell in cells if "." in cell and _NUMBER.fullmatch(cell)]
        if points or all(_THOUSANDS.fullmatch(cell) for _, _, cell in commas):
            line, j, cell = commas[0]
            raise ValueError(
                f"{self._path}: line {line}, column {self.names[j]!r}: expected numbers with one "
                f"decimal mark, received {cell!r}{f' beside {points[0]!r}' if points else ''}, "
                "whose comma may be one or a mark of thousands; set decimal=',' if it is one"
            )
        return ","

    def _ragged(self, line: int, count: int) -> str:
        mark = "blanks" if self._separator == BLANKS else repr(self._separator)
        comma = (
            "; decimal commas need another separator or double quotes"
            if self._separator == "," and count > len(self.names)
            else ""
        )
        return (
            f"{self._path}: line {line}: expected {len(self.names)} cells between {mark}, as in "
            f"the first line, received {count}{comma}"
        )


class _Arrays:
    """Columns that are arrays already, (T,) each."""

    def __init__(self, path: str | os.PathLike[str], arrays: dict[str, np.ndarray]) -> None:
        sizes = {name: len(array) for name, array in arrays.items()}
        if not sizes or not max(sizes.values()):
            raise ValueError(f"{path}: expected columns with rows, received none")
        if len(set(sizes.values())) > 1:
            shown = some([f"{name} {size}" for name, size in sizes.items()])
            raise ValueError(f"{path}: expected columns of one length, received {shown}")
        self._path = path
        self._arrays = arrays
        self.names = tuple(arrays)
        self.has_names = True

    def read(self, numbers: Sequence[int], texts: Sequence[int]) -> Columns:
        """Returns columns; see ``ColumnFile``.

        Raises:
            ValueError: a column of numbers that holds others, or infinite ones.
        """
        columns = [self._numbers(self.names[j]) for j in numbers]
        rows = len(self._arrays[self.names[0]])
        return Columns(
            np.stack(columns, 1) if columns else np.zeros((rows, 0)),
            tuple(_as_texts(self._arrays[self.names[j]]) for j in texts),
            np.arange(rows),
            "row",
        )

    def _numbers(self, name: str) -> np.ndarray:
        array = self._arrays[name]
        if array.dtype.kind not in "fiub":
            raise ValueError(
                f"{self._path}: column {name!r}: expected numbers, received {array.dtype}, first "
                f"{array[0]!s:.40}; name the column as time, group or label, or name the columns "
                "to read"
            )
        found = array.astype(np.float64)
        if np.isinf(found).any():
            row = int(np.argmax(np.isinf(found)))
            raise ValueError(
                f"{self._path}: row {row}, column {name!r}: expected a finite number, received "
                f"{found[row]}; put NaN, which is missing"
            )
        return found


def _read_npz(path: str | os.PathLike[str]) -> _Arrays:
    """Returns the columns of an NPZ file: (T,) arrays by name, of (T,D) ones as NAME_0, NAME_1."""
    columns: dict[str, np.ndarray] = {}
    for name, array in load_npz(path).items():
        if array.ndim == 1:
            columns[name] = array
        elif array.ndim == 2:
            columns |= {f"{name}_{j}": array[:, j] for j in range(array.shape[1])}
        else:
            raise ValueError(
                f"{path}: expected arrays (T,) or (T,D) of T rows, received {array.shape} in "
                f"{name!r}"
            )
    return _Arrays(path, columns)


def load_npz(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Returns the arrays of an NPZ file by name; nothing in it is executed.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no NPZ file, a damaged one, or one with pickled objects.
    """
    require_file(path, "an NPZ file")
    try:
        # NumPy leaves a file open that it cannot read.
        with open(path, "rb") as content, np.load(content, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except Exception as error:  # Of damaged files zipfile, zlib and NumPy raise a dozen kinds.
        raise ValueError(
            f"{path}: expected an NPZ file of numbers and texts, received another or a damaged "
            f"file ({error})"
        ) from None


def _read_parquet(path: str | os.PathLike[str]) -> _Arrays:
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "PyArrow, which reads Parquet, is not installed: pip install 'flaxnets[parquet]'"
        ) from None
    try:
        table = parquet.read_table(os.fspath(path))
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path}: expected a Parquet file, received another ({error})") from None
    return _Arrays(path, {name: _from_arrow(table.column(name)) for name in table.column_names})


def _from_arrow(column: Any) -> np.ndarray:
    """Returns a column as an array; nulls as NaN, NaT or ""."""
    array = column.to_numpy()
    if array.dtype.kind == "O":
        texts = ["" if value is None else str(value) for value in array]
        # Integers and booleans with nulls are objects as well.
        numbers = [math.nan if v is None else v for v in array]
        if all(isinstance(number, int | float) for number in numbers):
            return np.array(numbers, np.float64)
        return np.array(texts)
    return np.asarray(array)


def _as_texts(array: np.ndarray) -> list[str]:
    if array.dtype.kind == "M":
        array = array.astype("datetime64[us]")
    return [str(value) for value in array]


def _find_separator(text: str) -> str:
    """Returns the first separator that cuts the first line which is no comment."""
    lines = (line for line in io.StringIO(text, newline=None) if line.strip())
    line = next((line for line in lines if not line.startswith("# ")), "").strip("\n")
    for mark in _SEPARATORS[:-1]:
        try:
            if len(next(csv.reader([line], delimiter=mark), [])) > 1:
                return mark
        except csv.Error:
            continue
    return BLANKS if len(line.split()) > 1 else ","


def _take(rows: Iterator[tuple[int, list[str]]], count: int) -> Iterator[tuple[int, list[str]]]:
    for _, row in zip(range(count), rows, strict=False):
        yield row
