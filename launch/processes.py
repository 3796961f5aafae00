"""The flags by which the processes of one run find each other."""

import contextlib

from absl import flags

from flaxnets.training import distributed

COORDINATOR = flags.DEFINE_string(
    "coordinator",
    None,
    "HOST:PORT where the first of several processes listens; with --num_processes and "
    "--process_id. Without it, the processes of Slurm, Open MPI, Kubernetes and Cloud TPU are "
    "found.",
)
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Processes of the run.", lower_bound=1)
PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of them this is, from 0 on.")
CLUSTER = flags.DEFINE_enum(
    "cluster", "auto", distributed.CLUSTERS, "Where to look for other processes."
)
INITIALIZATION_TIMEOUT = flags.DEFINE_integer(
    "initialization_timeout", 300, "Seconds to wait for the other processes.", lower_bound=1
)
HEARTBEAT_TIMEOUT = flags.DEFINE_integer(
    "heartbeat_timeout",
    30,
    "Seconds without an answer from a process after which the run ends.",
    lower_bound=1,
)


def joined() -> contextlib.AbstractContextManager[None]:
    """Within ``with``, this process is one of those that the flags tell of."""
    return distributed.joined(
        COORDINATOR.value,
        NUM_PROCESSES.value,
        PROCESS_ID.value,
        cluster=CLUSTER.value,
        initialization_timeout=INITIALIZATION_TIMEOUT.value,
        heartbeat_timeout=HEARTBEAT_TIMEOUT.value,
    )
