"""Groups of processes of one program, as a launcher starts them."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from launch.clusters.local_job import bind_to_parent

ROOT = Path(__file__).parents[2]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def make_environment(devices: int, cache: Path | None) -> dict[str, str]:
    """Returns the variables of a process with simulated devices and a cache of programs."""
    variables = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
    if cache is not None:
        variables["JAX_COMPILATION_CACHE_DIR"] = str(cache)
        variables["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        variables["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
    return variables


def processes_with(text: str) -> dict[int, str]:
    """Returns the command line of each living process that has a text in it, by its number."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            command = (entry / "cmdline").read_bytes().replace(bytes(1), b" ").decode()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if text in command:  # A zombie has no command line.
            found[int(entry.name)] = command
    return found


def group_members(group: int) -> list[int]:
    """Returns the living processes of a process group."""
    members = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            state, _, its_group = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(its_group) == group and state != "Z":
            members.append(int(entry.name))
    return members


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
        variables = make_environment(devices, cache)
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
                        bind_to_parent(command),
                        cwd=ROOT,
                        env={**variables, **environment(number)},
                        stdout=file,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
                )

    def __enter__(self) -> Self:
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


class LocalLaunch(Job):
    """``python -m launch.local`` with a program; its one entry in ``processes`` is the launcher.

    Args:
      arguments: flags of the program, among them ``--workdir``.
      logs: folder of the output.
      num_processes: number of workers.
      cache: folder of compiled programs.
      restarts: of the launcher.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        logs: Path,
        num_processes: int = 2,
        cache: Path | None = None,
        restarts: int = 0,
    ) -> None:
        own = [f"--processes={num_processes}", "--cpu_devices=1", f"--restarts={restarts}", "--"]
        super().__init__(
            "launch.local", [*own, *arguments], logs=logs, num_processes=1, cache=cache
        )
        self._workdir = next(text for text in arguments if text.startswith("--workdir="))

    def workers(self) -> dict[int, int]:
        """Returns the number of each living worker's process, by its rank."""
        found = processes_with(self._workdir + " ")
        ranks = {pid: re.search(r"--process_id=(\d+)", text) for pid, text in found.items()}
        return {int(match[1]): pid for pid, match in ranks.items() if match}

    def wait_for_workers(self, timeout: float) -> None:
        """Waits until no worker is left; fails, and kills them, if one lives longer."""
        end = time.monotonic() + timeout
        while left := self.workers():
            if time.monotonic() > end:
                for pid in left.values():
                    os.kill(pid, signal.SIGKILL)
                raise AssertionError(f"workers {left} live on: {self.text()}")
            time.sleep(0.05)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        super().__exit__(kind, error, trace)
        for pid in self.workers().values():
            os.kill(pid, signal.SIGKILL)
