"""Predicted frames in a report: their errors over the horizon, and truth beside prediction."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flaxnets.inference.frame_files import limits_of, to_pictures
from flaxnets.inference.trained_forecaster import TrainedForecaster
from launch.reports.charts import Chart, make_lines
from launch.reports.clips import Frame, make_drawing

MAX_FRAMES = 12
"""Most frames of a row; of longer ones some are shown, evenly spaced, the first and last too."""
LEAST_SIDE = 64
"""Shorter side of a frame in the page, pixels, at least; smaller ones repeat their pixels."""
MAX_SIDE = 128
"""Longer side of a frame in the page, pixels; of larger ones every n-th pixel is shown."""

_NAMES = {
    "mse_frame": "squared error a frame",
    "mae_frame": "absolute error a frame",
    "ssim": "SSIM",
    "psnr": "PSNR, dB",
}
_COPIED = "last frame repeated"

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Tile:
    """Mean of a metric over all predicted frames; ``copied`` that of the last frame repeated."""

    name: str
    value: float
    copied: float | None


@dataclasses.dataclass(frozen=True)
class Row:
    """Frames of one kind: given, true, predicted, or their difference."""

    name: str
    frames: tuple[Frame, ...]


@dataclasses.dataclass(frozen=True)
class Strip:
    """One sequence of the split; ``problem`` is the reason for missing frames.

    Attributes:
      index: its number in the split.
      error_name: name of the errors.
      error: mean over its predicted frames.
      copy_error: the same of the last frame repeated.
      given: row of the given frames.
      rows: rows of the frames that follow: truth, prediction, difference.
      errors: of the frames that ``rows`` shows.
      problem: the reason why there are no rows.
    """

    index: int
    error_name: str
    error: float
    copy_error: float
    given: tuple[Row, ...] = ()
    rows: tuple[Row, ...] = ()
    errors: tuple[float, ...] = ()
    problem: str = ""


@dataclasses.dataclass(frozen=True)
class Selection:
    """Sequences with a title; ``choice`` tells how they were selected."""

    title: str
    choice: str
    strips: list[Strip]


@dataclasses.dataclass(frozen=True)
class Forecasts:
    """Errors of predicted frames, and sequences to look at.

    Attributes:
      num_sequences: number of sequences.
      tiles: means of the metrics.
      charts: metrics over the horizon, beside those of the last frame repeated.
      selections: sequences with their frames.
      limits: values of fields that are black and white; None: images.
    """

    num_sequences: int
    tiles: list[Tile]
    charts: list[Chart]
    selections: list[Selection]
    limits: tuple[float, float] | None = None


def make_forecasts(
    predictions: Sequence[Mapping[str, Any]], split: str, forecaster: TrainedForecaster | None
) -> Forecasts:
    """Returns the errors over the horizon, and frames of a few sequences.

    The sequences are predicted anew: records hold errors, and no frames.

    Args:
      predictions: records ``{"index", "mse_frame": [N], "copy_mse_frame": [N], …}``, as of
        ``flaxnets.tasks.frame_prediction``.
      split: of the sequences.
      forecaster: the trained run; None: no sequence is shown.
    """
    names = [name for name in _NAMES if all(name in record for record in predictions)]
    means = {name: _mean(predictions, name) for name in names}
    copied = {name: _mean(predictions, f"copy_{name}") for name in names}
    tiles, charts = [], []
    for name in names:
        lines = {"predicted": means[name], _COPIED: copied[name]}
        series = {
            key: [(step + 1.0, float(value)) for step, value in enumerate(values)]
            for key, values in lines.items()
            if values is not None and np.isfinite(values).all()
        }
        last, mine = copied[name], means[name]
        if "predicted" not in series or mine is None:
            continue
        tiles.append(Tile(_NAMES[name], float(mine.mean()), None if last is None else last.mean()))
        if len(mine) > 1:
            title = _NAMES[name][:1].upper() + _NAMES[name][1:]
            charts.append(make_lines(title, series, x_name="frames ahead"))
    selections: list[Selection] = []
    limits: list[tuple[float, float]] = []
    if forecaster is not None:
        for title, choice, records in _choose(predictions):
            strips = [_show(record, split, forecaster, limits) for record in records]
            selections.append(Selection(title, choice, strips))
    span = (min(low for low, _ in limits), max(high for _, high in limits)) if limits else None
    return Forecasts(len(predictions), tiles, charts, selections, span)


def _mean(records: Sequence[Mapping[str, Any]], name: str) -> np.ndarray | None:
    """Returns the mean over the sequences, (N,); None where a record lacks it."""
    if not all(name in record for record in records):
        return None
    return np.mean([np.asarray(record[name], np.float64) for record in records], axis=0)


def _choose(
    records: Sequence[Mapping[str, Any]],
) -> list[tuple[str, str, list[Mapping[str, Any]]]]:
    """Returns (title, choice, records) of sequences around the median error, and the worst."""
    ordered = sorted(records, key=lambda record: float(np.mean(record["mse_frame"])))
    middle = len(ordered) // 2
    typical, worst = ordered[max(middle - 1, 0) : middle + 2], ordered[middle + 2 :][-2:]
    groups = [("Typical", "those nearest to the median error", typical)]
    if worst:
        groups.append(("Worst", "the largest error last", worst))
    return groups


def _show(
    record: Mapping[str, Any],
    split: str,
    forecaster: TrainedForecaster,
    limits: list[tuple[float, float]],
) -> Strip:
    """Returns the frames of one sequence; appends the limits of fields."""
    shown = Strip(
        index=record["index"],
        error_name=_NAMES["mse_frame"],
        error=float(np.mean(record["mse_frame"])),
        copy_error=float(np.mean(record.get("copy_mse_frame", np.nan))),
    )
    num_inputs, _ = forecaster.config.horizon
    try:
        frames = forecaster.config.load_frames(split, record["index"])
        predicted = forecaster.predict(frames[None, :num_inputs], len(frames) - num_inputs)[0]
    except Exception as error:  # Any error of a data set: one bad clip must not stop the page.
        logger.warning("sequence %d is not shown", shown.index, exc_info=True)
        return dataclasses.replace(shown, problem=f"could not be loaded: {error}")
    found = limits_of(frames, predicted)
    if frames.dtype != np.uint8:
        limits.append(found)
    given, truth, pictures = (
        to_pictures(part, found, least_side=LEAST_SIDE)
        for part in (frames[:num_inputs], frames[num_inputs:], predicted)
    )
    difference = np.abs(truth.astype(np.int16) - pictures).astype(np.uint8)
    first = _spread(num_inputs)
    later = _spread(len(truth))
    rows = (("truth", truth), ("prediction", pictures), ("difference", difference))
    return dataclasses.replace(
        shown,
        given=(_row("given", given, first, 1 - num_inputs),),
        rows=tuple(_row(name, array, later, 1) for name, array in rows),
        errors=tuple(float(record["mse_frame"][number]) for number in later),
    )


def _row(name: str, pictures: np.ndarray, numbers: Sequence[int], first: int) -> Row:
    """Returns the chosen pictures (T,h,w,3), numbered from ``first`` on."""
    step = -(-max(pictures.shape[1:3]) // MAX_SIDE)
    small = pictures[:, ::step, ::step]
    return Row(name, tuple(make_drawing(first + n, small[n]) for n in numbers))


def _spread(count: int) -> list[int]:
    """Returns at most ``MAX_FRAMES`` numbers below ``count``, the first and the last included."""
    numbers = np.linspace(0, count - 1, min(count, MAX_FRAMES)).round().astype(int)
    return sorted(set(numbers.tolist()))
