"""Several sources as one."""

import bisect
from collections.abc import Mapping, Sequence
from itertools import accumulate

import numpy as np

from data.batches import Source


class JoinedSources:
    """The examples of several sources, one source after another; picklable.

    Args:
        sources: at least one.

    Raises:
        ValueError: no source.
    """

    def __init__(self, sources: Sequence[Source]):
        if not sources:
            raise ValueError("sources: expected at least one, received none")
        self.sources = tuple(sources)
        self._ends = list(accumulate(len(source) for source in self.sources))

    def __len__(self) -> int:
        return self._ends[-1]

    def __repr__(self) -> str:
        # grain compares it when it restores the position of an iterator.
        return f"JoinedSources({', '.join(map(repr, self.sources))})"

    def __getitem__(self, index: int, /) -> Mapping[str, np.ndarray]:
        """Gives the example ``index`` of all.

        Raises:
            IndexError: the index is out of range.
        """
        source, number = self._find(index)
        return source[number]

    def explain(self, index: int) -> str | None:
        """Says why the example ``index`` has ``mask`` False, where its source does."""
        source, number = self._find(index)
        explain = getattr(source, "explain", None)
        return None if explain is None else str(explain(number))

    def _find(self, index: int) -> tuple[Source, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"index: expected 0 to {len(self) - 1}, received {index}")
        place = bisect.bisect_right(self._ends, index)
        return self.sources[place], index - (self._ends[place - 1] if place else 0)
