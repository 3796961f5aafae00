"""The curves of a report lie where their values are."""

from launch.report_figures import MAX_DOTS, MAX_POINTS, make_charts

METRICS = [
    {
        "step": 10,
        "split": "train",
        "loss": 2.0,
        "accuracy": 0.1,
        "gradient_norm": 3.0,
        "learning_rate": 1e-3,
        "steps_per_second": 1.0,
        "clips_per_second": 8.0,
        "data_wait_share": 0.5,
    },
    {
        "step": 20,
        "split": "train",
        "loss": 1.0,
        "accuracy": 0.6,
        "gradient_norm": 1.0,
        "learning_rate": 5e-4,
        "steps_per_second": 2.0,
        "clips_per_second": 16.0,
        "data_wait_share": 0.2,
    },
    {"step": 10, "split": "validation", "loss": 1.8, "accuracy": 0.75, "examples": 4.0},
    {"step": 20, "split": "validation", "loss": 1.5, "accuracy": 0.5, "examples": 4.0},
]


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
