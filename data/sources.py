"""Sources made of other sources: concatenation, selection, the folds of cross-validation."""

import bisect
import operator
from collections.abc import Mapping, Sequence
from itertools import accumulate

import numpy as np

from data.batches import Source


class ConcatenatedSources:
    """Concatenation of sources; picklable.

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
        # grain compares sources by it when it restores an iterator.
        return f"ConcatenatedSources({', '.join(map(repr, self.sources))})"

    def __getitem__(self, index: int, /) -> Mapping[str, np.ndarray]:
        """Returns example ``index`` of the concatenation.

        Raises:
            IndexError: the index is out of range.
        """
        source, number = self._find(index)
        return source[number]

    def explain(self, index: int) -> str | None:
        """Returns why example ``index`` has ``mask`` False; None if its source does not tell."""
        source, number = self._find(index)
        explain = getattr(source, "explain", None)
        return None if explain is None else str(explain(number))

    def _find(self, index: int) -> tuple[Source, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"index: expected 0 to {len(self) - 1}, received {index}")
        number = bisect.bisect_right(self._ends, index)
        return self.sources[number], index - (self._ends[number - 1] if number else 0)


class SelectedExamples:
    """Examples of a source at given positions, in that order; picklable.

    Args:
        source: all examples.
        indices: of the examples, at least one.

    Raises:
        ValueError: no index.
    """

    def __init__(self, source: Source, indices: Sequence[int] | np.ndarray):
        if not len(indices):
            raise ValueError("indices: expected at least one, received none")
        self.source = source
        self.indices = np.asarray(indices, np.int64)

    def __len__(self) -> int:
        return len(self.indices)

    def __repr__(self) -> str:
        # grain compares sources by it when it restores an iterator.
        return f"SelectedExamples({self.source!r}, {self.indices.tolist()})"

    def __getitem__(self, index: int, /) -> Mapping[str, np.ndarray]:
        """Returns example ``index`` of the selection; its ``index`` is that of it, too.

        Raises:
            IndexError: the index is out of range.
        """
        number = operator.index(index)
        if not 0 <= number < len(self):
            raise IndexError(f"index: expected 0 to {len(self) - 1}, received {number}")
        example = self.source[int(self.indices[number])]
        return {**example, "index": np.asarray(number, np.int32)}

    def explain(self, index: int) -> str | None:
        """Returns why example ``index`` has ``mask`` False; None if its source does not tell."""
        explain = getattr(self.source, "explain", None)
        return None if explain is None else str(explain(int(self.indices[index])))


class FoldExamples(SelectedExamples):
    """One split of one fold of cross-validation within a source; picklable.

    Example i belongs to part i mod ``num_folds`` + 1. In fold k, part k is the test split, the next
    part (cyclically) the validation split, and the others are the training split. Over all folds
    each example is tested once and validates once.

    Args:
        source: all examples.
        split: "train", "validation" or "test".
        num_folds: number of parts, at least 3.
        fold: 1..num_folds.

    Raises:
        ValueError: an unknown split, or numbers out of their range.
    """

    def __init__(self, source: Source, split: str, *, num_folds: int, fold: int):
        if num_folds < 3:
            raise ValueError(f"num_folds: expected at least 3, received {num_folds}")
        if not 1 <= fold <= num_folds:
            raise ValueError(f"fold: expected 1 to num_folds = {num_folds}, received {fold}")
        tested = np.arange(len(source)) % num_folds == fold - 1
        chooses = np.arange(len(source)) % num_folds == fold % num_folds
        rows = {"train": ~(tested | chooses), "validation": chooses, "test": tested}
        if split not in rows:
            raise ValueError(f"split: expected one of {', '.join(rows)}, received {split!r}")
        super().__init__(source, np.flatnonzero(rows[split]))
        self.split, self.num_folds, self.fold = split, num_folds, fold

    def __repr__(self) -> str:
        # grain compares sources by it when it restores an iterator.
        return (
            f"FoldExamples({self.source!r}, {self.split!r}, num_folds={self.num_folds}, "
            f"fold={self.fold})"
        )
