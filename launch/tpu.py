r"""Trains on a Cloud TPU slice: creates it, installs, trains on every machine and deletes it.

    python -m launch.tpu --name=lrcn --zone=us-west4-a --type=v5litepod-16 --queued --spot \
        --setup='sudo mkdir -p /nfs && sudo mount 10.0.0.2:/share /nfs' --delete -- \
        --config=experiments/lrcn_ucf101.py --workdir=/nfs/runs/lrcn --config.data.root=/nfs/ucf101

The flags after ``--`` are those of ``launch.train``, or of the program that ``--program`` names.
The program runs gcloud commands up to the first failure and exits with its code; ``--dry_run``
prints the commands instead. After a failure the machines remain and cost money; ``--nocreate``
reuses them, and the training resumes.

The machines run a copy of this checkout, or a clone of ``--repository``. Several machines share the
workdir, so the workdir and the data must lie on a file system that ``--setup`` mounts.
"""

import shlex
import sys
from collections.abc import Sequence

from absl import flags

from launch import program
from launch.clusters.cloud_tpu import (
    TpuJob,
    delete_command,
    make_tpu_commands,
    run_commands,
)

NAME = flags.DEFINE_string("name", None, "Name of the TPU.", required=True)
ZONE = flags.DEFINE_string("zone", None, "Google Cloud zone, as us-west4-a.", required=True)
TYPE = flags.DEFINE_string(
    "type", None, "Accelerator type, as v5litepod-16 or v5p-32.", required=True
)
RUNTIME_VERSION = flags.DEFINE_string(
    "runtime_version", None, "TPU software version; default: the one for JAX on this type."
)
PROJECT = flags.DEFINE_string("project", None, "Google Cloud project; default: gcloud's.")
QUEUED = flags.DEFINE_bool("queued", False, "Wait in Cloud TPU's queue for capacity.")
SPOT = flags.DEFINE_bool("spot", False, "Use cheaper machines that may be preempted.")
REPOSITORY = flags.DEFINE_string(
    "repository", None, "URL of a git repository to clone; default: copy this checkout."
)
SETUP = flags.DEFINE_multi_string(
    "setup",
    [],
    "Shell command that every machine runs before the training, as a mount",
)
CREATE = flags.DEFINE_bool("create", True, "Create the machines; --nocreate: they exist already.")
DELETE = flags.DEFINE_bool("delete", False, "Delete the machines after the training.")
PROGRAM = flags.DEFINE_string("program", "launch.train", "Module that each machine runs.")
DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print the commands instead of running them.")


def main(argv: Sequence[str]) -> int:
    """Runs or prints the commands; returns the exit code."""
    job = TpuJob(
        name=NAME.value,
        zone=ZONE.value,
        type=TYPE.value,
        arguments=argv,
        program=PROGRAM.value,
        runtime_version=RUNTIME_VERSION.value,
        project=PROJECT.value,
        queued=QUEUED.value,
        spot=SPOT.value,
        repository=REPOSITORY.value,
        setup=SETUP.value,
        create=CREATE.value,
        delete=DELETE.value,
    )
    commands = make_tpu_commands(job)
    if DRY_RUN.value:
        for command in commands:
            print(shlex.join(command))
        return 0
    code = run_commands(commands)
    if code:
        print(
            "the machines may still exist and cost money; this deletes them:\n  "
            + shlex.join(delete_command(job)),
            file=sys.stderr,
        )
    return code


if __name__ == "__main__":
    program.run(main)
