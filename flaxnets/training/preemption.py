"""Preemption: signals after which a run saves a checkpoint and ends."""

import ctypes
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

import jax
from jax.experimental import multihost_utils

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
"""Signals that end a run after a checkpoint."""
SAVED = frozenset(128 + number for number in SIGNALS)
"""Exit codes of a run that a signal ended after a checkpoint."""


def prevailing_signal(before: int | None, number: int) -> int:
    """Returns the signal that gives the exit code once another one has come.

    It is the first one that is not SIGINT: SIGINT is a person's wish to end, after which schedulers
    do not start a run again, while the others announce that the machine is taken away. A scheduler
    may send several of them, and in any order.

    Args:
      before: the signal so far; None: there was none.
      number: the signal that has come.

    >>> prevailing_signal(signal.SIGUSR1, signal.SIGINT) == signal.SIGUSR1
    True
    >>> prevailing_signal(signal.SIGINT, signal.SIGTERM) == signal.SIGTERM
    True
    """
    return number if before in (None, signal.SIGINT) else before


def handled_signals() -> list[int]:
    """Returns ``SIGNALS``, without SIGHUP if this process was started to ignore it (``nohup``)."""
    ignores = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return [number for number in SIGNALS if not (ignores and number == signal.SIGHUP)]


class LateInterrupt(KeyboardInterrupt):
    """SIGINT after another signal had already ended the run.

    Attributes:
      signal: the earlier signal, which gives the exit code.
    """

    def __init__(self, signal: int) -> None:
        super().__init__(f"SIGINT after signal {int(signal)}")
        self.signal = signal


class Preemption:
    """Context that records SIGTERM, SIGHUP, SIGUSR1 and SIGINT instead of ending the process.

    Kubernetes, spot machines, Cloud TPU and Slurm send SIGTERM before they take a machine away;
    many Slurm scripts ask for SIGUSR1 (``--signal=USR1@60``); a terminal that closes sends SIGHUP,
    which has no effect if the process was started to ignore it, as by ``nohup``. A second SIGINT
    raises KeyboardInterrupt at once. Outside the main thread, where Python allows no handlers,
    signals keep their effect.

    Any one of several processes may get the signal: JAX's preemption service then chooses a call of
    ``stops`` that none of them has passed, usually the next. It listens to SIGTERM as soon as the
    processes have joined.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        """The signal that was received, of several the prevailing one; None without any; SIGTERM if
        another process got it."""
        self._interrupts = 0
        self._previous: dict[int, Any] = {}
        self._several = jax.process_count() > 1
        self._service: Any = None
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
        self._interrupts += number == signal.SIGINT
        if self._interrupts > 1:
            self._interrupt(number, frame)
        self.signal = prevailing_signal(self.signal, number)
        if self._service is not None:
            self._service(signal.SIGTERM)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self.signal in (None, signal.SIGINT):
            raise KeyboardInterrupt
        raise LateInterrupt(self.signal)

    def __enter__(self) -> "Preemption":
        """Sets the handlers."""
        if threading.current_thread() is not threading.main_thread():
            return self
        # With several processes JAX's preemption service has a handler of SIGTERM, in C++. It tells
        # the others, so it is called by ours, which replaces it to learn of SIGTERM as well.
        if self._several and not callable(signal.getsignal(signal.SIGTERM)):
            self._service = _c_handler(signal.SIGTERM)
        for number in handled_signals():
            self._previous[number] = signal.signal(number, self._record)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Restores the previous handlers.

        After another signal, SIGINT raises ``LateInterrupt``: what is still to be closed may be cut
        short, but the exit code has the run started again.
        """
        for number, handler in self._previous.items():
            if number == signal.SIGINT and self.signal not in (None, signal.SIGINT):
                handler = self._interrupt
            signal.signal(number, handler)
        if self._service is not None:  # Set in C++, of which Python knows nothing.
            ctypes.CDLL(None).signal(ctypes.c_int(signal.SIGTERM), self._service)


def _c_handler(number: int) -> Any:
    """Returns the process's handler of a signal as a C function; None for a default one."""
    # POSIX's struct sigaction is larger than its first field on every system, but never than this.
    action = (ctypes.c_void_p * 32)()
    ctypes.CDLL(None).sigaction(ctypes.c_int(number), None, ctypes.byref(action))
    # SIG_DFL and SIG_IGN are 0 and 1.
    address = action[0] or 0
    return ctypes.CFUNCTYPE(None, ctypes.c_int)(address) if address > 1 else None
