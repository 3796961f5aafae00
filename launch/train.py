"""Trains an experiment; run again with the same workdir, it resumes.

    python -m launch.train --config=experiments/lrcn_ucf101.py:smoke --workdir=runs/smoke \
        --config.optimizer.learning_rate=1e-3

Exits with 0 when all steps are done, 1 on an error, 2 on a wrong flag, and with 128 + the signal's
number when SIGTERM or SIGINT ended it, after a checkpoint.
"""

import logging
import sys
from collections.abc import Sequence

from absl import flags
from ml_collections import config_flags

from flaxnets.training.loop import train
from flaxnets.training.workdir import Workdir
from launch import program

config_flags.DEFINE_config_file(
    "config", None, "The experiment: FILE[:variant]; --config.FIELD=VALUE overrides a field."
)
WORKDIR = flags.DEFINE_string(
    "workdir", None, "The folder of the run; made when missing.", required=True
)

logger = logging.getLogger(__name__)


def main(argv: Sequence[str]) -> int:
    """Trains; returns the exit code."""
    spec, config = program.experiment_of_flag(argv)
    with Workdir(WORKDIR.value) as workdir:
        workdir.claim(spec, config)
        program.log_to(workdir.log)
        logger.info("%s in %s on %s", spec, workdir.path, program.describe_devices())
        outcome = train(config, workdir)
    if outcome.signal is not None:
        print(
            f"stopped at step {outcome.step} by signal {outcome.signal}, with a checkpoint; the "
            "same command goes on from there",
            file=sys.stderr,
        )
        return 128 + outcome.signal
    return 0


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    program.run(main)
