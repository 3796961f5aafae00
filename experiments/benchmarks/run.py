"""Benchmarks of layers and networks against their peers, side by side in one run.

    python -m experiments.benchmarks.run [--only=lstm,gru] [--rounds=9] [--out=runs/bench]

Forward pass and training step of each layer are compared with ``flax.linen`` and, where installed,
PyTorch and Keras (``pip install -e '.[bench]'``); the training step of a layer takes the gradients
of its parameters and inputs. Captioning is compared with PyTorch loops that have the structure of
two public code bases; its search is in milliseconds for each image. CTC's loss is compared with
optax and PyTorch, its search with plain Python and pyctcdecode; the training steps of a CRNN on
lines of text, of language and music models, and of networks that predict frames, with PyTorch;
scans parallel in time with the sequential scan.

Each table is written to ``--out`` as NAME.json, with all numbers, and NAME.md, with ratios: "times
as fast" is the peer's median over ours. Time to the first training step and peak memory are
measured in a process of its own for each way, unless ``--nofresh``. Ratios to PyTorch mean little
on a busy machine, because its threads wait for each other; the JSON records ``load_average``.
"""

import importlib.metadata
import json
import os
import platform
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
from absl import app, flags

from experiments.benchmarks import (
    captioning,
    crnn,
    ctc,
    frames,
    layers,
    lines,
    memory,
    parallel,
    sequences,
)
from experiments.benchmarks.fresh import measure_fresh
from experiments.benchmarks.tables import format_table, print_case
from experiments.benchmarks.timing import (
    PAUSE,
    Case,
    compare,
    measure,
)
from flaxnets.configuration import local_path
from flaxnets.training.workdir import write_text_atomically

GROUPS: dict[str, Callable[[], list[Case]]] = {
    "lstm": partial(layers.vector_cases, "lstm"),
    "gru": partial(layers.vector_cases, "gru"),
    "convlstm": layers.map_cases,
    "elman": partial(layers.vector_cases, "elman"),
    "mingru": layers.mingru_cases,
    "crnn": crnn.cases,
    "memory": memory.cases,
    "captioning": captioning.cases,
    "ctc": ctc.cases,
    "frames": frames.cases,
    "lines": lines.cases,
    "parallel": parallel.cases,
    "sequences": sequences.cases,
}
"""Functions that make the cases, by the names that ``--only`` accepts."""
TABLES = {
    "layers": ("lstm", "gru", "convlstm", "elman"),
    "mingru": ("mingru",),
    "crnn": ("crnn",),
    "memory": ("memory",),
    "captioning": ("captioning",),
    "ctc": ("ctc",),
    "frames": ("frames",),
    "lines": ("lines",),
    "parallel": ("parallel",),
    "sequences": ("sequences",),
}
"""Groups in each table, by the name of its file."""

Results = dict[str, dict[str, dict[str, Any]]]
"""Numbers by case, way and name."""


def run_cases(cases: list[Case], rounds: int, group: str = "", pause: float = PAUSE) -> Results:
    """Measures cases, prints each one when it is done, and returns all numbers.

    Args:
      cases: the cases.
      rounds: number of timed rounds.
      group: key of ``GROUPS`` under which new processes find the cases, to measure first steps and
        peak memory; empty: these are not measured.
      pause: seconds before each measurement.
    """
    results: Results = {}
    for case in cases:
        steps = {way: make() for way, make in case.ways.items()}
        seconds = measure(steps, rounds, case.rounds_at_most, pause)
        for way, items in case.items.items():
            if way in seconds:
                seconds[way] = [step / items for step in seconds[way]]
        row: dict[str, dict[str, Any]] = dict(compare(seconds))
        for way, step in steps.items():
            temporary_bytes = getattr(step, "temporary_bytes", None)
            if temporary_bytes is not None:  # A step of JAX.
                row[way]["temporary_mebibytes"] = temporary_bytes() / 2**20
        steps.clear()
        jax.clear_caches()
        if group and case.fresh:
            for way, numbers in row.items():
                numbers.update(measure_fresh(group, case.name, way))
        results[case.name] = row
        print_case(case.name, row)
    return results


def write(name: str, results: Results, out: Path) -> None:
    """Writes NAME.json and NAME.md into ``out``."""
    out.mkdir(parents=True, exist_ok=True)
    report = {
        "dtype": "float32",
        "platform": jax.default_backend(),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "versions": _versions(),
        "results": results,
    }
    text = json.dumps(report, indent=1, ensure_ascii=False)
    write_text_atomically(out / f"{name}.json", text + "\n")
    write_text_atomically(out / f"{name}.md", format_table(results))


def _versions() -> dict[str, str]:
    versions = {}
    for package in ("jax", "jaxlib", "flax", "torch", "keras"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


_ONLY = flags.DEFINE_list(
    "only", list(GROUPS), f"Groups that are measured, of {', '.join(GROUPS)}."
)
_ROUNDS = flags.DEFINE_integer("rounds", 9, "Number of timed rounds.", lower_bound=1)
_FRESH = flags.DEFINE_bool("fresh", True, "Also measure first steps and memory, in new processes.")
_OUT = flags.DEFINE_string("out", "runs/bench", "Folder for the tables.")


def main(argv: list[str]) -> None:
    """Measures, prints and writes the tables."""
    if len(argv) > 1:
        raise app.UsageError(f"expected flags only, received {' '.join(argv[1:])}")
    unknown = sorted(set(_ONLY.value) - set(GROUPS))
    if unknown:
        raise app.UsageError(f"--only: expected some of {list(GROUPS)}, received {unknown}")
    folder = Path(local_path("out", _OUT.value))
    for name, groups in TABLES.items():
        results: Results = {}
        for group in groups:
            if group in _ONLY.value:
                results.update(
                    run_cases(GROUPS[group](), _ROUNDS.value, group if _FRESH.value else "")
                )
                write(name, results, folder)
        if results:
            print(f"written to {folder / name}.json and .md\n", flush=True)


if __name__ == "__main__":
    app.run(main)
