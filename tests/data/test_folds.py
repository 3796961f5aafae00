"""Folds of one source: every example tested once, choosing once, and never trained on then."""

import pickle

import numpy as np
import pytest

from data.moving_shapes.source import MovingShapes
from data.sources import FoldExamples


def places(num_examples: int, num_folds: int, fold: int) -> dict[str, set[int]]:
    source = MovingShapes("train", num_examples)
    return {
        split: set(FoldExamples(source, split, num_folds=num_folds, fold=fold).indices.tolist())
        for split in ("train", "validation", "test")
    }


@pytest.mark.parametrize(("num_examples", "num_folds"), [(32, 3), (20, 5), (7, 3)])
def test_each_example_is_tested_in_one_fold_and_chooses_in_one(
    num_examples: int, num_folds: int
) -> None:
    everything = set(range(num_examples))
    folds = [places(num_examples, num_folds, fold) for fold in range(1, num_folds + 1)]
    for split in ("validation", "test"):
        held_out = [place for fold in folds for place in fold[split]]
        assert sorted(held_out) == sorted(everything)
    for fold in folds:
        assert fold["train"] | fold["validation"] | fold["test"] == everything
        assert sum(map(len, fold.values())) == num_examples
        sizes = {len(fold["validation"]), len(fold["test"])}
        assert sizes <= {num_examples // num_folds, num_examples // num_folds + 1}


def test_examples_are_those_of_the_source_with_their_place_in_the_split() -> None:
    source = MovingShapes("train", 8)
    tested = FoldExamples(source, "test", num_folds=3, fold=2)
    assert tested.indices.tolist() == [1, 4, 7]
    for number, example in enumerate(pickle.loads(pickle.dumps(tested))[i] for i in range(3)):
        np.testing.assert_array_equal(example["video"], source[3 * number + 1]["video"])
        assert example["index"] == number
    assert repr(tested) == f"FoldExamples({source!r}, 'test', num_folds=3, fold=2)"


def test_bad_arguments_are_refused() -> None:
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
