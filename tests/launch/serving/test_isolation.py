"""Calls in processes of their own: results, errors, and bounds of time and memory."""

import os
import signal
import threading
import time
from typing import Any

import numpy as np
import pytest

from launch.serving.isolation import Isolated, IsolationError

BOUNDS: dict[str, Any] = {"seconds": 20.0, "memory_bytes": 256 * 2**20}


@pytest.fixture(scope="module")
def isolated() -> Isolated:
    return Isolated(["numpy"])


def double(values: np.ndarray) -> np.ndarray:
    return 2 * values


def process_of_call() -> int:
    return os.getpid()


def fail() -> None:
    raise ValueError("size: expected 3, received 4")


def sleep() -> None:
    time.sleep(60)


def crash() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def leave() -> None:
    os._exit(3)


def allocate() -> int:
    return int(np.ones(400 * 2**20, np.uint8).sum())


@pytest.mark.subprocess
def test_results_and_errors_come_back(isolated: Isolated) -> None:
    np.testing.assert_array_equal(isolated.call(double, np.arange(5), **BOUNDS), 2 * np.arange(5))
    assert isolated.call(process_of_call, **BOUNDS) != os.getpid()
    with pytest.raises(ValueError, match="expected 3, received 4"):
        isolated.call(fail, **BOUNDS)


@pytest.mark.subprocess
def test_a_call_is_killed_at_its_deadline(isolated: Isolated) -> None:
    start = time.monotonic()
    with pytest.raises(IsolationError, match=r"longer than 0\.5 s"):
        isolated.call(sleep, seconds=0.5, memory_bytes=2**28)
    assert time.monotonic() - start < 5


@pytest.mark.subprocess
def test_a_crash_and_too_much_memory_are_told(isolated: Isolated) -> None:
    with pytest.raises(IsolationError, match="SIGSEGV"):
        isolated.call(crash, **BOUNDS)
    with pytest.raises(IsolationError, match="exit code 3"):
        isolated.call(leave, **BOUNDS)
    with pytest.raises(IsolationError, match="256 MiB"):
        isolated.call(allocate, **BOUNDS)
    assert isolated.call(process_of_call, **BOUNDS) != os.getpid()


@pytest.mark.slow
@pytest.mark.subprocess
def test_calls_of_several_threads_do_not_wait_for_each_other(isolated: Isolated) -> None:
    ends: list[float] = []

    def late() -> None:
        with pytest.raises(IsolationError):
            isolated.call(sleep, seconds=3.0, memory_bytes=2**28)
        ends.append(time.monotonic())

    thread = threading.Thread(target=late)
    thread.start()
    isolated.call(process_of_call, **BOUNDS)
    ends.append(time.monotonic())
    thread.join()
    assert ends[0] < ends[1] - 0.5
