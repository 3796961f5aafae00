"""Preemption: signals after which a run saves a checkpoint and ends."""

import os
import signal
import threading
from types import FrameType, TracebackType

import jax
from jax.experimental import multihost_utils


class Preemption:
    """Context that records SIGTERM, SIGINT and SIGUSR1 instead of ending the process.

    Kubernetes, spot machines, Cloud TPU and Slurm send SIGTERM before they take a machine away;
    many Slurm scripts ask for SIGUSR1 (``--signal=USR1@60``). A second SIGINT raises
    KeyboardInterrupt at once. Outside the main thread, where Python allows no handlers, signals
    keep their effect.

    Any one of several processes may get the signal: JAX's preemption service then chooses a call of
    ``stops`` that none of them has passed, usually the next. It listens to SIGTERM as soon as the
    processes have joined.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

    def __init__(self) -> None:
        self.signal: int | None = None
        """The signal that was received; None without any; SIGTERM if another process got it."""
        self._previous: dict[int, object] = {}
        self._several = jax.process_count() > 1
        self._calls = 0
        self._stops = False

    def stops(self) -> bool:
        """Returns True from the call on at which all processes end.

        All processes call it equally often: after every step and every batch of an evaluation.
        """
        if not self._several:
            return self.signal is not None
        # The service compares for equality, and returns True once.
        self._calls += 1
        self._stops = self._stops or multihost_utils.reached_preemption_sync_point(self._calls)
        if self._stops and self.signal is None:
            self.signal = signal.SIGTERM
        return self._stops

    def _record(self, number: int, frame: FrameType | None) -> None:
        if self.signal == signal.SIGINT == number:
            raise KeyboardInterrupt
        self.signal = number
        if self._several:
            os.kill(os.getpid(), signal.SIGTERM)  # To JAX's handler, which tells the others.

    def __enter__(self) -> "Preemption":
        """Sets the handlers."""
        # With several processes JAX has a C++ handler of SIGTERM, which Python's would replace.
        own = [n for n in self.SIGNALS if not (self._several and n == signal.SIGTERM)]
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._record) for number in own}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Restores the previous handlers."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
