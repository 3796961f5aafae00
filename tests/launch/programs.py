"""Programs started as subprocesses, as a user starts them."""

import os
import subprocess
import sys
from pathlib import Path

from launch.clusters.local_job import bind_to_parent

ROOT = Path(__file__).parents[2]
MOVING_SHAPES = "--config=experiments/moving_shapes.py:smoke"


def start(
    program: str, *arguments: str, devices: int = 1, cache: Path | None = None
) -> subprocess.Popen[str]:
    """Starts ``python -m launch.PROGRAM`` in a process group of its own.

    Args:
      program: as ``train``.
      arguments: its flags.
      devices: number of simulated devices.
      cache: folder of compiled programs, shared with later processes.
    """
    environment = dict(os.environ)
    environment["JAX_PLATFORMS"] = "cpu"
    environment["JAX_NUM_CPU_DEVICES"] = str(devices)
    if cache is not None:
        environment["JAX_COMPILATION_CACHE_DIR"] = str(cache)
        environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        environment["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
    return subprocess.Popen(
        bind_to_parent([sys.executable, "-m", f"launch.{program}", *arguments]),
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    """Waits for a program; returns its output and exit code."""
    out, err = process.communicate(timeout=300)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def succeed(process: subprocess.Popen[str]) -> str:
    """Waits for a program, which must succeed; returns its standard output."""
    done = finish(process)
    assert done.returncode == 0, done.stderr
    return done.stdout


def sentence(done: subprocess.CompletedProcess[str]) -> str:
    """Returns the only message of a program that failed, without log lines."""
    assert done.returncode in (1, 2), done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    lines = done.stderr.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("error: "))
    # Details below the sentence of an error are indented.
    rest = [line for line in lines[first + 1 :] if not line.startswith("  ")]
    assert rest == [], done.stderr
    return "\n".join(lines[first:])
