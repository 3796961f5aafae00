"""What training asks of data: batches from any position on, and what fixes their order."""

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np


class Data(Protocol):
    """Batches of one split for this process."""

    @property
    def num_examples(self) -> int:
        """Examples in the split, over all processes."""

    @property
    def batches_per_epoch(self) -> int:
        """Batches in one pass over the split."""

    def describe(self) -> dict[str, Any]:
        """What fixes the order of the batches, as JSON; a checkpoint records it."""

    def batches(self, start: int = 0) -> Iterator[Mapping[str, np.ndarray]]:
        """A fresh pass from batch number ``start`` on.

        Batch ``k`` is a function of the split and the seed alone: neither the number of processes
        or workers nor ``start`` changes it.
        """
