"""Which rows of every batch are those of one process."""

import grain
import numpy as np

from data.batches import UNKNOWN_LABEL


class ProcessRows:
    """The rows of one process, one after the other: a random-access source for grain.

    Row r of batch k is element ``first_row`` + k × ``batch_size`` + r of the examples. Beyond the
    examples there are blank rows: zeros, with ``mask`` False, ``lengths`` 1, and -1 for ``label``
    and ``index``.

    Args:
        examples: the examples of all processes, one after the other.
        first_row: the element that this process's first row is.
        rows: rows of a batch that this process gets.
        batch_size: rows of a batch of all processes.
        num_batches: batches from ``first_row`` on.
    """

    def __init__(
        self,
        examples: grain.MapDataset,
        first_row: int,
        rows: int,
        batch_size: int,
        num_batches: int,
    ):
        self._examples = examples
        self._first_row = first_row
        self._rows = rows
        self._batch_size = batch_size
        self._num_batches = num_batches
        self._blank: dict[str, np.ndarray] | None = None

    def __len__(self) -> int:
        return self._num_batches * self._rows

    def __getitem__(self, index: int, /) -> dict[str, np.ndarray]:
        batch, row = divmod(index, self._rows)
        element = self._first_row + batch * self._batch_size + row
        if element < len(self._examples):
            return dict(self._examples[element])
        if self._blank is None:
            blank = {key: np.zeros_like(value) for key, value in self._examples[0].items()}
            for key, value in (("label", UNKNOWN_LABEL), ("index", -1), ("lengths", 1)):
                if key in blank:
                    blank[key] = np.full_like(blank[key], value)
            self._blank = blank
        return self._blank
