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
      limits: values of fields, in their own units, that are black and white; None: images.
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
            charts.append(make_lines(title, series, x_name="frames ahead", integers=True))
    selections: list[Selection] = []
    limits = None
    if forecaster is not None:
        chosen = _choose(predictions)
        loaded = {
            record["index"]: _load(record, split, forecaster)
            for _, _, records in chosen
            for record in records
        }
        limits = _common_limits(list(loaded.values()))
        for title, choice, records in chosen:
            strips = [_show(record, loaded[record["index"]], limits) for record in records]
            selections.append(Selection(title, choice, strips))
        limits = _in_units(limits, list(loaded.values()), forecaster)
    return Forecasts(len(predictions), tiles, charts, selections, limits)


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


_Loaded = tuple[np.ndarray, np.ndarray] | str
"""Frames (T,H,W,C) and the prediction of the last ones, or the reason for none."""


def _load(record: Mapping[str, Any], split: str, forecaster: TrainedForecaster) -> _Loaded:
    num_inputs, _ = forecaster.config.horizon
    try:
        frames = forecaster.config.load_frames(split, record["index"])
        return frames, forecaster.predict(frames[None, :num_inputs], len(frames) - num_inputs)[0]
    except Exception as error:  # Any error of a data set: one bad clip must not stop the page.
        logger.warning("sequence %d is not shown", record["index"], exc_info=True)
        return f"could not be loaded: {error}"


def _common_limits(loaded: Sequence[_Loaded]) -> tuple[float, float]:
    """Returns the values of float frames that are black and white, the same in all sequences."""
    found = [limits_of(*arrays) for arrays in loaded if not isinstance(arrays, str)]
    return min((low for low, _ in found), default=0.0), max(
        (high for _, high in found), default=1.0
    )


def _in_units(
    limits: tuple[float, float], loaded: Sequence[_Loaded], forecaster: TrainedForecaster
) -> tuple[float, float] | None:
    """Returns the limits of fields in the units of their first channel; None: images."""
    arrays = next((arrays for arrays in loaded if not isinstance(arrays, str)), None)
    if arrays is None or arrays[0].dtype == np.uint8:
        return None
    shape = (2, 1, 1, arrays[0].shape[-1])
    ends = np.broadcast_to(np.array(limits, np.float32).reshape(2, 1, 1, 1), shape)
    low, high = forecaster.config.in_units(ends)[:, 0, 0, 0]
    return float(low), float(high)


def _show(record: Mapping[str, Any], loaded: _Loaded, limits: tuple[float, float]) -> Strip:
    """Returns the frames of one sequence as pictures."""
    shown = Strip(
        index=record["index"],
        error_name=_NAMES["mse_frame"],
        error=float(np.mean(record["mse_frame"])),
        copy_error=float(np.mean(record.get("copy_mse_frame", np.nan))),
    )
    if isinstance(loaded, str):
        return dataclasses.replace(shown, problem=loaded)
    frames, predicted = loaded
    num_inputs = len(frames) - len(predicted)
    given, truth, pictures = (
        to_pictures(part, limits, least_side=LEAST_SIDE)
        for part in (frames[:num_inputs], frames[num_inputs:], predicted)
    )
    difference = np.abs(truth.astype(np.int16) - pictures).astype(np.uint8)
    first, later = _spread(num_inputs), _spread(len(truth))
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
