"""Signals that end a run: which ones, in which order, and what gives the exit code."""

import itertools
import os
import signal
from collections.abc import Iterator, Sequence

import pytest

from flaxnets.training.preemption import SIGNALS, LateInterrupt, Preemption

INT, TERM, USR1, HUP = signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Restores the handlers of the tests' own process."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    signal.signal(HUP, signal.SIG_DFL)  # The tests may run under nohup.
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def send(*numbers: int) -> None:
    for number in numbers:
        os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", SIGNALS)
def test_each_signal_ends_the_run_after_the_step(number: int) -> None:
    before = signal.getsignal(number)
    with Preemption() as preemption:
        assert not preemption.stops()
        send(number)
        assert preemption.stops()
        assert preemption.signal == number
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("order", list(itertools.permutations((USR1, TERM, INT))))
def test_of_several_signals_one_that_schedulers_requeue_counts(order: Sequence[int]) -> None:
    with Preemption() as preemption:
        send(*order)
        assert preemption.stops()
        assert preemption.signal == next(number for number in order if number != INT)


def test_at_the_same_moment_too() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    with Preemption() as preemption:
        send(INT, TERM, USR1)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        assert preemption.stops()
        assert preemption.signal in (TERM, USR1)


def test_a_second_sigint_ends_at_once() -> None:
    with pytest.raises(KeyboardInterrupt) as raised, Preemption():
        send(INT, INT)
    assert not isinstance(raised.value, LateInterrupt)
    with pytest.raises(LateInterrupt) as late, Preemption():
        send(TERM, INT, INT)
    assert late.value.signal == TERM


def test_sigint_while_it_closes_keeps_the_exit_code() -> None:
    with Preemption():
        send(USR1)
    with pytest.raises(LateInterrupt, match="SIGINT after signal 10") as late:
        send(INT)
    assert late.value.signal == USR1


def test_nohup_keeps_its_effect() -> None:
    signal.signal(HUP, signal.SIG_IGN)
    with Preemption() as preemption:
        send(HUP)
        assert not preemption.stops()
    assert signal.getsignal(HUP) == signal.SIG_IGN
