"""The endless order of training examples, where it is not the loader's own shuffle."""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

_FOREVER = 2**50  # examples; grain's datasets need a length below 2**63


class Order(Protocol):
    """Decides which example stands where, from nothing but the place; picklable.

    ``data.length_buckets.LengthBuckets`` is one.

    Attributes:
        num_examples: those of the source.
        batch_size: rows of a batch of all processes together.
    """

    num_examples: int
    batch_size: int

    def index(self, position: int) -> int:
        """The example at ``position``, from 0 on; batch k begins at k × ``batch_size``."""
        ...

    def finish(self, number: int, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Changes a process's rows of batch ``number``, into equal shapes on all processes."""
        ...

    def describe(self) -> dict[str, Any]:
        """What fixes the order besides ``num_examples`` and ``batch_size``, for JSON."""
        ...


class OrderedExamples:
    """The examples of a source in an order, as a source without end.

    Args:
        source: random access to examples.
        order: which of them follow each other.
    """

    def __init__(self, source: Any, order: Order):
        self._source = source
        self._order = order

    def __len__(self) -> int:
        return _FOREVER

    def __getitem__(self, position: int, /) -> Any:
        return self._source[self._order.index(position)]
