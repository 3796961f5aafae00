"""C-MAPSS: engines that run until they fail, and their remaining life (Saxena et al., 2008).

``train_FD001.txt`` (to FD004) has a row for each cycle of an engine and 26 columns between blanks:
engine, cycle, 3 settings, 21 sensors. Each engine's last row is its last cycle before the failure,
so the remaining life of a row is that cycle minus its own. ``test_FD001.txt`` ends each engine
earlier; ``RUL_FD001.txt`` has the remaining life at each end.

By custom the target is capped (125 cycles): a healthy engine does not tell when it will fail. The
error is taken at the last row of each engine alone.
"""

import functools
import os
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from data.batches import SequenceExample
from data.datasets.series_csv import read_series
from data.files import read_lines
from data.series.scaling import Scaling
from data.series.sequences import check_index, digest, pad_steps
from data.series.tables import Section, Series, SeriesTable

CAP = 125
"""Usual greatest target, cycles."""
COLUMNS = (
    *("engine", "cycle"),
    *(f"setting_{i}" for i in range(1, 4)),
    *(f"sensor_{i}" for i in range(1, 22)),
)
SHORTEST = 31
"""Cycles that an engine which is cut off keeps at least: more than the usual window of 30."""


def read_engines(path: str | os.PathLike[str]) -> SeriesTable:
    """Reads the engines of ``train_FD00N.txt`` or ``test_FD00N.txt``, a series each.

    Returns:
        Series of the 24 channels ``setting_1`` to ``sensor_21``, named by the engine, with the
        cycle as time.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: rows with another number of columns, text in a number's place, or cycles that
            are not consecutive.
    """
    return read_series(
        path, time="cycle", group="engine", names=COLUMNS, header=False, separator=" "
    )


def read_remaining_lives(path: str | os.PathLike[str], engines: SeriesTable) -> np.ndarray:
    """Reads ``RUL_FD00N.txt``: the cycles that remain after each engine's last row, (N,) float64.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not one number for each engine.
    """
    lines = read_lines(path)
    for number, line in lines:
        if not re.fullmatch(r"\d+(\.0*)?", line):
            raise ValueError(
                f"{path}: line {number}: expected a number of cycles, received {line!r}"
            )
    if len(lines) != len(engines.series):
        raise ValueError(
            f"{path}: expected a line for each of the {len(engines.series)} engines, received "
            f"{len(lines)}"
        )
    return np.array([float(line) for _, line in lines])


def cut_engines(
    engines: SeriesTable, sections: Sequence[Section], *, seed: int = 0, shortest: int = SHORTEST
) -> tuple[Section, ...]:
    """Returns whole engines cut off at a random cycle each, as the test set's are.

    Args:
        engines: of the training file.
        sections: whole engines, as of ``split_by_group``.
        seed: of the draw, which for each engine depends on its name alone.
        shortest: cycles that remain at least; an engine must have one more.

    Returns:
        Sections from the first cycle to one drawn uniformly from ``shortest`` to the last but one.

    Raises:
        ValueError: a section that is no whole engine, or an engine with too few cycles.
    """
    cut = []
    for section in sections:
        series = engines.series[section.series]
        if (section.begin, section.end) != (0, len(series)) or not 1 <= shortest < len(series):
            raise ValueError(
                f"sections: expected whole engines of more than shortest = {shortest} cycles, "
                f"received cycles {section.begin} to {section.end} of the {len(series)} of engine "
                f"{series.name}"
            )
        stream = np.random.SeedSequence(seed, spawn_key=tuple(series.name.encode()))
        end = np.random.default_rng(stream).integers(shortest, len(series))
        cut.append(Section(section.series, 0, int(end)))
    return tuple(cut)


class RemainingLife:
    """Windows of engines with the remaining life at their last cycle; a source, picklable.

    ``inputs`` (P,D) float32 with ``lengths`` up to P, fewer at an engine's first cycles;
    ``targets`` (1,) float32, cycles, at most ``cap``.

    Args:
        engines: the engines.
        sections: of one split.
        window: cycles P of the inputs; 30 by custom in FD001.
        scaling: of all channels, fitted on the training sections; None: the values as they are.
        cap: greatest target, cycles; 0: none.
        channels: names or numbers of the D channels; empty: all, constant ones too.
        last_only: one window for each section, which ends at its last cycle, as in the test; False:
            one for each cycle.
        after: (number of series in ``engines``,) cycles that remain after each one's last row; 0 in
            the training file.

    Attributes:
        lives: (N,) float32 remaining life at the end of each window, cycles, at most ``cap``.
        uncapped: (N,) float32, the same without ``cap``.

    Raises:
        ValueError: numbers out of range, an unknown channel, missing values or no sections.
    """

    def __init__(
        self,
        engines: SeriesTable,
        sections: Sequence[Section],
        *,
        window: int = 30,
        scaling: Scaling | None = None,
        cap: int = CAP,
        channels: Sequence[str | int] = (),
        last_only: bool = False,
        after: np.ndarray | None = None,
    ):
        if window < 1 or cap < 0:
            raise ValueError(f"window, cap: expected at least 1 and 0, received {window} and {cap}")
        if not sections:
            raise ValueError("sections: expected at least one, received none")
        if after is not None and len(after) != len(engines.series):
            raise ValueError(
                f"after: expected the cycles after each of the {len(engines.series)} engines, "
                f"received {len(after)}"
            )
        if engines.has_missing:
            raise ValueError("engines: expected no missing values, received some")
        self.window = window
        self.cap = cap
        self.scaling = scaling
        chosen = engines.channel_numbers(channels)
        self.channels = tuple(engines.channels[c] for c in chosen)
        self._values: dict[int, np.ndarray] = {}
        ends: list[np.ndarray] = []
        lives: list[np.ndarray] = []
        for section in sections:
            series = engines.series[section.series]
            values = scaling.apply(series.values) if scaling else series.values.astype(np.float32)
            self._values[section.series] = np.ascontiguousarray(values[:, chosen])
            cycles = np.arange(section.end - 1 if last_only else section.begin, section.end)
            ends.append(np.stack([np.full(len(cycles), section.series), cycles], 1))
            beyond = 0 if after is None else after[section.series]
            lives.append(remaining_life(series, 0, beyond)[cycles])
        self.ends = np.concatenate(ends)
        self.uncapped = np.concatenate(lives).astype(np.float32)
        self.lives = np.minimum(self.uncapped, cap) if cap else self.uncapped

    def __len__(self) -> int:
        return len(self.ends)

    def __repr__(self) -> str:
        # grain compares sources by it when it restores an iterator.
        return f"RemainingLife({self.describe()})"

    @functools.cached_property
    def _content(self) -> str:
        return digest([*self._values.values(), self.ends, self.lives])

    def describe(self) -> dict[str, Any]:
        """Returns what identifies the examples, for JSON; a ``Loader``'s ``identity``."""
        return {
            "content": self._content,
            "window": self.window,
            "cap": self.cap,
            "channels": list(self.channels),
            "scaling": self.scaling.to_json() if self.scaling else None,
        }

    def __getitem__(self, index: int, /) -> SequenceExample:
        """Returns window ``index``.

        Raises:
            IndexError: the index is out of range.
        """
        number = check_index(index, len(self))
        engine, end = self.ends[number].tolist()
        inputs = self._values[engine][max(0, end + 1 - self.window) : end + 1]
        return SequenceExample(
            inputs=pad_steps(inputs, self.window),
            lengths=np.asarray(len(inputs), np.int32),
            targets=self.lives[number : number + 1],
            target_mask=np.ones(1, bool),
            mask=np.asarray(True),
            index=np.asarray(number, np.int32),
        )


def remaining_life(engine: Series, cap: int = CAP, after: float = 0) -> np.ndarray:
    """Returns the remaining life at each row of an engine, (T,) float64 cycles.

    Args:
        engine: with the cycle as time.
        cap: greatest value; 0: none.
        after: cycles that remain after the last row.
    """
    assert engine.times is not None  # read_engines gives them.
    lives = engine.times[-1] - engine.times + after
    return np.minimum(lives, cap) if cap else lives
