"""Splits of series into train, validation and test: by time, or by whole groups."""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from data.series.tables import Section, SeriesTable, nearest, shorten


def split_by_time(table: SeriesTable, parts: Sequence[float]) -> dict[str, tuple[Section, ...]]:
    """Cuts each series into consecutive parts: train, validation and, if there are three, test.

    Series with one name, as the parts of a series that was cut at its gaps, count as one.

    >>> from data.series.tables import Series
    >>> table = SeriesTable((Series(np.zeros((10, 1))),), ("x",))
    >>> split_by_time(table, (0.6, 0.2, 0.2))["validation"]
    (Section(series=0, begin=6, end=8),)
    >>> split_by_time(table, (4, 3))["validation"]
    (Section(series=0, begin=4, end=7),)

    Args:
        table: the series.
        parts: two or three shares in (0,1) whose sum is at most 1, or numbers of steps (integers);
            steps behind the last part are unused.

    Returns:
        Split -> its sections. A window of a later part may begin in an earlier one: only its
        targets lie in the part (``ForecastWindows``).

    Raises:
        ValueError: other parts, or a series that is too short for them.
    """
    names = ("train", "validation", "test")[: len(parts)]
    counts = all(float(part).is_integer() and part >= 1 for part in parts)
    shares = all(0 < part < 1 for part in parts) and sum(parts) <= 1 + 1e-9
    if len(parts) not in (2, 3) or not (counts or shares):
        raise ValueError(
            "parts: expected two or three shares above 0 with a sum of at most 1, as (0.6, 0.2, "
            f"0.2), or numbers of steps, as (8640, 2880, 2880), received {tuple(parts)}"
        )
    splits: dict[str, list[Section]] = {name: [] for name in names}
    members: dict[str, list[int]] = {}
    for number, series in enumerate(table.series):
        members.setdefault(series.name, []).append(number)
    sums = np.cumsum(np.asarray(parts, np.float64))
    for group, numbers in members.items():
        sizes = [len(table.series[number]) for number in numbers]
        # 0.6 + 0.2 is a little less than 0.8.
        ends = [int(end if counts else end * sum(sizes) + 1e-6) for end in sums]
        bounds = [0, *ends]
        if ends[-1] > sum(sizes) or any(a >= b for a, b in itertools.pairwise(bounds)):
            raise ValueError(
                f"parts: expected parts of at least one step within the {sum(sizes)} steps of "
                f"{f'series {group!r}' if group else 'the series'}, received {tuple(parts)}"
            )
        for number, first in zip(numbers, np.cumsum([0, *sizes]).tolist(), strict=False):
            for name, (begin, end) in zip(names, itertools.pairwise(bounds), strict=True):
                begin, end = max(begin - first, 0), min(end - first, len(table.series[number]))
                if begin < end:
                    splits[name].append(Section(number, begin, end))
    return {name: tuple(sections) for name, sections in splits.items()}


def split_by_group(
    table: SeriesTable,
    *,
    validation_share: float = 0.15,
    test_share: float = 0.2,
    seed: int = 0,
) -> dict[str, tuple[Section, ...]]:
    """Puts whole groups on one side each; keeps the sides that a column of the file gives.

    Series with one name, as the parts of a series that was cut at its gaps, stay together.

    Args:
        table: the series, of at least one group for each side.
        validation_share: share of the groups, in (0,1).
        test_share: share of the groups, in [0,1); 0: no test split.
        seed: of the draw, which depends on the names of the series and not on their order.

    Returns:
        Split -> its sections, which are whole series.

    Raises:
        ValueError: shares out of range, too few groups, or given sides without train or
            validation.
    """
    if validation_share <= 0 or test_share < 0 or validation_share + test_share >= 1:
        raise ValueError(
            "validation_share, test_share: expected shares above 0, the second one or 0, whose sum "
            f"is below 1, received {validation_share} and {test_share}"
        )
    if table.splits:
        sides = list(table.splits)
        if missing := [name for name in ("train", "validation") if name not in sides]:
            raise ValueError(
                f"split: expected series for train and validation in the column of splits, "
                f"received none for {' and '.join(missing)}; leave the column out to draw them"
            )
    else:
        names = sorted({series.name for series in table.series})
        sizes = {"validation": max(1, round(len(names) * validation_share))}
        if test_share:
            sizes["test"] = max(1, round(len(names) * test_share))
        if len(names) <= sum(sizes.values()):
            fix = "" if any(names) else "name the column of groups, or "
            raise ValueError(
                f"table: expected at least {sum(sizes.values()) + 1} groups for a split by group, "
                f"received {len(names)}; {fix}split by time"
            )
        drawn = [names[i] for i in np.random.default_rng(seed).permutation(len(names))]
        side_of = dict.fromkeys(names, "train")
        for name, size in sizes.items():
            side_of |= dict.fromkeys(drawn[:size], name)
            drawn = drawn[size:]
        sides = [side_of[series.name] for series in table.series]
    whole = table.whole()
    return {
        name: tuple(section for section, side in zip(whole, sides, strict=True) if side == name)
        for name in ("train", "validation", "test")
        if name in sides
    }


def select_groups(
    table: SeriesTable, groups: Mapping[str, Sequence[str]]
) -> dict[str, tuple[Section, ...]]:
    """Puts the named series on the sides of a split; the others are unused.

    Args:
        table: the series.
        groups: split -> names of its series.

    Raises:
        ValueError: an unknown name (the message suggests the nearest), a name that stands twice, or
            one on two sides.
    """
    names = [series.name for series in table.series]
    sides: dict[str, str] = {}
    for side, members in groups.items():
        for name in members:
            if name not in names:
                raise ValueError(
                    f"groups: expected names of series in {side}, received {name!r}"
                    f"{nearest(name, names)}"
                )
            sides.setdefault(name, side)
    _check_sides([(name, side) for side, members in groups.items() for name in members])
    whole = table.whole()
    return {
        side: tuple(whole[i] for i, name in enumerate(names) if sides.get(name) == side)
        for side in groups
    }


def _check_sides(members: Sequence[tuple[str, str]]) -> None:
    """Refuses (group, side) pairs that put a group on two sides, or name it twice."""
    sides: dict[str, list[str]] = {}
    for name, side in members:
        sides.setdefault(name, []).append(side)
    if both := sorted(name for name, found in sides.items() if len(set(found)) > 1):
        found = sorted(set(sides[both[0]]))
        raise ValueError(
            f"groups: expected each group on one side of the split, received {len(both)} on "
            f"several: {shorten(both, 3)} ({' and '.join(found)} for the first); a model would be "
            "measured on series that it was trained on"
        )
    if twice := sorted(name for name, found in sides.items() if len(found) > 1):
        raise ValueError(f"groups: expected each name once, received {shorten(twice, 3)} again")
