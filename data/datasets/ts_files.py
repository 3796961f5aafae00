"""Files ``.ts`` of the UEA and UCR archives, for classification and regression.

The format of sktime and aeon: comments (#), a header of lines @NAME VALUE, and behind ``@data`` a
line for each series, whose channels stand between colons and its class, or its number, last::

    @problemName BasicMotions
    @univariate false
    @classLabel true Standing Running
    @data
    -0.7,-0.7,10.2:-0.1,-0.1,?:Standing

Series and channels may differ in length, and ``?`` or NaN is a missing value. With ``@timestamps``
a value is a pair ``(time,value)``; such series are read only where their times are regular, because
the models have no other notion of time than the step.
"""

import math
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data.batches import UNKNOWN_LABEL
from data.files import read_lines, require_file
from data.series.sequences import LabelledSequences
from data.series.tables import nearest, shorten
from data.series.times import find_gaps, parse_times

SPLIT_ENDINGS = {"train": "_TRAIN.ts", "test": "_TEST.ts"}
"""Ends of the names of the archive's two files of each data set."""

_SWITCHES = ("timestamps", "missing", "univariate", "equallength", "targetlabel")
_KNOWN = (
    *_SWITCHES,
    "problemname",
    "dimension",
    "dimensions",
    "serieslength",
    "classlabel",
    "data",
)
_PAIR = re.compile(r"\(([^()]*)\)")


@dataclass
class _Header:
    """Values of the header; None where it does not tell."""

    name: str = ""
    timestamps: bool = False
    univariate: bool | None = None
    equal_length: bool | None = None
    dimension: int | None = None
    series_length: int | None = None
    class_names: tuple[str, ...] | None = None
    has_target: bool = False
    notes: list[str] = field(default_factory=list)


def read_ts(path: str | os.PathLike[str], split: str = "") -> LabelledSequences:
    """Reads the series of a file, or of one split of a folder.

    Args:
        path: the file; or the folder with its ``NAME_TRAIN.ts`` and ``NAME_TEST.ts``.
        split: "train" or "test" of a folder; "" of a file.

    Returns:
        (T_i,D) float64 series, NaN where a value is missing; shorter channels of a series end with
        missing values. The classes are in the order of the header.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a header that contradicts itself or the data, text in a number's place, a class
            that the header does not name, or times that are not regular; the message names the
            line.
    """
    path = _find(Path(path), split)
    lines = [(n, line) for n, line in read_lines(path) if not line.startswith("#")]
    header, body = _read_header(path, lines)
    if not body:
        raise ValueError(f"{path}: expected a line for each series behind @data, received none")
    labelled = header.class_names is not None or header.has_target
    if not labelled:
        raise ValueError(
            f"{path}: expected '@classLabel true' with the names of the classes or '@targetLabel "
            "true' in the header, received series without labels"
        )
    sequences: list[np.ndarray] = []
    answers: list[str] = []
    for number, line in body:
        where = f"{path}: line {number}"
        *channels, answer = _channels(line, header.timestamps)
        if not channels:
            raise ValueError(
                f"{where}: expected a series and its label between colons, received one"
            )
        sequences.append(_series(where, channels, header))
        answers.append(answer.strip())
        first = sequences[0].shape[1]
        if sequences[-1].shape[1] != first:
            raise ValueError(
                f"{where}: expected {first} channels, as in the first series, received "
                f"{sequences[-1].shape[1]}"
            )
    notes = list(header.notes)
    missing = sum(int(np.isnan(sequence).sum()) for sequence in sequences)
    if missing:
        notes.append(f"{missing} values missing in {path.name}")
    if header.has_target:
        numbers = [
            _float(f"{path}: line {n}", text, "target")
            for (n, _), text in zip(body, answers, strict=True)
        ]
        return LabelledSequences(
            tuple(sequences),
            targets=np.array(numbers, np.float64)[:, None],
            name=header.name,
            notes=tuple(notes),
        )
    names = header.class_names or ()
    label = {name: i for i, name in enumerate(names)} | {"?": UNKNOWN_LABEL}
    for (number, _), answer in zip(body, answers, strict=True):
        if answer not in label:
            raise ValueError(
                f"{path}: line {number}: expected one of the classes {shorten(names)} of the "
                f"header, received {answer[:40]!r}{nearest(answer[:40], names)}"
            )
    labels = np.array([label[answer] for answer in answers], np.int32)
    return LabelledSequences(tuple(sequences), labels, names, name=header.name, notes=tuple(notes))


def _find(path: Path, split: str) -> Path:
    """Returns the file of a split."""
    if not path.is_dir():
        if split:
            raise ValueError(f"split: expected '' with a file, received {split!r} with {path}")
        require_file(path, "a .ts file or a folder with NAME_TRAIN.ts")
        return path
    if split not in SPLIT_ENDINGS:
        raise ValueError(
            f"split: expected one of {', '.join(SPLIT_ENDINGS)} of the folder {path}, received "
            f"{split!r}"
        )
    found = sorted(path.glob(f"*{SPLIT_ENDINGS[split]}"))
    if len(found) != 1:
        raise FileNotFoundError(
            f"{path}: expected one file NAME{SPLIT_ENDINGS[split]}, received {len(found)}"
        )
    return found[0]


def _read_header(path: Path, lines: list[tuple[int, str]]) -> tuple[_Header, list[tuple[int, str]]]:
    """Returns the header, and the lines behind ``@data``."""
    header = _Header(name=path.stem)
    for position, (number, line) in enumerate(lines):
        where = f"{path}: line {number}"
        if not line.startswith("@"):
            raise ValueError(f"{where}: expected @data before the series, received {line[:40]!r}")
        key, *values = line[1:].split() or [""]
        key = key.lower()
        if key not in _KNOWN:
            header.notes.append(
                f"line {number}: @{key} is no name of the format and was left out"
                f"{nearest(key, _KNOWN)}"
            )
            continue
        if key == "data":
            if header.class_names is not None and header.has_target:
                raise ValueError(f"{where}: expected @classLabel or @targetLabel, received both")
            return header, lines[position + 1 :]
        if not values:
            raise ValueError(f"{where}: expected a value behind @{key}, received none")
        if key == "problemname":
            header.name = " ".join(values)
        elif key in ("dimension", "dimensions", "serieslength"):
            if not values[0].isdecimal() or not int(values[0]):
                raise ValueError(f"{where}: expected a number above 0, received {values[0]!r}")
            if key == "serieslength":
                header.series_length = int(values[0])
            else:
                header.dimension = int(values[0])
        else:
            switch = values[0].lower()
            if switch not in ("true", "false"):
                raise ValueError(
                    f"{where}: expected true or false behind @{key}, received {values[0]!r}"
                )
            on = switch == "true"
            if key == "timestamps":
                header.timestamps = on
            elif key == "univariate":
                header.univariate = on
            elif key == "equallength":
                header.equal_length = on
            elif key == "targetlabel":
                header.has_target = on
            elif key == "classlabel" and on:
                if len(values) < 2 or len(set(values[1:])) < len(values) - 1:
                    raise ValueError(
                        f"{where}: expected the different names of the classes behind @classLabel "
                        f"true, received {' '.join(values[1:]) or 'none'}"
                    )
                header.class_names = tuple(values[1:])
    raise ValueError(f"{path}: expected a header that ends with @data, received none")


def _channels(line: str, timestamps: bool) -> list[str]:
    """Returns what stands between the colons; those in brackets belong to times."""
    if not timestamps:
        return line.split(":")
    parts, depth = [""], 0
    for character in line:
        depth += (character == "(") - (character == ")")
        if character == ":" and not depth:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def _series(where: str, channels: list[str], header: _Header) -> np.ndarray:
    """Returns (T,D) float64 of the channels of a line, checked against the header."""
    columns = [
        _values(f"{where}, channel {i}", text, header.timestamps) for i, text in enumerate(channels)
    ]
    wanted = 1 if header.univariate else header.dimension
    if wanted and len(columns) != wanted:
        raise ValueError(
            f"{where}: expected {wanted} channels, as the header says, received {len(columns)}"
        )
    lengths = {len(column) for column in columns}
    if header.equal_length and len(lengths) > 1:
        raise ValueError(
            f"{where}: expected channels of equal length, as the header says (@equalLength), "
            f"received {', '.join(map(str, sorted(lengths)))}"
        )
    length = max(lengths)
    if header.equal_length and header.series_length and length != header.series_length:
        raise ValueError(
            f"{where}: expected {header.series_length} values, as the header says (@seriesLength), "
            f"received {length}"
        )
    values = np.full((length, len(columns)), np.nan)
    for i, column in enumerate(columns):
        values[: len(column), i] = column
    return values


def _values(where: str, text: str, timestamps: bool) -> np.ndarray:
    """Returns the values of one channel."""
    if not timestamps:
        cells = text.split(",")
        try:
            found = np.array(cells, np.float64)
        except ValueError:
            found = np.array([_float(where, cell, "number") for cell in cells])
    else:
        pairs = [pair.rpartition(",") for pair in _PAIR.findall(text)]
        if not pairs:
            raise ValueError(f"{where}: expected pairs (time,value), received {text[:40]!r}")
        found = np.array([_float(where, value, "number") for _, _, value in pairs])
        times = parse_times([time for time, _, _ in pairs], lambda row: f"{where}, value {row}")
        steps = np.diff(times.astype(np.float64))
        if (steps <= 0).any() or len(find_gaps(times)[1]):
            raise ValueError(
                f"{where}: expected ascending times at equal steps, received others; interpolate "
                "the series to equal steps, or put ? for the missing values"
            )
    if np.isinf(found).any():
        raise ValueError(f"{where}: expected finite numbers, received an infinite one")
    return found


def _float(where: str, text: str, what: str) -> float:
    """Returns a number, NaN for ``?``."""
    text = text.strip()
    if text in ("?", ""):
        return math.nan
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{where}: expected a {what}, received {text[:40]!r}") from None
