"""Charts of a run's metrics, as data for the templates.

A chart holds SVG paths in a unit square and ticks as text. The template stretches the paths to the
width of the page, but not the text.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

MAX_POINTS = 400
"""Most points of a line; longer series are averaged over neighbouring records."""
MAX_DOTS = 40
"""Most points of a line whose points are marked."""
LOG_RATIO = 50.0
"""Ratio of the largest to the smallest positive value above which the scale is logarithmic."""
LOG_RATIO_X = 8.0
"""The same for the x axis of single points, as learning rates that were drawn on a log scale."""


@dataclasses.dataclass(frozen=True)
class Tick:
    """A tick of an axis; ``position`` is in percent of its length."""

    position: float
    text: str


@dataclasses.dataclass(frozen=True)
class Dot:
    """A marked point with its tooltip; x and y are in percent from the left and the top."""

    x: float
    y: float
    text: str


@dataclasses.dataclass(frozen=True)
class Line:
    """The curve of one split: an SVG path in a square of side 100, y pointing down."""

    split: str
    path: str
    dots: tuple[Dot, ...]
    last: str


@dataclasses.dataclass(frozen=True)
class Chart:
    """The curves of one metric over the training steps."""

    title: str
    lines: tuple[Line, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    description: str
    note: str
    x_name: str = "step"


@dataclasses.dataclass(frozen=True)
class Bar:
    """A bar; ``height`` is in percent of the axis, ``count`` the number of its examples.

    ``value`` is written above it, ``text`` is its tooltip.
    """

    height: float
    count: str
    value: str
    text: str


@dataclasses.dataclass(frozen=True)
class Bars:
    """Bars of a share, by bins whose edges are ``x_ticks``."""

    title: str
    bars: tuple[Bar, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    description: str
    x_name: str


@dataclasses.dataclass(frozen=True)
class _Scale:
    low: float
    high: float
    ticks: tuple[float, ...]
    logarithmic: bool = False

    def __call__(self, value: float) -> float:
        """Returns the position in percent of the axis, clipped to [0,100]."""
        low, high = self.low, self.high
        if self.logarithmic:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return round(100 * min(max((value - low) / (high - low), 0.0), 1.0), 2)


def make_charts(metrics: Sequence[Mapping[str, Any]], best_metric: str = "accuracy") -> list[Chart]:
    """Returns charts of the common metrics and of ``best_metric``.

    Args:
      metrics: records ``{"step": …, "split": …, name: value or None, …}`` in any order.
      best_metric: metric that is drawn as well.

    Returns:
      The charts of all metrics with a finite value in some record.
    """
    titles = {
        "loss": "Loss",
        "cross_entropy": "Cross-entropy",
        "accuracy": "Accuracy",
        "word_accuracy": "Word accuracy",
        "learning_rate": "Learning rate",
        "gradient_norm": "Gradient norm",
        "mse_frame": "Squared error a frame",
        "ssim": "SSIM",
    }
    titles.setdefault(best_metric, _sentence(best_metric.replace("_", " ")))
    charts = (_make_chart(metrics, name, title) for name, title in titles.items())
    return [chart for chart in charts if chart is not None]


def make_scatter(
    title: str,
    points: Sequence[tuple[float, float, str]],
    *,
    x_name: str,
    best: Sequence[tuple[float, float]] = (),
    integers: bool = False,
) -> Chart:
    """Returns a chart of single points.

    Args:
      title: of the chart.
      points: x, y and tooltip of each, at least one.
      x_name: name of the x axis.
      best: points of a line drawn through the best values.
      integers: the x axis has ticks at integers alone.
    """
    xs, ys = [x for x, _, _ in points], [y for _, y, _ in points]
    x_scale, y_scale = _scale_of(xs, LOG_RATIO_X, integers=integers), _scale_of(ys, LOG_RATIO)
    dots = tuple(
        Dot(round(x_scale(x), 2), round(100 - y_scale(y), 2), text) for x, y, text in points
    )
    path = "M" + "L".join(f"{x_scale(x):.2f} {100 - y_scale(y):.2f}" for x, y in best)
    lines = [Line("trials", "", dots, f"{len(points):,}")]
    if best:
        lines.append(Line("best so far", path, (), f"{best[-1][1]:.4g}"))
    return Chart(
        title=title,
        lines=tuple(lines),
        x_ticks=tuple(Tick(x_scale(tick), f"{tick:.4g}") for tick in x_scale.ticks),
        y_ticks=tuple(Tick(y_scale(tick), f"{tick:.4g}") for tick in y_scale.ticks),
        description=f"{title}: {len(points)} points, from {min(ys):.4g} to {max(ys):.4g}.",
        note="logarithmic" if x_scale.logarithmic else "",
        x_name=x_name,
    )


def make_lines(
    title: str,
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    x_name: str,
    integers: bool = False,
) -> Chart:
    """Returns a chart of several lines whose points are marked.

    Args:
      title: of the chart.
      series: x and y of the points of each line, at least one, by its name.
      x_name: name of the x axis.
      integers: the x axis is linear and has ticks at integers alone.
    """
    points = [point for line in series.values() for point in line]
    xs, ys = [x for x, _ in points], [y for _, y in points]
    x_scale, y_scale = _scale_of(xs, LOG_RATIO_X, integers=integers), _scale_of(ys, LOG_RATIO)
    lines, sentences = [], []
    for name, line in series.items():
        ordered = sorted(line)
        path = "M" + "L".join(f"{x_scale(x):.2f} {100 - y_scale(y):.2f}" for x, y in ordered)
        dots = tuple(
            Dot(round(x_scale(x), 2), round(100 - y_scale(y), 2), f"{name}, {x:g}: {y:.4g}")
            for x, y in ordered
        )
        lines.append(Line(name, path, dots, f"{ordered[-1][1]:.4g}"))
        sentences.append(f"{name} {', '.join(f'{y:.4g} at {x:g}' for x, y in ordered)}")
    return Chart(
        title=title,
        lines=tuple(lines),
        x_ticks=tuple(Tick(x_scale(tick), f"{tick:.4g}") for tick in x_scale.ticks),
        y_ticks=tuple(Tick(y_scale(tick), f"{tick:.4g}") for tick in y_scale.ticks),
        description=f"{title}: {'; '.join(sentences)}.",
        note="logarithmic" if y_scale.logarithmic else "",
        x_name=x_name,
    )


def make_bars(
    title: str, bars: Sequence[tuple[float, int]], edges: Sequence[str], *, x_name: str
) -> Bars:
    """Returns a chart of shares by bins, as wide as each other.

    Args:
      title: of the chart.
      bars: share, at least 0, and number of examples of each of n bins, at least one.
      edges: n + 1 edges of the bins.
      x_name: name of the x axis.
    """
    scale = _linear_scale(0.0, max(share for share, _ in bars) or 0.01)
    found, sentences = [], []
    for number, (share, count) in enumerate(bars):
        value = _percent(share)
        span = f"{edges[number]} to {edges[number + 1]}"
        short = f"{100 * share:.2g}" if share < 0.1 else f"{100 * share:.0f}"
        text = f"{span}: {value}, {count:,}"
        found.append(Bar(scale(share), f"{count:,}", f"{short}\u00a0%", text))
        sentences.append(f"{span}: {value}")
    width = 100 / len(bars)
    return Bars(
        title=title,
        bars=tuple(found),
        x_ticks=tuple(Tick(round(k * width, 2), edge) for k, edge in enumerate(edges)),
        y_ticks=tuple(Tick(scale(tick), _percent(tick)) for tick in scale.ticks),
        description=f"{title}: {'; '.join(sentences)}.",
        x_name=x_name,
    )


def is_share(name: str) -> bool:
    """Returns True for a metric that is shown in percent: an accuracy or a rate of errors."""
    return name.endswith(("accuracy", "error_rate", "exact_line_rate"))


def _percent(share: float) -> str:
    return f"{100 * share:.3g}\u00a0%"


def _scale_of(values: Sequence[float], ratio: float, *, integers: bool = False) -> _Scale:
    """Returns a scale that holds all values, logarithmic where they differ by this ratio."""
    low, high = min(values), max(values)
    if integers:
        low, high = math.floor(low), max(math.ceil(high), math.floor(low) + 1)
        return _Scale(low, high, _nice_ticks(low, high, 6, 1.0))
    if low > 0 and high > ratio * low:
        return _logarithmic_scale(low, high)
    return _linear_scale(low, high)


def _sentence(text: str) -> str:
    """Returns the text with a capital first letter; ``CIDEr`` stays unchanged."""
    return text[:1].upper() + text[1:]


def _make_chart(metrics: Sequence[Mapping[str, Any]], name: str, title: str) -> Chart | None:
    series: dict[str, list[tuple[int, float]]] = {}
    for record in metrics:
        value = record.get(name)
        if value is not None and math.isfinite(value):
            series.setdefault(record["split"], []).append((record["step"], float(value)))
    if not series:
        return None
    note = ""
    for split, points in series.items():
        points.sort()
        group = math.ceil(len(points) / MAX_POINTS)
        if group > 1:
            series[split] = _average(points, group)
            note = f"each {split} point is the mean of {group} records"
    values = [value for points in series.values() for _, value in points]
    last_step = max(step for points in series.values() for step, _ in points)
    accuracy = name.endswith("accuracy")
    if accuracy:
        y_scale = _Scale(0.0, 1.0, (0.0, 0.25, 0.5, 0.75, 1.0))
    elif name != "learning_rate" and min(values) > 0 and max(values) > LOG_RATIO * min(values):
        y_scale = _logarithmic_scale(min(values), max(values))
        title += " (logarithmic)"
    else:
        y_scale = _linear_scale(min(values), max(values))
    x_scale = _Scale(0.0, float(max(last_step, 1)), _nice_ticks(0.0, max(last_step, 1), 5, 1.0))

    def text(value: float) -> str:
        return _percent(value) if is_share(name) else f"{value:.4g}"

    lines, sentences = [], []
    # SVG draws in order: the sparse evaluation points must lie on top of the training curve.
    for split, points in sorted(series.items(), key=lambda item: (item[0] != "train", item[0])):
        positions = [(x_scale(step), 100 - y_scale(value)) for step, value in points]
        dots = (
            Dot(round(x, 2), round(y, 2), f"{split}, step {step:,}: {text(value)}")
            for (x, y), (step, value) in zip(positions, points, strict=True)
        )
        path = "M" + "L".join(f"{x:.2f} {y:.2f}" for x, y in positions)
        marked = tuple(dots) if len(points) <= MAX_DOTS else ()
        lines.append(Line(split, path, marked, text(points[-1][1])))
        sentences.append(
            f"{split} from {text(points[0][1])} at step {points[0][0]:,} to "
            f"{text(points[-1][1])} at step {points[-1][0]:,}"
        )
    return Chart(
        title=title,
        lines=tuple(lines),
        x_ticks=tuple(Tick(x_scale(tick), f"{tick:,.0f}") for tick in x_scale.ticks),
        y_ticks=tuple(Tick(y_scale(tick), text(tick)) for tick in y_scale.ticks),
        description=f"{title} over the steps: {'; '.join(sentences)}.",
        note=note,
    )


def _average(points: Sequence[tuple[int, float]], group: int) -> list[tuple[int, float]]:
    """Returns means of ``group`` consecutive points, each at the last of their steps."""
    chunks = [points[start : start + group] for start in range(0, len(points), group)]
    return [(chunk[-1][0], sum(value for _, value in chunk) / len(chunk)) for chunk in chunks]


def _linear_scale(low: float, high: float) -> _Scale:
    if 0 <= low < 0.5 * high or low == high > 0:
        low = 0.0
    if low == high:
        low, high = low - 1.0, high + 1.0
    step = _nice_step((high - low) / 4)
    low, high = math.floor(low / step) * step, math.ceil(high / step - 1e-9) * step
    return _Scale(low, high, _nice_ticks(low, high, 4))


def _logarithmic_scale(low: float, high: float) -> _Scale:
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    fine = [digit * 10.0**exponent for exponent in exponents for digit in (1, 2, 5)]
    low, high = max(v for v in fine if v <= low), min(v for v in fine if v >= high)
    apart = math.ceil(len(exponents) / 6)
    ticks = [10.0**exponent for exponent in exponents[::apart]]
    return _Scale(low, high, tuple(v for v in ticks if low <= v <= high), logarithmic=True)


def _nice_step(raw: float) -> float:
    """Returns the smallest of 1, 2 or 5 times a power of ten that is at least ``raw``."""
    power = 10.0 ** math.floor(math.log10(raw))
    return next(digit * power for digit in (1, 2, 5, 10) if digit * power >= raw * (1 - 1e-9))


def _nice_ticks(low: float, high: float, count: int, least: float = 0.0) -> tuple[float, ...]:
    step = max(_nice_step((high - low) / count), least)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return tuple(number * step for number in range(first, last + 1))
