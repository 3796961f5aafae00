"""Several processes of one run: start, end, and decisions that all of them share.

JAX detects the processes of Slurm (``srun``), Open MPI (``mpirun``), Cloud TPU and, with the
package ``kubernetes`` and the right to read its pods, of a Kubernetes Job or JobSet; elsewhere they
are given by flags, as ``--process_id=$(JOB_COMPLETION_INDEX)`` in a manifest without that right.

Every process runs the same program, and collective operations must be called by all in the same
order. A decision that depends on one process, as on a file that only the first one writes, is
therefore made by the first and broadcast.
"""

import contextlib
import logging
import os
import socket
import sys
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

logger = logging.getLogger(__name__)

CLUSTERS = ("auto", "none", "slurm", "ompi", "mpi4py", "k8s", "gcetpu", "gketpu")
_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


@contextlib.contextmanager
def joined(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    cluster: str = "auto",
    initialization_timeout: int = 300,
    heartbeat_timeout: int = 30,
) -> Iterator[None]:
    """Context in which this process is joined to the others; precedes all operations of JAX.

    If a process dies or stops responding, JAX aborts all others (exit code 134) within
    ``heartbeat_timeout`` and a few more seconds, and names the task without heartbeats, whose
    number is its ``process_id``. If the first process, JAX's leader, dies, the others end at once.

    Args:
      coordinator: ``HOST:PORT`` of the first process, which listens on loopback alone if HOST is
        loopback. Without it, ``cluster`` tells how the processes find each other.
      num_processes: number of processes of the run; given with ``coordinator``.
      process_id: number of this process, from 0 on; given with ``coordinator``.
      cluster: ``auto``: as JAX detects, or else one process; ``none``: one process; or the name of
        one of JAX's detection methods.
      initialization_timeout: seconds to wait for the other processes.
      heartbeat_timeout: seconds without a heartbeat after which a process counts as dead.

    Raises:
      ValueError: options that contradict each other, or a cluster that is not there.
    """
    _check(coordinator, num_processes, process_id, cluster)
    timeouts: dict[str, Any] = {
        "initialization_timeout": initialization_timeout,
        "heartbeat_timeout_seconds": heartbeat_timeout,
        # Longer than the heartbeat timeout, whose message names the process that died.
        "shutdown_timeout_seconds": heartbeat_timeout + 10,
    }
    if coordinator is not None:
        logger.info(
            "process %s of %s waits for the others at %s, at most %d s",
            process_id,
            num_processes,
            coordinator,
            initialization_timeout,
        )
        # JAX listens on every interface by default.
        local = coordinator.rpartition(":")[0] in _LOOPBACK
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            cluster_detection_method="deactivate",
            coordinator_bind_address=coordinator if local else None,
            **timeouts,
        )
    elif cluster != "none":
        _detect(cluster, timeouts)
    if jax.process_count() > 1:
        logger.info("processes: %s", ", ".join(_names()))
    yield
    # Skipped after an error, as the other processes may never get here.
    synchronize("end")
    jax.distributed.shutdown()


def _check(
    coordinator: str | None, num_processes: int | None, process_id: int | None, cluster: str
) -> None:
    given = {
        "coordinator": coordinator,
        "num_processes": num_processes,
        "process_id": process_id,
    }
    missing = [name for name, value in given.items() if value is None]
    if missing and len(missing) < len(given):
        raise ValueError(
            "coordinator, num_processes, process_id: expected all three or none, received no "
            + " and no ".join(missing)
        )
    if cluster not in CLUSTERS:
        raise ValueError(f"cluster: expected one of {', '.join(CLUSTERS)}, received {cluster!r}")
    if coordinator is None or num_processes is None or process_id is None:
        return
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError(f"coordinator: expected HOST:PORT, received {coordinator!r}")
    if not 0 <= process_id < num_processes:
        raise ValueError(
            f"process_id: expected 0 <= process_id < num_processes = {num_processes}, received "
            f"{process_id}"
        )


def _detect(cluster: str, timeouts: dict[str, Any]) -> None:
    """Joins the processes of the cluster that JAX detects; stays alone without any."""
    method = None if cluster == "auto" else cluster
    try:
        jax.distributed.initialize(cluster_detection_method=method, **timeouts)
    except ValueError as error:
        # The message of JAX if it detects no cluster.
        if "coordinator_address should be defined" not in str(error):
            raise
        if cluster != "auto":
            raise ValueError(
                f"cluster: expected to run within {cluster!r}, whose variables the environment "
                "lacks; give --coordinator, --num_processes and --process_id instead"
            ) from None


def is_first() -> bool:
    """Returns True for the process that writes files."""
    return jax.process_index() == 0


def synchronize(name: str) -> None:
    """Waits until all processes have called it with the same ``name``."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def broadcast_from_first(value: bool) -> bool:
    """Returns the first process's value in all processes; collective."""
    if jax.process_count() == 1:
        return value
    return bool(multihost_utils.broadcast_one_to_all(np.array(value)))


def leave(code: int) -> None:
    """Exits at once if there are other processes; called after an error of this one.

    An orderly exit would wait for the others, which wait for this one in their next collective
    operation.
    """
    if jax.distributed.is_initialized() and jax.process_count() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def describe_process() -> str:
    """Returns a text as ``process 1 of 2 (4711 on node7)``; empty for a single process."""
    if jax.process_count() == 1:
        return ""
    return (
        f"process {jax.process_index()} of {jax.process_count()} "
        f"({os.getpid()} on {socket.gethostname()})"
    )


def _names() -> list[str]:
    """Returns ``0: 4711 on node7`` of each process, to look up one that JAX reports dead."""
    own = f"{os.getpid()} on {socket.gethostname()}".encode()[:128]
    row = np.zeros(128, np.uint8)
    row[: len(own)] = np.frombuffer(own, np.uint8)
    rows = multihost_utils.process_allgather(row)
    return [f"{k}: {row.tobytes().rstrip(bytes(1)).decode()}" for k, row in enumerate(rows)]
