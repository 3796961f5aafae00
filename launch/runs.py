"""Lists the runs in a folder: experiment, state, step, best metric, time.

    python -m launch.runs runs [--out=runs.html]

Runs are grouped by metric, the best first, with the flags in which runs of one experiment differ.
``--out`` also writes a self-contained page with the table, and the curves of each experiment's
runs over each other. ``--match`` keeps the runs whose name contains a text.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from flaxnets.configuration import local_path
from launch import program
from launch.reports.run_table import (
    build_runs_page,
    find_runs,
    format_table,
    ranked,
    row_of,
)

OUT = program.define_path("out", None, "HTML file for the table and the curves of the runs.")
MATCH = flags.DEFINE_string("match", "", "List only runs whose name contains this text.")


def main(argv: Sequence[str]) -> None:
    """Prints the table and writes the page."""
    if len(argv) != 1:
        raise ValueError(f"expected one folder, received {' '.join(argv) or 'none'}")
    folder = Path(local_path("folder", argv[0]))
    runs = [run for run in find_runs(folder) if MATCH.value in run.name]
    if not runs:
        raise ValueError(
            f"{folder}: expected workdirs of runs"
            + (f" whose name contains {MATCH.value!r}" if MATCH.value else "")
            + ", found none"
        )
    runs = ranked(runs)
    print(format_table([row_of(run, runs) for run in runs]))
    if OUT.value:
        base = os.path.relpath(folder, Path(OUT.value).parent)
        page = build_runs_page(str(folder), runs, base="" if base == "." else base)
        Path(OUT.value).write_text(page, encoding="utf-8")
        print(OUT.value)


if __name__ == "__main__":
    program.run(main)
