"""Signals that ask a run to stop: it ends after the step, with a checkpoint."""

import os
import signal
import threading
from types import FrameType, TracebackType

import jax
from jax.experimental import multihost_utils


class Preemption:
    """Within ``with``, SIGTERM, SIGINT and SIGUSR1 are remembered instead of ending the process.

    SIGTERM is what Kubernetes, spot machines, Cloud TPU and Slurm send before they take a machine
    away; SIGUSR1 is the notice that many Slurm scripts ask for (``--signal=USR1@60``). A second
    SIGINT raises KeyboardInterrupt at once. Outside the main thread, where Python allows no
    handlers, nothing changes.

    Of several processes any one may get the signal: JAX's preemption service has them agree on a
    step that none has passed, usually the next. It listens to SIGTERM from the moment on at which
    the processes have joined.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

    def __init__(self) -> None:
        self.signal: int | None = None
        """The signal that came, None so far; SIGTERM where another process got it."""
        self._previous: dict[int, object] = {}
        self._several = jax.process_count() > 1

    def stops_at(self, step: int) -> bool:
        """Whether the run ends after ``step``, which all processes ask after every step."""
        if not self._several:
            return self.signal is not None
        stops = multihost_utils.reached_preemption_sync_point(step)
        if stops and self.signal is None:
            self.signal = signal.SIGTERM
        return stops

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.signal == signal.SIGINT == number:
            raise KeyboardInterrupt
        self.signal = number
        if self._several:
            os.kill(os.getpid(), signal.SIGTERM)  # To JAX's own handler, which tells the others.

    def __enter__(self) -> "Preemption":
        """Sets the handlers."""
        # JAX's handler of SIGTERM lies below Python's, which would take its place.
        own = [n for n in self.SIGNALS if not (self._several and n == signal.SIGTERM)]
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._remember) for number in own}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Puts back the handlers that were there."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
