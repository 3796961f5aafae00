"""Functions called in a process of their own, within bounds of time and memory.

Decoders are written in C, and a hostile file may crash them, keep them busy, or have them allocate
the memory of the machine. Each call here runs in a fresh process that is killed at its deadline and
cannot allocate more than its share, so that the server lives on and says what happened.
"""

import multiprocessing
import multiprocessing.util
import resource
import signal
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

_PAGE = resource.getpagesize()
_LONGEST_FOLDER = 60
"""Bytes; Linux allows 107 for the path of a socket, and multiprocessing adds two names."""


class IsolationError(Exception):
    """A call that ended without a result: too slow, out of memory, or crashed."""


class Isolated:
    """Starter of isolated calls.

    The processes are forked from a server process that has imported the modules once and runs
    nothing else, so that a call costs milliseconds and inherits none of the caller's threads.

    Args:
      modules: names of the modules that the calls need.
    """

    def __init__(self, modules: list[str]) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(modules)
        _choose_folder()

    def call(
        self, function: Callable[..., Any], *args: Any, seconds: float, memory_bytes: int
    ) -> Any:
        """Returns ``function(*args)``, run in a process of its own.

        Args:
          function: importable by its name; its arguments and result can be pickled.
          args: its positional arguments.
          seconds: time until the process is killed.
          memory_bytes: address space that the call may take.

        Raises:
          IsolationError: no result within the bounds, or a crash.
          Exception: what the function raises.
        """
        ours, theirs = self._context.Pipe(duplex=False)
        process = self._context.Process(
            target=_run, args=(theirs, function, args, seconds, memory_bytes), daemon=True
        )
        deadline = time.monotonic() + seconds
        process.start()
        theirs.close()
        try:
            if not ours.poll(max(deadline - time.monotonic(), 0.0)):
                raise IsolationError(f"it took longer than {seconds:g} s")
            succeeded, result = ours.recv()
        except EOFError:
            process.join(1.0)
            raise IsolationError(_explain(process.exitcode, memory_bytes)) from None
        finally:
            ours.close()
            if process.is_alive():
                process.kill()
            process.join()
            process.close()
        if not succeeded:
            raise result
        return result


def _choose_folder() -> None:
    """Lets multiprocessing keep its sockets in a folder whose path is short enough for them."""
    before = tempfile.tempdir
    try:
        if len(tempfile.gettempdir()) > _LONGEST_FOLDER:
            tempfile.tempdir = "/tmp"
        multiprocessing.util.get_temp_dir()  # It is chosen once.
    finally:
        tempfile.tempdir = before


def _run(
    results: Connection,
    function: Callable[..., Any],
    args: tuple[Any, ...],
    seconds: float,
    memory_bytes: int,
) -> None:
    """Calls the function within the bounds and sends (succeeded, result or error)."""
    # Ctrl-C reaches all processes of a terminal; the caller decides when this one ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with open("/proc/self/statm") as file:
        present = int(file.read().split()[0]) * _PAGE
    most = present + memory_bytes
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (int(2 * seconds) + 1, int(2 * seconds) + 2))
    try:
        answer = (True, function(*args))
    except MemoryError:
        answer = (False, IsolationError(_OUT_OF_MEMORY.format(memory_bytes / 2**20)))
    except Exception as error:
        answer = (False, error)
    try:
        results.send(answer)
    except MemoryError:
        results.send((False, IsolationError(_OUT_OF_MEMORY.format(memory_bytes / 2**20))))


_OUT_OF_MEMORY = "it needs more than {:.0f} MiB of memory"


def _explain(exit_code: int | None, memory_bytes: int) -> str:
    if exit_code is not None and exit_code < 0:
        return f"reading it crashed ({signal.Signals(-exit_code).name})"
    return f"reading it failed with exit code {exit_code}"
