"""Several sources as one: whose example is where, and who explains it."""

import pickle

import numpy as np
import pytest

from data.sources import ConcatenatedSources


class Numbers:
    def __init__(self, first: int, count: int) -> None:
        self.first, self.count = first, count

    def __len__(self) -> int:
        return self.count

    def __repr__(self) -> str:
        return f"Numbers({self.first}, {self.count})"

    def __getitem__(self, index: int, /) -> dict[str, np.ndarray]:
        assert 0 <= index < self.count
        return {"number": np.asarray(self.first + index)}


class Explained(Numbers):
    def explain(self, index: int) -> str:
        return f"number {self.first + index}"


def test_the_examples_of_all_follow_each_other() -> None:
    joined = ConcatenatedSources([Numbers(0, 3), Numbers(0, 0), Explained(3, 1), Numbers(4, 2)])
    for source in (joined, pickle.loads(pickle.dumps(joined))):
        assert [int(source[i]["number"]) for i in range(len(source))] == list(range(6))
    assert joined.explain(3) == "number 3"
    assert joined.explain(0) is joined.explain(5) is None
    assert repr(joined).startswith("ConcatenatedSources(Numbers(0, 3), Numbers(0, 0), ")


def test_bad_indices_and_no_sources_are_refused() -> None:
    for index in (-1, 3):
        with pytest.raises(IndexError, match=f"index: expected 0 to 2, received {index}"):
            ConcatenatedSources([Numbers(0, 3)])[index]
    with pytest.raises(ValueError, match="sources: expected at least one, received none"):
        ConcatenatedSources([])
