"""The commands of gcloud that run a training on a Cloud TPU slice of its own, one after another.

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

from launch.submission import CODE, GROUP_PROGRAMS, check_label, check_program, flag_value
from launch.tpu_slices import TpuType, find_accelerator

ROOT = Path(__file__).parents[1]
FILES = ("pyproject.toml", "constraints.txt", "README.md")
"""Copied to the machines beside the code."""
HOME = "flaxnets"
"""The folder on each machine, in the user's own."""
# The machines come with Python 3.10; uv brings the one that the versions were tested with.
INSTALL = (
    f"cd {HOME} && python3 -m pip install --quiet --user uv && "
    "python3 -m uv venv --quiet --allow-existing --python=3.13 .venv && "
    "python3 -m uv pip install --quiet --python=.venv/bin/python -c constraints.txt "
    "-e '.[pretrained,captions,tpu]'"
)
POLL_SECONDS = 30
MOST_MISSES = 10
"""Answers that may fail to come in a row, while days may go by in the queue."""


@dataclasses.dataclass(frozen=True)
class Options:
    """A training on a TPU slice.

    Attributes:
      name: of the machines, a DNS label.
      zone: as ``us-west4-a``.
      type: the accelerator type, as ``v5litepod-16``.
      arguments: the flags of the program.
      program: the module that each machine runs.
      runtime_version: the machines' software; None: the one for JAX on this type.
      project: None: the one that gcloud is set to.
      queued: wait in Cloud TPU's queue, instead of failing where there is no capacity.
      spot: cheaper machines that may be taken away.
      repository: of git, cloned by the machines; None: the files of this checkout are copied.
      setup: shell commands on every machine before the training, as a mount.
      create: make the machines; else they are there.
      delete: remove them after the training.

    Raises:
      ValueError: options that Cloud TPU would not take, or that do not fit together.
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
        """The generation of the TPUs."""
        return find_accelerator(self.type)[0]

    @property
    def hosts(self) -> int:
        """The number of machines, one process each."""
        return find_accelerator(self.type)[1]


def make_commands(options: Options) -> list[list[str]]:
    """The commands in their order, each a list of arguments; they run in ``ROOT``."""
    commands = []
    if options.create:
        commands.append(_create(options))
        if options.queued:
            commands.append(_wait(options))
    commands += _copy(options)
    commands.append(_on_all(options, INSTALL))
    commands += [_on_all(options, command) for command in options.setup]
    commands.append(_on_all(options, _train(options)))
    if options.delete:
        commands.append(delete_command(options))
    return commands


def run_commands(commands: Sequence[Sequence[str]]) -> int:
    """Runs commands in ``ROOT`` up to the first that fails; returns its exit code, or 0.

    Raises:
      ValueError: gcloud is not installed.
    """
    if shutil.which("gcloud") is None:
        raise ValueError(
            "gcloud is not on the PATH; install it, or print the commands with --dry_run"
        )
    for command in commands:
        print(f"+ {shlex.join(command)}", file=sys.stderr, flush=True)
        if code := subprocess.run(command, cwd=ROOT).returncode:
            return code
    return 0


def delete_command(options: Options) -> list[str]:
    """The command that removes the machines, and the request where they were queued."""
    if options.queued:
        return [*_gcloud(options, "queued-resources", "delete", options.name), "--force"]
    return _gcloud(options, "tpu-vm", "delete", options.name)


def _gcloud(options: Options, *words: str) -> list[str]:
    """A command that asks nothing."""
    command = ["gcloud", "compute", "tpus", *words, f"--zone={options.zone}", "--quiet"]
    if options.project:
        command.append(f"--project={options.project}")
    return command


def _create(options: Options) -> list[str]:
    version = options.runtime_version or options.tpu.runtime_version
    if options.queued:
        command = _gcloud(options, "queued-resources", "create", options.name)
        command += [f"--node-id={options.name}", f"--runtime-version={version}"]
    else:
        command = _gcloud(options, "tpu-vm", "create", options.name)
        command.append(f"--version={version}")
    command.append(f"--accelerator-type={options.type}")
    if options.spot:
        command.append("--spot")
    return command


def _wait(options: Options) -> list[str]:
    """A loop that ends when the queued machines are there, and fails when they never will."""
    describe = _gcloud(options, "queued-resources", "describe", options.name)
    describe.append("--format=value(state.state)")
    script = (
        f"misses=0; while [ $misses -lt {MOST_MISSES} ]; do "
        f"state=$({shlex.join(describe)}) && misses=0 || misses=$((misses + 1)); "
        "case $state in ACTIVE) exit 0;; FAILED|SUSPENDING|SUSPENDED) break;; esac; "
        f'echo "{options.name}: ${{state:-no answer}}" >&2; sleep {POLL_SECONDS}; done; '
        f'echo "error: {options.name} will not start: ${{state:-no answer}}" >&2; exit 1'
    )
    return ["sh", "-c", script]


def _copy(options: Options) -> list[list[str]]:
    """Puts the code on every machine."""
    if options.repository:
        url = shlex.quote(options.repository)
        return [
            _on_all(
                options,
                f"if [ -d {HOME}/.git ]; then git -C {HOME} pull --ff-only; "
                f"else git clone {url} {HOME}; fi",
            )
        ]
    scp = _gcloud(options, "tpu-vm", "scp", *CODE, *FILES, f"{options.name}:{HOME}/")
    return [
        _on_all(options, f"mkdir -p {HOME} && cd {HOME} && rm -rf {' '.join(CODE)}"),
        [*scp, "--worker=all", "--recurse"],
    ]


def _train(options: Options) -> str:
    """What every machine runs; they find each other by the metadata of Cloud TPU."""
    program = [".venv/bin/python", "-u", "-m", options.program, *options.arguments]
    if options.program in GROUP_PROGRAMS:
        program.append("--cluster=gcetpu" if options.hosts > 1 else "--cluster=none")
    return f"cd {HOME} && {shlex.join(program)}"


def _on_all(options: Options, command: str) -> list[str]:
    """Runs a shell's command on every machine at once."""
    ssh = _gcloud(options, "tpu-vm", "ssh", options.name)
    return [*ssh, "--worker=all", f"--command={command}"]
