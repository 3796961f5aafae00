"""Lists the runs in a folder: experiment, step, best metric, state, time.

    python -m launch.runs runs [--out=runs.html]

Runs of the same metric stand together, the best first. With ``--out`` their curves are laid over
each other in one self-contained page as well; ``--match`` keeps those whose name contains a text.
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from launch import program
from launch.reports.run_table import (
    build_page,
    find_runs,
    format_table,
    ranked,
    row_of,
)

OUT = flags.DEFINE_string("out", None, "A page with the runs' curves.")
MATCH = flags.DEFINE_string("match", "", "Only runs whose name contains this.")


def main(argv: Sequence[str]) -> None:
    """Prints the table; writes the page."""
    if len(argv) != 1:
        raise ValueError(f"expected one folder, received {' '.join(argv) or 'none'}")
    folder = Path(argv[0])
    runs = [run for run in find_runs(folder) if MATCH.value in run.name]
    if not runs:
        raise ValueError(
            f"{folder}: expected workdirs of runs"
            + (f" whose name contains {MATCH.value!r}" if MATCH.value else "")
            + ", found none"
        )
    runs = ranked(runs)
    print(format_table([row_of(run) for run in runs]))
    if OUT.value:
        Path(OUT.value).write_text(build_page(str(folder), runs), encoding="utf-8")
        print(OUT.value)


if __name__ == "__main__":
    program.run(main)
