"""Charts: positions of points, scales, and long or broken series."""

from launch.reports.charts import MAX_DOTS, MAX_POINTS, make_charts
from tests.launch.reports.records import METRICS


def test_charts_place_points_on_their_scales() -> None:
    charts = {chart.title: chart for chart in make_charts(METRICS)}
    assert list(charts) == ["Loss", "Accuracy", "Learning rate", "Gradient norm"]
    train, validation = charts["Accuracy"].lines
    assert train.path == "M50.00 90.00L100.00 40.00"
    assert [(dot.x, dot.y) for dot in validation.dots] == [(50.0, 25.0), (100.0, 50.0)]
    assert [tick.text for tick in charts["Loss"].y_ticks] == ["1", "1.5", "2"]
    assert [tick.text for tick in charts["Gradient norm"].y_ticks] == ["0", "1", "2", "3"]


def test_charts_of_long_wide_and_broken_series() -> None:
    steps = range(1, 5001)
    records = [
        {"step": s, "split": "train", "loss": None if s == 7 else 10.0 ** (-s / 1000)}
        for s in steps
    ]
    (chart,) = make_charts(records)
    assert chart.title == "Loss (logarithmic)"
    assert MAX_DOTS < chart.lines[0].path.count("L") < MAX_POINTS
    assert chart.lines[0].dots == ()
    assert "mean of 13 records" in chart.note
    assert make_charts([{"step": 1, "split": "train", "loss": None}]) == []
    (constant,) = make_charts([{"step": s, "split": "train", "loss": 0.0} for s in (1, 2)])
    assert constant.lines[0].path == "M50.00 50.00L100.00 50.00"
    (other,) = make_charts([{"step": 1, "split": "validation", "cider": 0.9}], best_metric="cider")
    assert other.title == "Cider"
