"""Tables of series: shapes, columns by name and number."""

import numpy as np
import pytest

from data.series.tables import Series, SeriesTable, find_column


def test_columns_by_name_and_number() -> None:
    names = ("date", "1", "OT", "OT")
    assert find_column("1", names, "x") == 1
    assert find_column(1, names, "x") == find_column("1", names, "x")
    assert find_column("0", names, "x") == 0
    with pytest.raises(ValueError, match="received 'OT', which 2 have; give its number"):
        find_column("OT", names, "x")
    with pytest.raises(
        ValueError, match=r"x: expected one of the columns date, .*did you mean 'da"
    ):
        find_column("Dates", names, "x")
    with pytest.raises(ValueError, match="number of a column, 0 to 3, received 4"):
        find_column(4, names, "x")
    with pytest.raises(ValueError, match="number of a column, 0 to 3, received -1"):
        find_column(-1, names, "x")


def test_shapes_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"values: expected \(T,D\)"):
        Series(np.zeros((0, 2)))
    with pytest.raises(ValueError, match="times: expected one for each of the 3 steps"):
        Series(np.zeros((3, 2)), times=np.zeros(2))
    with pytest.raises(ValueError, match="series: expected 1 channels in each, received 2"):
        SeriesTable((Series(np.zeros((3, 2))),), ("x",))
    with pytest.raises(ValueError, match="series: expected at least one"):
        SeriesTable((), ("x",))
