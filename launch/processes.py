"""Flags that connect the processes of one run."""

import contextlib

from absl import flags

from flaxnets.training import distributed

COORDINATOR = flags.DEFINE_string(
    "coordinator",
    None,
    "HOST:PORT where the first of several processes listens; needs --num_processes and "
    "--process_id. Without it, the processes find each other under Slurm, Open MPI, Kubernetes and "
    "on Cloud TPU.",
)
NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes", None, "Number of processes of the run.", lower_bound=1
)
PROCESS_ID = flags.DEFINE_integer("process_id", None, "Number of this process, starting at 0.")
CLUSTER = flags.DEFINE_enum(
    "cluster", "auto", distributed.CLUSTERS, "Cluster in which to find the other processes."
)
INITIALIZATION_TIMEOUT = flags.DEFINE_integer(
    "initialization_timeout", 300, "Seconds to wait for the other processes.", lower_bound=1
)
HEARTBEAT_TIMEOUT = flags.DEFINE_integer(
    "heartbeat_timeout",
    30,
    "Seconds without a heartbeat of a process after which the run ends.",
    lower_bound=1,
)


def joined() -> contextlib.AbstractContextManager[None]:
    """Returns a context manager that joins the processes of the flags into one run."""
    return distributed.joined(
        COORDINATOR.value,
        NUM_PROCESSES.value,
        PROCESS_ID.value,
        cluster=CLUSTER.value,
        initialization_timeout=INITIALIZATION_TIMEOUT.value,
        heartbeat_timeout=HEARTBEAT_TIMEOUT.value,
    )
