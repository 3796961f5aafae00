"""Windows of series: forecasts at horizons, classes of steps, and the naive forecasts."""

import functools
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from data.batches import UNKNOWN_LABEL, SequenceExample
from data.series.scaling import Kind, Scaling
from data.series.sequences import check_index, digest, scaled_inputs
from data.series.tables import Section, SeriesTable


class ForecastWindows:
    """Windows of series with the values at later steps as targets; a source, picklable.

    The window that ends at step t has the inputs x_{t-P+1}..x_t and the targets y_{t+h} for each
    horizon h. A window belongs to the section in which its targets lie; its inputs may lie before
    it, in the same series, so that the first targets of validation are forecast as well (the custom
    of LSTNet and Informer). The targets of training never lie in another part.

    >>> from data.series import Series, split_by_time
    >>> table = SeriesTable((Series(np.arange(10.0)[:, None]),), ("x",))
    >>> sections = split_by_time(table, (6, 2, 2))
    >>> windows = ForecastWindows(table, sections["validation"], window=3, horizons=(1, 2))
    >>> len(windows), windows[0]["inputs"].ravel().tolist(), windows[0]["targets"].ravel().tolist()
    (1, [3.0, 4.0, 5.0], [6.0, 7.0])

    Args:
        table: the series.
        sections: of one split, as of ``split_by_time`` or ``split_by_group``.
        window: steps P of the inputs.
        horizons: steps ahead, ascending, at least 1 each; (3,) alone or ``range(1, 25)``.
        targets: names or numbers of the C channels that are forecast; empty: all.
        scaling: of all D channels, fitted on the training sections (``fit_scaling``); None: the
            values as they are.
        stride: steps from one window to the next.

    Attributes:
        skipped: numbers of the series that are too short for a window.

    Raises:
        ValueError: numbers out of range, an unknown channel, or no section that is long enough.
    """

    def __init__(
        self,
        table: SeriesTable,
        sections: Sequence[Section],
        *,
        window: int,
        horizons: Sequence[int] = (1,),
        targets: Sequence[str | int] = (),
        scaling: Scaling | None = None,
        stride: int = 1,
    ):
        steps = tuple(operator.index(h) for h in horizons)
        if not steps or min(steps) < 1 or list(steps) != sorted(set(steps)):
            raise ValueError(
                f"horizons: expected ascending numbers of at least 1, received {tuple(horizons)}"
            )
        _check_window(window, stride)
        self.horizons = steps
        self.window = window
        self.stride = stride
        self.scaling = scaling
        self.channels = table.channels
        self.target_channels = tuple(table.channel_numbers(targets, "targets"))
        self._prepared = _Prepared(table, sections, scaling)
        ends: list[np.ndarray] = []
        skipped = []
        for section in sections:
            first = max(window - 1, section.begin - steps[0])
            found = np.arange(first, section.end - steps[-1], stride)
            if not len(found):
                skipped.append(section.series)
                continue
            seen = np.asarray(self._prepared.seen[section.series][:, self.target_channels].any(1))
            # A window without a single target would add nothing to the loss.
            found = found[seen[found[:, None] + np.array(steps)].any(1)]
            ends.append(np.stack([np.full(len(found), section.series), found], 1))
        self.skipped = tuple(skipped)
        if not sum(map(len, ends)):
            raise ValueError(_too_short(table, sections, window, steps[-1], skipped))
        self.ends = np.concatenate(ends)

    def __len__(self) -> int:
        return len(self.ends)

    def __repr__(self) -> str:
        # grain compares sources by it when it restores an iterator.
        return f"ForecastWindows({self.describe()})"

    def describe(self) -> dict[str, Any]:
        """Returns what identifies the examples, for JSON; a ``Loader``'s ``identity``."""
        return {
            "content": self._prepared.content,
            "windows": digest([self.ends]),
            "window": self.window,
            "horizons": list(self.horizons),
            "target_channels": [self.channels[c] for c in self.target_channels],
            "scaling": self.scaling.to_json() if self.scaling else None,
        }

    def origin(self, index: int) -> tuple[int, int]:
        """Returns the number of the series and the last input step t of window ``index``."""
        number = check_index(index, len(self))
        return int(self.ends[number, 0]), int(self.ends[number, 1])

    def inverse(self, targets: np.ndarray) -> np.ndarray:
        """Returns forecasts (...,C) in the series' own units, float64, for the metrics."""
        if self.scaling is None:
            return np.asarray(targets, np.float64)
        return self.scaling.inverse(targets, self.target_channels)

    def __getitem__(self, index: int, /) -> SequenceExample:
        """Returns window ``index``.

        Returns:
            ``inputs`` (P,D) float32, ``targets`` (H,C) float32, ``target_mask`` (H,C) bool, and
            where the table misses values ``observed`` (P,D) bool.

        Raises:
            IndexError: the index is out of range.
        """
        series, end = self.origin(index)
        rows = np.array(self.horizons) + end
        columns = np.ix_(rows, np.array(self.target_channels))
        example = self._prepared.window(series, end, self.window, index)
        example["targets"] = self._prepared.inputs[series][columns]
        example["target_mask"] = self._prepared.seen[series][columns]
        return example

    def naive_forecasts(self, period: int = 1) -> np.ndarray:
        """Returns the naive forecasts of all windows in the scale of the targets.

        The forecast of step t + h is the value at the last step that is a multiple of ``period``
        before it and not later than t: with a period of 1 the last value, with 24 that of the same
        hour. Where that value is missing, the last one before it that is not.

        Args:
            period: steps, from 1 to the number of steps up to the end of the first window.

        Returns:
            (N,H,C) float32; NaN where no value comes before.

        Raises:
            ValueError: the period is out of range.
        """
        most = int(self.ends[:, 1].min()) + 1
        if not 1 <= period <= most:
            raise ValueError(
                f"period: expected 1 to {most}, the steps up to the end of the first window, "
                f"received {period}"
            )
        horizons = np.array(self.horizons)
        back = horizons - period * -(-horizons // period)  # <= 0, from the last input step.
        forecasts = np.empty((len(self), len(horizons), len(self.target_channels)), np.float32)
        for series in np.unique(self.ends[:, 0]):
            mine = self.ends[:, 0] == series
            values = self._prepared.inputs[series][:, self.target_channels]
            seen = self._prepared.seen[series][:, self.target_channels]
            last = np.maximum.accumulate(np.where(seen, np.arange(len(seen))[:, None], -1))
            filled = np.take_along_axis(values, np.maximum(last, 0), 0)
            filled = np.where(last >= 0, filled, np.float32(np.nan))
            forecasts[mine] = filled[self.ends[mine, 1][:, None] + back]
        return forecasts


class LabelledWindows:
    """Windows of series with the class of their last step; a source, picklable.

    The custom of activity recognition (Ordóñez and Roggen, 2016, section 4.2). Windows lie wholly
    in their section; those whose last step has no label are left out.

    Args:
        table: series with labels.
        sections: of one split.
        window: steps P of the inputs.
        scaling: of all D channels, fitted on the training sections; None: the values as they are.
        stride: steps from one window to the next.

    Attributes:
        class_names: names of the classes by label.
        labels: (N,) int32 class of each window.

    Raises:
        ValueError: numbers out of range, a table without labels, or no section that is long
            enough.
    """

    def __init__(
        self,
        table: SeriesTable,
        sections: Sequence[Section],
        *,
        window: int,
        scaling: Scaling | None = None,
        stride: int = 1,
    ):
        _check_window(window, stride)
        if not table.class_names:
            raise ValueError(
                "table: expected a column of labels, received none; name it in "
                "read_series(label=...)"
            )
        self.window = window
        self.stride = stride
        self.scaling = scaling
        self.class_names = table.class_names
        self._prepared = _Prepared(table, sections, scaling)
        ends: list[np.ndarray] = []
        labels: list[np.ndarray] = []
        for section in sections:
            of_steps = table.series[section.series].labels
            assert of_steps is not None  # A table with names of classes has them.
            found = np.arange(section.begin + window - 1, section.end, stride)
            found = found[of_steps[found] != UNKNOWN_LABEL]
            ends.append(np.stack([np.full(len(found), section.series), found], 1))
            labels.append(of_steps[found])
        if not sum(map(len, ends)):
            raise ValueError(_too_short(table, sections, window, 0, ()))
        self.ends = np.concatenate(ends)
        self.labels = np.concatenate(labels).astype(np.int32)

    def __len__(self) -> int:
        return len(self.ends)

    def __repr__(self) -> str:
        # grain compares sources by it when it restores an iterator.
        return f"LabelledWindows({self.describe()})"

    def describe(self) -> dict[str, Any]:
        """Returns what identifies the examples, for JSON; a ``Loader``'s ``identity``."""
        return {
            "content": self._prepared.content,
            "windows": digest([self.ends, self.labels]),
            "window": self.window,
            "class_names": list(self.class_names),
            "scaling": self.scaling.to_json() if self.scaling else None,
        }

    def __getitem__(self, index: int, /) -> SequenceExample:
        """Returns window ``index``: ``inputs`` (P,D) float32 and ``label``.

        Raises:
            IndexError: the index is out of range.
        """
        number = check_index(index, len(self))
        series, end = map(int, self.ends[number])
        example = self._prepared.window(series, end, self.window, number)
        example["label"] = np.asarray(self.labels[number], np.int32)
        return example


def fit_scaling(
    table: SeriesTable, sections: Sequence[Section], kind: Kind = "standard"
) -> Scaling:
    """Returns the scaling of the training sections.

    Args:
        table: the series.
        sections: the training sections alone.
        kind: one of ``data.series.scaling.KINDS``.

    Raises:
        ValueError: an unknown kind, or a channel without values in these sections.
    """
    arrays = [table.series[s.series].values[s.begin : s.end] for s in sections]
    return Scaling.fit(arrays, kind, table.channels)


class _Prepared:
    """Scaled values of the series that sections use.

    Attributes:
        inputs: number of the series -> (T,D) float32, zero where a value is missing.
        seen: number of the series -> (T,D) bool, False where a value is missing.
    """

    def __init__(
        self, table: SeriesTable, sections: Sequence[Section], scaling: Scaling | None
    ) -> None:
        if not sections:
            raise ValueError("sections: expected at least one, received none")
        # Of the whole table, so that all splits have the same keys.
        self.with_observed = table.has_missing
        self.inputs: dict[int, np.ndarray] = {}
        self.seen: dict[int, np.ndarray] = {}
        for number in sorted({section.series for section in sections}):
            inputs, seen = scaled_inputs(table.series[number].values, scaling)
            self.inputs[number], self.seen[number] = inputs, seen

    @functools.cached_property
    def content(self) -> str:
        """Digest of all values."""
        return digest([*self.inputs.values(), *self.seen.values()])

    def window(self, series: int, end: int, size: int, index: int) -> SequenceExample:
        """Returns the inputs up to step ``end``."""
        steps = slice(end - size + 1, end + 1)
        example = SequenceExample(
            inputs=self.inputs[series][steps],
            lengths=np.asarray(size, np.int32),
            mask=np.asarray(True),
            index=np.asarray(index, np.int32),
        )
        if self.with_observed:
            example["observed"] = self.seen[series][steps]
        return example


def _check_window(window: int, stride: int) -> None:
    if window < 1 or stride < 1:
        raise ValueError(f"window, stride: expected at least 1, received {window} and {stride}")


def _too_short(
    table: SeriesTable,
    sections: Sequence[Section],
    window: int,
    horizon: int,
    skipped: Sequence[int],
) -> str:
    longest = max(sections, key=lambda section: section.end - section.begin)
    needed = f"a window of {window}" + (f" and a horizon of {horizon} steps" if horizon else "")
    series = table.series[longest.series]
    name = f"series {series.name!r}" if series.name else "the series"
    if horizon and len(skipped) < len(sections):
        return (
            "targets: expected observed values in the sections, received only missing ones; leave "
            "the channel out, or take other sections"
        )
    return (
        f"window, horizons: expected {needed} to fit into a series, received {len(series)} steps, "
        f"of which {longest.end - longest.begin} in this part, in the longest, {name}; take a "
        "shorter window or horizon, or a larger part"
    )
