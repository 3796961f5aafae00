"""Trains an experiment; run again with the same workdir, it resumes.

    python -m launch.train --config=experiments/lrcn_ucf101.py:smoke --workdir=runs/smoke \
        --config.optimizer.learning_rate=1e-3

The same command as one of several processes finds the others under Slurm (``srun``), Open MPI
(``mpirun``), Kubernetes and on Cloud TPU; elsewhere each is told, and all share the workdir:

    python -m launch.train … --coordinator=HOST:PORT --num_processes=2 --process_id=0

Exit codes: 0 when all steps are done, 1 on an error, 2 on a wrong flag. 128 + the signal's number
when a signal ended it after a checkpoint: 143 (SIGTERM) and 138 (SIGUSR1, what Slurm sends with
``--signal=USR1@60``) mean that the machine was taken away, and the same command goes on from there:
launchers queue it again; 130 (SIGINT) was somebody's Ctrl-C. Of several processes one with the
signal is enough, and the others exit with 143. 134 when another process died: within
``--heartbeat_timeout`` seconds and a few more, with a message that has its number; queue it again.

``--profile_steps=FROM:TO`` writes a trace of these steps to ``profile/`` in the workdir.
"""

import logging
import sys
from collections.abc import Sequence

from absl import flags
from ml_collections import config_flags

from flaxnets.training.config import Config
from flaxnets.training.distributed import is_first, synchronize
from flaxnets.training.loop import Outcome, train
from flaxnets.training.profile import parse_steps
from flaxnets.training.workdir import Workdir
from launch import processes, program

config_flags.DEFINE_config_file(
    "config", None, "The experiment: FILE[:variant]; --config.FIELD=VALUE overrides a field."
)
WORKDIR = flags.DEFINE_string(
    "workdir", None, "The folder of the run; made when missing.", required=True
)
PROFILE_STEPS = flags.DEFINE_string(
    "profile_steps", None, "FROM:TO, the first and the last step to trace."
)

logger = logging.getLogger(__name__)


def main(argv: Sequence[str]) -> int:
    """Trains; returns the exit code."""
    spec, config = program.experiment_of_flag(argv)
    steps = parse_steps(PROFILE_STEPS.value)
    with processes.joined():
        outcome = run(spec, config, steps)
    if outcome.signal is not None:
        print(
            f"stopped at step {outcome.step} by signal {outcome.signal}, with a checkpoint; the "
            "same command goes on from there",
            file=sys.stderr,
        )
        return 128 + outcome.signal
    return 0


def run(spec: str, config: Config, profile_steps: tuple[int, int] | None) -> Outcome:
    """Trains the experiment in the workdir of the flag."""
    with Workdir(WORKDIR.value, writes=is_first()) as workdir:
        workdir.claim(spec, config)
        synchronize("workdir")  # A folder that is not the first's to use is nobody's.
        if is_first():
            program.log_to(workdir.log)
        logger.info("%s in %s on %s", spec, workdir.path, program.describe_devices())
        return train(config, workdir, profile_steps=profile_steps)


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    program.run(main)
