"""Times of series: parsing, order, duplicates and gaps."""

import datetime
import math
from collections.abc import Callable, Sequence

import numpy as np

GAPS = ("refuse", "fill", "split", "ignore")
"""Treatments of missing rows."""
DUPLICATES = ("refuse", "first", "last")
"""Treatments of rows with the time of another."""

_GAP = 1.5  # median steps between two times above which something is missing
_ON_GRID = 0.1  # part of a step by which a time may miss the grid that gaps are filled on
_MOST_FILLED = 10  # times as many steps as there are rows


def parse_times(
    cells: Sequence[str], where: Callable[[int], str], time_format: str = ""
) -> np.ndarray:
    """Returns times, (T,) float64 of numbers or datetime64[us] in UTC of dates.

    >>> parse_times(["2016-07-01 00:00", "2016-07-01T03:00+02:00"], str).astype(str).tolist()
    ['2016-07-01T00:00:00.000000', '2016-07-01T01:00:00.000000']

    Args:
        cells: numbers, dates of ISO 8601 (those without a zone are taken as they are), or dates of
            ``time_format``; the first one decides between numbers and dates.
        where: position in ``cells`` -> its place, for errors.
        time_format: as for ``datetime.strptime``, as "%d.%m.%Y %H:%M"; "": numbers or ISO 8601.

    Raises:
        ValueError: a cell that is no such time; the message names its place.
    """
    if not cells:
        return np.zeros(0)
    if not time_format and _number(cells[0]) is not None:
        numbers = [_number(cell) for cell in cells]
        if None in numbers:
            place = numbers.index(None)
            raise ValueError(
                f"{where(place)}: expected a number as time, as in the first row, received "
                f"{cells[place]!r}"
            )
        return np.array(numbers, np.float64)
    found = np.empty(len(cells), "datetime64[us]")
    for place, cell in enumerate(cells):
        try:
            if time_format:
                date = datetime.datetime.strptime(cell.strip(), time_format)
            else:
                date = datetime.datetime.fromisoformat(cell.strip())
        except ValueError:
            expected = (
                f"a time of the form {time_format!r}"
                if time_format
                else "a time as 2016-07-01 00:00:00 (ISO 8601) or a number"
            )
            fix = "" if time_format else "; give the form of dates as time_format='%d.%m.%Y %H:%M'"
            raise ValueError(
                f"{where(place)}: expected {expected}, received {cell!r}{fix}"
            ) from None
        if date.tzinfo is not None:
            date = date.astimezone(datetime.UTC).replace(tzinfo=None)
        found[place] = np.datetime64(date, "us")
    return found


def clean_times(
    times: np.ndarray,
    where: Callable[[int], str],
    *,
    sort: bool = False,
    duplicates: str = "refuse",
    grouped: bool = False,
) -> np.ndarray:
    """Returns the rows of one series in the order of strictly ascending times.

    Args:
        times: (T,) of the rows.
        where: row -> its place, for errors.
        sort: sort the rows by time; False: refuse times that run backwards.
        duplicates: of equal times keep the "first" or "last" row, or "refuse" them.
        grouped: a column of groups was named, which the errors suggest otherwise.

    Returns:
        (T',) int64 numbers of the rows that are kept.

    Raises:
        ValueError: times that run backwards, or equal ones; the message names both places.
    """
    rows = np.argsort(times, kind="stable") if sort else np.arange(len(times))
    differences = np.diff(times[rows])
    zero = np.zeros((), differences.dtype)
    backwards = np.flatnonzero(differences < zero)
    if len(backwards):
        first = int(backwards[0])
        raise ValueError(
            f"{where(first + 1)}: expected a time after {show_time(times[first])}, that of the row "
            f"before, received {show_time(times[first + 1])} ({len(backwards)} such rows); set "
            f"sort=True, {'' if grouped else 'name the column of groups, '}or give local times "
            "with their zone"
        )
    equal = np.flatnonzero(differences == zero)
    if not len(equal):
        return rows
    if duplicates == "refuse":
        first = int(equal[0])
        raise ValueError(
            f"{where(int(rows[first + 1]))}: expected a time of its own for each row, received "
            f"{show_time(times[rows[first]])} as in {where(int(rows[first]))} ({len(equal)} such "
            f"rows); set duplicates='first' or 'last'"
            f"{'' if grouped else ', or name the column of groups'}"
        )
    dropped = equal + 1 if duplicates == "first" else equal
    return np.delete(rows, dropped)


def find_gaps(times: np.ndarray) -> tuple[float, np.ndarray]:
    """Returns the usual step of ascending times, and the rows behind which a gap is.

    A gap is a step of more than 1.5 times the (lower) median one; dates are counted in seconds.

    >>> find_gaps(np.array([0.0, 1.0, 2.0, 5.0]))
    (1.0, array([2]))
    """
    seconds = to_seconds(times)
    if len(seconds) < 3:
        return (float(np.diff(seconds)[0]) if len(seconds) == 2 else 0.0), np.zeros(0, np.int64)
    steps = np.diff(seconds)
    # The lower median is a step that occurs; the mean of two may be none.
    step = float(np.quantile(steps, 0.5, method="lower"))
    return step, np.flatnonzero(steps > _GAP * step)


def refuse_gaps(times: np.ndarray, where: Callable[[int], str], name: str) -> None:
    """Refuses times with gaps.

    Raises:
        ValueError: it names the first gaps and their number.
    """
    step, gaps = find_gaps(times)
    if len(gaps):
        shown = [f"{show_time(times[i])} to {show_time(times[i + 1])}" for i in gaps[:3]]
        raise ValueError(
            f"{where(int(gaps[0]) + 1)}: expected a row every {show_step(step, times)}"
            f"{f' in series {name!r}' if name else ''}, received {len(gaps)} gaps: "
            f"{', '.join(shown)}{', ...' if len(gaps) > 3 else ''}; set gaps='fill' for rows of "
            "missing values, 'split' for a series on either side, or 'ignore'"
        )


def fill_grid(times: np.ndarray, where: Callable[[int], str]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the regular times that fill all gaps, and the position of each row among them.

    Args:
        times: (T,) ascending.
        where: row -> its place, for errors.

    Raises:
        ValueError: a time that is off the grid of the usual step, or gaps so long that most rows
            would be filled ones.
    """
    step, gaps = find_gaps(times)
    if not len(gaps):
        return times, np.arange(len(times))
    seconds = to_seconds(times)
    # Rounded step by step: a small drift of the clock must not add up.
    steps = np.diff(seconds) / step
    whole = np.maximum(np.round(steps), 1)
    off = np.abs(steps - whole) > _ON_GRID
    if off.any():
        row = int(np.argmax(off)) + 1
        raise ValueError(
            f"{where(row)}: expected times a multiple of {show_step(step, times)} apart to fill "
            f"gaps, received {show_time(times[row - 1])} and {show_time(times[row])}; set "
            "gaps='split' or 'ignore'"
        )
    positions = np.concatenate([[0], np.cumsum(whole)]).astype(np.int64)
    count = int(positions[-1]) + 1
    if count > _MOST_FILLED * len(times):
        raise ValueError(
            f"{where(int(gaps[0]) + 1)}: expected gaps that fill at most {_MOST_FILLED} times the "
            f"{len(times)} rows, received times that ask for {count}; set gaps='split' or 'ignore'"
        )
    filled = np.interp(np.arange(count), positions, seconds)
    if times.dtype.kind == "M":
        return (filled * 1e6).round().astype("int64").astype("datetime64[us]"), positions
    return filled, positions


def to_seconds(times: np.ndarray) -> np.ndarray:
    """Returns times as float64: dates in seconds, numbers as they are."""
    if times.dtype.kind == "M":
        return times.astype("datetime64[us]").astype(np.int64) / 1e6
    return times.astype(np.float64)


def show_time(time: np.generic) -> str:
    """Returns a time for a message."""
    if isinstance(time, np.datetime64):
        return str(time.astype("datetime64[s]")).replace("T", " ")
    return f"{time:g}" if abs(float(time)) < 1e6 else repr(float(time))


def show_step(step: float, times: np.ndarray) -> str:
    """Returns the time between two rows for a message."""
    return str(datetime.timedelta(seconds=step)) if times.dtype.kind == "M" else f"{step:g}"


def _number(cell: str) -> float | None:
    try:
        number = float(cell)
    except ValueError:
        return None
    # Python takes 1_000 for a number; no file means that.
    return number if math.isfinite(number) and "_" not in cell else None
