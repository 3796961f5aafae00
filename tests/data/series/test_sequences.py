"""Sequences in memory: padding, masks, targets, held-out parts, buckets."""

import itertools
import pickle

import numpy as np
import pytest

from data.loader import Loader
from data.series.scaling import Scaling
from data.series.sequences import (
    CLASSIFICATION_STEP_KEYS,
    STEP_KEYS,
    LabelledSequences,
    NextSteps,
    SequenceSource,
    sequences_of_table,
)
from data.series.tables import Section, Series, SeriesTable
from data.width_buckets import WidthBuckets

SEQUENCES = tuple(
    np.random.default_rng(i).normal(5, 2, (n, 3)) for i, n in enumerate((4, 9, 2, 6, 6, 1))
)
LABELS = np.array([0, 1, 1, 0, 2, -1], np.int32)
DATA = LabelledSequences(SEQUENCES, LABELS, ("a", "b", "c"))


def test_examples_are_padded_with_zeros_after_scaling() -> None:
    scaling = Scaling.fit(SEQUENCES)
    source = SequenceSource(DATA, scaling=scaling)
    for index, sequence in enumerate(SEQUENCES):
        example = source[index]
        assert example["inputs"].shape == (9, 3)
        assert example["inputs"].dtype == np.float32
        length = int(example["lengths"])
        np.testing.assert_array_equal(example["inputs"][:length], scaling.apply(sequence))
        assert not example["inputs"][length:].any()
        assert example["label"] == LABELS[index]
        assert "observed" not in example
    assert SequenceSource(DATA, length=0)[2]["inputs"].shape == (2, 3)
    assert SequenceSource(DATA, length=12)[2]["inputs"].shape == (12, 3)
    with pytest.raises(ValueError, match="length: expected at least the 9 steps"):
        SequenceSource(DATA, length=8)
    with pytest.raises(IndexError, match="expected 0 to 5, received 6"):
        source[6]
    assert repr(pickle.loads(pickle.dumps(source))) == repr(source)


def test_missing_values() -> None:
    holes = SEQUENCES[0].copy()
    holes[1, 2] = np.nan
    source = SequenceSource(LabelledSequences((holes, *SEQUENCES[1:]), LABELS, ("a", "b", "c")))
    assert source[0]["inputs"][1, 2] == 0
    assert source[0]["observed"].sum() == 11
    assert source[1]["observed"].sum() == 27
    assert "observed" in SequenceSource(DATA, with_observed=True)[0]
    with pytest.raises(ValueError, match="with_observed: expected True or None"):
        SequenceSource(source.data, with_observed=False)


def test_regression_targets() -> None:
    targets = np.array([[1.0, np.nan], [3.0, 4.0]])
    data = LabelledSequences(SEQUENCES[:2], targets=targets)
    scaling = Scaling.fit([targets], "min_max")
    example = SequenceSource(data, target_scaling=scaling)[0]
    assert example["targets"].tolist() == [0, 0]
    assert example["target_mask"].tolist() == [True, False]
    assert SequenceSource(data)[1]["targets"].tolist() == [3, 4]
    assert "label" not in example
    with pytest.raises(ValueError, match=r"received none \(NaN\) for 1 of 2, first number 1"):
        SequenceSource(LabelledSequences(SEQUENCES[:2], targets=np.array([[1.0], [np.nan]])))


def test_held_out_part_has_every_class() -> None:
    labels = np.repeat([0, 1, 2], [20, 10, 2]).astype(np.int32)
    steps = tuple(np.full((1, 1), i, float) for i in range(32))
    data = LabelledSequences(steps, labels, ("a", "b", "c"))
    train, held = data.hold_out(0.2, seed=1)
    assert np.bincount(held.labels).tolist() == [4, 2, 1]
    assert len(train) + len(held) == 32
    numbers = [int(x[0, 0]) for part in (train, held) for x in part.sequences]
    assert sorted(numbers) == list(range(32))
    again = data.hold_out(0.2, seed=1)[1]
    assert [x[0, 0] for x in again.sequences] == [x[0, 0] for x in held.sequences]
    assert data.hold_out(0.2, seed=2)[1].labels.tolist() == held.labels.tolist()
    with pytest.raises(ValueError, match="share: expected more than 0"):
        data.hold_out(1.0)
    with pytest.raises(ValueError, match="share: expected a class with two sequences"):
        data.take([0, 20]).hold_out(0.5)


def test_next_steps() -> None:
    tokens = NextSteps([np.array([3, 1, 2]), np.array([4, 4])])
    example = tokens[0]
    assert example["tokens"].tolist() == [3, 1]
    assert example["targets"].tolist() == [1, 2]
    assert tokens[1]["target_mask"].tolist() == [True, False]
    assert example["tokens"].dtype == example["targets"].dtype == np.int32
    rolls = [np.random.default_rng(i).integers(0, 2, (n, 88)) for i, n in enumerate((5, 3))]
    example = NextSteps(rolls)[1]
    assert example["inputs"].shape == example["targets"].shape == (4, 88)
    np.testing.assert_array_equal(example["inputs"][:2], rolls[1][:-1])
    np.testing.assert_array_equal(example["targets"][:2], rolls[1][1:])
    with pytest.raises(ValueError, match="received one step in 1, first number 1"):
        NextSteps([np.arange(3), np.arange(1)])
    with pytest.raises(ValueError, match="sequences: expected finite values"):
        NextSteps([np.array([[0.0], [np.nan]])])
    with pytest.raises(ValueError, match="sequences: expected at least one"):
        NextSteps([])
    with pytest.raises(ValueError, match=r"received \(3, 2\) int64 at number 1, \(3, 1\)"):
        NextSteps([np.zeros((3, 1), int), np.zeros((3, 2), int)])


@pytest.mark.parametrize("kind", ["steps", "classes"])
def test_buckets_pad_to_few_shapes(kind: str) -> None:
    lengths = np.random.default_rng(0).integers(2, 60, 40)
    sequences = [np.random.default_rng(i).normal(size=(n, 2)) for i, n in enumerate(lengths)]
    if kind == "steps":
        source, keys = NextSteps(sequences, length=0), STEP_KEYS
    else:
        labels = np.zeros(40, np.int32)
        data = LabelledSequences(tuple(sequences), labels, ("a",))
        source, keys = SequenceSource(data, length=0), CLASSIFICATION_STEP_KEYS  # type: ignore[assignment]
    plan = WidthBuckets(
        source.lengths(),
        batch_width=200,
        num_buckets=3,
        width_multiple=8,
        step_keys=keys,
        train=False,
    )
    loader = Loader(source, batch_size=4, train=False, plan=plan, num_threads=0)
    with loader.batches() as batches:
        found = list(itertools.chain(batches))
    assert len({batch["inputs"].shape for batch in found}) <= 3
    seen = 0
    for batch in found:
        for row in np.flatnonzero(batch["mask"]):
            length, index = batch["lengths"][row], batch["index"][row]
            assert length == source.lengths()[index]
            expected = sequences[index][:length].astype(np.float32)
            np.testing.assert_array_equal(batch["inputs"][row, :length], expected)
            assert not batch["inputs"][row, length:].any()
            if kind == "steps":
                assert batch["target_mask"][row].sum() == length
            seen += 1
    assert seen == 40


def test_sections_of_a_table_as_sequences() -> None:
    series = (
        Series(np.zeros((3, 1)), "u", labels=np.array([1, 1, 1], np.int32)),
        Series(np.ones((4, 1)), "v", labels=np.array([0, 0, 1, 1], np.int32)),
    )
    table = SeriesTable(series, ("x",), ("sit", "run"))
    data = sequences_of_table(table, (Section(0, 0, 3), Section(1, 0, 2)))
    assert data.labels.tolist() == [1, 0]
    assert data.lengths().tolist() == [3, 2]
    with pytest.raises(ValueError, match=r"received sit, run in series 'v'; classify windows"):
        sequences_of_table(table, table.whole())
    with pytest.raises(ValueError, match="table: expected a column of labels"):
        sequences_of_table(SeriesTable(series, ("x",)), table.whole())


def test_wrong_data() -> None:
    with pytest.raises(ValueError, match=r"labels: expected one for each of the 6 sequences"):
        LabelledSequences(SEQUENCES, LABELS[:4], ("a", "b", "c"))
    with pytest.raises(ValueError, match="targets: expected one for each of the 6 sequences"):
        LabelledSequences(SEQUENCES, targets=np.zeros(6))
    with pytest.raises(ValueError, match="at number 1"):
        LabelledSequences((np.zeros((2, 3)), np.zeros((0, 3))), LABELS[:2])
