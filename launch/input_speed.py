"""Measured speed of an experiment's input pipeline: decoding or rendering, without the model."""

import contextlib
import dataclasses
import math
import os
import signal
import time
from collections.abc import Iterator, Mapping

import numpy as np

from flaxnets.training.config import Data
from flaxnets.training.evaluation import close_batches

Batch = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class InputSpeed:
    """Measured speed of reading batches, by the loader's own threads and workers.

    Attributes:
      first: examples/s of the first pass over the data, which also counts the frames of videos.
      later: examples/s of the same batches once more, of files that may be in the page cache.
      batches: number of batches of which ``later`` is the speed.
      cores: number of CPU cores of this process.
    """

    first: float
    later: float
    batches: int
    cores: int

    def scaled(self, cores: int) -> "InputSpeed":
        """Returns the speed of ``cores`` cores, if it grows in proportion to them."""
        factor = cores / self.cores
        return dataclasses.replace(
            self, first=factor * self.first, later=factor * self.later, cores=cores
        )

    def seconds(self, num_steps: int, batch_size: int, num_examples: int) -> float:
        """Returns the seconds in which the batches of all steps are read."""
        examples = num_steps * batch_size
        fresh = min(examples, num_examples)
        return fresh / self.first + (examples - fresh) / self.later


def measure_input(data: Data, seconds: float) -> tuple[Batch, InputSpeed | None]:
    """Reads the first batches of a split twice, as fast as the loader yields them.

    Args:
      data: the split.
      seconds: time after which the first pass ends with the batch that it waits for, at most an
        epoch; 0: one batch is read and nothing is measured.

    Returns:
      The first batch, and the speed.
    """
    if seconds == 0:
        batch, _, _ = _read(data, 0, 1)
        return batch, None
    epoch = max(data.batches_per_epoch, 3)
    batch, count, first = _read(data, seconds, epoch)
    # All of a small data set has been read, and any further epoch is as good as the second.
    limits = (seconds, math.inf) if count == epoch else (math.inf, count)
    _, again, later = _read(data, *limits)
    return batch, InputSpeed(first, later, again, available_cores())


def available_cores() -> int:
    """Returns the number of CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextlib.contextmanager
def limited(seconds: float, message: str) -> Iterator[None]:
    """Ends what takes longer than ``seconds``; for the main thread.

    Raises:
      TimeoutError: with ``message``.
    """

    def stop(number: int, frame: object) -> None:
        raise TimeoutError(message)

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _read(data: Data, seconds: float, most: float) -> tuple[Batch, int, float]:
    """Returns the first batch, the number of batches read, at most ``most``, and examples/s.

    The first batch is not timed, as threads and workers start with it, unless it is the only one.
    When it arrives the threads are ahead of it, but no further than at the end.
    """
    batches = data.batches()
    try:
        start = time.perf_counter()
        batch = next(batches)
        rows = len(next(iter(batch.values())))
        arrived = time.perf_counter()
        count = 1
        if arrived - start < seconds:
            while count < most and time.perf_counter() - arrived < seconds:
                if next(batches, None) is None:
                    break
                count += 1
        passed = time.perf_counter() - arrived
    finally:
        close_batches(batches)
    if count == 1:
        return batch, 1, rows / (arrived - start)
    return batch, count, (count - 1) * rows / passed
