r"""Submits a training to Slurm; after a preemption or the time limit, the job requeues and resumes.

    python -m launch.slurm --nodes=2 --tasks=4 --gpus=1 --time=12:00:00 -- \
        --config=experiments/lrcn_ucf101.py --workdir=runs/lrcn

The flags after ``--`` are those of ``launch.train``, or of the program that ``--program`` names.
Each task is one process; ``launch.train`` finds the others. The job runs in the root of the
repository with this interpreter and this environment, and all nodes must see the same files. The
program prints the job's id. ``--wait`` waits for the job and exits with its code. ``--dry_run``
prints the script and needs no Slurm.

The run saves a checkpoint, requeues and resumes in three cases: ``--signal_seconds`` before the
time limit; when Slurm preempts the job (it has the partition's GraceTime, or else Slurm's KillWait,
30 s by default, to save); and after ``scancel --signal=TERM JOB``. The script requeues at most
``--max_requeues`` times. The job ends after the last step, after an error, after ``scancel JOB``
(it has KillWait to save) and after ``scancel --signal=INT JOB`` (no time limit to save).

``--array=1-3`` runs three jobs; ``{index}`` in the flags is the index of each:

    python -m launch.slurm --array=1-3 -- --config=… --workdir=runs/seed{index} \
        --config.seed={index}
    python -m launch.slurm --array=1-10 --program=launch.crossvalidate -- --config=… \
        --workdir=runs/ut --folds={index}

Afterwards ``launch.crossvalidate`` with all folds and the same workdir prints the table.
"""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from launch import program
from launch.clusters.slurm_job import SlurmJob, make_slurm_script, submit_slurm_job

NODES = flags.DEFINE_integer("nodes", 1, "Number of machines.")
TASKS = flags.DEFINE_integer("tasks", 1, "Number of processes on each machine.")
GPUS = flags.DEFINE_integer("gpus", 0, "GPUs of each process.")
CPUS = flags.DEFINE_integer("cpus", 0, "CPU cores of each process; 0: Slurm's default.")
TIME = flags.DEFINE_string(
    "time", "", "Time limit, as 30 (minutes), 12:00:00 or 2-12 (days-hours)."
)
PARTITION = flags.DEFINE_string("partition", "", "Slurm partition; empty: Slurm's default.")
SIGNAL_SECONDS = flags.DEFINE_integer(
    "signal_seconds", 120, "Seconds before the time limit at which the run saves."
)
REQUEUE = flags.DEFINE_bool("requeue", True, "Requeue the job after it saved because of a signal.")
MAX_REQUEUES = flags.DEFINE_integer("max_requeues", 100, "Most requeues of the job.")
ARRAY = flags.DEFINE_string("array", "", "Indices of a job array, as 1-3 or 1,4,7-9:2.")
ARRAY_LIMIT = flags.DEFINE_integer(
    "array_limit", 0, "Most elements of the array that run at the same time; 0: no limit."
)
JOB_NAME = flags.DEFINE_string("job_name", "", "Job name; empty: the program's.")
OUTPUT = program.define_path(
    "output", "", "File of the job's output, with Slurm's %x, %j, %A, %a; empty: in runs/slurm."
)
SETUP = flags.DEFINE_string(
    "setup", "", "Shell lines at the start of the script, as 'module load cuda'."
)
EXTRA = flags.DEFINE_string("extra", "", "Further options of sbatch, as '--account=x --qos=y'.")
PROGRAM = flags.DEFINE_string("program", "launch.train", "Module that each task runs.")
DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print the script instead of submitting it.")
WAIT = flags.DEFINE_bool("wait", False, "Wait for the job and exit with its code.")

ROOT = Path(__file__).resolve().parents[1]


def main(argv: Sequence[str]) -> int:
    """Submits the job; returns the exit code."""
    if not argv:
        raise ValueError(f"expected the flags of {PROGRAM.value} after --, received none")
    job = SlurmJob(
        python=sys.executable,
        root=str(ROOT),
        program=PROGRAM.value,
        arguments=tuple(argv),
        nodes=NODES.value,
        tasks=TASKS.value,
        gpus=GPUS.value,
        cpus=CPUS.value,
        time=TIME.value,
        partition=PARTITION.value,
        signal_seconds=SIGNAL_SECONDS.value,
        requeue=REQUEUE.value,
        max_requeues=MAX_REQUEUES.value,
        array=ARRAY.value,
        array_limit=ARRAY_LIMIT.value,
        name=JOB_NAME.value,
        output=OUTPUT.value,
        setup=SETUP.value,
        extra=_split(EXTRA.value),
    )
    if DRY_RUN.value:
        print(make_slurm_script(job), end="")
        return 0
    # sbatch runs the script: submitit pickles functions, but these jobs are commands.
    return submit_slurm_job(job, wait=WAIT.value)


def _split(options: str) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(options))
    except ValueError as error:
        raise ValueError(
            f"extra: expected options of sbatch in shell syntax, received {options!r}: {error}"
        ) from None


if __name__ == "__main__":
    program.run(main)
