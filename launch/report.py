"""Writes the report of a run, the self-contained page ``report.html`` in its workdir.

    python -m launch.report --workdir=runs/crnn --split=test

Prints the page's path. A split without predictions is evaluated first, with the best checkpoint.
Without ``--split`` it is the test split, or validation where the data have no test split.
The page names the parts that the run lacks. ``--config.data.root=FOLDER`` tells where the data are
now, if they were moved.
"""

from collections.abc import Sequence

from absl import flags

from flaxnets.training.workdir import Workdir
from launch import default_split, program
from launch.reports.run_page import write_report

WORKDIR = program.define_run()
SPLIT = flags.DEFINE_string(
    "split", None, f"Split whose predictions the page shows; {default_split.HELP}"
)


def main(argv: Sequence[str]) -> None:
    """Writes the page and prints its path."""
    program.refuse_arguments(argv)
    workdir = Workdir(WORKDIR.value)
    config = program.recorded_config(workdir)
    _, path = default_split.on_split(
        SPLIT.value, lambda split: write_report(workdir, split, config=config)
    )
    print(path)


if __name__ == "__main__":
    program.run(main)
