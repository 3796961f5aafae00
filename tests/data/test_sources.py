"""Concatenated and selected sources, and the folds of one source."""

import pickle

import numpy as np
import pytest

from data.moving_shapes.source import MovingShapes
from data.sources import ConcatenatedSources, FoldExamples, SelectedExamples


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


def test_selection() -> None:
    selected = SelectedExamples(Explained(10, 5), [4, 0, 4])
    for source in (selected, pickle.loads(pickle.dumps(selected))):
        assert [int(source[i]["number"]) for i in range(len(source))] == [14, 10, 14]
        assert [int(source[i]["index"]) for i in range(len(source))] == [0, 1, 2]
    assert selected.explain(1) == "number 10"
    assert SelectedExamples(Numbers(0, 2), [1]).explain(0) is None
    assert repr(selected) == "SelectedExamples(Numbers(10, 5), [4, 0, 4])"
    with pytest.raises(IndexError, match="expected 0 to 2, received 3"):
        selected[3]
    with pytest.raises(ValueError, match="expected at least one"):
        SelectedExamples(Numbers(0, 2), [])


def test_concatenation() -> None:
    whole = ConcatenatedSources([Numbers(0, 3), Numbers(0, 0), Explained(3, 1), Numbers(4, 2)])
    for source in (whole, pickle.loads(pickle.dumps(whole))):
        assert [int(source[i]["number"]) for i in range(len(source))] == list(range(6))
    assert whole.explain(3) == "number 3"
    assert whole.explain(0) is whole.explain(5) is None
    assert repr(whole).startswith("ConcatenatedSources(Numbers(0, 3), Numbers(0, 0), ")


def test_bad_indices_and_no_sources_are_refused() -> None:
    for index in (-1, 3):
        with pytest.raises(IndexError, match=f"index: expected 0 to 2, received {index}"):
            ConcatenatedSources([Numbers(0, 3)])[index]
    with pytest.raises(ValueError, match="sources: expected at least one, received none"):
        ConcatenatedSources([])


def indices(num_examples: int, num_folds: int, fold: int) -> dict[str, set[int]]:
    source = MovingShapes("train", num_examples)
    return {
        split: set(FoldExamples(source, split, num_folds=num_folds, fold=fold).indices.tolist())
        for split in ("train", "validation", "test")
    }


@pytest.mark.parametrize(("num_examples", "num_folds"), [(32, 3), (20, 5), (7, 3)])
def test_each_example_is_tested_in_one_fold_and_validates_in_one(
    num_examples: int, num_folds: int
) -> None:
    everything = set(range(num_examples))
    folds = [indices(num_examples, num_folds, fold) for fold in range(1, num_folds + 1)]
    for split in ("validation", "test"):
        held_out = [index for fold in folds for index in fold[split]]
        assert sorted(held_out) == sorted(everything)
    for fold in folds:
        assert fold["train"] | fold["validation"] | fold["test"] == everything
        assert sum(map(len, fold.values())) == num_examples
        sizes = {len(fold["validation"]), len(fold["test"])}
        assert sizes <= {num_examples // num_folds, num_examples // num_folds + 1}


def test_examples_are_those_of_the_source_with_their_index_in_the_split() -> None:
    source = MovingShapes("train", 8)
    tested = FoldExamples(source, "test", num_folds=3, fold=2)
    assert tested.indices.tolist() == [1, 4, 7]
    for number, example in enumerate(pickle.loads(pickle.dumps(tested))[i] for i in range(3)):
        np.testing.assert_array_equal(example["video"], source[3 * number + 1]["video"])
        assert example["index"] == number
    assert repr(tested) == f"FoldExamples({source!r}, 'test', num_folds=3, fold=2)"


def test_bad_folds_are_refused() -> None:
    source = MovingShapes("train", 8)
    for fold in (0, 4):
        with pytest.raises(ValueError, match=f"fold: expected 1 to num_folds = 3, received {fold}"):
            FoldExamples(source, "train", num_folds=3, fold=fold)
    with pytest.raises(ValueError, match="num_folds: expected at least 3, received 2"):
        FoldExamples(source, "train", num_folds=2, fold=1)
    with pytest.raises(ValueError, match="split: expected one of train, validation, test, rec"):
        FoldExamples(source, "dev", num_folds=3, fold=1)
    with pytest.raises(IndexError, match="index: expected 0 to 2, received -1"):
        FoldExamples(source, "test", num_folds=3, fold=1)[-1]
