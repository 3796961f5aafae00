"""Signals that stop a stream, so that its program can still print a summary."""

import contextlib
import signal
from collections.abc import Iterator
from typing import Any


class Stopped(Exception):
    """The user or the system asked to stop."""


@contextlib.contextmanager
def stopping() -> Iterator[None]:
    """Turns SIGINT and SIGTERM into ``Stopped``, so that the summary is still printed."""

    def stop(number: int, frame: Any) -> None:
        raise Stopped

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
