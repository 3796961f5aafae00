"""Numbered examples, loaders of them, and transforms that fail."""

import os
import signal
from dataclasses import dataclass
from typing import Any

import numpy as np

from data.loader import Loader


@dataclass(frozen=True)
class Numbers:
    """Source whose videos show their index; examples in ``bad`` are unreadable."""

    size: int
    bad: tuple[int, ...] = ()

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int, /) -> dict[str, np.ndarray]:
        readable = index not in self.bad
        return {
            "video": np.full((2, 4, 4, 3), index + 1, np.uint8) * readable,
            "lengths": np.asarray(2, np.int32),
            "label": np.asarray(index % 3 if readable else -1, np.int32),
            "mask": np.asarray(readable),
            "index": np.asarray(index, np.int32),
        }

    def explain(self, index: int) -> str:
        return f"number {index} is bad"


def add_noise(example, rng):
    return {**example, "noise": rng.random(3)}


def fail_at_seven(example, rng):
    if example["index"] == 7:
        raise RuntimeError("seven fails")
    return example


def end_at_seven(example, rng):
    if example["index"] == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return example


def make_loader(**changes: Any) -> Loader:
    settings: dict[str, Any] = {
        "batch_size": 4,
        "transform": add_noise,
        "train": True,
        "seed": 5,
        "num_threads": 2,
    }
    return Loader(changes.pop("source", Numbers(10)), **(settings | changes))


def take(loader: Loader, count: int, start: int = 0) -> list[dict[str, np.ndarray]]:
    with loader.batches(start) as batches:
        return [next(batches) for _ in range(count)]


def assert_same(first, second):
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert one.keys() == other.keys()
        for key in one:
            assert one[key].dtype == other[key].dtype
            np.testing.assert_array_equal(one[key], other[key], err_msg=key)
