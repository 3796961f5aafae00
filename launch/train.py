"""Trains an experiment; the same command resumes it from its last checkpoint.

    python -m launch.train --config=experiments/lrcn_ucf101.py:smoke --workdir=runs/smoke \
        --config.optimizer.learning_rate=1e-3

Several processes, each started with this command, share one workdir. Under Slurm (``srun``), Open
MPI (``mpirun``), Kubernetes and on Cloud TPU they find each other; elsewhere flags connect them:

    python -m launch.train … --coordinator=HOST:PORT --num_processes=2 --process_id=0

Exit codes:
  0    all steps are done
  1    error
  2    usage error
  129  SIGHUP (a terminal that closed; ignored under nohup), after saving a checkpoint
  130  SIGINT (Ctrl-C), after saving a checkpoint
  134  another process died; detected about ``--heartbeat_timeout`` seconds later
  138  SIGUSR1 (sent by Slurm's ``--signal=USR1@60``), after saving a checkpoint
  143  SIGTERM to this or another process, after saving a checkpoint

129, 138 and 143 mean a preemption, and 134 a lost process: start the same command again to resume.
A signal to one of several processes is enough. Of several signals the first one that is not SIGINT
gives the exit code.

If a file of the newest checkpoint is damaged, training refuses to resume, and ``--skip_damaged``
resumes from the newest undamaged one. A full disk ends a training when a checkpoint cannot be
written; metrics, TensorBoard and log do not.

``--config=FILE --help`` lists the fields of the experiment, each a flag, and ``--show`` prints the
configuration as it would run. ``--profile_steps=FROM:TO`` writes a trace of these steps to
``profile/`` in the workdir.
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
from launch import processes, program

config_flags.DEFINE_config_file(
    "config", None, "Experiment, FILE[:variant]; --config.FIELD=VALUE overrides a field."
)
WORKDIR = program.define_path("workdir", None, "Folder of the run; created if missing.")
SHOW = flags.DEFINE_bool(
    "show", False, "Prints the configuration as it would run, with all overrides, and ends."
)
PROFILE_STEPS = flags.DEFINE_string(
    "profile_steps", None, "FROM:TO, the first and the last step of the trace."
)
SKIP_DAMAGED = flags.DEFINE_bool(
    "skip_damaged",
    False,
    "Sets damaged checkpoints aside, as checkpoints/8.damaged, and resumes from the newest "
    "undamaged one.",
)
# --helpshort lists the flags that connect processes, too.
flags.adopt_module_key_flags(processes)
flags.adopt_module_key_flags(program)

logger = logging.getLogger(__name__)


def main(argv: Sequence[str]) -> int:
    """Trains the experiment; returns the exit code."""
    spec, config = program.experiment_of_flag(argv)
    if SHOW.value:
        default = program.load_experiment(spec)
        print(program.import_explain().describe_values(config, default))
        config.validate()
        return 0
    if WORKDIR.value is None:
        raise ValueError("--workdir: expected the folder of the run, received none")
    steps = parse_steps(PROFILE_STEPS.value)
    with processes.joined():
        outcome = run(spec, config, steps)
    if outcome.signal is not None:
        print(
            f"stopped at step {outcome.step} by signal {outcome.signal} after saving a checkpoint; "
            "the same command resumes",
            file=sys.stderr,
        )
        return 128 + outcome.signal
    return 0


def run(spec: str, config: Config, profile_steps: tuple[int, int] | None) -> Outcome:
    """Trains the experiment in the folder of ``--workdir``."""
    with program.open_workdir(WORKDIR.value, writes=is_first()) as workdir:
        workdir.claim(spec, config)
        synchronize("workdir")  # All processes fail here if the first cannot claim the folder.
        if is_first():
            program.log_to(workdir.log)
        logger.info("%s in %s on %s", spec, workdir.path, program.describe_devices())
        with program.explained_memory(config):
            return train(
                config, workdir, profile_steps=profile_steps, skip_damaged=SKIP_DAMAGED.value
            )


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    program.run(main)
