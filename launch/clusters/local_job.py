"""Group of processes on this machine that start, print and end together."""

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
USAGE_ERROR = 2
"""Exit code of a usage error; a restart would fail again."""


class LocalJob:
    """A job of one process per command, each the leader of its own process group.

    Lines of standard output and standard error are written to ``output`` with the prefix
    ``[rank] ``, whole lines only. SIGINT and SIGTERM to this process are forwarded to all
    processes, which may save a checkpoint; a second SIGINT kills them.

    Args:
      commands: command of each process.
      environments: variables added to the environment of each process.
      output: file for the lines; None: standard output.
      grace_seconds: time for the others to end after one process fails; then they are killed.
        SIGTERM would not help: a process that waits in a collective for a dead one ignores it.
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
        """Signal that was forwarded; None without one."""

    def run(self) -> int:
        """Runs all processes until they end.

        Returns:
          0 if all succeed, else the exit code of the first that fails: 128 + the signal's number
          if a signal killed it.
        """
        previous = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                previous[number] = signal.signal(number, self._forward)
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
        """Waits until all have ended, or until the grace period after a failure is over."""
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
                self._say(alive[0], f"killing the remaining processes: {', '.join(alive)}")
                return first
            time.sleep(POLL_SECONDS)

    def _forward(self, number: int, frame: FrameType | None) -> None:
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
                # The whole group, so that a data loader's workers end with their parent.
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
    """Runs a job and restarts it after a failure, at most ``restarts`` times.

    Args:
      make_job: makes the job of each attempt.
      restarts: most restarts; a signal to this process or a usage error ends the attempts.

    Returns:
      Exit code of the last attempt.
    """
    attempt = 0
    while True:
        job = make_job()
        code = job.run()
        if code in (0, USAGE_ERROR) or job.signal is not None or attempt == restarts:
            return code
        attempt += 1
        print(
            f"exit code {code}: restart {attempt} of {restarts}",
            file=sys.stderr,
            flush=True,
        )
