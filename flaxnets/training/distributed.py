"""Several processes of one run: how they find each other, and what the first does for all.

JAX finds the processes of Slurm (``srun``), Open MPI (``mpirun``), Cloud TPU and, with the package
``kubernetes`` and the right to read its pods, of a Kubernetes Job or JobSet by itself; elsewhere
they are told, as in a manifest without that right: ``--process_id=$(JOB_COMPLETION_INDEX)``.

Every process runs the same program. What depends on one process alone, such as a file that the
first writes, is decided by the first and told to the others.
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
    """Within ``with``, this process is one of a run's; comes before any operation of JAX.

    A process that dies or no longer answers ends all the others within ``heartbeat_timeout``
    seconds and a few more: JAX aborts them (exit code 134) and says which task sends no heartbeats
    any more, the task's number being its ``process_id``. When the first process dies, which JAX
    calls the leader, the others end at once.

    Args:
      coordinator: ``HOST:PORT`` where the first process listens, on loopback alone where HOST is
        loopback. Without it, ``cluster`` says how the processes find each other.
      num_processes: all processes of the run; together with ``coordinator``.
      process_id: which of them this is, from 0 on; together with ``coordinator``.
      cluster: ``auto``: what JAX detects, or else one process; ``none``: one process; or the name
        of one of JAX's detections.
      initialization_timeout: seconds to wait for the other processes.
      heartbeat_timeout: seconds without an answer after which a process counts as dead.

    Raises:
      ValueError: options that do not fit together.
    """
    _check(coordinator, num_processes, process_id, cluster)
    timeouts: dict[str, Any] = {
        "initialization_timeout": initialization_timeout,
        "heartbeat_timeout_seconds": heartbeat_timeout,
        # Later than a missing heartbeat, whose message names the process that is to blame.
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
        # By default JAX listens on every interface.
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
    # Not after an error: then the others may never come.
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
    """Joins the processes of the cluster that JAX finds itself in, if it does."""
    method = None if cluster == "auto" else cluster
    try:
        jax.distributed.initialize(cluster_detection_method=method, **timeouts)
    except ValueError as error:
        # What JAX says where it found nothing that tells it of other processes.
        if "coordinator_address should be defined" not in str(error):
            raise
        if cluster != "auto":
            raise ValueError(
                f"cluster: expected to run within {cluster!r}, whose variables the environment "
                "lacks; give --coordinator, --num_processes and --process_id instead"
            ) from None


def is_first() -> bool:
    """Whether this process is the one that writes files."""
    return jax.process_index() == 0


def synchronize(name: str) -> None:
    """Waits until all processes are here; ``name`` is that of the place."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def broadcast_from_first(value: bool) -> bool:
    """What the first process passes, in all of them."""
    if jax.process_count() == 1:
        return value
    return bool(multihost_utils.broadcast_one_to_all(np.array(value)))


def leave(code: int) -> None:
    """Ends this process after an error of its own, at once where there are others.

    An orderly end would wait for them, and they for this one's part of their next operation.
    """
    if jax.distributed.is_initialized() and jax.process_count() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def describe_process() -> str:
    """This process among the others, as ``process 1 of 2 (4711 on node7)``; empty if alone."""
    if jax.process_count() == 1:
        return ""
    return (
        f"process {jax.process_index()} of {jax.process_count()} "
        f"({os.getpid()} on {socket.gethostname()})"
    )


def _names() -> list[str]:
    """``0: 4711 on node7`` of each process, for those who read that one of them died."""
    own = f"{os.getpid()} on {socket.gethostname()}".encode()[:128]
    row = np.zeros(128, np.uint8)
    row[: len(own)] = np.frombuffer(own, np.uint8)
    rows = multihost_utils.process_allgather(row)
    return [f"{k}: {row.tobytes().rstrip(bytes(1)).decode()}" for k, row in enumerate(rows)]
