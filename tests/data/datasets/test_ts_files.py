"""Files .ts: header, channels, lengths, missing values, times, and damaged ones."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.datasets.sequence_npz import read_sequence_npz
from data.datasets.ts_files import read_ts
from data.series.sequences import LabelledSequences
from tests.data.shared_data import shared

MOTIONS = """# A description: of anything.
#
@problemName BasicMotions
@timeStamps false
@missing false
@univariate false
@dimensions 2
@equalLength true
@seriesLength 3
@classLabel true Standing Running
@data
-0.7,-0.7,10.2:-0.1,-0.1,2:Standing
1,2,3:4,5,6:Running
"""
UNIVARIATE = "@problemName A\n@univariate true\n@classLabel true 1 -1\n@data\n"


def read(folder: Path, text: str) -> LabelledSequences:
    path = folder / "A_TRAIN.ts"
    path.write_text(text, encoding="utf-8")
    return read_ts(path)


def test_multivariate(tmp_path: Path) -> None:
    data = read(tmp_path, MOTIONS)
    assert data.name == "BasicMotions"
    assert data.class_names == ("Standing", "Running")
    assert data.labels.tolist() == [0, 1]
    np.testing.assert_array_equal(data.sequences[1], [[1, 4], [2, 5], [3, 6]])


def test_unequal_lengths_and_missing_values(tmp_path: Path) -> None:
    data = read(tmp_path, UNIVARIATE + "1,?,3:1\n4,NaN:-1\n5:?\n")
    assert data.lengths().tolist() == [3, 2, 1]
    np.testing.assert_array_equal(data.sequences[0].ravel(), [1, np.nan, 3])
    assert data.labels.tolist() == [0, 1, -1]
    assert data.notes == ("2 values missing in A_TRAIN.ts",)
    channels = "@classLabel true a\n@data\n1,2,3:4:a\n"
    np.testing.assert_array_equal(
        read(tmp_path, channels).sequences[0], [[1, 4], [2, np.nan], [3, np.nan]]
    )


def test_times(tmp_path: Path) -> None:
    header = "@timestamps true\n@classLabel true a\n@data\n"
    numbers = read(tmp_path, header + "(0,1.5),(1,2.5),(2,?):(0,4),(1,5),(2,6):a\n")
    np.testing.assert_array_equal(numbers.sequences[0], [[1.5, 4], [2.5, 5], [np.nan, 6]])
    dates = read(tmp_path, header + "(2017-01-01 00:00:00,1),(2017-01-01 01:00:00,2):a\n")
    assert dates.sequences[0].ravel().tolist() == [1, 2]
    for times in ("(0,1),(1,2),(5,3)", "(1,1),(0,2)", "(0,1),(0,2)"):
        with pytest.raises(
            ValueError, match="line 4, channel 0: expected ascending times at equal"
        ):
            read(tmp_path, f"{header}{times}:a\n")
    with pytest.raises(ValueError, match=r"expected pairs \(time,value\), received '1,2'"):
        read(tmp_path, f"{header}1,2:a\n")


def test_regression(tmp_path: Path) -> None:
    data = read(tmp_path, "@targetLabel true\n@data\n1,2:0.5\n3,4:?\n")
    assert data.targets is not None
    np.testing.assert_array_equal(data.targets, [[0.5], [np.nan]])
    with pytest.raises(ValueError, match="line 3: expected a target, received 'low'"):
        read(tmp_path, "@targetLabel true\n@data\n1,2:low\n")


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("10.2", "x", "line 12, channel 0: expected a number, received 'x'"),
        ("10.2", "inf", "line 12, channel 0: expected finite numbers"),
        (":Running", ":Runing", r"line 13: .* received 'Runing'; did you mean 'Running'\?"),
        ("dimensions 2", "dimensions 3", "line 12: expected 3 channels, as the header says, rec"),
        ("univariate false", "univariate true", "line 12: expected 1 channels, as the header"),
        ("seriesLength 3", "seriesLength 4", r"line 12: expected 4 values, .* received 3"),
        ("1,2,3:", "1,2:", r"line 13: expected channels of equal length, .* received 2, 3"),
        ("missing false", "missing no", "line 5: expected true or false behind @missing, rec"),
        ("@seriesLength 3", "@seriesLength x", "line 9: expected a number above 0, received 'x'"),
        ("@seriesLength 3", "@seriesLength", "line 9: expected a value behind @serieslength"),
        (" Standing Running", "", "expected the different names of the classes .* received none"),
        ("classLabel true Standing Running", "classLabel false", "received series without labels"),
        ("@data", "@equalLength true", "line 12: expected @data before the series, received '-0.7"),
        ("1,2,3:4,5,6:Running", "4,5,6", "line 13: expected a series and its label"),
        ("@missing false", "@targetLabel true", "expected @classLabel or @targetLabel, received"),
    ],
)
def test_damaged_files(tmp_path: Path, old: str, new: str, reason: str) -> None:
    assert old in MOTIONS
    with pytest.raises(ValueError, match=reason):
        read(tmp_path, MOTIONS.replace(old, new))


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.integers(0, len(MOTIONS)), st.integers(0, 6), st.text("@:,()?1.-\n true", max_size=4))
def test_any_change_is_read_or_refused(tmp_path: Path, place: int, cut: int, text: str) -> None:
    try:
        data = read(tmp_path, MOTIONS[:place] + text + MOTIONS[place + cut :])
    except ValueError as error:
        assert str(error).startswith(str(tmp_path))  # noqa: PT017
    else:
        assert len(data.labels) == len(data.sequences)


def test_series_with_other_channels(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="line 4: expected 2 channels, as in the first series, rec"
    ):
        read(tmp_path, "@classLabel true a\n@data\n1:2:a\n1:a\n")


def test_empty_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected a header that ends with @data, received none"):
        read(tmp_path, "")
    with pytest.raises(ValueError, match="expected a line for each series behind @data"):
        read(tmp_path, UNIVARIATE)
    read(tmp_path, MOTIONS)
    assert len(read_ts(tmp_path, "train")) == 2
    with pytest.raises(FileNotFoundError, match=r"expected one file NAME_TEST\.ts, received 0"):
        read_ts(tmp_path, "test")
    with pytest.raises(ValueError, match="split: expected one of train, test of the folder"):
        read_ts(tmp_path)
    with pytest.raises(ValueError, match="split: expected '' with a file"):
        read_ts(tmp_path / "A_TRAIN.ts", "train")
    with pytest.raises(FileNotFoundError, match=r"expected a .ts file or a folder"):
        read_ts(tmp_path / "none.ts")


def test_unknown_names_are_told(tmp_path: Path) -> None:
    data = read(tmp_path, MOTIONS.replace("@missing false", "@mising false"))
    assert data.notes == (
        "line 5: @mising is no name of the format and was left out; did you mean 'missing'?",
    )


@pytest.mark.parametrize(
    ("name", "sizes", "shape", "classes"),
    [("JapaneseVowels", (270, 370), (7, 29, 12), 9), ("BasicMotions", (40, 40), (100, 100, 6), 4)],
)
def test_the_shared_sets_survive_the_format(
    tmp_path: Path, name: str, sizes: tuple[int, int], shape: tuple[int, int, int], classes: int
) -> None:
    path = shared(f"uea/{name}.npz")
    lengths = []
    for split, size in zip(("train", "test"), sizes, strict=True):
        data = read_sequence_npz(path, split)
        assert len(data) == size
        assert len(data.class_names) == classes
        assert data.sequences[0].shape[1] == shape[2]
        lengths += data.lengths().tolist()
        lines = [
            ":".join(",".join(repr(float(v)) for v in channel) for channel in x.T)
            + f":{data.class_names[label]}"
            for x, label in zip(data.sequences, data.labels, strict=True)
        ]
        header = f"@univariate false\n@classLabel true {' '.join(data.class_names)}\n@data\n"
        again = read(tmp_path, header + "\n".join(lines))
        np.testing.assert_array_equal(again.labels, data.labels)
        for a, b in zip(again.sequences, data.sequences, strict=True):
            np.testing.assert_array_equal(a.astype(np.float32), b)
    assert (min(lengths), max(lengths)) == shape[:2]


def test_wrong_npz(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    good = {
        "train_x": np.zeros((3, 5, 2), np.float32),
        "train_lengths": np.array([5, 2, 1]),
        "train_y": np.array([0, 1, 1]),
        "classes": np.array(["a", "b"]),
    }
    np.savez(path, **good)
    assert read_sequence_npz(path, "train").lengths().tolist() == [5, 2, 1]
    with pytest.raises(ValueError, match="expected the arrays test_x, test_y and classes"):
        read_sequence_npz(path, "test")
    for name, value, reason in (
        ("train_y", np.array([0, 1, 2]), "expected train_y of integers 0 to 1"),
        ("train_lengths", np.array([6, 2, 1]), "expected train_lengths of 1 to 5, received 1 to 6"),
        ("train_x", np.zeros((3, 5)), r"expected train_x \(N,T,D\)"),
        ("train_x", np.zeros((0, 5, 2)), r"expected train_x \(N,T,D\)"),
        ("train_x", np.full((3, 5, 2), np.inf), "of finite numbers, .* received infinite ones"),
        ("train_x", np.full((3, 5, 2), "a"), "of finite numbers, .* received <U1"),
    ):
        np.savez(path, **{**good, name: value})
        with pytest.raises(ValueError, match=reason):
            read_sequence_npz(path, "train")
