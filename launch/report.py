"""A run as one self-contained page, ``report.html`` in its workdir.

    python -m launch.report --workdir=runs/crnn --split=test

Prints the page's path. Evaluates the best checkpoint first where the split has no predictions yet;
what the run lacks is told on the page.
"""

from collections.abc import Sequence

from absl import flags

from flaxnets.training.workdir import Workdir
from launch import program
from launch.reports.run_page import write_report

WORKDIR = flags.DEFINE_string("workdir", None, "The folder of a run.", required=True)
SPLIT = flags.DEFINE_string("split", "test", "The split whose predictions are shown.")


def main(argv: Sequence[str]) -> None:
    """Writes the page and prints its path."""
    if argv:
        raise ValueError(f"unexpected arguments: {' '.join(argv)}; flags are --name=value")
    print(write_report(Workdir(WORKDIR.value), SPLIT.value))


if __name__ == "__main__":
    program.run(main)
