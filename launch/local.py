r"""Runs a training as several processes on this machine.

    python -m launch.local --processes=2 -- --config=experiments/moving_shapes.py:smoke \
        --workdir=runs/smoke

The flags after ``--`` are those of ``launch.train``, or of the program that ``--program`` names.
Each process uses its share of the GPUs (``--gpus_per_process``) or simulates CPU devices
(``--cpu_devices``). Output lines start with the rank of their process. When one process dies, all
end, and the first one is named. Ctrl-C, SIGTERM, SIGHUP and SIGUSR1 reach all processes, which save
a checkpoint. If this program itself is killed, they get SIGTERM, and after ``--orphan_seconds``
SIGKILL. ``--restarts=K`` restarts the job up to K times after an error or a dead process, and the
training resumes; these signals and usage errors end it.

The exit code is that of the first process that failed.
"""

import socket
import sys
from collections.abc import Mapping, Sequence

from absl import flags

from launch import program
from launch.clusters.local_job import ORPHAN_SECONDS, LocalJob, run_with_restarts

PROCESSES = flags.DEFINE_integer("processes", 2, "Number of processes.", lower_bound=1)
CPU_DEVICES = flags.DEFINE_integer(
    "cpu_devices", 0, "Simulated CPU devices of each process; 0: use the machine's devices."
)
GPUS_PER_PROCESS = flags.DEFINE_integer(
    "gpus_per_process",
    0,
    "GPUs of each process: process i uses the i-th group; 0: each process sees all GPUs.",
)
RESTARTS = flags.DEFINE_integer("restarts", 0, "Most restarts after failures.", lower_bound=0)
ORPHAN = flags.DEFINE_float(
    "orphan_seconds",
    ORPHAN_SECONDS,
    "Seconds that the processes have to save and end if this program is killed.",
    lower_bound=0,
)
PROGRAM = flags.DEFINE_string("program", "launch.train", "Module that each process runs.")


def main(argv: Sequence[str]) -> int:
    """Runs the job; returns the exit code."""
    if not argv:
        raise ValueError("expected the flags of launch.train after --, received none")
    if CPU_DEVICES.value and GPUS_PER_PROCESS.value:
        raise ValueError("cpu_devices, gpus_per_process: expected one of them, received both")
    processes = PROCESSES.value

    def make_job() -> LocalJob:
        return LocalJob(
            make_commands(argv, processes),
            make_environments(processes),
            orphan_seconds=ORPHAN.value,
        )

    return run_with_restarts(make_job, RESTARTS.value)


def make_commands(arguments: Sequence[str], processes: int) -> list[list[str]]:
    """Returns the command of each process; they connect through a free port on loopback."""
    command = [sys.executable, "-u", "-m", PROGRAM.value, *arguments]
    if processes == 1:
        return [[*command, "--cluster=none"]]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{free.getsockname()[1]}"
    group = [f"--coordinator={coordinator}", f"--num_processes={processes}"]
    return [[*command, *group, f"--process_id={rank}"] for rank in range(processes)]


def make_environments(processes: int) -> list[Mapping[str, str]]:
    """Returns the environment variables that give each process its devices."""
    environments: list[Mapping[str, str]] = []
    for rank in range(processes):
        environment = {}
        if CPU_DEVICES.value:
            environment["JAX_PLATFORMS"] = "cpu"
            environment["JAX_NUM_CPU_DEVICES"] = str(CPU_DEVICES.value)
        if count := GPUS_PER_PROCESS.value:
            seen = range(rank * count, (rank + 1) * count)
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, seen))
        environments.append(environment)
    return environments


if __name__ == "__main__":
    program.run(main)
