"""Doctests of the sequences and series."""

import doctest
from types import ModuleType

import numpy as np
import pytest

from data.series import generated, scaling, streams, tables, times, vocabulary, windows
from data.series.tables import Series, SeriesTable, split_by_time


@pytest.mark.parametrize(
    "module",
    [generated, scaling, streams, tables, times, vocabulary, windows],
    ids=lambda module: module.__name__,
)
def test_doctests(module: ModuleType) -> None:
    names = {"np": np, "Series": Series, "SeriesTable": SeriesTable, "split_by_time": split_by_time}
    found = doctest.testmod(module, extraglobs=names)
    assert found.attempted >= 1
    assert found.failed == 0
