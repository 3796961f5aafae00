"""Groups of processes of one program, as a launcher starts them."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

ROOT = Path(__file__).parents[2]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Job:
    """``python -m MODULE`` as several processes; the context manager kills those that remain.

    The flags of ``launch.processes`` connect the processes; a single process gets none.

    Args:
      module: module of the program, as ``launch.train``.
      arguments: flags of each process.
      logs: folder of the output; a full pipe would block the processes.
      num_processes: number of processes.
      devices: simulated devices of each process.
      cache: folder of compiled programs, shared with later processes.
      heartbeat: seconds without a heartbeat after which a process counts as dead.
      initialization: seconds for which a process waits for the others.
      environment: environment variables added to each process.
      connected: False: only the environment connects the processes, not the flags.
    """

    def __init__(
        self,
        module: str,
        arguments: Sequence[str],
        *,
        logs: Path,
        num_processes: int = 2,
        devices: int = 1,
        cache: Path | None = None,
        heartbeat: int = 10,
        initialization: int = 120,
        environment: Callable[[int], dict[str, str]] = lambda process: {},
        connected: bool = True,
    ) -> None:
        variables = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
        if cache is not None:
            variables["JAX_COMPILATION_CACHE_DIR"] = str(cache)
            variables["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
            variables["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
        logs.mkdir(parents=True, exist_ok=True)
        coordinator = f"--coordinator=127.0.0.1:{free_port()}"
        self.logs = [logs / f"{number}.log" for number in range(num_processes)]
        self.processes = []
        for number, log in enumerate(self.logs):
            flags = [
                f"--heartbeat_timeout={heartbeat}",
                f"--initialization_timeout={initialization}",
            ]
            if connected:
                flags += [coordinator, f"--num_processes={num_processes}"]
                flags += [f"--process_id={number}"]
            command = [sys.executable, "-m", module, *arguments]
            command += flags if num_processes > 1 else []
            with log.open("w") as file:
                self.processes.append(
                    subprocess.Popen(
                        command,
                        cwd=ROOT,
                        env={**variables, **environment(number)},
                        stdout=file,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
                )

    def __enter__(self) -> "Job":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for process in self.processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def wait(self, timeout: float = 600) -> list[int]:
        """Returns the exit codes of all processes; fails if one runs longer."""
        end = time.monotonic() + timeout
        for process, log in zip(self.processes, self.logs, strict=True):
            try:
                process.wait(max(end - time.monotonic(), 0.01))
            except subprocess.TimeoutExpired:
                raise AssertionError(f"goes on after {timeout} s: {log.read_text()}") from None
        return [process.returncode for process in self.processes]

    def succeed(self) -> None:
        """Waits for all processes, which must succeed."""
        assert self.wait() == [0] * len(self.processes), self.text()

    def wait_until(self, condition: Callable[[], bool], timeout: float = 600) -> bool:
        """Waits for the condition; returns False if a process ended first."""
        end = time.monotonic() + timeout
        while all(process.poll() is None for process in self.processes):
            assert time.monotonic() < end, self.text()
            try:
                if condition():
                    return True
            except FileNotFoundError:  # The folder was renamed during the check.
                continue
            time.sleep(0.0005)
        return False

    def text(self) -> str:
        """Returns the output of all processes."""
        return "\n".join(f"--- {log.name}\n{log.read_text()}" for log in self.logs)
