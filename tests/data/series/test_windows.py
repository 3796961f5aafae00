"""Windows of series: bounds without leaks, masks, naive forecasts, inverse transform."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.batches import UNKNOWN_LABEL
from data.loader import Loader
from data.series.scaling import Scaling
from data.series.splits import split_by_time
from data.series.tables import Section, Series, SeriesTable
from data.series.windows import ForecastWindows, LabelledWindows, fit_scaling


def make_table(*lengths: int) -> SeriesTable:
    """Series whose first channel is the step and whose second is the number of the series."""
    series = tuple(
        Series(np.stack([np.arange(n), np.full(n, i)], 1).astype(float), f"g{i}")
        for i, n in enumerate(lengths)
    )
    return SeriesTable(series, ("step", "number"))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(20, 60),
    st.integers(1, 8),
    st.lists(st.integers(1, 6), min_size=1, max_size=3, unique=True),
    st.integers(1, 3),
)
def test_targets_lie_in_their_part(
    length: int, window: int, horizons: list[int], stride: int
) -> None:
    table = make_table(length)
    horizons = sorted(horizons)
    seen: dict[str, set[int]] = {}
    for name, sections in split_by_time(table, (0.5, 0.25, 0.25)).items():
        (section,) = sections
        options = {"window": window, "horizons": horizons, "targets": ["step"], "stride": stride}
        first = max(window - 1, section.begin - horizons[0])
        last = section.end - horizons[-1]
        if first >= last:
            with pytest.raises(ValueError, match="to fit into a series"):
                ForecastWindows(table, sections, **options)
            continue
        windows = ForecastWindows(table, sections, **options)
        ends = []
        for index in range(len(windows)):
            example = windows[index]
            steps = example["inputs"][:, 0]
            end = int(steps[-1])
            ends.append(end)
            np.testing.assert_array_equal(steps, np.arange(end - window + 1, end + 1))
            np.testing.assert_array_equal(example["targets"][:, 0], end + np.array(horizons))
            assert example["target_mask"].all()
            assert windows.origin(index) == (0, end)
            targets = set(example["targets"][:, 0].astype(int).tolist())
            assert targets <= set(range(section.begin, section.end))
            seen.setdefault(name, set()).update(targets)
        assert ends == list(range(first, last, stride))  # None is left out that would fit.
    sides = list(seen.values())
    assert all(not a & b for i, a in enumerate(sides) for b in sides[i + 1 :])


def test_windows_stay_in_their_series() -> None:
    table = make_table(9, 4, 12)
    windows = ForecastWindows(table, table.whole(), window=5, horizons=(2,))
    assert windows.skipped == (1,)
    for index in range(len(windows)):
        example = windows[index]
        assert len({*example["inputs"][:, 1], *example["targets"][:, 1]}) == 1
    assert len(windows) == (9 - 6) + (12 - 6)


def test_missing_values_are_masked() -> None:
    values = np.arange(12.0).reshape(6, 2)
    values[2, 0] = values[4, 1] = values[5, 1] = np.nan
    table = SeriesTable((Series(values),), ("a", "b"))
    windows = ForecastWindows(table, table.whole(), window=2, horizons=(1,))
    example = windows[1]
    assert example["inputs"].tolist() == [[2, 3], [0, 5]]
    assert example["observed"].tolist() == [[True, True], [False, True]]
    assert windows[2]["targets"].tolist() == [[8, 0]]
    assert windows[2]["target_mask"].tolist() == [[True, False]]
    # The last two windows have no target at all.
    only = ForecastWindows(table, table.whole(), window=2, horizons=(1,), targets=["b"])
    assert [only.origin(i)[1] for i in range(len(only))] == [1, 2]
    with pytest.raises(ValueError, match="expected observed values in the sections"):
        ForecastWindows(table, (Section(0, 4, 6),), window=2, horizons=(1,), targets=["b"])


def test_scaling_sees_the_training_part_alone() -> None:
    table = make_table(100)
    splits = split_by_time(table, (0.5, 0.5))
    scaling = fit_scaling(table, splits["train"])
    assert scaling.offsets[0] == np.arange(50).mean()
    assert scaling.constant == (1,)
    windows = ForecastWindows(
        table, splits["validation"], window=3, horizons=(1, 4), targets=["step"], scaling=scaling
    )
    example = windows[7]
    end = windows.origin(7)[1]
    assert example["targets"].dtype == np.float32
    np.testing.assert_allclose(
        windows.inverse(example["targets"]), [[end + 1], [end + 4]], rtol=1e-6
    )
    np.testing.assert_allclose(scaling.inverse(example["inputs"])[:, 0], range(end - 2, end + 1))


@pytest.mark.parametrize("period", [1, 3, 7])
def test_naive_forecasts(period: int) -> None:
    table = make_table(40, 30)
    windows = ForecastWindows(
        table, table.whole(), window=8, horizons=(1, 3, 5, 12), targets=["step"]
    )
    found = windows.naive_forecasts(period)
    assert found.shape == (len(windows), 4, 1)
    for index in range(len(windows)):
        end = windows.origin(index)[1]
        for k, horizon in enumerate(windows.horizons):
            expected = end + horizon
            while expected > end:
                expected -= period
            assert found[index, k, 0] == expected


def test_naive_forecasts_pass_over_missing_values() -> None:
    values = np.array([[np.nan], [1.0], [np.nan], [np.nan], [4.0], [5.0]])
    table = SeriesTable((Series(values),), ("a",))
    windows = ForecastWindows(table, table.whole(), window=1, horizons=(1,))
    ends = [windows.origin(i)[1] for i in range(len(windows))]
    assert ends == [0, 3, 4]
    np.testing.assert_array_equal(windows.naive_forecasts()[:, 0, 0], [np.nan, 1, 4])
    with pytest.raises(ValueError, match="period: expected 1 to 1, the steps up to the end"):
        windows.naive_forecasts(2)


def test_a_horizon_longer_than_the_series() -> None:
    table = make_table(10)
    with pytest.raises(
        ValueError,
        match="expected a window of 4 and a horizon of 24 steps to fit into a series, received 10 ",
    ):
        ForecastWindows(table, table.whole(), window=4, horizons=(24,))
    part = split_by_time(table, (6, 2, 2))["validation"]
    with pytest.raises(ValueError, match="of which 2 in this part, in the longest, series 'g0'"):
        ForecastWindows(table, part, window=4, horizons=(1, 2, 3))


def test_wrong_arguments() -> None:
    table = make_table(10)
    for horizons in ((), (0,), (2, 1), (1, 1)):
        with pytest.raises(ValueError, match="horizons: expected ascending numbers"):
            ForecastWindows(table, table.whole(), window=4, horizons=horizons)
    with pytest.raises(ValueError, match="window, stride: expected at least 1, received 0 and 1"):
        ForecastWindows(table, table.whole(), window=0)
    with pytest.raises(ValueError, match=r"targets: .* received 'stop'; did you mean 'step'"):
        ForecastWindows(table, table.whole(), window=4, targets=["stop"])
    with pytest.raises(ValueError, match="sections: expected at least one"):
        ForecastWindows(table, (), window=4)
    with pytest.raises(ValueError, match="table: expected a column of labels, received none"):
        LabelledWindows(table, table.whole(), window=4)


def test_labelled_windows() -> None:
    labels = np.array([0, 0, 0, 1, UNKNOWN_LABEL, 1, 1, 0], np.int32)
    table = SeriesTable((Series(np.arange(8.0)[:, None], labels=labels),), ("x",), ("rest", "walk"))
    windows = LabelledWindows(table, table.whole(), window=3)
    found = [(w["inputs"][-1, 0], int(w["label"])) for w in map(windows.__getitem__, range(5))]
    assert found == [(2, 0), (3, 1), (5, 1), (6, 1), (7, 0)]
    assert windows.labels.tolist() == [0, 1, 1, 1, 0]
    assert len(windows) == 5
    later = LabelledWindows(table, (Section(0, 4, 8),), window=3)
    assert later[0]["inputs"].ravel().tolist() == [4, 5, 6]
    with pytest.raises(ValueError, match="expected a window of 9 to fit into a series"):
        LabelledWindows(table, table.whole(), window=9)


def test_batches_and_identity() -> None:
    table = make_table(30)
    scaling = Scaling.fit([table.series[0].values], "min_max")
    windows = ForecastWindows(table, table.whole(), window=4, horizons=(1, 2), scaling=scaling)
    loader = Loader(windows, batch_size=8, train=False, identity=windows.describe(), num_threads=0)
    with loader.batches() as batches:
        found = list(batches)
    assert found[0]["inputs"].shape == (8, 4, 2)
    assert found[0]["targets"].shape == found[0]["target_mask"].shape == (8, 2, 2)
    assert sum(int(batch["mask"].sum()) for batch in found) == len(windows) == 25
    assert not found[-1]["target_mask"][~found[-1]["mask"]].any()
    copy = pickle.loads(pickle.dumps(windows))
    assert repr(copy) == repr(windows)
    other = ForecastWindows(table, table.whole(), window=4, horizons=(1, 3), scaling=scaling)
    assert other.describe() != windows.describe()
