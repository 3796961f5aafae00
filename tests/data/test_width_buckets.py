"""Width buckets: every example once, few shapes, exact positions, processes and workers."""

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.loader import Loader
from data.width_buckets import BLANK, WidthBuckets

WIDTHS = np.random.default_rng(0).integers(1, 400, 57)
TOKENS = WIDTHS // 10


class Lines:
    """Source of lines whose pixels are their index, with as many tokens as a tenth of the width."""

    def __len__(self) -> int:
        return len(WIDTHS)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return {
            "image": np.full((4, WIDTHS[index], 1), index, np.uint8),
            "lengths": np.asarray(WIDTHS[index], np.int32),
            "tokens": np.arange(1, TOKENS[index] + 1, dtype=np.int32),
            "token_lengths": np.asarray(TOKENS[index], np.int32),
            "mask": np.asarray(True),
            "index": np.asarray(index, np.int32),
        }


def brighten(example: dict[str, np.ndarray], generator: np.random.Generator) -> dict:
    return {**example, "image": example["image"] + np.uint8(generator.integers(1, 100))}


def buckets(train: bool, **options: object) -> WidthBuckets:
    given: dict = {"batch_width": 1_000, "num_buckets": 4, "row_multiple": 2} | options
    return WidthBuckets(WIDTHS, token_lengths=TOKENS, train=train, **given)


def loader(train: bool, **options: object) -> Loader:
    return Loader(Lines(), batch_size=8, train=train, plan=buckets(train), **options)


@pytest.mark.parametrize("train", [False, True])
def test_batches_are_padded_to_few_shapes(train: bool) -> None:
    plan = buckets(train)
    with loader(train).batches() as batches:
        found = list(itertools.islice(batches, plan.batches_per_epoch))
    shapes = {batch["image"].shape for batch in found}
    assert len(shapes) <= 4
    for rows, _, width, _ in shapes:
        assert (rows, width) in zip(plan.rows, plan.boundaries, strict=True)
        assert rows % 2 == 0
        assert rows * width <= 1_000 or rows == 2
    for batch in found:
        for image, tokens, length, count, index in zip(
            *(batch[key] for key in ("image", "tokens", "lengths", "token_lengths", "index")),
            strict=True,
        ):
            if index < 0:
                assert not image.any()
                assert (length, count) == (1, 0)
            else:
                assert length == WIDTHS[index]
                assert (image[:, :length] == index).all()
                assert not image[:, length:].any()
                assert tokens[:count].tolist() == list(range(1, TOKENS[index] + 1))
                assert not tokens[count:].any()


def test_evaluation_sees_each_example_once() -> None:
    with loader(False).batches() as batches:
        found = [batch["index"] for batch in batches]
    seen = np.concatenate(found)
    assert sorted(seen[seen >= 0]) == list(range(len(WIDTHS)))
    assert len(found) == loader(False).batches_per_epoch


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 5))
def test_training_sees_each_example_equally_often(seed: int, width: int, num_buckets: int) -> None:
    plan = buckets(True, seed=seed, batch_width=width * 50, num_buckets=num_buckets, row_multiple=1)
    epochs, number, seen = 5, 0, Counter()  # type: ignore[var-annotated]
    while number < plan._batches_before(epochs):
        seen.update(plan.indices(number).tolist())
        number += 1
    assert BLANK not in seen
    for members, rows in zip(plan._members, plan.rows, strict=True):
        counts = [seen[index] for index in members]
        assert max(counts) - min(counts) <= 1 + (rows > len(members)) * rows
        assert epochs * len(members) - sum(counts) < rows


def test_any_batch_is_found_without_the_others() -> None:
    forward = buckets(True)
    first = [forward.indices(number) for number in range(60)]
    for number in np.random.default_rng(0).permutation(60):
        np.testing.assert_array_equal(buckets(True).indices(int(number)), first[number])
    other = [buckets(True, seed=1).indices(number) for number in range(60)]
    assert any(a.shape != b.shape or (a != b).any() for a, b in zip(first, other, strict=True))


def test_the_first_epoch_may_go_from_narrow_to_wide() -> None:
    plan, other = buckets(True, narrow_first=True), buckets(True)
    first = plan._batches_before(1)
    assert plan.describe() == {**other.describe(), "narrow_first": True}
    rows = [plan.rows.index(len(plan.indices(number))) for number in range(first)]
    widths = [WIDTHS[plan.indices(number)].max() for number in range(first)]
    assert rows == sorted(rows)
    assert widths[0] < widths[-1]
    for number in range(first, 3 * first):  # As without it.
        np.testing.assert_array_equal(plan.indices(number), other.indices(number))


def test_resumes_exactly_with_augmentation() -> None:
    with loader(True, transform=brighten).batches() as batches:
        wanted = list(itertools.islice(batches, 12))[7:]
        state = batches.get_state()
    with loader(True, transform=brighten, num_threads=0).batches(7) as batches:
        for batch in wanted:
            again = next(batches)
            for key, value in batch.items():
                np.testing.assert_array_equal(again[key], value)
        assert batches.get_state() == state
    assert any((batch["image"] > len(WIDTHS)).any() for batch in wanted)
    changed = Loader(Lines(), batch_size=8, train=True, plan=buckets(True, batch_width=500))
    with changed.batches() as batches, pytest.raises(ValueError, match=r"rows: .* saved"):
        batches.set_state(state)


@pytest.mark.parametrize("train", [False, True])
def test_processes_share_the_rows(train: bool) -> None:
    with loader(train).batches() as batches:
        whole = list(itertools.islice(batches, 8))
    parts = []
    for process in range(2):
        options = {"process_index": process, "process_count": 2}
        with loader(train, **options).batches() as batches:
            parts.append(list(itertools.islice(batches, 8)))
    for batch, *halves in zip(whole, *parts, strict=True):
        for key, value in batch.items():
            np.testing.assert_array_equal(np.concatenate([half[key] for half in halves]), value)


@pytest.mark.subprocess
def test_workers_give_the_same_batches() -> None:
    with loader(True, transform=brighten).batches() as batches:
        wanted = list(itertools.islice(batches, 4))
    with loader(True, transform=brighten, num_workers=1).batches() as batches:
        for batch in wanted:
            again = next(batches)
            for key, value in batch.items():
                np.testing.assert_array_equal(again[key], value)


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="widths: expected"):
        WidthBuckets(np.array([3, 0]), batch_width=8, train=True)
    with pytest.raises(ValueError, match="row_multiple: expected at least 1"):
        buckets(True, row_multiple=0)
    with pytest.raises(ValueError, match="multiples of the 4 processes"):
        loader(True, process_count=4)
    with pytest.raises(ValueError, match="plan: expected one of 57"):
        Loader(Lines(), batch_size=8, train=False, plan=buckets(True))
    wide = {**Lines()[0], "image": np.zeros((4, 4_000, 1), np.uint8)}
    with pytest.raises(ValueError, match="image: expected at most"):
        buckets(True).stack(0, [wide])


def test_padding_share() -> None:
    assert 0 < buckets(True, num_buckets=4).padding < buckets(True, num_buckets=1).padding < 1
