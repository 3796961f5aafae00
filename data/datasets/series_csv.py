"""Series of one's own: a table with a row for each time, as CSV, NPZ or Parquet.

One series, or several in groups, each of which is a series of its own; its rows may be mixed with
those of others::

    date,HUFL,OT                 engine,cycle,s1,s2        0.7855,1.6110
    2016-07-01 00:00,5.8,30.5    1,1,641.8,1589.7          0.7818,1.6100
    2016-07-01 01:00,5.7,        2,1,642.2,1591.8          0.7867,1.6110

``read_series(path, time="date")``, ``read_series(path, time="cycle", group="engine")`` and
``read_series(path)`` read these. An empty cell is a missing value. With a column of labels the
steps have classes.
"""

import itertools
import os
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from data.batches import UNKNOWN_LABEL
from data.datasets.list_file import SPLIT_NAMES, some
from data.datasets.number_tables import MISSING, Columns, open_columns
from data.series.tables import Series, SeriesTable, find_column, shorten
from data.series.times import (
    DUPLICATES,
    GAPS,
    clean_times,
    fill_grid,
    find_gaps,
    parse_times,
    refuse_gaps,
)

Column = str | int
"""Name of a column, or its number from 0 as an int or in digits."""


def read_series(
    path: str | os.PathLike[str],
    *,
    columns: Sequence[Column] = (),
    time: Column = "",
    group: Column = "",
    label: Column = "",
    split: Column = "",
    time_format: str = "",
    sort: bool = False,
    duplicates: str = "refuse",
    gaps: str = "refuse",
    names: Sequence[str] = (),
    separator: str = "",
    decimal: str = "",
    header: bool | None = None,
    missing: Sequence[str] = MISSING,
) -> SeriesTable:
    """Reads the series of a file.

    Args:
        path: CSV or another text file, ``.npz`` (columns by name) or ``.parquet``.
        columns: of the values, by name or number; empty: all but those named below and those
            without a name, as the row numbers that data frames write.
        time: column of the times; "": none, each row is a step.
        group: column that tells the series apart; "": one series.
        label: column of the class of each step; "": none. An empty cell is no label.
        split: column of "train", "validation" or "test", the same in all rows of a group; "": none.
        time_format: of dates other than ISO 8601, as for ``datetime.strptime``.
        sort: sort the rows of each series by time; False: refuse times that run backwards.
        duplicates: of rows with the same time keep the "first" or the "last", or "refuse" them.
        gaps: where rows are missing (steps of more than 1.5 times the median one): "refuse" them,
            "fill" them with rows of missing values, "split" the series, or "ignore" them, as
            of business days, whose rows count as consecutive.
        names: of all columns of a text file without a header; empty: their numbers.
        separator: of a text file, one character or " " for any number of blanks; "": found.
        decimal: mark in a text file's numbers, "." or ","; "": found.
        header: the first line holds names; None: it does where none of its cells is a number.
        missing: texts of missing values in a text file, in any letter case; numbers, as "-999",
            by their value.

    Returns:
        The series in the order in which they first occur, with notes about missing values,
        constant channels, gaps and what was left out.

    Raises:
        FileNotFoundError: there is no such file.
        ModuleNotFoundError: Parquet without the extra ``parquet``.
        ValueError: a column that is not there (the message suggests the nearest), text in a
            number's place, times that run backwards, duplicate or irregular ones, ragged rows, a
            group on two sides of the split, or an empty file; the message names line and column.
    """
    for argument, value, options in (
        ("gaps", gaps, GAPS),
        ("duplicates", duplicates, DUPLICATES),
    ):
        if value not in options:
            raise ValueError(
                f"{argument}: expected one of {', '.join(options)}, received {value!r}"
            )
    if time == "" and (sort or time_format or duplicates != "refuse" or gaps != "refuse"):
        raise ValueError(
            "time: expected a column of times, which sort, time_format, duplicates and gaps are "
            "about, received none"
        )
    file = open_columns(
        path,
        separator=separator,
        decimal=decimal,
        header=False if names and header is None else header,
        missing=missing,
    )
    if names:
        if file.has_names:
            raise ValueError(
                f"names: expected none for {path}, which names its columns {shorten(file.names)}"
            )
        if len(names) != len(file.names):
            raise ValueError(
                f"names: expected one for each of the {len(file.names)} columns of {path}, "
                f"received {len(names)}"
            )
        file.names = tuple(names)
    roles = {
        role: find_column(value, file.names, f"{path}: {role}")
        for role, value in (("time", time), ("group", group), ("label", label), ("split", split))
        if value != ""
    }
    _check_roles(path, roles, file.names)
    chosen = [find_column(column, file.names, f"{path}: columns") for column in columns]
    notes: list[str] = []
    if not chosen:
        chosen = [j for j in range(len(file.names)) if j not in roles.values()]
        if nameless := [j for j in chosen if not file.names[j]]:
            # Data frames write their row numbers so, which are no measurement.
            chosen = [j for j in chosen if file.names[j]]
            notes.append(f"column {shorten(nameless)} without a name left out")
    if not chosen or len(set(chosen)) < len(chosen):
        raise ValueError(
            f"{path}: columns: expected different columns of values, received "
            f"{some([file.names[j] for j in chosen]) if chosen else 'none'}"
        )
    found = file.read(chosen, list(roles.values()))
    texts = dict(zip(roles, found.texts, strict=True))
    where = _where(path, found, file.names[roles["time"]] if "time" in roles else "")
    times = parse_times(texts["time"], where, time_format) if "time" in roles else None
    labels, class_names = _classes(texts.get("label"))
    if labels is not None and not class_names:
        raise ValueError(
            f"{path}: label: expected the class of at least one row in column "
            f"{file.names[roles['label']]!r}, received empty cells alone"
        )
    series: list[Series] = []
    sides: list[str] = []
    for name, rows in _groups(path, found, texts.get("group")):
        side = _side(path, found, texts["split"], rows, name) if "split" in texts else ""
        parts = [Series(found.numbers[rows], name, None, _of(labels, rows))]
        if times is not None:
            at = _shifted(where, rows)
            kept = clean_times(
                times[rows], at, sort=sort, duplicates=duplicates, grouped="group" in roles
            )
            if len(kept) < len(rows):
                notes.append(
                    f"{len(rows) - len(kept)} rows with the time of another left out"
                    f"{f' in series {name!r}' if name else ''}"
                )
            rows = rows[kept]
            whole = Series(found.numbers[rows], name, times[rows], _of(labels, rows))
            parts, told = _without_gaps(whole, gaps, _shifted(where, rows))
            notes += told
        series += parts
        sides += [side] * len(parts)
    channels = tuple(file.names[j] for j in chosen)
    return SeriesTable(
        tuple(series),
        channels,
        class_names,
        tuple(sides) if "split" in roles else (),
        (*notes, *_notes(series, channels)),
    )


def _check_roles(path: str | os.PathLike[str], roles: dict[str, int], names: Sequence[str]) -> None:
    for column, count in Counter(roles.values()).items():
        if count > 1:
            twice = " and ".join(role for role, found in roles.items() if found == column)
            raise ValueError(
                f"{path}: {twice}: expected columns of their own, received {names[column]!r} for "
                "both"
            )


def _where(path: str | os.PathLike[str], found: Columns, column: str) -> Callable[[int], str]:
    """Returns the function that names the place of a row's time."""
    return lambda row: f"{path}: {found.unit} {found.places[row]}, column {column!r}"


def _shifted(where: Callable[[int], str], rows: np.ndarray) -> Callable[[int], str]:
    return lambda row: where(int(rows[row]))


def _of(labels: np.ndarray | None, rows: np.ndarray) -> np.ndarray | None:
    return None if labels is None else labels[rows]


def _classes(texts: list[str] | None) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """Returns the label of each row and the names of the classes, sorted; numbers by value."""
    if texts is None:
        return None, ()
    names = sorted({text for text in texts if text})
    if all(name.isdecimal() for name in names):
        names.sort(key=int)
    label = {name: number for number, name in enumerate(names)} | {"": UNKNOWN_LABEL}
    return np.array([label[text] for text in texts], np.int32), tuple(names)


def _groups(
    path: str | os.PathLike[str], found: Columns, texts: list[str] | None
) -> list[tuple[str, np.ndarray]]:
    """Returns (name, its rows) of each group in the order of its first row."""
    if texts is None:
        return [("", np.arange(len(found.places)))]
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(texts):
        if not name:
            raise ValueError(
                f"{path}: {found.unit} {found.places[row]}: expected the name of a group, received "
                "an empty cell"
            )
        rows.setdefault(name, []).append(row)
    return [(name, np.array(members)) for name, members in rows.items()]


def _side(
    path: str | os.PathLike[str], found: Columns, texts: list[str], rows: np.ndarray, name: str
) -> str:
    """Returns the split of a group."""
    first = ""
    for row in rows:
        text = texts[row]
        place = f"{path}: {found.unit} {found.places[row]}"
        if text.lower() not in SPLIT_NAMES:
            raise ValueError(
                f"{place}: expected train, validation or test in the column of splits, received "
                f"{text!r}"
            )
        side = SPLIT_NAMES[text.lower()]
        first = first or side
        if side != first:
            what = f"group {name!r}" if name else "the only series"
            fix = "give all its rows one split" if name else "name the column of groups"
            raise ValueError(
                f"{place}: expected each group on one side of the split, received {what} in "
                f"{first} and {side}; {fix}, or leave the column of splits out to split by time"
            )
    return first


def _without_gaps(
    series: Series, gaps: str, where: Callable[[int], str]
) -> tuple[list[Series], list[str]]:
    """Returns a series, or its parts, after what ``gaps`` says, and notes."""
    times = series.times
    assert times is not None  # It was read with them.
    if gaps == "refuse":
        refuse_gaps(times, where, series.name)
    _, found = find_gaps(times)
    if not len(found):
        return [series], []
    what = f"{len(found)} gaps{f' in series {series.name!r}' if series.name else ''}"
    if gaps == "ignore":
        return [series], [f"{what} ignored"]
    if gaps == "split":
        bounds = [0, *(found + 1).tolist(), len(series)]
        parts = [
            Series(
                series.values[a:b],
                series.name,
                times[a:b],
                None if series.labels is None else series.labels[a:b],
            )
            for a, b in itertools.pairwise(bounds)
        ]
        return parts, [f"{what}: cut into {len(parts)} series"]
    filled, positions = fill_grid(times, where)
    values = np.full((len(filled), series.values.shape[1]), np.nan)
    values[positions] = series.values
    labels = None
    if series.labels is not None:
        labels = np.full(len(filled), UNKNOWN_LABEL, np.int32)
        labels[positions] = series.labels
    note = f"{what} filled with {len(filled) - len(series)} rows of missing values"
    return [Series(values, series.name, filled, labels)], [note]


def _notes(series: Sequence[Series], channels: Sequence[str]) -> list[str]:
    """Returns notes on missing values and constant channels."""
    notes, constant = [], []
    steps = sum(map(len, series))
    for j, name in enumerate(channels):
        values = np.concatenate([s.values[:, j] for s in series])
        seen = values[~np.isnan(values)]
        if len(seen) < steps:
            notes.append(f"{steps - len(seen)} of {steps} values missing in {name}")
        if len(seen) and (seen == seen[0]).all():
            constant.append(name)
    if constant:
        notes.append(f"{len(constant)} constant channels: {', '.join(constant)}")
    return notes
