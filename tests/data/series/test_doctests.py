"""Doctests of the sequences and series."""

import doctest
from types import ModuleType

import pytest

from data.series import (
    generated,
    scaling,
    scores,
    splits,
    streams,
    tables,
    times,
    vocabulary,
    windows,
)


@pytest.mark.parametrize(
    "module",
    [generated, scaling, scores, splits, streams, tables, times, vocabulary, windows],
    ids=lambda module: module.__name__,
)
def test_doctests(module: ModuleType) -> None:
    found = doctest.testmod(module)
    assert found.attempted >= 1
    assert found.failed == 0
