"""The loader: one order for any threads, workers and processes; every example counted once."""

import json
import logging
import multiprocessing
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from data.loader import Loader, TooManyBadExamples
from data.video.clips import DecodeClip, UniformClip, VideoSource
from data.video.transforms import SpatialTransform
from tests.data.numbers import (
    Numbers,
    assert_same,
    end_at_seven,
    fail_at_seven,
    make_loader,
    take,
)
from tests.data.video_files import truncate, write_video


def test_every_epoch_has_every_example_once_in_another_order():
    batches = take(make_loader(), 15)
    epochs = np.concatenate([batch["index"] for batch in batches]).reshape(6, 10)
    assert (np.sort(epochs) == np.arange(10)).all()
    assert len({tuple(epoch) for epoch in epochs}) == 6
    noise = np.concatenate([batch["noise"] for batch in batches])
    assert len(np.unique(noise)) == noise.size
    for batch in batches:
        assert (batch["video"][:, 0, 0, 0, 0] == batch["index"] + 1).all()


def test_seed_decides():
    first, again, other = (take(make_loader(seed=seed), 5) for seed in (5, 5, 6))
    assert_same(first, again)
    assert (first[0]["index"] != other[0]["index"]).any()
    assert not np.isin(first[0]["noise"], other[0]["noise"]).any()


@pytest.mark.parametrize("num_threads", [0, 1, 5])
@pytest.mark.parametrize("train", [True, False])
def test_threads_do_not_matter(num_threads, train):
    count = 7 if train else 3
    reference = take(make_loader(train=train), count)
    assert_same(take(make_loader(train=train, num_threads=num_threads), count), reference)


@pytest.mark.parametrize("start", [1, 2, 4])
def test_start_anywhere(start):
    assert_same(take(make_loader(), 3, start), take(make_loader(), 7)[start : start + 3])


@pytest.mark.parametrize("process_count", [2, 4])
@pytest.mark.parametrize("train", [True, False])
def test_processes_share_each_batch(process_count, train):
    count = 7 if train else 3
    parts = [
        take(make_loader(train=train, process_index=p, process_count=process_count), count)
        for p in range(process_count)
    ]
    joined = [
        {key: np.concatenate([part[key] for part in batch]) for key in batch[0]}
        for batch in zip(*parts, strict=True)
    ]
    assert_same(joined, take(make_loader(train=train), count))


@pytest.mark.subprocess
def test_worker_processes_do_not_matter():
    reference = take(make_loader(), 10)
    halves = [{key: value[2:] for key, value in batch.items()} for batch in reference]
    loader = make_loader(num_workers=2, process_index=1, process_count=2)
    assert_same(take(loader, 5, start=5), halves[5:])


@pytest.mark.subprocess
def test_worker_processes_in_one_pass():
    reference = list(make_loader(train=False).batches())
    assert_same(list(make_loader(train=False, num_workers=2).batches()), reference)
    assert multiprocessing.active_children() == []


def test_one_pass_in_order_with_blank_rows_at_the_end():
    loader = make_loader(train=False)
    batches = list(loader.batches())
    assert len(batches) == loader.batches_per_epoch == 3
    index = np.concatenate([batch["index"] for batch in batches])
    assert index.tolist() == [*range(10), -1, -1]
    last = batches[-1]
    assert last["mask"].tolist() == [True, True, False, False]
    assert last["label"].tolist() == [2, 0, -1, -1]
    assert last["lengths"].tolist() == [2, 2, 1, 1]
    assert not last["video"][2:].any()
    assert loader.bad == {}


def test_a_process_without_examples_gets_blank_rows():
    loader = make_loader(train=False, source=Numbers(1), process_index=1, process_count=2)
    (batch,) = loader.batches()
    assert batch["video"].shape == (2, 2, 4, 4, 3)
    assert not batch["mask"].any()


def test_a_source_smaller_than_a_batch_fills_it_over_epochs():
    batch = take(make_loader(source=Numbers(3), batch_size=12), 1)[0]
    assert np.bincount(batch["index"]).tolist() == [4, 4, 4]


@pytest.mark.parametrize("train", [True, False])
def test_resumed_equals_uninterrupted(train):
    loader, other = make_loader(train=train), make_loader(train=train, num_threads=0)
    with loader.batches() as batches, other.batches() as resumed:
        head = [next(batches) for _ in range(2)]
        state = json.loads(json.dumps(batches.get_state()))
        tail = next(batches)
        resumed.set_state(state)
        assert_same([next(resumed)], [tail])
        assert resumed.get_state() == batches.get_state()
        batches.set_state({**state, "next_batch": 0})
        assert_same([next(batches) for _ in range(2)], head)


def test_state_of_other_data_is_refused():
    state = make_loader().batches(3).get_state()
    other = make_loader(source=Numbers(11), seed=6, batch_size=8).batches()
    with pytest.raises(
        ValueError, match="batch_size: 4 saved, 8 now; num_examples: 10 saved, 11 now; seed: 5 sa"
    ):
        other.set_state(state)
    with pytest.raises(ValueError, match="seed: None saved, 5 now"):
        make_loader().batches().set_state({})


def test_passes_are_independent():
    loader = make_loader(train=False)
    first = loader.batches()
    next(first)
    assert_same(list(loader.batches()), list(loader.batches()))
    assert len(list(first)) == 2
    assert list(first) == []


def test_closed():
    before = threading.active_count()
    batches = make_loader().batches()
    next(batches)
    batches.close()
    batches.close()
    with pytest.raises(ValueError, match="closed"):
        next(batches)
    for thread in threading.enumerate():
        if thread.name.startswith("grain-prefetch"):
            thread.join(timeout=10)
    assert threading.active_count() <= before


def test_bad_examples_are_logged_once(caplog):
    loader = make_loader(source=Numbers(40, bad=(3, 17)), max_bad_share=0.05)
    with caplog.at_level(logging.WARNING):
        take(loader, 30)
    assert loader.bad == {3: "number 3 is bad", 17: "number 17 is bad"}
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2
    assert all(any(reason in message for message in messages) for reason in loader.bad.values())


def test_too_many_bad_examples():
    loader = make_loader(source=Numbers(40, bad=(3, 17, 18, 30)), train=False, max_bad_share=0.05)
    batches = loader.batches()
    with pytest.raises(
        TooManyBadExamples, match=r"3 of 40 .*\(7\.5%\).* 5\.0% .*number 3 is bad; number 17 .*18"
    ):
        list(batches)
    with pytest.raises(ValueError, match="closed"):
        next(batches)
    strict = make_loader(source=Numbers(40, bad=(3,)), train=False, max_bad_share=0.0)
    with pytest.raises(TooManyBadExamples):
        list(strict.batches())


@pytest.mark.subprocess
@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_error_in_the_transform_surfaces(num_workers):
    loader = make_loader(transform=fail_at_seven, train=False, num_workers=num_workers)
    with pytest.raises(RuntimeError, match="seven fails"):
        list(loader.batches())


@pytest.mark.slow
@pytest.mark.subprocess
def test_a_signal_to_the_group_ends_no_worker(tmp_path):
    # Whenever it comes: while they start, too. The parent gets it when they have.
    code = """
import os, signal, threading, time
from absl import flags
from tests.data.numbers import make_loader

got = []
if __name__ == "__main__":
    flags.FLAGS.mark_as_parsed()
    for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: got.append(number))
    def send():
        for _ in range(40):
            time.sleep(0.1)
            for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
                os.killpg(0, number)
    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    with make_loader(num_workers=1).batches() as batches:
        next(batches)
        thread.join()
        for _ in range(3):
            print(next(batches)["index"].tolist())
    print(sorted(set(got)))
"""
    (tmp_path / "signals.py").write_text(code)
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, str(tmp_path / "signals.py")],
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=120,
        start_new_session=True,
    )
    assert done.returncode == 0, done.stderr
    expected = take(make_loader(), 4)[1:]
    assert done.stdout.splitlines() == [
        *(str(batch["index"].tolist()) for batch in expected),
        "[1, 2, 10, 15]",
    ]
    assert "Traceback" not in done.stderr


@pytest.mark.subprocess
def test_a_killed_worker_surfaces():
    loader = make_loader(transform=end_at_seven, train=False, num_workers=1)
    with pytest.raises(RuntimeError, match="terminated unexpectedly with exit code -9"):
        list(loader.batches())


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"source": Numbers(0)}, "source"),
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": 5, "process_count": 2}, "batch_size: expected a multiple of the 2"),
        ({"process_index": 1}, "process_index"),
        ({"seed": -1}, "seed"),
        ({"num_threads": -1}, "num_threads"),
        ({"num_workers": -1}, "num_workers"),
        ({"max_bad_share": 1.5}, "max_bad_share"),
    ],
)
def test_wrong_arguments(arguments, named):
    with pytest.raises(ValueError, match=named):
        make_loader(**arguments)


def test_wrong_start():
    with pytest.raises(ValueError, match=r"start: .*0\.\.3, received 4"):
        make_loader(train=False).batches(4)
    with pytest.raises(ValueError, match="start"):
        make_loader().batches(-1)
    assert list(make_loader(train=False).batches(3)) == []


@pytest.mark.subprocess
def test_videos_from_file_to_batch(tmp_path):
    paths = [str(write_video(tmp_path / f"{i}.avi", 6 + i)) for i in range(5)]
    truncate(tmp_path / "3.avi", 4)
    decode_clip = DecodeClip(UniformClip(8), SpatialTransform((16, 16), flip=True), train=True)

    def make(num_threads: int, num_workers: int = 0) -> Loader:
        return make_loader(
            source=VideoSource(tuple(paths), (0, 1, 2, 3, 4)),
            transform=decode_clip,
            num_threads=num_threads,
            num_workers=num_workers,
            max_bad_share=0.2,
        )

    loader = make(3)
    batches = take(loader, 5)
    assert_same(take(make(0), 5), batches)
    assert_same(take(make(1, num_workers=1), 5), batches)
    for batch in batches:
        readable = batch["index"] != 3
        assert (batch["mask"] == readable).all()
        assert (batch["label"] == np.where(readable, batch["index"], -1)).all()
        expected = np.where(readable, np.minimum(6 + batch["index"], 8), 1)
        assert (batch["lengths"] == expected).all()
    assert "truncated" in loader.bad[3]
