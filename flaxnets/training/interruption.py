"""Signals that ask a run to stop: it ends after the step, with a checkpoint."""

import signal
import threading
from types import FrameType, TracebackType


class Interruption:
    """Within ``with``, SIGTERM and SIGINT are remembered instead of ending the process.

    A second SIGINT raises KeyboardInterrupt at once. Outside the main thread, where Python allows
    no handlers, nothing changes.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        self.signal: int | None = None
        """The signal that came, None so far."""
        self._previous: dict[int, object] = {}

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.signal == signal.SIGINT == number:
            raise KeyboardInterrupt
        self.signal = number

    def __enter__(self) -> "Interruption":
        """Sets the handlers."""
        if threading.current_thread() is threading.main_thread():
            self._previous = {
                number: signal.signal(number, self._remember) for number in self.SIGNALS
            }
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
