"""Splits of series: bounds, whole groups, leaks."""

import numpy as np
import pytest

from data.series.splits import select_groups, split_by_group, split_by_time
from data.series.tables import Section, Series, SeriesTable


def table(*lengths: int, splits: tuple[str, ...] = ()) -> SeriesTable:
    series = tuple(Series(np.zeros((n, 2)), f"g{i}") for i, n in enumerate(lengths))
    return SeriesTable(series, ("x", "y"), splits=splits)


def test_splits_by_time() -> None:
    found = split_by_time(table(7_588), (0.6, 0.2, 0.2))
    ends = [(s.begin, s.end) for part in found.values() for s in part]
    assert ends == [(0, 4_552), (4_552, 6_070), (6_070, 7_588)]
    months = split_by_time(table(17_420), (8_640, 2_880, 2_880))
    assert months["test"] == (Section(0, 11_520, 14_400),)
    both = split_by_time(table(10, 20), (0.5, 0.5))
    assert list(both) == ["train", "validation"]
    assert both["validation"] == (Section(0, 5, 10), Section(1, 10, 20))


def test_parts_of_a_series_are_split_as_one() -> None:
    parts = tuple(Series(np.zeros((n, 1)), "a") for n in (3, 1, 6))
    found = split_by_time(SeriesTable(parts, ("x",)), (0.5, 0.5))
    assert found == {
        "train": (Section(0, 0, 3), Section(1, 0, 1), Section(2, 0, 1)),
        "validation": (Section(2, 1, 6),),
    }


@pytest.mark.parametrize("parts", [(0.6,), (0.6, 0.6), (0.5, 3), (-1, 4), (0.0, 0.5), ()])
def test_wrong_parts(parts: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="parts: expected two or three shares"):
        split_by_time(table(100), parts)


def test_series_too_short_for_the_parts() -> None:
    with pytest.raises(ValueError, match="within the 10 steps of series 'g1', received"):
        split_by_time(table(100, 10), (50, 20))
    with pytest.raises(ValueError, match="at least one step within the 3 steps"):
        split_by_time(table(3), (0.9, 0.05))


def test_splits_by_group_are_whole_and_disjoint() -> None:
    many = table(*range(5, 25))
    found = split_by_group(many, seed=3)
    assert {name: len(part) for name, part in found.items()} == {
        "train": 13,
        "validation": 3,
        "test": 4,
    }
    assert sorted(s for part in found.values() for s in part) == sorted(many.whole())
    assert split_by_group(many, seed=3) == found
    assert split_by_group(many, seed=4) != found
    turned = SeriesTable(many.series[::-1], many.channels)
    again = split_by_group(turned, seed=3)
    for side in found:
        names = {turned.series[s.series].name for s in again[side]}
        assert names == {many.series[s.series].name for s in found[side]}
    assert "test" not in split_by_group(many, test_share=0)


def test_parts_of_a_group_stay_together() -> None:
    parts = tuple(Series(np.zeros((4, 1)), f"g{i // 3}") for i in range(15))
    cut = SeriesTable(parts, ("x",))
    for seed in range(5):
        found = split_by_group(cut, seed=seed)
        names = [{parts[s.series].name for s in side} for side in found.values()]
        assert sum(map(len, names)) == 5
        assert sum(map(len, found.values())) == 15


def test_given_sides() -> None:
    found = split_by_group(table(3, 4, 5, splits=("train", "validation", "train")))
    assert found == {
        "train": (Section(0, 0, 3), Section(2, 0, 5)),
        "validation": (Section(1, 0, 4),),
    }
    with pytest.raises(ValueError, match="received none for validation; leave the column out"):
        split_by_group(table(3, 4, splits=("train", "test")))


def test_wrong_groups() -> None:
    with pytest.raises(ValueError, match=r"expected at least 3 groups .* received 2; split by"):
        split_by_group(table(5, 5))
    with pytest.raises(ValueError, match="validation_share, test_share: expected shares"):
        split_by_group(table(5, 5, 5), validation_share=0.9, test_share=0.2)
    sides = {"train": ["g0", "g1"], "validation": ["g1"]}
    with pytest.raises(ValueError, match=r"received 1 on several: g1 \(train and validation for"):
        select_groups(table(5, 5), sides)
    with pytest.raises(ValueError, match="received 'G1'; did you mean 'g1'"):
        select_groups(table(5, 5), {"train": ["G1"]})
    with pytest.raises(ValueError, match="expected each name once, received g0 again"):
        select_groups(table(5, 5), {"train": ["g0", "g0"]})
    chosen = select_groups(table(5, 6, 7), {"train": ["g2"], "validation": ["g0"]})
    assert chosen == {"train": (Section(2, 0, 7),), "validation": (Section(0, 0, 5),)}
