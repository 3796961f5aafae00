"""Group of processes on this machine that start, print and end together.

No process outlives this one, however it ends. On Linux the kernel sends SIGTERM to each of them at
the moment of its death (``PR_SET_PDEATHSIG``), so that they save a checkpoint. A watchdog process
covers the rest: other systems, processes that go on nevertheless, and their own children.
"""

import contextlib
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FrameType
from typing import IO

from flaxnets.training.distributed import LOST_PROCESS
from flaxnets.training.preemption import SAVED, handled_signals, prevailing_signal

POLL_SECONDS = 0.05
USAGE_ERROR = 2
"""Exit code of a usage error; a restart would fail again."""
ORPHAN_SECONDS = 12.0
"""Seconds that the processes have to save and end after the death of this one."""
DELAY_SECONDS = 0.5
"""Delay of the output, in which the death of another process is noticed."""
MOST_LINES, MOST_HELD_LINES = 10_000, 2_000
READER_SECONDS = 10.0

# It is run in the child, between fork and the command, so that Python forks no threads (preexec_fn
# would). The parent may have died before prctl, hence the look at its number afterwards.
_BIND_TO_PARENT = """
import ctypes, os, signal, sys
parent, command = int(sys.argv[1]), sys.argv[2:]
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # 1: PR_SET_PDEATHSIG, which outlives exec
if os.getppid() != parent:
    sys.exit(128 + signal.SIGTERM)
signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores it.
try:
    os.execvp(command[0], command)
except OSError as error:
    sys.exit(f"error: {command[0]} does not start: {error}")
"""

# Standard input names a process group per line, with a minus sign once it has ended. It ends when
# the launcher is dead.
_WATCHDOG = """
import os, signal, sys, time
seconds = float(sys.argv[1])
groups = set()
for number in map(int, sys.stdin):
    groups.add(number) if number > 0 else groups.discard(-number)
def send(number):
    for group in sorted(groups):
        try:
            os.killpg(group, number)
        except ProcessLookupError:
            groups.discard(group)
        except PermissionError:
            pass  # macOS: all of the group are zombies.
if sys.platform != "linux":
    send(signal.SIGTERM)
end = time.monotonic() + seconds
while groups and time.monotonic() < end:
    time.sleep(0.1)
    send(0)
send(signal.SIGKILL)
"""


class LocalJob:
    """A job of one process per command, each the leader of its own process group.

    Lines of standard output and standard error are written to ``output`` with the prefix
    ``[rank] ``, whole lines only. SIGINT, SIGTERM, SIGHUP and SIGUSR1 to this process are forwarded
    to all processes, which may save a checkpoint; a second SIGINT kills them.

    If the processes end together, the first one that fails is named as the cause, with its signal.
    Lines of the others after that moment are left out unless they end without an error: they tell
    of a lost connection, which is the consequence.

    Args:
      commands: command of each process.
      environments: variables added to the environment of each process.
      output: file for the lines; None: standard output. If it can no longer be written to, as after
        the end of a terminal, lines are dropped and the job goes on.
      grace_seconds: time for the others to end after one process fails; then they are killed.
        SIGTERM would not help: a process that waits in a collective for a dead one ignores it.
        Infinite: the processes are independent of each other.
      orphan_seconds: time for the processes to end after this one has died; then they are killed.
    """

    def __init__(
        self,
        commands: Sequence[Sequence[str]],
        environments: Sequence[Mapping[str, str]],
        *,
        output: IO[str] | None = None,
        grace_seconds: float = 10.0,
        orphan_seconds: float = ORPHAN_SECONDS,
    ) -> None:
        self._commands, self._environments = commands, environments
        self._output = sys.stdout if output is None else output
        self._grace_seconds, self._orphan_seconds = grace_seconds, orphan_seconds
        self._processes: list[subprocess.Popen[str]] = []
        self._readers: list[threading.Thread] = []
        self._cause: int | None = None  # Rank of the first process that failed.
        # Time, rank and text of what was read and not written yet.
        self._lines: deque[tuple[float, int, str]] = deque()
        self._held = [deque[str](maxlen=MOST_HELD_LINES) for _ in commands]
        self._signals: list[int] = []
        self._unsent: list[deque[int]] = [deque() for _ in commands]
        self.signal: int | None = None
        """Signal that was forwarded, of several the prevailing one; None without one."""

    def run(self) -> int:
        """Runs all processes until they end.

        Returns:
          0 if all succeed, else the exit code of the first that fails: 128 + the signal's number
          if a signal killed it or if it ended because of a forwarded one; of several forwarded
          signals the prevailing one counts.
        """
        previous = {}
        if threading.current_thread() is threading.main_thread():
            for number in handled_signals():
                previous[number] = signal.signal(number, self._forward)
        try:
            with self._watchdog() as watch:
                for rank, (command, more) in enumerate(
                    zip(self._commands, self._environments, strict=True)
                ):
                    if self.signal is not None:
                        break
                    process = subprocess.Popen(
                        bind_to_parent(command),
                        env={**os.environ, **more},
                        stdin=subprocess.DEVNULL,
                        stdout=subprocess.PIPE,
                        stderr=subprocess.STDOUT,
                        text=True,
                        encoding="utf-8",
                        errors="replace",
                        start_new_session=True,
                    )
                    self._processes.append(process)
                    watch(process.pid)
                    self._send_signals()  # One that came before this process could get it.
                    reader = threading.Thread(target=self._copy, args=(rank, process), daemon=True)
                    reader.start()
                    self._readers.append(reader)
                code = self._watch(watch)
        finally:
            self._kill()
            end = time.monotonic() + READER_SECONDS  # Something may keep an output open.
            while any(map(threading.Thread.is_alive, self._readers)) and time.monotonic() < end:
                self._write_lines(time.monotonic())
                time.sleep(POLL_SECONDS / 10)
            self._write_lines(math.inf)
            for number, handler in previous.items():
                signal.signal(number, handler)
        if self.signal is not None and (
            code in SAVED or len(self._processes) < len(self._commands)
        ):
            return 128 + self.signal
        return code

    @contextlib.contextmanager
    def _watchdog(self) -> Iterator[Callable[[int], None]]:
        """Context of the watchdog; yields a function that names a process group to it."""
        with subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _WATCHDOG, str(self._orphan_seconds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,  # What ends this process's group must not end it.
        ) as process:
            assert process.stdin is not None
            names = process.stdin

            def watch(group: int) -> None:
                with contextlib.suppress(BrokenPipeError):  # Somebody killed the watchdog.
                    print(group, file=names, flush=True)

            try:
                yield watch
            finally:
                self._kill()
                process.kill()

    def _watch(self, watch: Callable[[int], None]) -> int:
        """Waits until all have ended, or until the grace period after a failure is over."""
        first, deadline = 0, math.inf
        reported: set[int] = set()
        while True:
            now = time.monotonic()
            codes = [process.poll() for process in self._processes]
            self._find_cause(codes)
            self._write_lines(now - DELAY_SECONDS)
            # The cause is told first: its followers may have ended since the last look, too.
            for rank in sorted(range(len(codes)), key=lambda rank: rank != self._cause):
                code = codes[rank]
                if code is None or rank in reported:
                    continue
                reported.add(rank)
                group = self._processes[rank].pid
                # Its own children, as a scorer in Java, are of no use any more.
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(group, signal.SIGKILL)
                watch(-group)
                if code:
                    self._readers[rank].join(DELAY_SECONDS)
                    self._write_lines(time.monotonic())
                    code = code if code > 0 else 128 - code
                    self._say(rank, f"ended with exit code {code}")
                    if not first:
                        first, deadline = code, now + self._grace_seconds
            if all(code is not None for code in codes):
                return self._first_code(first)
            if now > deadline:
                alive = [str(rank) for rank, code in enumerate(codes) if code is None]
                self._say(alive[0], f"killing the remaining processes: {', '.join(alive)}")
                return self._first_code(first)
            time.sleep(POLL_SECONDS)

    def _first_code(self, seen: int) -> int:
        """Returns the exit code of the cause; without one, that which was seen first."""
        code = None if self._cause is None else self._processes[self._cause].returncode
        return seen if code is None else code if code > 0 else 128 - code

    def _find_cause(self, codes: Sequence[int | None]) -> None:
        """Finds the process that failed first, if they end together, and tells how it ended.

        Where several have failed since the last look, a signal is the cause before an exit code. An
        end because of the death of another process (``LOST_PROCESS``, or JAX's SIGABRT) is one only
        until that process is known: its last threads may take longer to end.
        """
        if self.signal is not None or math.isinf(self._grace_seconds):
            return
        failed = {rank: code for rank, code in enumerate(codes) if code and code not in SAVED}

        def follows(rank: int) -> bool:
            return failed[rank] in (-signal.SIGABRT, LOST_PROCESS)

        if not failed or (self._cause is not None and not follows(self._cause)):
            return
        cause = min(failed, key=lambda rank: (follows(rank), failed[rank] > 0, rank))
        if cause == self._cause:
            return
        self._cause = cause
        if failed[cause] < 0:
            number = -failed[cause]
            name = signal.Signals(number).name if number in list(signal.Signals) else str(number)
            why = ", which the kernel sends when memory runs out" if name == "SIGKILL" else ""
            others = "; the others end with it" if len(self._commands) > 1 else ""
            process = f"process {cause} of {len(self._commands)}"
            self._say(cause, f"error: {process} was killed by {name}{why}{others}")

    def _forward(self, number: int, frame: FrameType | None) -> None:
        self._signals.append(number)
        self.signal = prevailing_signal(self.signal, number)
        if self._signals.count(signal.SIGINT) > 1:
            self._send(signal.SIGKILL)
            return
        for unsent in self._unsent:
            unsent.append(number)
        self._send_signals()

    def _send_signals(self) -> None:
        """Sends what each process has not got yet, once, also if a signal interrupts this."""
        for process, unsent in zip(self._processes, self._unsent, strict=False):
            while unsent:
                number = unsent.popleft()
                # Not to its group: a data loader's workers are ended by the process that needs
                # their batches until it has saved.
                process.send_signal(number)

    def _kill(self) -> None:
        self._send(signal.SIGKILL)
        for process in self._processes:
            process.wait()

    def _send(self, number: int) -> None:
        for process in self._processes:
            if process.poll() is None:
                # The whole group, so that a data loader's workers end with their parent.
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, number)

    def _copy(self, rank: int, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                while len(self._lines) > MOST_LINES:  # The output is slow or stopped.
                    time.sleep(POLL_SECONDS)
                self._lines.append((time.monotonic(), rank, line.rstrip("\n")))

    def _write_lines(self, until: float) -> None:
        """Writes what was read before a time; at the end (infinite) also the held lines.

        Others notice the death of a process a little before this one does, hence the delay.
        """
        while self._lines and self._lines[0][0] <= until:
            _, rank, line = self._lines.popleft()
            if self._cause in (None, rank):
                self._say(rank, line)
            else:
                self._held[rank].append(line)
        if math.isinf(until):
            for rank, process in enumerate(self._processes):
                for line in self._held[rank] if process.returncode == 0 else ():
                    self._say(rank, line)

    def _say(self, rank: int | str, line: str) -> None:
        # Without a terminal or a reader, the lines still have to be read, or the processes block.
        with contextlib.suppress(OSError, ValueError):
            print(f"[{rank}] {line}", file=self._output, flush=True)


def bind_to_parent(command: Sequence[str]) -> list[str]:
    """Returns a command that runs another one and ends it when its parent dies.

    The process gets SIGTERM when the thread that started it has ended; on Linux only.
    """
    start = [sys.executable, "-I", "-S", "-c", _BIND_TO_PARENT, str(os.getpid())]
    return [*start, *command]


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
        with contextlib.suppress(OSError):
            print(
                f"exit code {code}: restart {attempt} of {restarts}",
                file=sys.stderr,
                flush=True,
            )
