"""Several processes on this machine: started, their output merged, and ended together."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import IO

POLL_SECONDS = 0.05
WRONG_FLAG = 2
"""What programs exit with where trying again would not help."""


class LocalJob:
    """One process for each command, each the leader of a process group of its own.

    Their lines, of standard output and error alike, are written to ``output`` with ``[rank] `` in
    front, whole lines only. SIGINT and SIGTERM of this process are handed on to all of them, which
    may save; a second SIGINT kills them.

    Args:
      commands: of each process.
      environments: what each process's environment has beside this one's.
      output: where lines go; None: standard output.
      grace_seconds: what the others have to end by themselves once one has ended with an error;
        then they are killed. Those that wait for a dead one would not end at SIGTERM either.
    """

    def __init__(
        self,
        commands: Sequence[Sequence[str]],
        environments: Sequence[Mapping[str, str]],
        *,
        output: IO[str] | None = None,
        grace_seconds: float = 10.0,
    ) -> None:
        self._commands, self._environments = commands, environments
        self._output = sys.stdout if output is None else output
        self._grace_seconds = grace_seconds
        self._processes: list[subprocess.Popen[str]] = []
        self._writing = threading.Lock()
        self.signal: int | None = None
        """The signal that was handed on, None without one."""

    def run(self) -> int:
        """Runs all to their end.

        Returns:
          0 where all have ended well, else the exit code of the first that has not; 128 + the
          number of the signal that ended it.
        """
        previous = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                previous[number] = signal.signal(number, self._hand_on)
        readers: list[threading.Thread] = []
        try:
            for rank, (command, more) in enumerate(
                zip(self._commands, self._environments, strict=True)
            ):
                process = subprocess.Popen(
                    list(command),
                    env={**os.environ, **more},
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                    errors="replace",
                    start_new_session=True,
                )
                self._processes.append(process)
                reader = threading.Thread(target=self._copy, args=(rank, process), daemon=True)
                reader.start()
                readers.append(reader)
            return self._watch()
        finally:
            self._kill()
            for reader in readers:
                reader.join()
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _watch(self) -> int:
        """Waits until all have ended, or until those that should have ended are killed."""
        first, deadline = 0, float("inf")
        reported: set[int] = set()
        while True:
            codes = [process.poll() for process in self._processes]
            for rank, code in enumerate(codes):
                if code and rank not in reported:
                    reported.add(rank)
                    code = code if code > 0 else 128 - code
                    self._say(rank, f"ended with exit code {code}")
                    if not first:
                        first, deadline = code, time.monotonic() + self._grace_seconds
            if all(code is not None for code in codes):
                return first
            if time.monotonic() > deadline:
                alive = [str(rank) for rank, code in enumerate(codes) if code is None]
                self._say(alive[0], f"killing what is left: {', '.join(alive)}")
                return first
            time.sleep(POLL_SECONDS)

    def _hand_on(self, number: int, frame: FrameType | None) -> None:
        if self.signal == number == signal.SIGINT:
            self._kill()
            return
        self.signal = number
        self._send(number)

    def _kill(self) -> None:
        self._send(signal.SIGKILL)
        for process in self._processes:
            process.wait()

    def _send(self, number: int) -> None:
        for process in self._processes:
            if process.poll() is None:
                # The group: a data loader's workers end with their parent.
                os.killpg(process.pid, number)

    def _copy(self, rank: int, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                self._say(rank, line.rstrip("\n"))

    def _say(self, rank: int | str, line: str) -> None:
        with self._writing:
            print(f"[{rank}] {line}", file=self._output, flush=True)


def run_with_restarts(make_job: Callable[[], LocalJob], restarts: int) -> int:
    """Runs a job, again after each failure, at most ``1 + restarts`` times in all.

    Args:
      make_job: a new job for each attempt.
      restarts: further attempts; none after a signal to this process, or a wrong flag.

    Returns:
      The exit code of the last attempt.
    """
    attempt = 0
    while True:
        job = make_job()
        code = job.run()
        if code in (0, WRONG_FLAG) or job.signal is not None or attempt == restarts:
            return code
        attempt += 1
        print(
            f"exit code {code}: starting again, {attempt} of {restarts}",
            file=sys.stderr,
            flush=True,
        )
