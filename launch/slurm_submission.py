"""Hands a job to Slurm."""

import contextlib
import shutil
import subprocess
import sys
from pathlib import Path

from launch.slurm_script import SlurmJob, make_script, output_of


def submit(job: SlurmJob, *, waits: bool) -> int:
    """Queues the job; prints its number, and to standard error where its output will be.

    Args:
      job: what to queue.
      waits: whether to wait until it has ended.

    Returns:
      0 once it is queued; where ``waits``, the exit code of the job, an array's greatest.

    Raises:
      ValueError: no Slurm on this machine, or it refuses the job; the message has its words.
    """
    if shutil.which("sbatch") is None:
        raise ValueError(
            "expected Slurm's sbatch on this machine, found none; on a cluster its login nodes "
            "have it; --dry_run prints the script without it"
        )
    folder = (Path(job.root) / output_of(job)).parent
    if "%" not in str(folder):
        folder.mkdir(parents=True, exist_ok=True)  # Slurm makes none, and the job would fail.
    with subprocess.Popen(
        ["sbatch", "--parsable", *(["--wait"] if waits else [])],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        # Broken where sbatch fails before it has read all; what it says then tells why.
        with contextlib.suppress(BrokenPipeError), process.stdin:
            process.stdin.write(make_script(job))
        number = process.stdout.readline().partition(";")[0].strip()  # NUMBER or NUMBER;CLUSTER
        if number:
            print(number, flush=True)
            print(f"job {number} prints to {output_of(job)}", file=sys.stderr, flush=True)
        errors = process.stderr.read().strip()
    if not number:
        shown = errors.replace("\n", "\n  ")
        raise ValueError(f"expected sbatch to queue the job, received: {shown}")
    if errors:
        print(errors, file=sys.stderr)
    return process.returncode
