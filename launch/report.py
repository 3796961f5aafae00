"""Writes the report of a run, the self-contained page ``report.html`` in its workdir.

    python -m launch.report --workdir=runs/crnn --split=test

Prints the page's path. A split without predictions is evaluated first, with the best checkpoint.
The page names the parts that the run lacks. ``--config.data.root=FOLDER`` tells where the data are
now, if they were moved.
"""

from collections.abc import Sequence

from absl import flags

from flaxnets.training.workdir import Workdir
from launch import program
from launch.reports.run_page import write_report

WORKDIR = program.define_run()
SPLIT = flags.DEFINE_string("split", "test", "Split whose predictions the page shows.")


def main(argv: Sequence[str]) -> None:
    """Writes the page and prints its path."""
    program.refuse_arguments(argv)
    workdir = Workdir(WORKDIR.value)
    print(write_report(workdir, SPLIT.value, config=program.recorded_config(workdir)))


if __name__ == "__main__":
    program.run(main)
