"""Runs a training on a Cloud TPU slice: makes it, installs, trains on every machine, removes it.

    python -m launch.tpu --name=lrcn --zone=us-west4-a --type=v5litepod-16 --queued --spot \
        --setup='sudo mkdir -p /nfs && sudo mount 10.0.0.2:/share /nfs' --delete -- \
        --config=experiments/lrcn_ucf101.py --workdir=/nfs/runs/lrcn --config.data.root=/nfs/ucf101

What stands behind ``--`` are the flags of ``launch.train``, or of the program that ``--program``
names. ``--dry_run`` prints the commands of gcloud, which run one after another up to the first that
fails; its exit code is this one's. The machines then stay, and cost; ``--nocreate`` goes on with
them, and the training resumes.

The code is this checkout's, or that of ``--repository``. Several machines share the workdir, so it
lies on a file system that ``--setup`` mounts, and so do the data.
"""

import shlex
import sys
from collections.abc import Sequence

from absl import flags

from launch import program
from launch.clusters.cloud_tpu import (
    Options,
    delete_command,
    make_commands,
    run_commands,
)

NAME = flags.DEFINE_string("name", None, "Of the machines.", required=True)
ZONE = flags.DEFINE_string("zone", None, "As us-west4-a.", required=True)
TYPE = flags.DEFINE_string(
    "type", None, "The accelerator type, as v5litepod-16 or v5p-32.", required=True
)
RUNTIME_VERSION = flags.DEFINE_string(
    "runtime_version", None, "The machines' software; default: the one for JAX on this type."
)
PROJECT = flags.DEFINE_string("project", None, "Default: the one that gcloud is set to.")
QUEUED = flags.DEFINE_bool("queued", False, "Wait in Cloud TPU's queue for the machines.")
SPOT = flags.DEFINE_bool("spot", False, "Cheaper machines, which may be taken away.")
REPOSITORY = flags.DEFINE_string(
    "repository", None, "Of git, to be cloned; default: this checkout's files are copied."
)
SETUP = flags.DEFINE_multi_string(
    "setup", [], "A shell command on every machine before the training, as a mount."
)
CREATE = flags.DEFINE_bool("create", True, "Make the machines; else they are there.")
DELETE = flags.DEFINE_bool("delete", False, "Remove the machines after the training.")
PROGRAM = flags.DEFINE_string("program", "launch.train", "The module that each machine runs.")
DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print the commands and run none.")


def main(argv: Sequence[str]) -> int:
    """Runs the commands, or prints them; returns the exit code."""
    options = Options(
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
    commands = make_commands(options)
    if DRY_RUN.value:
        for command in commands:
            print(shlex.join(command))
        return 0
    code = run_commands(commands)
    if code:
        print(
            "the machines may be there and cost; this removes them:\n  "
            + shlex.join(delete_command(options)),
            file=sys.stderr,
        )
    return code


if __name__ == "__main__":
    program.run(main)
