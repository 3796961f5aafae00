"""Runs a training as a job of Slurm; preempted or out of time, it saves, queues again and resumes.

    python -m launch.slurm --nodes=2 --tasks=4 --gpus=1 --time=12:00:00 -- \
        --config=experiments/lrcn_ucf101.py --workdir=runs/lrcn

What stands behind ``--`` are the flags of ``launch.train``, or of the program that ``--program``
names. Each task is a process of its own; ``launch.train`` finds the others. The job runs in the
root of the repository, with this interpreter and this environment; all nodes see the same files.
Standard output gets the number of the job, ``--wait`` waits for its end and exits as it does, and
``--dry_run`` prints the script, also where there is no Slurm. The script goes to ``sbatch`` itself:
submitit would be one dependency more, and its jobs are pickled functions where these are commands.

The run saves, is queued again and resumes: near the time limit, ``--signal_seconds`` before it;
where Slurm preempts the job, for which it has the partition's GraceTime, or else Slurm's KillWait
(30 s by default); and after ``scancel --signal=TERM JOB``. The script queues it again at most
``--max_requeues`` times. After all steps, an error, ``scancel JOB`` (it has KillWait to save) and
``scancel --signal=INT JOB`` (it saves in its own time) the job has ended.

With ``--array=1-3`` so many jobs run, and ``{index}`` in the flags is the index of each:

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
from launch.clusters.slurm_job import SlurmJob, make_script, submit

NODES = flags.DEFINE_integer("nodes", 1, "Machines.")
TASKS = flags.DEFINE_integer("tasks", 1, "Processes on each machine.")
GPUS = flags.DEFINE_integer("gpus", 0, "GPUs of each process.")
CPUS = flags.DEFINE_integer("cpus", 0, "CPUs of each process; 0: Slurm's default.")
TIME = flags.DEFINE_string(
    "time", "", "Time limit, as 30 (minutes), 12:00:00 or 2-12 (days-hours)."
)
PARTITION = flags.DEFINE_string("partition", "", "The partition; empty: Slurm's default.")
SIGNAL_SECONDS = flags.DEFINE_integer(
    "signal_seconds", 120, "Seconds before the time limit at which the run saves and ends."
)
REQUEUE = flags.DEFINE_bool("requeue", True, "Queue again what saved because of a signal.")
MAX_REQUEUES = flags.DEFINE_integer("max_requeues", 100, "How often at most.")
ARRAY = flags.DEFINE_string("array", "", "Indices of an array of jobs, as 1-3 or 1,4,7-9:2.")
ARRAY_LIMIT = flags.DEFINE_integer(
    "array_limit", 0, "Elements of the array that run at once; 0: any number."
)
JOB_NAME = flags.DEFINE_string("job_name", "", "Name of the job; empty: the program's.")
OUTPUT = flags.DEFINE_string(
    "output", "", "File of what is printed, with Slurm's %x, %j, %A, %a; empty: in runs/slurm."
)
SETUP = flags.DEFINE_string("setup", "", "Shell lines that come first, as 'module load cuda'.")
EXTRA = flags.DEFINE_string("extra", "", "Further options of sbatch, as '--account=x --qos=y'.")
PROGRAM = flags.DEFINE_string("program", "launch.train", "The module that each task runs.")
DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print the script and submit nothing.")
WAIT = flags.DEFINE_bool("wait", False, "Wait for the end of the job and exit as it does.")

ROOT = Path(__file__).resolve().parents[1]


def main(argv: Sequence[str]) -> int:
    """Submits the job; returns the exit code."""
    if not argv:
        raise ValueError(f"expected the flags of {PROGRAM.value} behind --, received none")
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
        print(make_script(job), end="")
        return 0
    return submit(job, waits=WAIT.value)


def _split(options: str) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(options))
    except ValueError as error:
        raise ValueError(
            f"extra: expected options of sbatch, received {options!r}: {error}"
        ) from None


if __name__ == "__main__":
    program.run(main)
