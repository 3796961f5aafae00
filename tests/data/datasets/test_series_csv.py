"""Series of one's own: columns, times, groups, labels, and what a table may get wrong."""

import doctest
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.batches import UNKNOWN_LABEL
from data.datasets.series_csv import read_series
from data.series.splits import split_by_group, split_by_time
from data.series.tables import SeriesTable
from data.series.windows import ForecastWindows, fit_scaling
from tests.data.shared_data import shared

HOURS = "date,HUFL,OT\n2016-07-01 00:00,5.8,30.5\n2016-07-01 01:00,5.7,\n2016-07-01 02:00,5,27\n"
GROUPS = "engine,cycle,s1,s2\n1,1,641,1\n2,1,642,2\n1,2,643,3\n2,2,644,4\n2,3,645,5\n"


def write(folder: Path, text: str, name: str = "t.csv", encoding: str = "utf-8") -> Path:
    path = folder / name
    path.write_bytes(text.encode(encoding))
    return path


def read(folder: Path, text: str, **options: Any) -> SeriesTable:
    return read_series(write(folder, text), **options)


def test_columns_times_and_missing_values(tmp_path: Path) -> None:
    table = read(tmp_path, HOURS, time="date")
    (series,) = table.series
    assert table.channels == ("HUFL", "OT")
    np.testing.assert_array_equal(series.values, [[5.8, 30.5], [5.7, np.nan], [5, 27]])
    assert series.times is not None
    assert str(series.times[1]) == "2016-07-01T01:00:00.000000"
    assert table.has_missing
    assert table.notes == ("1 of 3 values missing in OT",)
    chosen = read(tmp_path, HOURS, time=0, columns=["OT", "1"])
    assert chosen.channels == ("OT", "HUFL")


def test_no_header_and_no_time(tmp_path: Path) -> None:
    table = read(tmp_path, "0.5,1\n0.25,1\n")
    assert table.channels == ("0", "1")
    np.testing.assert_array_equal(table.series[0].values, [[0.5, 1], [0.25, 1]])
    assert table.notes == ("1 constant channels: 1",)
    named = read(tmp_path, "0.5,1\n0.25,1\n", names=("a", "b"), columns=["b"])
    assert named.channels == ("b",)
    with pytest.raises(ValueError, match=r"names: expected none for .* names its columns a, b$"):
        read(tmp_path, "a,b\n1,2\n", names=("c", "d"), header=True)
    with pytest.raises(ValueError, match="line 1, column 'c': expected a number, received 'a'"):
        read(tmp_path, "a,b\n1,2\n", names=("c", "d"))
    # Names that are numbers must be told.
    years = read(tmp_path, "2016,2017\n0.25,1\n", header=True)
    assert years.channels == ("2016", "2017")
    assert len(years.series[0]) == 1


def test_row_numbers_of_data_frames_are_left_out(tmp_path: Path) -> None:
    table = read(tmp_path, ",a,b\n0,5,6\n1,7,8\n")
    assert table.channels == ("a", "b")
    assert table.notes == ("column 0 without a name left out",)
    assert read(tmp_path, ",a,b\n0,5,6\n1,7,8\n", time=0).notes == ()


def test_groups_may_be_mixed(tmp_path: Path) -> None:
    table = read(tmp_path, GROUPS, time="cycle", group="engine")
    assert [(s.name, s.values[:, 0].tolist()) for s in table.series] == [
        ("1", [641, 643]),
        ("2", [642, 644, 645]),
    ]
    assert table.channels == ("s1", "s2")
    assert table.series[1].times is not None
    assert table.series[1].times.tolist() == [1, 2, 3]


def test_labels(tmp_path: Path) -> None:
    text = "x,activity\n1,walk\n2,walk\n3,\n4,run\n"
    table = read(tmp_path, text, label="activity")
    assert table.class_names == ("run", "walk")
    assert table.series[0].labels is not None
    assert table.series[0].labels.tolist() == [1, 1, UNKNOWN_LABEL, 0]
    numbers = read(tmp_path, "x,c\n1,10\n2,9\n", label="c")
    assert numbers.class_names == ("9", "10")


def test_rows_of_empty_cells(tmp_path: Path) -> None:
    table = read(tmp_path, ";\na;b\n1;2\n\n;\n3;4\n;\n ; \n")
    np.testing.assert_array_equal(table.series[0].values, [[1, 2], [np.nan, np.nan], [3, 4]])
    other = read(tmp_path, "a;b\n1,5;n.a.\n", missing=["n.a."])
    np.testing.assert_array_equal(other.series[0].values, [[1.5, np.nan]])


def test_numbers_that_stand_for_no_value(tmp_path: Path) -> None:
    table = read(tmp_path, "x,y\n1,-999\n-999.0,2\n,3\n", missing=("", "-999"))
    np.testing.assert_array_equal(table.series[0].values, [[1, np.nan], [np.nan, 2], [np.nan, 3]])


def test_a_column_of_splits(tmp_path: Path) -> None:
    text = "id,x,set\na,1,train\na,2,train\nb,3,VAL\nb,4,val\n"
    table = read(tmp_path, text, group="id", split="set")
    assert table.splits == ("train", "validation")
    assert list(split_by_group(table)) == ["train", "validation"]
    leak = text + "a,5,val\n"
    with pytest.raises(ValueError, match=r"line 6: .* received group 'a' in train and validation"):
        read(tmp_path, leak, group="id", split="set")
    with pytest.raises(ValueError, match=r"received the only series in train and validation; na"):
        read(tmp_path, text, split="set", columns=["x"])
    with pytest.raises(ValueError, match=r"line 3: expected train, validation or test.* 'tain'"):
        read(tmp_path, text.replace("a,2,train", "a,2,tain"), group="id", split="set")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize(
    "text",
    [
        "time;a;b\n1;0,5;2,25\n2;1,5;3\n",
        "time\ta\tb\n1\t0,5\t2,25\n2\t1,5\t3\n",
        "time|a|b\r\n1|0.5|2.25\r\n2|1.5|3\r\n",
        "time;a;b\r1;0,5;2,25\r2;1,5;3\r",
        "time a  b \n1 0.5 2.25 \n 2  1.5 3\n",
        'time,a,b\n1,0.5,"2.25"\n2,1.5,3\n',
        "time,a,b,\n1,0.5,2.25,\n2,1.5,3,\n",
        "# made by hand\n\ntime;a;b\n1;,5;2.25e0\n2;1,5;3\n".replace(".", ","),
    ],
)
def test_separators_decimal_commas_and_byte_order_marks(
    tmp_path: Path, text: str, encoding: str
) -> None:
    table = read_series(write(tmp_path, text, encoding=encoding), time="time")
    assert table.channels == ("a", "b")
    np.testing.assert_array_equal(table.series[0].values, [[0.5, 2.25], [1.5, 3]])


def test_decimal_marks_that_may_be_either(tmp_path: Path) -> None:
    thousands = "a;b\n1,234;5\n2,345;6\n"
    with pytest.raises(ValueError, match=r"line 2, column 'a': .* received '1,234', whose comma"):
        read(tmp_path, thousands)
    assert read(tmp_path, thousands, decimal=",").series[0].values[0, 0] == 1.234
    with pytest.raises(ValueError, match=r"column 'b': .* received '1,5' beside '0.5'"):
        read(tmp_path, "a;b\n0.5;1,5\n")
    with pytest.raises(ValueError, match=r"'1.234,5'; write numbers without marks of thousands"):
        read(tmp_path, "a;b\n0,5;1,5\n1.234,5;1\n")
    quoted = 'a,b\n"0,5","1,5"\n'
    assert read(tmp_path, quoted, decimal=",").series[0].values.tolist() == [[0.5, 1.5]]
    with pytest.raises(ValueError, match=r"line 2, .* received '0,5'; set decimal=','"):
        read(tmp_path, quoted)
    with pytest.raises(ValueError, match="separator, decimal: expected one character"):
        read(tmp_path, quoted, separator=",", decimal=",")


def test_a_column_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError,
        match=r"columns: expected one of the columns date, HUFL, OT; .*"
        r"received 'hufl'; did you mean 'HUFL'\?",
    ):
        read(tmp_path, HOURS, columns=["hufl"])
    with pytest.raises(ValueError, match=r"time: .* received 'dates'; did you mean 'date'\?"):
        read(tmp_path, HOURS, time="dates")
    with pytest.raises(ValueError, match="group: expected the number of a column, 0 to 2"):
        read(tmp_path, HOURS, group=7)
    with pytest.raises(ValueError, match="time and group: expected columns of their own"):
        read(tmp_path, HOURS, time="date", group="date")
    with pytest.raises(ValueError, match="columns: expected different columns of values"):
        read(tmp_path, HOURS, time="date", columns=["OT", "2"])
    with pytest.raises(ValueError, match="names: expected one for each of the 2 columns"):
        read(tmp_path, "1,2\n", names=("a",))


@pytest.mark.parametrize("cell", ["abc", "1_000", "inf", "12.5 C", "--"])
def test_text_in_a_numbers_place(tmp_path: Path, cell: str) -> None:
    text = HOURS.replace("5.7", cell)
    with pytest.raises(
        ValueError, match=f"line 3, column 'HUFL': expected a number, received '{cell}'"
    ):
        read(tmp_path, text, time="date")
    empty = read(tmp_path, text, time="date", missing=("", cell))
    assert np.isnan(empty.series[0].values[1]).all()
    # A date that was not named as the time.
    with pytest.raises(ValueError, match=r"line 2, column 'date': .*; name the column as time"):
        read(tmp_path, HOURS)


def test_time_that_runs_backwards(tmp_path: Path) -> None:
    text = HOURS.replace("01 02:00", "01 00:30")
    with pytest.raises(
        ValueError,
        match=r"line 4, column 'date': expected a time after 2016-07-01 01:00:00, .* received "
        r"2016-07-01 00:30:00 \(1 such rows\); set sort=True",
    ):
        read(tmp_path, text, time="date")
    table = read(tmp_path, text, time="date", sort=True)
    assert table.series[0].values[:, 0].tolist() == [5.8, 5, 5.7]
    # Of mixed groups each has its own order.
    with pytest.raises(ValueError, match=r"line 3, .* received 1 as in .*line 2, "):
        read(tmp_path, GROUPS, time="cycle", columns=["s1"])


def test_duplicate_times(tmp_path: Path) -> None:
    text = "t,x\n1,10\n2,20\n2,21\n3,30\n"
    with pytest.raises(
        ValueError,
        match=r"line 4, column 't': expected a time of its own .* received 2 as in .*line 3, "
        r"column 't' \(1 such rows\); set duplicates='first' or 'last', or name the column of gr",
    ):
        read(tmp_path, text, time="t")
    first = read(tmp_path, text, time="t", duplicates="first")
    assert first.series[0].values.ravel().tolist() == [10, 20, 30]
    assert first.notes == ("1 rows with the time of another left out",)
    last = read(tmp_path, text, time="t", duplicates="last")
    assert last.series[0].values.ravel().tolist() == [10, 21, 30]


def test_gaps(tmp_path: Path) -> None:
    text = "t,x,y\n0,1,a\n10,2,a\n20,3,b\n60,4,b\n70,5,b\n"
    with pytest.raises(
        ValueError,
        match=r"line 5, column 't': expected a row every 10, received 1 gaps: 20 to 60; set gaps=",
    ):
        read(tmp_path, text, time="t", columns=["x"])
    filled = read(tmp_path, text, time="t", label="y", gaps="fill")
    np.testing.assert_array_equal(
        filled.series[0].values.ravel(), [1, 2, 3, np.nan, np.nan, np.nan, 4, 5]
    )
    assert filled.series[0].times is not None
    assert filled.series[0].labels is not None
    assert filled.series[0].times.tolist() == list(range(0, 80, 10))
    assert filled.series[0].labels.tolist() == [0, 0, 1, -1, -1, -1, 1, 1]
    assert filled.notes[0] == "1 gaps filled with 3 rows of missing values"
    cut = read(tmp_path, text, time="t", columns=["x"], gaps="split")
    assert [s.values.ravel().tolist() for s in cut.series] == [[1, 2, 3], [4, 5]]
    whole = read(tmp_path, text, time="t", columns=["x"], gaps="ignore")
    assert len(whole.series[0]) == 5
    assert whole.notes == ("1 gaps ignored",)
    off = text.replace("60,", "64,").replace("70,", "74,")
    with pytest.raises(ValueError, match=r"line 5, .* a multiple of 10 apart to fill gaps, rec"):
        read(tmp_path, off, time="t", columns=["x"], gaps="fill")
    far = text.replace("70,", "1000000,")
    with pytest.raises(ValueError, match=r"fill at most 10 times the 5 rows, .* ask for 100001;"):
        read(tmp_path, far, time="t", columns=["x"], gaps="fill")


def test_dates_in_gaps(tmp_path: Path) -> None:
    days = ["2024-01-01", "2024-01-02", "2024-01-03", "2024-01-04", "2024-01-08", "2024-01-09"]
    text = "d,x\n" + "".join(f"{day},{i}\n" for i, day in enumerate(days))
    with pytest.raises(
        ValueError, match=r"every 1 day, 0:00:00, received 1 gaps: 2024-01-04 00:00"
    ):
        read(tmp_path, text, time="d")
    filled = read(tmp_path, text, time="d", gaps="fill").series[0]
    assert filled.times is not None
    assert filled.times.astype("datetime64[D]").astype(str).tolist() == [
        f"2024-01-0{i}" for i in range(1, 10)
    ]
    assert np.isnan(filled.values[4:7]).all()
    # Months differ in length, but none is missing.
    months = "d,x\n" + "".join(f"2023-{m:02d}-01,{m}\n" for m in range(1, 13))
    assert len(read(tmp_path, months, time="d").series[0]) == 12


def test_forms_of_times(tmp_path: Path) -> None:
    text = "d,x\n31.12.2023 23:00,1\n01.01.2024 00:00,2\n"
    series = read(tmp_path, text, time="d", time_format="%d.%m.%Y %H:%M").series[0]
    assert series.times is not None
    assert str(series.times[1]) == "2024-01-01T00:00:00.000000"
    with pytest.raises(ValueError, match=r"line 2, column 'd': expected a time as .* '31.12.2023 "):
        read(tmp_path, text, time="d")
    with pytest.raises(ValueError, match=r"a time of the form '%Y', received '31\.12\.2023 23:00'"):
        read(tmp_path, text, time="d", time_format="%Y")
    with pytest.raises(ValueError, match=r"line 3, column 't': expected a number as time, .* ''"):
        read(tmp_path, "t,x\n1,1\n,2\n", time="t")
    # The hour that clocks repeat in autumn is told apart by its zone.
    autumn = "d,x\n2024-10-27T02:30+02:00,1\n2024-10-27T02:30+01:00,2\n"
    assert len(read(tmp_path, autumn, time="d").series[0]) == 2
    with pytest.raises(ValueError, match="time: expected a column of times, which sort"):
        read(tmp_path, text, sort=True)
    with pytest.raises(ValueError, match="gaps: expected one of refuse, fill, split, ignore"):
        read(tmp_path, text, time="d", gaps="drop")


@settings(
    max_examples=80,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    st.integers(10, len(HOURS)),
    st.integers(0, 6),
    st.text("\"',;:-\n\t 12a.", max_size=4),
    st.sampled_from(["refuse", "fill", "split", "ignore"]),
)
def test_any_change_is_read_or_refused(
    tmp_path: Path, place: int, cut: int, text: str, gaps: str
) -> None:
    try:
        table = read(tmp_path, HOURS[:place] + text + HOURS[place + cut :], time="date", gaps=gaps)
    except ValueError as error:
        assert str(error).startswith(str(tmp_path))  # noqa: PT017
    else:
        assert table.series[0].values.shape[1] == len(table.channels)


def test_ragged_rows(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="line 3: expected 2 cells between ',', as in the first line, received 1"
    ):
        read(tmp_path, "a,b\n1,2\n3\n")
    with pytest.raises(ValueError, match="received 3; decimal commas need another separator"):
        read(tmp_path, "a,b\n1,2\n3,5,4\n")
    with pytest.raises(ValueError, match=r"line 4: expected 3 cells between blanks, .* received 2"):
        read(tmp_path, "\n1 2 3\n1 2 3\n1 2\n")
    with pytest.raises(ValueError, match=r"line 2 is damaged \(unexpected end of data\)"):
        read(tmp_path, 'a,b\n"1,2\n3,4\n')


def test_empty_files(tmp_path: Path) -> None:
    for text in ("", "\n \n", "\ufeff"):
        with pytest.raises(ValueError, match="expected rows of numbers, received an empty file"):
            read(tmp_path, text)
    with pytest.raises(ValueError, match="expected rows of numbers, received a header alone"):
        read(tmp_path, "a,b\n")
    with pytest.raises(ValueError, match="expected rows of numbers, received comments alone"):
        read(tmp_path, "# a\n# b\n")
    with pytest.raises(FileNotFoundError, match=r"expected a table of numbers .* does not exist"):
        read_series(tmp_path / "none.csv")
    with pytest.raises(ValueError, match="expected the name of a group, received an empty cell"):
        read(tmp_path, GROUPS.replace("\n2,2", "\n,2"), group="engine")


def test_long_files_are_converted_in_blocks(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(9_000, 2))
    lines = [f"{a!r},{b!r}" for a, b in values.tolist()]
    table = read(tmp_path, "a,b\n" + "\n".join(lines))
    np.testing.assert_array_equal(table.series[0].values, values)
    lines[8_500] = "1,x"
    with pytest.raises(ValueError, match="line 8502, column 'b': expected a number, received 'x'"):
        read(tmp_path, "a,b\n" + "\n".join(lines))


def test_npz(tmp_path: Path) -> None:
    path = tmp_path / "t.npz"
    times = np.array(["2024-01-01", "2024-01-02"], "datetime64[D]")
    np.savez(path, day=times, room=["a", "a"], x=[1, 2], y=np.array([[0.5, np.nan], [1, 2]]))
    table = read_series(path, time="day", group="room")
    assert table.channels == ("x", "y_0", "y_1")
    np.testing.assert_array_equal(table.series[0].values, [[1, 0.5, np.nan], [2, 1, 2]])
    with pytest.raises(ValueError, match="column 'room': expected numbers, received <U1, first a"):
        read_series(path, time="day")
    np.savez(path, x=[1.0, np.inf])
    with pytest.raises(ValueError, match="row 1, column 'x': expected a finite number"):
        read_series(path)
    np.savez(path, x=[1.0, 2.0], y=[1.0])
    with pytest.raises(ValueError, match="expected columns of one length, received x 2, y 1"):
        read_series(path)
    np.savez(path, x=np.array([{}], object))
    with pytest.raises(ValueError, match="expected an NPZ file of numbers and texts"):
        read_series(path)
    path.write_bytes(b"PK no zip")
    with pytest.raises(ValueError, match="expected an NPZ file of numbers and texts"):
        read_series(path)


def test_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="the extra parquet is not installed")
    from pyarrow import parquet

    path = tmp_path / "t.parquet"
    days = np.array(["2024-01-01", "2024-01-02", "2024-01-03"], "datetime64[ns]")
    columns = {"day": days, "id": ["a", "a", "a"], "x": [1, None, 3], "y": [0.5, 1.0, None]}
    parquet.write_table(pyarrow.table(columns), path)
    table = read_series(path, time="day", group="id")
    np.testing.assert_array_equal(table.series[0].values, [[1, 0.5], [np.nan, 1], [3, np.nan]])
    assert table.series[0].times is not None
    assert str(table.series[0].times[2]) == "2024-01-03T00:00:00.000000"
    path.write_text("a,b")
    with pytest.raises(ValueError, match="expected a Parquet file, received another"):
        read_series(path)


def test_parquet_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'flaxnets\[parquet\]'"):
        read_series(write(tmp_path, "", "t.parquet"))


def test_a_channel_without_a_value_in_training(tmp_path: Path) -> None:
    table = read(tmp_path, "a,b\n1,\n2,\n3,\n4,1\n")
    splits = split_by_time(table, (3, 1))
    with pytest.raises(ValueError, match="received only missing ones of b; leave the channel out"):
        fit_scaling(table, splits["train"])


def test_exchange_rates() -> None:
    table = read_series(shared("forecasting/exchange_rate.csv"))
    assert len(table.series[0]) == 7_588
    assert len(table.channels) == 8
    assert not table.has_missing
    splits = split_by_time(table, (0.6, 0.2, 0.2))
    scaling = fit_scaling(table, splits["train"], "max_abs")
    windows = {
        name: ForecastWindows(table, part, window=168, horizons=(3,), scaling=scaling)
        for name, part in splits.items()
    }
    # LSTNet's utils.py: targets 170..4551 train, 4552..6069 validate, 6070..7587 test.
    assert {name: len(w) for name, w in windows.items()} == {
        "train": 4_382,
        "validation": 1_518,
        "test": 1_518,
    }
    test = windows["test"]
    assert test.origin(0) == (0, 6_067)
    truth = test.inverse(np.stack([test[i]["targets"] for i in range(len(test))]))[:, 0]
    np.testing.assert_allclose(truth, table.series[0].values[6_070:], rtol=1e-6)
    naive = test.inverse(test.naive_forecasts())[:, 0]
    np.testing.assert_allclose(naive, table.series[0].values[6_067:-3], rtol=1e-6)


def test_electricity_transformer() -> None:
    table = read_series(shared("forecasting/ETTh1.csv"), time="date")
    (series,) = table.series
    assert table.channels == ("HUFL", "HULL", "MUFL", "MULL", "LUFL", "LULL", "OT")
    assert len(series) == 17_420
    assert series.times is not None
    assert str(series.times[0])[:16] == "2016-07-01T00:00"
    assert str(series.times[-1])[:10] == "2018-06-26"
    splits = split_by_time(table, (8_640, 2_880, 2_880))
    scaling = fit_scaling(table, splits["train"])
    windows = ForecastWindows(
        table,
        splits["validation"],
        window=96,
        horizons=range(1, 25),
        targets=["OT"],
        scaling=scaling,
    )
    assert len(windows) == 2_880 - 24 + 1
    assert windows[0]["inputs"].shape == (96, 7)
    assert windows[0]["targets"].shape == (24, 1)


def test_doctests() -> None:
    from data.datasets import token_files

    assert doctest.testmod(token_files) == (0, 1)
