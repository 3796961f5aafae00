"""Time to the first step and peak memory of one way, measured in a new process.

    python -m experiments.benchmarks.fresh GROUP CASE WAY

Prints one JSON object; ``run`` calls it. The time starts when the step is made, with the libraries
already imported, and includes initialisation and compilation. Peak memory is the increase of the
resident memory during a later step over that before the step was made, or null where the system
does not report it (Linux does).
"""

import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from experiments.benchmarks.timing import Case

_TIMEOUT = 300.0


def measure_fresh(group: str, case: str, way: str) -> dict[str, Any]:
    """Returns ``first_step_seconds`` and ``peak_mebibytes`` of a way.

    Raises:
      RuntimeError: the process failed; the message has its standard error.
    """
    command = [sys.executable, "-m", "experiments.benchmarks.fresh", group, case, way]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, check=False)
    if done.returncode:
        raise RuntimeError(f"{case}, {way}: {done.stderr}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def main(group: str, name: str, way: str) -> dict[str, Any]:
    """Measures a way in this process and returns the numbers of ``measure_fresh``."""
    from experiments.benchmarks.run import GROUPS

    case: Case = {case.name: case for case in GROUPS[group]()}[name]
    _import_library(way)
    before = _resident("VmRSS")
    begin = time.perf_counter()
    step = case.ways[way]()
    step()
    seconds = time.perf_counter() - begin
    peak = None
    if before is not None:
        # Writing 5 resets VmHWM, the peak of the resident memory.
        Path("/proc/self/clear_refs").write_text("5")
        step()
        peak = (_resident("VmHWM") or 0.0) - before
    return {"first_step_seconds": seconds, "peak_mebibytes": peak}


def _import_library(way: str) -> None:
    import jax.numpy as jnp

    # Initialises the backend.
    jnp.zeros(1).block_until_ready()
    if way.startswith("PyTorch"):
        importlib.import_module("torch")
    elif way == "Keras":
        os.environ["KERAS_BACKEND"] = "jax"
        importlib.import_module("keras")


def _resident(field: str) -> float | None:
    """Returns a field of /proc/self/status in MiB, or None where there is none."""
    status = Path("/proc/self/status")
    if not status.exists() or not os.access("/proc/self/clear_refs", os.W_OK):
        return None
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return int(lines[field].split()[0]) / 1024


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
