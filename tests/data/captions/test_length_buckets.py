"""Length buckets: each example once per epoch, batches of similar length, no hidden state."""

import itertools
import json
import pickle
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from data.captions.length_buckets import LengthBuckets, choose_boundaries
from data.loader import Loader
from tests.data.numbers import add_noise, assert_same, take

BOUNDARIES = (4, 8, 12)


def random_lengths(size: int) -> np.ndarray:
    return np.random.default_rng(size).integers(1, 13, size)


def make_order(size: int = 50, **changes: Any) -> LengthBuckets:
    settings: dict[str, Any] = {"boundaries": BOUNDARIES, "batch_size": 8, "seed": 3}
    return LengthBuckets(random_lengths(size), **(settings | changes))


@dataclass(frozen=True)
class Captions:
    """Captions of given lengths whose word ids are their index + 4."""

    lengths: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int, /) -> dict[str, np.ndarray]:
        tokens = np.zeros((1, 12), np.int32)
        tokens[0, : self.lengths[index]] = index + 4
        return {
            "tokens": tokens,
            "token_lengths": np.asarray([self.lengths[index]], np.int32),
            "mask": np.asarray(True),
            "index": np.asarray(index, np.int32),
        }


def make_loader(size: int = 50, **changes: Any) -> Loader:
    order = changes.pop("order", make_order(size))
    settings: dict[str, Any] = {"batch_size": 8, "train": True, "seed": 5, "num_threads": 2}
    source = Captions(tuple(random_lengths(size).tolist()))
    return Loader(source, order=order, transform=add_noise, **(settings | changes))


@pytest.mark.parametrize(("size", "batch_size"), [(50, 8), (48, 8), (9, 8), (8, 8), (3, 8), (7, 1)])
def test_every_epoch_has_every_example_once_but_for_a_delay_of_less_than_a_batch(size, batch_size):
    order, epochs = make_order(size, batch_size=batch_size), 9
    counts = np.zeros(size, int)
    for epoch in range(epochs):
        for number in range(epoch * size // batch_size, (epoch + 1) * size // batch_size):
            counts += np.bincount(order.batch(number), minlength=size)
        delayed = (epoch + 1 - counts)[counts != epoch + 1]
        if size >= batch_size:
            assert (delayed == 1).all()
        assert delayed.sum() == (epoch + 1) * size % batch_size < batch_size


def test_batches_hold_similar_lengths():
    order, lengths = make_order(800, batch_size=8), random_lengths(800)
    buckets = np.searchsorted(BOUNDARIES, lengths)
    of_batches = [set(buckets[order.batch(number)]) for number in range(100)]
    # Only a batch that is completed from the next longer bucket may mix two.
    assert sum(len(found) > 1 for found in of_batches) <= len(BOUNDARIES) - 1
    for number, found in enumerate(of_batches):
        assert order.boundary(number) == BOUNDARIES[max(found)]
        assert order.boundary(number) >= lengths[order.batch(number)].max()
    # The batches are shuffled: the short ones do not all come first.
    assert [max(found) for found in of_batches] != sorted(max(found) for found in of_batches)


def test_a_batch_depends_on_seed_and_number_alone():
    expected = [make_order().batch(number) for number in range(60)]
    order = make_order()
    for number in np.random.default_rng(0).permutation(60):
        np.testing.assert_array_equal(order.batch(number), expected[number])
        position = int(number) * 8 + 5
        assert pickle.loads(pickle.dumps(order)).index(position) == expected[number][5]
    other = make_order(seed=4)
    assert any((other.batch(number) != expected[number]).any() for number in range(6))


def test_epochs_differ():
    order = make_order(48)
    first, second = (
        [order.batch(number) for number in range(start, start + 6)] for start in (0, 6)
    )
    assert any((one != other).any() for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize("num_threads", [0, 1, 4])
def test_batches_are_the_order_s_and_cut_to_its_boundary(num_threads):
    order = make_order()
    for number, batch in enumerate(take(make_loader(num_threads=num_threads), 20)):
        np.testing.assert_array_equal(batch["index"], order.batch(number))
        assert batch["tokens"].shape == (8, 1, order.boundary(number))
        valid = np.arange(order.boundary(number)) < batch["token_lengths"][..., None]
        expected = np.where(valid, batch["index"][:, None, None] + 4, 0)
        np.testing.assert_array_equal(batch["tokens"], expected)


def test_processes_share_each_batch_at_the_same_length():
    parts = [take(make_loader(process_index=p, process_count=4), 15) for p in range(4)]
    joined = [
        {key: np.concatenate([part[key] for part in batch]) for key in batch[0]}
        for batch in zip(*parts, strict=True)
    ]
    assert_same(joined, take(make_loader(), 15))


@pytest.mark.slow
@pytest.mark.subprocess
def test_workers_do_not_matter():
    assert_same(take(make_loader(num_workers=2), 9, start=4), take(make_loader(), 13)[4:])


def test_resumed_equals_uninterrupted():
    loader, other = make_loader(), make_loader(num_threads=0)
    with loader.batches() as batches, other.batches() as resumed:
        head = [next(batches) for _ in range(9)]
        state = json.loads(json.dumps(batches.get_state()))
        tail = [next(batches) for _ in range(9)]
        resumed.set_state(state)
        assert_same([next(resumed) for _ in range(9)], tail)
        batches.set_state({**state, "next_batch": 0})
        assert_same([next(batches) for _ in range(9)], head)


def test_state_of_another_order_is_refused():
    state = make_loader().batches(3).get_state()
    other = make_loader(order=make_order(boundaries=(6, 12), seed=4)).batches()
    with pytest.raises(ValueError, match=r"boundaries: \[4, 8, 12\] saved, \[6, 12\] now; order_s"):
        other.set_state(state)
    with pytest.raises(ValueError, match=r"boundaries: .* saved, None now"):
        make_loader(order=None).batches().set_state(state)


def test_boundaries_cause_the_least_padding():
    def tokens(boundaries, lengths):
        return np.asarray(boundaries)[np.searchsorted(boundaries, lengths)].sum()

    rng = np.random.default_rng(0)
    for _ in range(50):
        lengths = rng.integers(1, 12, rng.integers(1, 40))
        num_buckets = int(rng.integers(1, 6))
        chosen = choose_boundaries(lengths, num_buckets)
        values = np.unique(lengths)
        assert chosen[-1] == values[-1]
        assert len(chosen) == min(num_buckets, len(values))
        best = min(
            tokens((*inner, values[-1]), lengths)
            for inner in itertools.combinations(values[:-1], len(chosen) - 1)
        )
        assert tokens(chosen, lengths) == best


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"boundaries": (4, 8)}, "at least the greatest length 12, received 8"),
        ({"boundaries": ()}, "boundaries: expected rising"),
        ({"boundaries": (8, 4, 12)}, "boundaries: expected rising"),
        ({"boundaries": (4, 4, 12)}, "boundaries: expected rising"),
        ({"boundaries": (0, 12)}, "boundaries: expected rising"),
        ({"batch_size": 0}, "batch_size"),
        ({"seed": -1}, "seed"),
    ],
)
def test_wrong_arguments(change, message):
    with pytest.raises(ValueError, match=message):
        make_order(**change)


def test_wrong_lengths():
    for lengths in ([], [0, 1], [[1]]):
        with pytest.raises(ValueError, match="lengths: expected"):
            LengthBuckets(np.asarray(lengths, int), (4,), batch_size=1)
    with pytest.raises(ValueError, match="lengths: expected"):
        choose_boundaries(np.asarray([], int), 2)
    with pytest.raises(ValueError, match="num_buckets: expected at least 1"):
        choose_boundaries(np.asarray([3]), 0)


@pytest.mark.parametrize(
    "change", [{"train": False}, {"batch_size": 16}, {"order": make_order(49)}]
)
def test_an_order_of_something_else_is_refused(change):
    with pytest.raises(ValueError, match="order: expected one of 50 examples in batches of"):
        make_loader(**change)
