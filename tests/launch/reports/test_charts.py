"""Charts: positions of points, scales, and long or broken series."""

from launch.reports.charts import MAX_DOTS, MAX_POINTS, make_bars, make_charts
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


def test_bars_have_shares_counts_and_edges() -> None:
    chart = make_bars("Error", [(0.0, 3), (0.125, 1_200)], ["1", "20", "35"], x_name="length")
    assert [(bar.height, bar.count) for bar in chart.bars] == [(0.0, "3"), (83.33, "1,200")]
    assert [(tick.position, tick.text) for tick in chart.x_ticks] == [
        (0.0, "1"),
        (50.0, "20"),
        (100.0, "35"),
    ]
    assert [tick.text for tick in chart.y_ticks] == [
        "0\u00a0%",
        "5\u00a0%",
        "10\u00a0%",
        "15\u00a0%",
    ]
    assert chart.description == "Error: 1 to 20: 0\u00a0%; 20 to 35: 12.5\u00a0%."
    flat = make_bars("Error", [(0.0, 3)], ["1", "2"], x_name="length")
    assert flat.y_ticks[0].text == "0\u00a0%"


def test_error_rates_are_percent_and_learning_rates_are_not() -> None:
    records = [{"step": 1, "split": "train", "word_error_rate": 0.5, "learning_rate": 0.5}]
    charts = {chart.title: chart for chart in make_charts(records, "word_error_rate")}
    assert charts["Word error rate"].lines[0].last == "50\u00a0%"
    assert charts["Learning rate"].lines[0].last == "0.5"
