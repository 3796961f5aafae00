"""Streams cut into windows whose carry is kept from batch to batch.

Truncated back-propagation over a stream of tokens or values (Mikolov et al., 2010; Zaremba et al.,
1409.2329): the stream is cut into as many contiguous strands as a batch has rows, and each strand
into windows. Window k of strand r is row r of batch k, so row r of batch k + 1 continues row r of
batch k::

    stream   0  1  2  3  4  5  6  7  8  9 10 11 12      2 rows, windows of 4
    batch 0  [0 1 2 3]  batch 1  [4 5]                  targets are the next steps: 1 2 3 4, 5 6
             [6 7 8 9]           [10 11]                                            7 8 9 10, 11 12

Deviation: Zaremba et al. drop the remainder of the stream; here each step but the first is
predicted exactly once in a pass, the last window is padded.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data.batches import SequenceExample
from data.series.sequences import check_index, digest, step_example


class StreamWindows:
    """Windows of one stream with the next step as target, a source of ``SequenceExample``.

    >>> windows = StreamWindows(np.arange(13), rows=2, window=4)
    >>> [windows[i]["tokens"].tolist() for i in range(4)]
    [[0, 1, 2, 3], [6, 7, 8, 9], [4, 5, 0, 0], [10, 11, 0, 0]]
    >>> [windows[i]["targets"][:2].tolist() for i in (2, 3)]
    [[5, 6], [11, 12]]
    >>> [int(windows[i]["starts"].sum()) for i in range(4)]
    [1, 1, 0, 0]

    Example k × rows + r is window k of strand r. A ``Loader`` takes them by ``plan``.

    Args:
        values: (N,) integer tokens, or (N,D) values; N >= 2.
        rows: strands R, the rows of a global batch.
        window: steps of a window.
        lengths: steps of each of the sequences of which the stream consists, with the sum N; None:
            one sequence. At the first step of each ``starts`` is True, and its last step predicts
            nothing.
        name: of the data set, for ``describe``.

    Raises:
        ValueError: other shapes, numbers below 1, a stream that is shorter than its strands need,
            lengths with another sum, or values that are not finite.
    """

    def __init__(
        self,
        values: np.ndarray,
        *,
        rows: int,
        window: int,
        lengths: Sequence[int] | np.ndarray | None = None,
        name: str = "",
    ):
        values = np.asarray(values)
        if not (values.ndim == 2 or (values.ndim == 1 and values.dtype.kind in "iu")):
            raise ValueError(
                f"values: expected (N,) integer tokens or (N,D) values, received {values.shape} "
                f"{values.dtype}"
            )
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise ValueError(
                "values: expected finite values, received NaN or infinite ones; fill or leave out "
                "what is missing"
            )
        if rows < 1 or window < 1:
            raise ValueError(f"rows, window: expected at least 1, received {rows} and {window}")
        if len(values) - 1 < rows:
            raise ValueError(
                f"rows: expected at most the {max(len(values) - 1, 0)} predicted steps of the "
                f"stream, received {rows}; take a smaller batch or a longer stream"
            )
        counts = np.asarray([len(values)] if lengths is None else lengths, np.int64)
        if counts.ndim != 1 or counts.sum() != len(values) or (counts < 1).any():
            raise ValueError(
                f"lengths: expected numbers of at least 1 with the sum {len(values)}, the steps of "
                f"the stream, received {len(counts)} with the sum {counts.sum()}"
            )
        self.values = values
        self.rows = rows
        self.window = window
        self.name = name
        self._starts = np.zeros(len(values), bool)
        self._starts[np.cumsum(counts) - counts] = True
        # The last strand may be shorter than the others, even empty if the stream is short.
        self.strand = -(-(len(values) - 1) // rows)
        self.num_windows = -(-self.strand // window)

    def __len__(self) -> int:
        return self.num_windows * self.rows

    def __repr__(self) -> str:
        # grain compares sources by it when it restores an iterator.
        return f"StreamWindows({self.describe()})"

    @property
    def num_predicted(self) -> int:
        """Steps that a pass predicts: all but the first of each sequence."""
        return len(self.values) - int(self._starts.sum())

    @functools.cached_property
    def _content(self) -> str:
        return digest([self.values, self._starts])

    def describe(self) -> dict[str, Any]:
        """Returns what identifies the examples, for JSON; a ``Loader``'s ``identity``."""
        return {
            "data": self.name,
            "content": self._content,
            "strands": self.rows,
            "window": self.window,
        }

    def plan(self, *, train: bool) -> "StrandPlan":
        """Returns the order of the batches, a ``Loader``'s ``plan``.

        Args:
            train: pass after pass without an end; False: one pass.
        """
        return StrandPlan(self.rows, self.num_windows, self.window, train=train)

    def __getitem__(self, index: int, /) -> SequenceExample:
        """Returns window ``index`` // rows of strand ``index`` % rows.

        Returns:
            ``tokens`` (T,) int32 or ``inputs`` (T,D) float32, ``targets`` of the same shape,
            ``target_mask`` and ``starts`` (T,) bool, ``lengths`` 1..T. A window behind the end of a
            short strand is a padding row: ``lengths`` 1, ``mask`` False, ``index`` -1.

        Raises:
            IndexError: the index is out of range.
        """
        number = check_index(index, len(self))
        window, row = divmod(number, self.rows)
        first = row * self.strand
        last = min(first + self.strand, len(self.values) - 1)
        begin = min(first + window * self.window, last)
        end = min(begin + self.window, last)
        if begin == end:
            nothing = step_example(
                self.values[:0],
                self.values[:0],
                np.zeros(0, bool),
                size=self.window,
                index=-1,
                starts=np.zeros(0, bool),
            )
            return {**nothing, "lengths": np.asarray(1, np.int32), "mask": np.asarray(False)}
        starts = self._starts[begin:end].copy()
        starts[0] |= window == 0  # What came before is on another row, or in another pass.
        return step_example(
            self.values[begin:end],
            self.values[begin + 1 : end + 1],
            ~self._starts[begin + 1 : end + 1],
            size=self.window,
            index=number,
            starts=starts,
        )


class StrandPlan:
    """Batches of the windows of strands in the order of time, a ``Loader``'s ``plan``; picklable.

    Batch k holds window k of each strand; in training the windows of the next pass follow those of
    the last. There is no draw: a position is the number of the batch.

    Args:
        rows: strands.
        num_windows: windows of a strand.
        window: steps of a window.
        train: pass after pass without an end; False: one pass.
    """

    def __init__(self, rows: int, num_windows: int, window: int, *, train: bool):
        self.rows = (rows,)
        self.num_examples = rows * num_windows
        self.train = train
        self.window = window
        self._num_windows = num_windows

    def __repr__(self) -> str:
        # grain compares sources by it when it restores an iterator.
        return f"StrandPlan({self.rows[0]}, {self._num_windows}, {self.window}, train={self.train})"

    @property
    def batches_per_epoch(self) -> int:
        """Number of batches of one pass."""
        return self._num_windows

    def describe(self) -> dict[str, Any]:
        """Returns the settings besides ``num_examples``, for JSON."""
        return {"strands": self.rows[0], "window": self.window}

    def indices(self, number: int) -> np.ndarray:
        """Returns the examples of the global batch ``number`` >= 0, (rows,) int64.

        Raises:
            IndexError: a number behind the last batch of an evaluation.
        """
        if not self.train and number >= self._num_windows:
            raise IndexError(f"number: expected less than {self._num_windows}, received {number}")
        first = number % self._num_windows * self.rows[0]
        return np.arange(first, first + self.rows[0])

    def stack(
        self, number: int, examples: Sequence[Mapping[str, np.ndarray]]
    ) -> dict[str, np.ndarray]:
        """Returns one process's rows of batch ``number``: contiguous strands, in their order."""
        return {key: np.stack([example[key] for example in examples]) for key in examples[0]}
