"""Forecasts of what follows the last row of files, for ``launch.predict``."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from data.batches import SequenceExample
from data.series import Scaling, Series, SeriesTable
from data.series.sequences import scaled_inputs
from data.series.tables import shorten
from data.series.times import show_time
from experiments.sequences.config import Problem


class LastWindows:
    """Last window of each file, a source whose unreadable files have ``mask`` False.

    Args:
        paths: of the files.
        read: function of a path to its table, with the channels of the training.
        problem: of the trained network; its scaling is applied.
        window: steps P of the inputs.
        horizons: steps ahead H.
    """

    def __init__(
        self,
        paths: Sequence[str],
        read: Callable[[str], SeriesTable],
        problem: Problem,
        *,
        window: int,
        horizons: Sequence[int],
    ) -> None:
        self._window = window
        self._problem = problem
        self._shape = (len(horizons), len(problem.forecast_channels))
        self.ends: list[str] = []
        """Time of each file's last row, or the number of its rows; "" of an unreadable file."""
        self._reasons: list[str] = []
        self._examples: list[SequenceExample] = []
        for index, path in enumerate(paths):
            values, end, reason = np.zeros((window, len(problem.channels))), "", ""
            try:
                series = self._only(path, read(path))
                values = self._checked(path, series.values[-window:])
                end = str(len(series)) if series.times is None else show_time(series.times[-1])
            except (ValueError, OSError) as error:
                reason = str(error)
            self.ends.append(end)
            self._reasons.append(reason)
            self._examples.append(self._example(values, index, not reason))

    def __len__(self) -> int:
        return len(self._examples)

    def __repr__(self) -> str:
        # grain compares sources by it when it restores an iterator.
        return f"LastWindows({self.ends})"

    def __getitem__(self, index: int, /) -> SequenceExample:
        """Returns the window of file ``index``; its targets, which nobody knows, are masked."""
        return self._examples[index]

    def explain(self, index: int) -> str:
        """Returns why a file has no window."""
        return self._reasons[index]

    def _only(self, path: str, table: SeriesTable) -> Series:
        names = {series.name for series in table.series}
        if len(names) > 1:
            raise ValueError(
                f"{path}: expected one series, whose continuation is forecast, received "
                f"{len(names)}; give a file for each"
            )
        # The others of the same name are the parts before a gap.
        series = table.series[-1]
        if len(series) < self._window:
            behind = " behind the last gap" if len(table.series) > 1 else ""
            raise ValueError(
                f"{path}: expected at least the {self._window} rows of a window{behind}, received "
                f"{len(series)}"
            )
        return series

    def _checked(self, path: str, values: np.ndarray) -> np.ndarray:
        """Returns the values of a window, (P,D), unless the network cannot continue them."""
        problem, missing = self._problem, np.isnan(values)
        if missing.any() and not problem.with_observed:
            raise ValueError(without_mask(path))
        channels = problem.forecast_channels
        if empty := [problem.channels[c] for c in channels if missing[:, c].all()]:
            raise ValueError(
                f"{path}: expected an observed value of each channel that is forecast in the last "
                f"{self._window} rows, received none of {shorten(empty)}"
            )
        return values

    def _example(self, values: np.ndarray, index: int, readable: bool) -> SequenceExample:
        inputs, seen = scaled_inputs(values, Scaling.from_json(self._problem.scaling))
        example = SequenceExample(
            inputs=inputs,
            lengths=np.asarray(self._window, np.int32),
            targets=np.zeros(self._shape, np.float32),
            target_mask=np.zeros(self._shape, bool),
            mask=np.asarray(readable),
            index=np.asarray(index, np.int32),
        )
        if self._problem.with_observed:
            example["observed"] = seen
        return example


def without_mask(where: str) -> str:
    """Returns the error about missing values that a network without their mask would read as 0."""
    return (
        f"{where}: expected values without gaps, as those of the training, so that the network has "
        "no mask of missing values, received missing ones; fill them, or train on data that miss "
        "some"
    )


def describe_forecast(
    predictions: Sequence[Sequence[float]], end: str, problem: Problem, horizons: Sequence[int]
) -> dict[str, Any]:
    """Returns a forecast in the series' own units, for JSON: values by channel at each step.

    Args:
      predictions: (H,C) in the scale.
      end: time of the last row, or the number of rows.
      problem: of the trained network.
      horizons: the H steps ahead.
    """
    scaling = Scaling.from_json(problem.scaling)
    values = scaling.inverse(np.asarray(predictions), problem.forecast_channels)
    names = [problem.channels[c] for c in problem.forecast_channels]
    steps: list[Mapping[str, Any]] = [
        {"step": step, "values": dict(zip(names, map(float, row), strict=True))}
        for step, row in zip(horizons, values, strict=True)
    ]
    return {"after": end, "forecast": steps}
