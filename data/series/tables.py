"""Series in memory: values over time with names of channels, groups, times and labels."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True, eq=False)
class Series:
    """One series of consecutive steps.

    Attributes:
        values: (T,D) float64, NaN where a value is missing.
        name: of the group, as the engine or the station; "" of the only series.
        times: (T,) float64 or datetime64[us] in UTC, strictly ascending; None without a time.
        labels: (T,) int32 class of each step, or ``UNKNOWN_LABEL``; None without labels.

    Raises:
        ValueError: shapes that do not belong together.
    """

    values: np.ndarray
    name: str = ""
    times: np.ndarray | None = None
    labels: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.values.ndim != 2 or not self.values.size:
            raise ValueError(
                f"values: expected (T,D) with at least one step and channel, received "
                f"{self.values.shape}"
            )
        for name in ("times", "labels"):
            array = getattr(self, name)
            if array is not None and array.shape != self.values.shape[:1]:
                raise ValueError(
                    f"{name}: expected one for each of the {len(self.values)} steps, received "
                    f"{array.shape}"
                )

    def __len__(self) -> int:
        return len(self.values)


@dataclass(frozen=True, eq=False)
class SeriesTable:
    """Series with the same channels, as one file holds them.

    Attributes:
        series: at least one, in the order of the file.
        channels: name of each of the D channels.
        class_names: names of the classes by label; empty without labels.
        splits: "train", "validation" or "test" of each series, as a column of the file gives it;
            empty without such a column.
        notes: sentences about what was found and done in reading, for the log.

    Raises:
        ValueError: no series, or series with other numbers of channels.
    """

    series: tuple[Series, ...]
    channels: tuple[str, ...]
    class_names: tuple[str, ...] = ()
    splits: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        if not self.series:
            raise ValueError("series: expected at least one, received none")
        for series in self.series:
            if series.values.shape[1] != len(self.channels):
                raise ValueError(
                    f"series: expected {len(self.channels)} channels in each, received "
                    f"{series.values.shape[1]} in {series.name or 'the only one'}"
                )

    @property
    def num_steps(self) -> int:
        """Steps of all series."""
        return sum(map(len, self.series))

    @property
    def has_missing(self) -> bool:
        """True if any value of any series is missing."""
        return any(bool(np.isnan(series.values).any()) for series in self.series)

    def channel_numbers(self, names: Sequence[str | int], argument: str = "channels") -> list[int]:
        """Returns the positions of channels that are named or numbered from 0; none named: all.

        Raises:
            ValueError: an unknown channel; the message suggests the nearest.
        """
        if not names:
            return list(range(len(self.channels)))
        return [find_column(name, self.channels, argument) for name in names]

    def whole(self) -> tuple["Section", ...]:
        """Returns all steps of all series as sections."""
        return tuple(Section(i, 0, len(series)) for i, series in enumerate(self.series))


@dataclass(frozen=True, order=True)
class Section:
    """Consecutive steps of one series of a table, which belong to one split.

    Attributes:
        series: number of the series in the table.
        begin: first step.
        end: step behind the last one.
    """

    series: int
    begin: int
    end: int


def find_column(name: str | int, names: Sequence[str], argument: str) -> int:
    """Returns the position of a column that is named, or numbered from 0 as an int or in digits.

    >>> find_column("OT", ("date", "OT"), "time"), find_column("0", ("date", "OT"), "time")
    (1, 0)

    Args:
        name: its name as it stands in the file, or its number; a name counts first.
        names: of all columns.
        argument: begin of the error.

    Raises:
        ValueError: there is no such column, or the name stands twice; the message suggests the
            nearest name.
    """
    if isinstance(name, str) and (count := list(names).count(name)):
        if count > 1:
            raise ValueError(
                f"{argument}: expected a name that one column has, received {name!r}, which "
                f"{count} have; give its number, from 0"
            )
        return list(names).index(name)
    if isinstance(name, int) or name.isdecimal():
        if 0 <= int(name) < len(names):
            return int(name)
        raise ValueError(
            f"{argument}: expected the number of a column, 0 to {len(names) - 1}, received {name}"
        )
    raise ValueError(
        f"{argument}: expected one of the columns {shorten(names)}; received {name!r}"
        f"{nearest(name, names)}"
    )


def nearest(name: str, names: Sequence[str]) -> str:
    """Returns "; did you mean 'X'?" with the nearest name, or "" if none is near."""
    lower = {other.lower(): other for other in names}
    found = difflib.get_close_matches(name.lower(), list(lower), n=1, cutoff=0.5)
    return f"; did you mean {lower[found[0]]!r}?" if found else ""


def shorten(items: Sequence[object], most: int = 12) -> str:
    """Returns the first items for a message, and the number of all if there are more.

    >>> shorten(["a", "b", "c"], 2)
    'a, b, ... (3 in all)'
    """
    shown = ", ".join(map(str, items[:most]))
    return shown + (f", ... ({len(items)} in all)" if len(items) > most else "")
