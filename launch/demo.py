"""Demo: trains a CNN, an RNN and both on the embedded data set, from data to report.

    python -m launch.demo --workdir=runs/demo

Trains the four networks of ``experiments/moving_shapes.py``, tests them on held-out clips, prints
one table and writes the report of the CRNN. A network that ignores the order of frames cannot
exceed 50 % accuracy. The same command resumes.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flaxnets.inference.trained_model import TrainedModel
from flaxnets.training.loop import train
from flaxnets.training.state import count_parameters
from flaxnets.training.workdir import Workdir
from launch import program
from launch.program import load_experiment
from launch.reports.run_page import HREF, write_report

EXPERIMENT = "experiments/moving_shapes.py"
VARIANTS = ("frame", "cnn", "rnn", "crnn")

WORKDIR = program.define_path(
    "workdir", None, "Folder of all runs; created if missing.", required=True
)


def main(argv: Sequence[str]) -> int:
    """Trains and tests every variant and prints the table; returns the exit code."""
    program.refuse_arguments(argv)
    start = time.monotonic()
    base = Path(WORKDIR.value)
    rows = []
    for variant in VARIANTS:
        row = run(f"{EXPERIMENT}:{variant}", base / variant)
        if isinstance(row, int):
            return row
        rows.append(row)
    seconds = time.monotonic() - start
    (base / "table.md").write_text(format_markdown(rows))
    print(format_table(rows))
    print("chance 12.5 %; a network that ignores the order of frames cannot exceed 50 %")
    print(f"{seconds:.0f} s for training and evaluation on {program.describe_devices()}")
    for variant, row in zip(VARIANTS, rows, strict=True):
        row[HREF] = f"../{variant}/report.html"
    reports = {name: write_report(Workdir(base / name), comparison=rows) for name in VARIANTS}
    print(f"report: {reports['crnn']}, which links to those of the other networks")
    return 0


def run(spec: str, path: Path) -> int | dict[str, str]:
    """Trains and tests one variant; returns its row, or the exit code after a signal."""
    config = load_experiment(spec)
    print(f"training {config.name}", flush=True)
    with program.open_workdir(path) as workdir:
        workdir.claim(spec, config)
        outcome = train(config, workdir, on_start=lambda: program.record_call(workdir.path))
        if outcome.signal is not None:
            return 128 + outcome.signal
        model = TrainedModel(config, workdir)
        metrics = model.evaluate("test")
        parameters = count_parameters(model.variables["params"])
    return describe(config.name, parameters, metrics)


def describe(name: str, parameters: int, metrics: Mapping[str, Any]) -> dict[str, str]:
    """Returns a row of the table, by column."""
    return {
        "network": name,
        "test accuracy": f"{100 * metrics['accuracy']:.1f} %",
        "parameters": f"{parameters:,}",
        "test clips": f"{metrics['examples']:.0f}",
    }


def format_table(rows: Sequence[Mapping[str, str]]) -> str:
    """Returns rows with the same columns as aligned text."""
    lines = [list(rows[0]), *[list(row.values()) for row in rows]]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def format_markdown(rows: Sequence[Mapping[str, str]]) -> str:
    """Returns rows with the same columns as a Markdown table."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *[list(row.values()) for row in rows]]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    program.run(main)
