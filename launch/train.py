r"""Trains an experiment; the same command resumes it from its last checkpoint.

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

``--tracker=wandb`` also sends the records to Weights & Biases, ``mlflow`` to MLflow, ``trackio`` to
Trackio, by a process of its own (``launch.track``), which no training waits for.

``--config=FILE --help`` lists the fields of the experiment, each a flag, and ``--show`` prints the
configuration as it would run. ``--profile_steps=FROM:TO`` writes a trace of these steps to
``profile/`` in the workdir.
"""

import contextlib
import importlib.util
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

from absl import flags
from ml_collections import config_flags

from flaxnets.configuration import nearest
from flaxnets.training.config import Config
from flaxnets.training.distributed import is_first, synchronize
from flaxnets.training.loop import Outcome, train
from flaxnets.training.profile import parse_steps
from flaxnets.training.workdir import Workdir
from launch import processes, program

config_flags.DEFINE_config_file(
    "config", None, "Experiment, FILE[:variant]; --config.FIELD=VALUE overrides a field."
)
WORKDIR = program.define_path("workdir", None, "Folder of the run; created if missing.")
SHOW = flags.DEFINE_bool(
    "show", False, "Prints the configuration as it would run, with all overrides, and ends."
)
TRACKER = flags.DEFINE_list(
    "tracker",
    [],
    "Services that get the records, too: wandb, mlflow, trackio; several with commas.",
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

TRACKERS = ("wandb", "mlflow", "trackio")
"""Names that ``--tracker`` knows: each is a package, and the extra that installs it."""
TRACKER_SECONDS = 15.0
"""Seconds that all trackers together get to send the last records."""

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
    check_trackers(TRACKER.value)
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
        trackers = TRACKER.value if is_first() else ()
        with program.explained_memory(config), tracked(workdir, trackers):
            return train(
                config,
                workdir,
                profile_steps=profile_steps,
                on_start=lambda: program.record_call(workdir.path),
                skip_damaged=SKIP_DAMAGED.value,
            )


def check_trackers(names: Sequence[str]) -> None:
    """Checks that trackers are known and installed.

    Raises:
      ValueError: an unknown name.
      ModuleNotFoundError: a package that is not installed; names its extra.
    """
    for name in names:
        if ":" in name:  # One's own, package.module:Name, which the program launch.track checks.
            continue
        if name not in TRACKERS:
            raise ValueError(f"--tracker: unknown {name!r}{nearest(name, TRACKERS)}")
        if importlib.util.find_spec(name) is None:
            raise ModuleNotFoundError(
                f"--tracker={name}: the package {name} is not installed; install the extra: "
                f"pip install -c constraints.txt -e '.[{name}]'"
            )


@contextlib.contextmanager
def tracked(workdir: Workdir, names: Sequence[str]) -> Iterator[None]:
    """Sends the records of a run to services, by a process of ``launch.track`` for each.

    The training neither waits for them, but for ``TRACKER_SECONDS`` at its end, nor fails with
    them.
    """
    path = workdir.path.absolute()
    paths = [str(program.ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    # It computes nothing, and must not take a GPU's memory.
    environment = {"JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(paths)}
    processes = {
        name: subprocess.Popen(
            [
                *(sys.executable, "-m", "launch.track", "--follow"),
                *(f"--workdir={path}", f"--tracker={name}"),
            ],
            stdin=subprocess.PIPE,
            env={**os.environ, **environment},
            start_new_session=True,  # Ctrl-C is for the training.
        )
        for name in names
    }
    try:
        yield
    finally:
        for process in processes.values():
            if process.stdin is not None:
                process.stdin.close()  # Tells it that no more records will come.
        deadline = time.monotonic() + TRACKER_SECONDS
        for name, process in processes.items():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(deadline - time.monotonic(), 0))
            if process.returncode != 0:
                with contextlib.suppress(ProcessLookupError):  # And what its library started.
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                logger.warning(
                    "the tracker %s has not got all records (%s); python -m launch.track "
                    "--workdir=%s --tracker=%s sends the others",
                    name,
                    path / f"tracker_{name.replace(':', '.')}.log",
                    workdir.path,
                    name,
                )


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    program.run(main)
