"""Training on its own Cloud TPU slice, as a sequence of gcloud commands.

Sources: https://cloud.google.com/sdk/gcloud/reference/compute/tpus (``tpu-vm`` and
``queued-resources``), https://cloud.google.com/tpu/docs/jax-pods and queued-resources (the states).
"""

import dataclasses
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from launch.clusters.jobs import (
    CODE,
    GROUP_PROGRAMS,
    check_label,
    check_program,
    flag_value,
)
from launch.clusters.local_job import bind_to_parent
from launch.clusters.tpu_types import TpuType, find_accelerator

ROOT = Path(__file__).parents[2]
FILES = ("pyproject.toml", "constraints.txt", "README.md")
"""Files copied to the machines together with the code."""
HOME = "flaxnets"
"""Folder of the code on each machine, below the user's home."""
# The machines come with Python 3.10, which is too old; uv installs a newer one.
INSTALL = (
    f"cd {HOME} && python3 -m pip install --quiet --user uv && "
    "python3 -m uv venv --quiet --allow-existing --python=3.13 .venv && "
    "python3 -m uv pip install --quiet --python=.venv/bin/python -c constraints.txt "
    "-e '.[pretrained,captions,tpu]'"
)
POLL_SECONDS = 30
MAX_FAILED_POLLS = 10
"""Failed polls in a row after which waiting ends; a request may be queued for days."""


@dataclasses.dataclass(frozen=True)
class TpuJob:
    """A training on a TPU slice.

    Attributes:
      name: name of the TPU, a DNS label.
      zone: Google Cloud zone, as ``us-west4-a``.
      type: accelerator type, as ``v5litepod-16``.
      arguments: flags of the program.
      program: module that each machine runs.
      runtime_version: TPU software version; None: the one for JAX on this type.
      project: Google Cloud project; None: gcloud's default.
      queued: wait in Cloud TPU's queue instead of failing when there is no capacity.
      spot: use cheaper machines that may be preempted.
      repository: URL of a git repository that the machines clone; None: copy this checkout.
      setup: shell commands that every machine runs before the training, as a mount.
      create: create the machines; False: they exist already.
      delete: delete the machines after the training.

    Raises:
      ValueError: options that Cloud TPU would refuse, or that contradict each other.
    """

    name: str
    zone: str
    type: str
    arguments: Sequence[str]
    program: str = "launch.train"
    runtime_version: str | None = None
    project: str | None = None
    queued: bool = False
    spot: bool = False
    repository: str | None = None
    setup: Sequence[str] = ()
    create: bool = True
    delete: bool = False

    def __post_init__(self) -> None:
        check_label("name", self.name)
        if not re.fullmatch(r"[a-z]+(-[a-z]+)+\d+-[a-z]", self.zone):
            raise ValueError(f"zone: expected one as us-west4-a, received {self.zone!r}")
        if self.repository is not None and not re.fullmatch(r"[^-\s]\S*", self.repository):
            raise ValueError(f"repository: expected a URL, received {self.repository!r}")
        check_program(self.program, self.arguments, self.hosts)
        workdir = flag_value(self.arguments, "workdir") or ""
        if self.hosts > 1 or self.delete:
            why = f"the {self.hosts} machines share it" if self.hosts > 1 else "it outlives them"
            if not workdir.startswith("/"):
                raise ValueError(
                    f"workdir: expected an absolute path on a mounted file system, since {why}, "
                    f"received {workdir!r}"
                )
            if self.create and not self.setup:
                raise ValueError(
                    f"setup: expected a command that mounts what {workdir} lies on, since {why}; "
                    "received none"
                )

    @property
    def tpu(self) -> TpuType:
        """Returns the TPU generation."""
        return find_accelerator(self.type)[0]

    @property
    def hosts(self) -> int:
        """Returns the number of machines, one process each."""
        return find_accelerator(self.type)[1]


def make_tpu_commands(job: TpuJob) -> list[list[str]]:
    """Returns the commands in order, each a list of arguments; they run in ``ROOT``."""
    commands = []
    if job.create:
        commands.append(_create(job))
        if job.queued:
            commands.append(_wait(job))
    commands += _copy(job)
    commands.append(_on_all(job, INSTALL))
    commands += [_on_all(job, command) for command in job.setup]
    commands.append(_on_all(job, _train(job)))
    if job.delete:
        commands.append(delete_command(job))
    return commands


def run_commands(commands: Sequence[Sequence[str]]) -> int:
    """Runs commands in ``ROOT`` up to the first failure; returns its exit code, or 0.

    Raises:
      ValueError: gcloud is not installed.
    """
    if shutil.which("gcloud") is None:
        raise ValueError(
            "gcloud is not on the PATH; install it, or print the commands with --dry_run"
        )
    for command in commands:
        print(f"+ {shlex.join(command)}", file=sys.stderr, flush=True)
        if code := subprocess.run(bind_to_parent(command), cwd=ROOT).returncode:
            return code
    return 0


def delete_command(job: TpuJob) -> list[str]:
    """Returns the command that deletes the machines, with their queued request if there is one."""
    if job.queued:
        return [*_gcloud(job, "queued-resources", "delete", job.name), "--force"]
    return _gcloud(job, "tpu-vm", "delete", job.name)


def _gcloud(job: TpuJob, *words: str) -> list[str]:
    """Returns a gcloud command that never prompts."""
    command = ["gcloud", "compute", "tpus", *words, f"--zone={job.zone}", "--quiet"]
    if job.project:
        command.append(f"--project={job.project}")
    return command


def _create(job: TpuJob) -> list[str]:
    version = job.runtime_version or job.tpu.runtime_version
    if job.queued:
        command = _gcloud(job, "queued-resources", "create", job.name)
        command += [f"--node-id={job.name}", f"--runtime-version={version}"]
    else:
        command = _gcloud(job, "tpu-vm", "create", job.name)
        command.append(f"--version={version}")
    command.append(f"--accelerator-type={job.type}")
    if job.spot:
        command.append("--spot")
    return command


def _wait(job: TpuJob) -> list[str]:
    """Returns a loop that polls a queued request until it is active, or fails if it cannot be."""
    describe = _gcloud(job, "queued-resources", "describe", job.name)
    describe.append("--format=value(state.state)")
    script = (
        f"misses=0; while [ $misses -lt {MAX_FAILED_POLLS} ]; do "
        f"state=$({shlex.join(describe)}) && misses=0 || misses=$((misses + 1)); "
        "case $state in ACTIVE) exit 0;; FAILED|SUSPENDING|SUSPENDED) break;; esac; "
        f'echo "{job.name}: ${{state:-no answer}}" >&2; sleep {POLL_SECONDS}; done; '
        f'echo "error: {job.name} will not start: ${{state:-no answer}}" >&2; exit 1'
    )
    return ["sh", "-c", script]


def _copy(job: TpuJob) -> list[list[str]]:
    """Returns the commands that put the code on every machine."""
    if job.repository:
        url = shlex.quote(job.repository)
        return [
            _on_all(
                job,
                f"if [ -d {HOME}/.git ]; then git -C {HOME} pull --ff-only; "
                f"else git clone {url} {HOME}; fi",
            )
        ]
    scp = _gcloud(job, "tpu-vm", "scp", *CODE, *FILES, f"{job.name}:{HOME}/")
    return [
        _on_all(job, f"mkdir -p {HOME} && cd {HOME} && rm -rf {' '.join(CODE)}"),
        [*scp, "--worker=all", "--recurse"],
    ]


def _train(job: TpuJob) -> str:
    """Returns the command of every machine; processes find each other by Cloud TPU's metadata."""
    program = [".venv/bin/python", "-u", "-m", job.program, *job.arguments]
    if job.program in GROUP_PROGRAMS:
        program.append("--cluster=gcetpu" if job.hosts > 1 else "--cluster=none")
    return f"cd {HOME} && {shlex.join(program)}"


def _on_all(job: TpuJob, command: str) -> list[str]:
    """Returns the command that runs a shell command on every machine at once."""
    ssh = _gcloud(job, "tpu-vm", "ssh", job.name)
    return [*ssh, "--worker=all", f"--command={command}"]
