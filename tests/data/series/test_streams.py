"""Streams in windows: each step predicted once, strands without a break, exact positions."""

import itertools
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.loader import Loader
from data.series.streams import StreamWindows


def collect(windows: StreamWindows) -> tuple[list[list[tuple[int, int]]], np.ndarray]:
    """Returns (input, target) of each predicted step of each strand, and all resets in order."""
    strands: list[list[tuple[int, int]]] = [[] for _ in range(windows.rows)]
    for index in range(len(windows)):
        example = windows[index]
        length = int(example["lengths"])
        assert example["tokens"].shape == example["targets"].shape == (windows.window,)
        for key in ("tokens", "targets", "target_mask", "starts"):
            assert not example[key][length:].any()
        if not example["mask"]:
            assert example["index"] == -1
            assert not example["target_mask"].any()
            continue
        valid = example["target_mask"][:length]
        strands[index % windows.rows] += zip(
            example["tokens"][:length][valid], example["targets"][:length][valid], strict=True
        )
    return strands, np.array(
        [w["starts"].sum() for w in map(windows.__getitem__, range(len(windows)))]
    )


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 60), st.integers(1, 7), st.integers(1, 9))
def test_each_step_but_the_first_is_predicted_once(size: int, rows: int, window: int) -> None:
    if rows > size - 1:
        with pytest.raises(ValueError, match="rows: expected at most"):
            StreamWindows(np.arange(size), rows=rows, window=window)
        return
    windows = StreamWindows(np.arange(size), rows=rows, window=window)
    strands, _ = collect(windows)
    joined = [pair for strand in strands for pair in strand]
    assert joined == [(step, step + 1) for step in range(size - 1)]
    assert len(joined) == windows.num_predicted
    assert windows.plan(train=False).batches_per_epoch * rows == len(windows)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=2, max_size=8), st.integers(1, 4), st.integers(1, 6))
def test_no_prediction_reaches_into_the_next_sequence(
    lengths: list[int], rows: int, window: int
) -> None:
    ids = np.repeat(np.arange(len(lengths)), lengths)  # The number of its sequence.
    if rows > len(ids) - 1:
        return
    windows = StreamWindows(ids, rows=rows, window=window, lengths=lengths)
    strands, _ = collect(windows)
    pairs = [pair for strand in strands for pair in strand]
    assert all(a == b for a, b in pairs)
    assert len(pairs) == windows.num_predicted == len(ids) - len(lengths)
    first = np.cumsum(lengths) - lengths
    resets = set(first[first < len(ids) - 1].tolist())
    resets |= {r * windows.strand for r in range(rows) if r * windows.strand < len(ids) - 1}
    found = set()
    for index in range(len(windows)):
        number, row = divmod(index, rows)
        begin = row * windows.strand + number * window
        found |= {begin + int(step) for step in np.flatnonzero(windows[index]["starts"])}
    assert found == resets


def test_rows_of_the_batches_are_strands_and_passes_begin_with_resets() -> None:
    windows = StreamWindows(np.arange(100), rows=4, window=6)
    loader = Loader(
        windows,
        batch_size=4,
        train=True,
        plan=windows.plan(train=True),
        identity=windows.describe(),
    )
    assert loader.batches_per_epoch == 5
    with loader.batches() as batches:
        found = list(itertools.islice(batches, 10))
    for row in range(4):
        steps = [b["tokens"][row, : b["lengths"][row]] for b in found[:5] if b["mask"][row]]
        expected = np.arange(row * 25, min(row * 25 + 25, 99))
        np.testing.assert_array_equal(np.concatenate(steps), expected)
    for number, batch in enumerate(found):
        assert batch["starts"][:, 0].all() == (number % 5 == 0)
        assert not batch["starts"][:, 1:].any()
        for key, value in batch.items():
            np.testing.assert_array_equal(value, found[number % 5][key])
    assert not loader.bad


@pytest.mark.parametrize("train", [False, True])
def test_resumes_exactly_and_processes_share_the_strands(train: bool) -> None:
    windows = StreamWindows(np.arange(83), rows=4, window=5)

    def loader(**options: int) -> Loader:
        return Loader(
            windows,
            batch_size=4,
            train=train,
            plan=windows.plan(train=train),
            identity=windows.describe(),
            **options,
        )

    count = loader().batches_per_epoch
    with loader().batches() as batches:
        whole = list(itertools.islice(batches, count))
        state = batches.get_state()
    with loader().batches() as batches:
        next(batches)
        middle = batches.get_state()
    with loader(num_threads=0).batches() as batches:
        batches.set_state(middle)
        for batch in whole[1:]:
            again = next(batches)
            for key, value in batch.items():
                np.testing.assert_array_equal(again[key], value)
        assert batches.get_state() == state
    parts = []
    for process in range(2):
        with loader(process_index=process, process_count=2).batches() as batches:
            parts.append(list(itertools.islice(batches, count)))
    for batch, *halves in zip(whole, *parts, strict=True):
        for key, value in batch.items():
            np.testing.assert_array_equal(np.concatenate([half[key] for half in halves]), value)


def test_a_position_belongs_to_one_stream_and_window() -> None:
    windows = StreamWindows(np.arange(83), rows=4, window=5)

    def loader(windows: StreamWindows) -> Loader:
        plan = windows.plan(train=True)
        identity = windows.describe()
        return Loader(windows, batch_size=4, train=True, plan=plan, identity=identity)

    with loader(windows).batches(3) as batches:
        state = batches.get_state()
    for other, reason in (
        (StreamWindows(np.arange(83), rows=4, window=7), "window: 5 saved, 7 now"),
        (StreamWindows(np.arange(83) + 1, rows=4, window=5), "content: .* saved"),
        (StreamWindows(np.arange(83), rows=2, window=5), "strands: 4 saved, 2 now"),
    ):
        with (
            Loader(
                other,
                batch_size=4,
                train=True,
                plan=other.plan(train=True),
                identity=other.describe(),
            ).batches() as batches,
            pytest.raises(ValueError, match=reason),
        ):
            batches.set_state(state)
    copy = pickle.loads(pickle.dumps(windows))
    assert repr(copy) == repr(windows)
    assert copy.describe() == windows.describe()


def test_values_have_the_next_values_as_targets() -> None:
    values = np.random.default_rng(0).integers(0, 2, (31, 5)).astype(np.uint8)
    windows = StreamWindows(values, rows=2, window=4, lengths=[20, 11])
    assert windows.num_predicted == 29
    seen = 0
    for index in range(len(windows)):
        example = windows[index]
        assert example["inputs"].dtype == example["targets"].dtype == np.float32
        assert example["inputs"].shape == example["targets"].shape == (4, 5)
        assert example["target_mask"].shape == (4,)
        number, row = divmod(index, 2)
        begin = row * windows.strand + number * 4
        for step in range(int(example["lengths"]) if example["mask"] else 0):
            np.testing.assert_array_equal(example["inputs"][step], values[begin + step])
            np.testing.assert_array_equal(example["targets"][step], values[begin + step + 1])
            seen += int(example["target_mask"][step])
    assert seen == 29


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match=r"values: expected \(N,\) integer tokens"):
        StreamWindows(np.zeros(9), rows=1, window=2)
    with pytest.raises(ValueError, match="values: expected finite values"):
        StreamWindows(np.array([[0.0], [np.nan]]), rows=1, window=2)
    with pytest.raises(ValueError, match="rows, window: expected at least 1, received 0 and 2"):
        StreamWindows(np.arange(9), rows=0, window=2)
    with pytest.raises(ValueError, match="rows: expected at most the 0 predicted"):
        StreamWindows(np.arange(1), rows=1, window=2)
    with pytest.raises(ValueError, match=r"with the sum 9, .* received 2 with the sum 8"):
        StreamWindows(np.arange(9), rows=1, window=2, lengths=[4, 4])
    windows = StreamWindows(np.arange(9), rows=1, window=2)
    with pytest.raises(IndexError, match="expected 0 to 3, received 4"):
        windows[4]
    with pytest.raises(IndexError, match="expected less than 4"):
        windows.plan(train=False).indices(4)


@pytest.mark.parametrize("window", [1, 4, 50])
def test_a_carry_kept_over_batches_equals_each_sequence_alone(window: int) -> None:
    generator = np.random.default_rng(0)
    sequences = [generator.normal(size=(n, 1)) for n in (5, 1, 9, 3, 12)]
    windows = StreamWindows(
        np.concatenate(sequences), rows=1, window=window, lengths=[len(s) for s in sequences]
    )

    def step(carry: float, value: float) -> float:
        return np.tanh(0.9 * carry + value)

    alone = []
    for sequence in sequences:
        carry = 0.0
        for value in sequence[:-1, 0].astype(np.float32):
            alone.append(carry := step(carry, value))
    kept, carry = [], np.nan  # What stands in the carry before the first reset does not matter.
    for index in range(len(windows)):
        example = windows[index]
        for t in range(int(example["lengths"])):
            carry = step(0.0 if example["starts"][t] else carry, example["inputs"][t, 0])
            if example["target_mask"][t]:
                kept.append(carry)
    assert kept == alone
