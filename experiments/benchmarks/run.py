"""Layers and networks against their peers, side by side and in turn in one run.

    python -m experiments.benchmarks.run [--only=lstm,gru] [--rounds=9] [--out=runs/bench]

Forward and training step of each layer against ``flax.linen`` and, where they are installed,
PyTorch and Keras (``pip install -e '.[bench]'``); a layer's training step takes gradients in its
parameters and its inputs. Captioning is against loops in PyTorch of the structure that two public
code bases have, its search in milliseconds an image.
Each table goes to ``--out`` as NAME.json, with all numbers, and NAME.md, with ratios: "times as
fast" is the peer's median over ours. Time to the first training step and peak memory come from a
process of its own for each way, unless ``--nofresh``. On a machine that does something else the
ratios to PyTorch mean little: its threads wait for each other. JSON keeps ``load_average``.
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
    layers,
    memory,
)
from experiments.benchmarks.fresh import measure_fresh
from experiments.benchmarks.tables import format_table, print_case
from experiments.benchmarks.timing import (
    PAUSE,
    Case,
    Jitted,
    compare,
    measure,
)

GROUPS: dict[str, Callable[[], list[Case]]] = {
    "lstm": partial(layers.vector_cases, "lstm"),
    "gru": partial(layers.vector_cases, "gru"),
    "convlstm": layers.map_cases,
    "elman": partial(layers.vector_cases, "elman"),
    "mingru": layers.mingru_cases,
    "crnn": crnn.cases,
    "memory": memory.cases,
    "captioning": captioning.cases,
}
"""What ``--only`` may name."""
TABLES = {
    "layers": ("lstm", "gru", "convlstm", "elman"),
    "mingru": ("mingru",),
    "crnn": ("crnn",),
    "memory": ("memory",),
    "captioning": ("captioning",),
}
"""Files, and the groups in each."""

Results = dict[str, dict[str, dict[str, Any]]]
"""By case and way, what was measured."""


def run_cases(cases: list[Case], rounds: int, group: str = "", pause: float = PAUSE) -> Results:
    """Measures cases and prints each when it is done.

    Args:
      cases: to be measured.
      rounds: that are timed.
      group: of ``GROUPS``, in which the processes for first steps and memory find the cases; empty:
        without those.
      pause: seconds before a measurement.
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
            if isinstance(step, (Jitted, crnn.TrainingStep, captioning.TrainingStep)):
                row[way]["temporary_mebibytes"] = step.temporary_bytes() / 2**20
        steps.clear()
        jax.clear_caches()
        if group and case.fresh:
            for way, numbers in row.items():
                numbers.update(measure_fresh(group, case.name, way))
        results[case.name] = row
        print_case(case.name, row)
    return results


def write(name: str, results: Results, out: Path) -> None:
    """NAME.json and NAME.md in ``out``."""
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
    (out / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    (out / f"{name}.md").write_text(format_table(results), encoding="utf-8")


def _versions() -> dict[str, str]:
    versions = {}
    for package in ("jax", "jaxlib", "flax", "torch", "keras"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


_ONLY = flags.DEFINE_list("only", list(GROUPS), f"Of {', '.join(GROUPS)}.")
_ROUNDS = flags.DEFINE_integer("rounds", 9, "Rounds that are timed.", lower_bound=1)
_FRESH = flags.DEFINE_bool("fresh", True, "First steps and memory, in processes of their own.")
_OUT = flags.DEFINE_string("out", "runs/bench", "Where the tables are written.")


def main(argv: list[str]) -> None:
    """Measures, prints, writes the tables."""
    if len(argv) > 1:
        raise app.UsageError(f"expected flags only, received {' '.join(argv[1:])}")
    unknown = sorted(set(_ONLY.value) - set(GROUPS))
    if unknown:
        raise app.UsageError(f"--only: expected some of {list(GROUPS)}, received {unknown}")
    for name, groups in TABLES.items():
        results: Results = {}
        for group in groups:
            if group in _ONLY.value:
                results.update(
                    run_cases(GROUPS[group](), _ROUNDS.value, group if _FRESH.value else "")
                )
                write(name, results, Path(_OUT.value))
        if results:
            print(f"written to {Path(_OUT.value) / name}.json and .md\n", flush=True)


if __name__ == "__main__":
    app.run(main)
