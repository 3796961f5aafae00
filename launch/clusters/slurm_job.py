"""Training as a Slurm job: its options, the ``sbatch`` script and the submission.

The script runs the program with ``srun`` and requeues the job after a preemption.
"""

import contextlib
import dataclasses
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from flaxnets.configuration import local_path
from launch.clusters.jobs import flag_value
from launch.clusters.local_job import bind_to_parent

INDEX = "{index}"
"""Placeholder for the index of an array's element in the flags of a program."""

_TIME = re.compile(
    r"(?P<minutes>\d+)"
    r"|(?:(?P<h>\d+):)?(?P<m>\d+):(?P<s>\d+)"
    r"|(?P<days>\d+)-(?P<hours>\d+)(?::(?P<mm>\d+)(?::(?P<ss>\d+))?)?"
)
_RANGE = re.compile(r"(\d+)(?:-(\d+)(?::([1-9]\d*))?)?")


@dataclasses.dataclass(frozen=True)
class SlurmJob:
    """Options of a Slurm job and the program that it runs.

    Attributes:
      python: path of the interpreter.
      root: folder in which the job runs.
      program: module that each task runs, as ``launch.train``.
      arguments: flags of the program; ``{index}`` becomes the index of the array's element.
      nodes: number of machines.
      tasks: processes on each machine.
      gpus: GPUs of each task.
      cpus: CPU cores of each task; 0: Slurm's default.
      time: time limit in one of Slurm's forms, as ``30``, ``12:00:00``, ``2-12``; empty: the
        partition's.
      partition: Slurm partition; empty: Slurm's default.
      signal_seconds: seconds before the limit at which the tasks receive SIGUSR1; Slurm may send
        it up to a minute early.
      requeue: requeue the job after it saved a checkpoint because of a signal.
      max_requeues: most requeues.
      array: indices of an array's elements, as ``1-3`` or ``1,4,7-9:2``; empty: a single job.
      array_limit: most elements that run at the same time; 0: no limit.
      name: job name; empty: the program's.
      output: file of the job's output, below ``root``; Slurm replaces ``%x`` (name), ``%j``
        (job id), ``%A`` and ``%a`` (an array's id and index). Empty:
        ``runs/slurm/NAME-ID.out``.
      setup: shell lines at the start of the script.
      extra: further options of sbatch, as ``--account=x``.

    Raises:
      ValueError: a value that Slurm would refuse, or an array whose elements would all use one
        workdir.
    """

    python: str
    root: str
    program: str
    arguments: tuple[str, ...]
    nodes: int = 1
    tasks: int = 1
    gpus: int = 0
    cpus: int = 0
    time: str = ""
    partition: str = ""
    signal_seconds: int = 120
    requeue: bool = True
    max_requeues: int = 100
    array: str = ""
    array_limit: int = 0
    name: str = ""
    output: str = ""
    setup: str = ""
    extra: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        lowest = {"nodes": 1, "tasks": 1, "gpus": 0, "cpus": 0, "array_limit": 0, "max_requeues": 0}
        for name, bound in lowest.items():
            if getattr(self, name) < bound:
                raise ValueError(
                    f"{name}: expected at least {bound}, received {getattr(self, name)}"
                )
        if not 1 <= self.signal_seconds <= 65_535:
            raise ValueError(f"signal_seconds: expected 1 to 65535, received {self.signal_seconds}")
        # A URL is refused now, not after the wait in the queue.
        local_path("--workdir", flag_value(self.arguments, "workdir") or "")
        self._check_time()
        self._check_array()
        for name in ("partition", "name", "output", "root"):
            if re.search(r"[\n\r]", getattr(self, name)):
                raise ValueError(f"{name}: expected one line, received {getattr(self, name)!r}")
        for option in self.extra:
            if not re.fullmatch(r"-[^\n\r]+", option):
                raise ValueError(f"extra: expected options as --account=x, received {option!r}")

    def _check_time(self) -> None:
        if not self.time:
            return
        seconds = parse_time(self.time)
        if seconds <= self.signal_seconds:
            # Otherwise Slurm signals at the start, and the job requeues itself for ever.
            raise ValueError(
                f"time: expected more than signal_seconds = {self.signal_seconds}, received "
                f"{self.time}, which is {seconds} s"
            )

    def _check_array(self) -> None:
        indexed = [argument for argument in self.arguments if INDEX in argument]
        if not self.array:
            if indexed:
                raise ValueError(f"{INDEX} in {indexed[0]}: expected --array=1-3, received none")
            if self.array_limit:
                raise ValueError("array_limit: expected --array=1-3 beside it, received none")
            return
        check_array(self.array)
        value = flag_value(self.arguments, "workdir") or ""
        if self.program == "launch.train" and INDEX not in value:
            raise ValueError(
                f"workdir: expected {INDEX} in it, as --workdir=runs/fold{INDEX}, or all elements "
                f"of --array={self.array} would train in one; received {value or 'none'}"
            )
        if self.program == "launch.crossvalidate" and not indexed:
            raise ValueError(
                f"expected {INDEX} in a flag of {self.program}, as --folds={INDEX}, or all "
                f"elements of --array={self.array} would train the same; received none"
            )


def make_slurm_script(job: SlurmJob) -> str:
    """Returns the script for ``sbatch``."""
    options = "\n".join(f"#SBATCH {option}" for option in _options(job))
    parts = [f"#!/bin/bash\n{options}", "set -e"]
    if job.setup:
        parts.append(job.setup.strip("\n"))
    parts.append(f"code=0\n{_command(job)} || code=$?")
    if job.requeue:
        parts.append(_requeue(job))
    return "\n\n".join([*parts, "exit $code"]) + "\n"


def submit_slurm_job(job: SlurmJob, *, wait: bool) -> int:
    """Submits the job; prints its id, and the path of its output to standard error.

    Args:
      job: job to submit.
      wait: wait until the job has ended.

    Returns:
      0 after the submission; with ``wait``, the job's exit code (an array's greatest).

    Raises:
      ValueError: no Slurm on this machine, or Slurm refuses the job; the message quotes it.
    """
    if shutil.which("sbatch") is None:
        raise ValueError(
            "expected Slurm's sbatch on this machine, found none; submit from a login node of the "
            "cluster, or print the script with --dry_run"
        )
    folder = (Path(job.root) / output_of(job)).parent
    if "%" not in str(folder):
        folder.mkdir(parents=True, exist_ok=True)  # Slurm does not make it, and the job would fail.
    with subprocess.Popen(
        bind_to_parent(["sbatch", "--parsable", *(["--wait"] if wait else [])]),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        # The pipe breaks if sbatch fails before it has read all; its message then tells why.
        with contextlib.suppress(BrokenPipeError), process.stdin:
            process.stdin.write(make_slurm_script(job))
        number = process.stdout.readline().partition(";")[0].strip()  # ID or ID;CLUSTER
        if number:
            print(number, flush=True)
            print(f"job {number} prints to {output_of(job)}", file=sys.stderr, flush=True)
        errors = process.stderr.read().strip()
    if not number:
        shown = errors.replace("\n", "\n  ")
        raise ValueError(f"expected sbatch to accept the job, received: {shown}")
    if errors:
        print(errors, file=sys.stderr)
    return process.returncode


def output_of(job: SlurmJob) -> str:
    """Returns the file of the job's output, with Slurm's ``%`` patterns."""
    return job.output or ("runs/slurm/%x-%A_%a.out" if job.array else "runs/slurm/%x-%j.out")


def parse_time(text: str) -> int:
    """Returns the seconds of a time limit in one of Slurm's forms.

    Raises:
      ValueError: another form.
    """
    match = _TIME.fullmatch(text)
    if match is None:
        raise ValueError(
            "time: expected MINUTES, MINUTES:SECONDS, HOURS:MINUTES:SECONDS, DAYS-HOURS, "
            f"DAYS-HOURS:MINUTES or DAYS-HOURS:MINUTES:SECONDS, received {text!r}"
        )
    part = {name: int(value or 0) for name, value in match.groupdict().items()}
    hours = 24 * part["days"] + part["hours"] + part["h"]
    minutes = 60 * hours + part["minutes"] + part["m"] + part["mm"]
    return 60 * minutes + part["s"] + part["ss"]


def check_array(text: str) -> None:
    """Raises ValueError if the text is not a list of array indices."""
    for item in text.split(","):
        match = _RANGE.fullmatch(item)
        if match is None or (match[2] is not None and int(match[2]) < int(match[1])):
            raise ValueError(
                f"array: expected indices as 1-3 or 1,4,7-9:2, received {text!r}; array_limit "
                "sets how many run at once"
            )


def _options(job: SlurmJob) -> list[str]:
    name = job.name or job.program.rpartition(".")[2]
    options: list[tuple[str, object]] = [
        ("job-name", name),
        ("chdir", job.root),
        ("output", output_of(job)),
        ("open-mode", "append"),  # A requeued job appends.
        ("nodes", job.nodes),
        ("ntasks-per-node", job.tasks),
    ]
    if job.cpus:
        options.append(("cpus-per-task", job.cpus))
    if job.gpus:
        # Per node, not per task: NCCL needs every process to see all GPUs of the node.
        options.append(("gres", f"gpu:{job.gpus * job.tasks}"))
    if job.time:
        options.append(("time", job.time))
    if job.partition:
        options.append(("partition", job.partition))
    if job.array:
        limit = f"%{job.array_limit}" if job.array_limit else ""
        options.append(("array", job.array + limit))
    # To the tasks; "B:" would signal only the batch shell.
    options.append(("signal", f"USR1@{job.signal_seconds}"))
    lines = [f"--{option}={shlex.quote(str(value))}" for option, value in options]
    lines.append("--requeue" if job.requeue else "--no-requeue")
    return lines + [shlex.quote(option) for option in job.extra]


def _command(job: SlurmJob) -> str:
    words = ["srun"]
    if job.nodes * job.tasks > 1:
        words.append("--label")
    if job.cpus:
        words.append(f"--cpus-per-task={job.cpus}")  # srun does not inherit it from sbatch.
    if job.gpus:
        # Without JAX_LOCAL_DEVICE_IDS, JAX gives each task one device.
        devices = (
            f"$(seq -s, $((SLURM_LOCALID * {job.gpus})) $(((SLURM_LOCALID + 1) * {job.gpus} - 1)))"
        )
        words += ["bash", "-c", f"'JAX_LOCAL_DEVICE_IDS={devices} exec \"$@\"'", "bash"]
    words += [shlex.quote(job.python), "-u", "-m", shlex.quote(job.program)]
    return " ".join([*words, *(_quote(argument, job) for argument in job.arguments)])


def _quote(argument: str, job: SlurmJob) -> str:
    """Returns the argument quoted for the shell, with the array's index filled in by Slurm."""
    if not job.array or INDEX not in argument:
        return shlex.quote(argument)
    parts = [shlex.quote(part) if part else "" for part in argument.split(INDEX)]
    return '"$SLURM_ARRAY_TASK_ID"'.join(parts)


def _requeue(job: SlurmJob) -> str:
    """Returns the lines that requeue the job if it saved a checkpoint after a signal."""
    # The last element of an array has the id of the whole array, so name it by ID_INDEX.
    number = "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID" if job.array else "$SLURM_JOB_ID"
    return f"""\
# 143, 138 and 129: the run saved a checkpoint after SIGTERM, SIGUSR1 or SIGHUP. A job that was
# cancelled, or that Slurm requeues by itself, is no longer RUNNING.
if [ $code = 143 ] || [ $code = 138 ] || [ $code = 129 ]; then
    job={number}
    state=$(squeue --noheader --jobs="$job" --format=%T || true)
    if [ "$state" != RUNNING ]; then
        echo "job $job is ${{state:-gone}}: it does not requeue itself"
    elif [ "${{SLURM_RESTART_COUNT:-0}}" -ge {job.max_requeues} ]; then
        echo "job $job has been requeued $SLURM_RESTART_COUNT times, the limit"
    else
        echo "job $job requeues itself"
        scontrol requeue "$job"
    fi
fi"""
