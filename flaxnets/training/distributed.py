"""Several processes of one run: start, end, and decisions that all of them share.

The processes of Slurm (``srun``) are read from its variables; JAX detects those of Open MPI
(``mpirun``), Cloud TPU and, with the package ``kubernetes`` and the right to read its pods, of a
Kubernetes Job or JobSet; elsewhere they are given by flags, as
``--process_id=$(JOB_COMPLETION_INDEX)`` in a manifest without that right.

Every process runs the same program, and collective operations must be called by all in the same
order. A decision that depends on one process, as on a file that only the first one writes, is
therefore made by the first and broadcast.
"""

import contextlib
import dataclasses
import http.client
import http.server
import json
import logging
import math
import os
import re
import secrets
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

logger = logging.getLogger(__name__)

CLUSTERS = ("auto", "none", "slurm", "ompi", "mpi4py", "k8s", "gcetpu", "gketpu")
_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
LOST_PROCESS = 134
"""Exit code after the loss of another process, here or by JAX's own abort (SIGABRT)."""
_NOTICE_SECONDS = 10.0
"""Seconds between two messages about the processes that have not joined."""
_RETRY_SECONDS = 0.2
_WATCH_SECONDS = 0.5
_GONE_SECONDS = 5.0
"""Seconds without a word of a process that had come, after which it counts as missing."""

# Messages of Gloo, NCCL, gRPC and the coordination service about a connection that is gone. Those
# of the first list come from JAX alone, and count in the error of a checkpoint that quotes them.
_LOST_IN_JAX = re.compile("Gloo |NCCL |heartbeat timeout|coordination service")
_LOST = re.compile(
    "Gloo|NCCL|[Cc]onnection (closed|reset|refused)|Broken pipe|Socket closed|heartbeat|UNAVAILABLE"
)


class LostProcess(RuntimeError):
    """Another process of the run has died; the message names it."""


@dataclasses.dataclass(frozen=True)
class _Group:
    """Processes of a run: address ``HOST:PORT`` of the first, their number, this one's number."""

    coordinator: str
    num_processes: int
    process_id: int
    local_device_ids: list[int] | None = None


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

    If a process dies, those of the same machine name it and end at once (exit code 134). If one of
    another machine dies or stops responding, JAX aborts the others (134, too) within
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
      ValueError: options that contradict each other, a cluster that is not there, or processes that
        do not join in time; names them.
      OSError: the first process cannot listen at its address.
      LostProcess: an operation of all processes failed, as one of them has died.
    """
    _check(coordinator, num_processes, process_id, cluster)
    timeouts: dict[str, Any] = {
        "initialization_timeout": initialization_timeout,
        "heartbeat_timeout_seconds": heartbeat_timeout,
        # Longer than the heartbeat timeout, whose message names the process that died.
        "shutdown_timeout_seconds": heartbeat_timeout + 10,
    }
    group = None
    if coordinator is not None and num_processes is not None and process_id is not None:
        group = _Group(coordinator, num_processes, process_id)
    elif cluster in ("auto", "slurm"):
        group = _slurm_group(required=cluster == "slurm")
    if group is not None:
        # JAX aborts the process if one of the others is missing, and does not tell which.
        bind = _bind_address(group.coordinator)
        _meet(group, bind, initialization_timeout)
        jax.distributed.initialize(
            group.coordinator,
            group.num_processes,
            group.process_id,
            group.local_device_ids,
            cluster_detection_method="deactivate",
            coordinator_bind_address=bind,
            **timeouts,
        )
    elif cluster != "none":
        _detect(cluster, timeouts)
    if jax.process_count() == 1:
        yield
        jax.distributed.shutdown()
        return
    peers = _find_peers()
    logger.info("processes: %s", ", ".join(f"{k}: {peer.name}" for k, peer in enumerate(peers)))
    ends = threading.Event()
    watch = threading.Thread(target=_leave_with_peers, args=(peers, ends), daemon=True)
    watch.start()
    try:
        yield
    except Exception as error:
        lost = _find_lost(error, peers, heartbeat_timeout)
        if not lost:
            raise
        raise LostProcess(lost) from error
    # Skipped after an error, as the other processes may never get here.
    synchronize("end")
    ends.set()  # From here on they may end, and do not before this one has come to shutdown.
    watch.join()
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
    except KeyError as error:  # Of os.environ: JAX goes on without looking.
        raise ValueError(
            f"cluster: expected to run within {cluster!r}, but the environment lacks "
            f"{error.args[0]}; give --coordinator, --num_processes and --process_id instead"
        ) from None


def _slurm_group(*, required: bool) -> _Group | None:
    """Returns the tasks of this Slurm step; None outside of one.

    The address is that of JAX's own detection: the step's first node, and a port by the job's id.

    Args:
      required: raise if this is no step, as within ``salloc`` or a batch script without ``srun``.
    """
    names = ("JOB_ID", "STEP_NODELIST", "NTASKS", "PROCID", "LOCALID")
    found = {name: os.environ.get(f"SLURM_{name}", "") for name in names}
    missing = [f"SLURM_{name}" for name, value in found.items() if not value]
    if missing:
        if required:
            where = (
                "the allocation of a job, but in none of its steps"
                if found["JOB_ID"]
                else "no Slurm job"
            )
            raise ValueError(
                f"cluster: expected a task of Slurm, received {where} (the environment lacks "
                f"{', '.join(missing)}); start the program with srun, or with --cluster=none as a "
                "single process"
            )
        return None
    # As node7, node7,node9 or node[007-009,12].
    nodes = re.match(r"([^,\[]+)(?:\[([^-,\]]+))?", found["STEP_NODELIST"])
    try:
        job, count, number, local = (
            int(found[name]) for name in ("JOB_ID", "NTASKS", "PROCID", "LOCALID")
        )
        if nodes is None or not 0 <= number < count:
            raise ValueError
    except ValueError:
        shown = ", ".join(f"SLURM_{name}={value}" for name, value in found.items())
        raise ValueError(
            f"cluster: expected the variables of a Slurm task, received {shown}"
        ) from None
    port = os.environ.get("JAX_COORDINATOR_PORT") or str(job % 2**12 + 65536 - 2**12)
    # As JAX does: one device for each task, unless the launcher says otherwise.
    devices = None if os.environ.get("JAX_LOCAL_DEVICE_IDS") else [local]
    return _Group(f"{nodes[1]}{nodes[2] or ''}:{port}", count, number, devices)


def _bind_address(coordinator: str) -> str:
    """Returns the address at which the first process listens.

    It is the interface that ``coordinator`` names, as the service has no authentication; every
    interface if the name is not one of this machine's addresses, as behind a NAT, or if it is
    loopback here alone, as a machine's own name in ``/etc/hosts``.
    """
    if given := os.environ.get("JAX_COORDINATOR_BIND_ADDRESS"):
        return given
    host, _, port = coordinator.rpartition(":")
    if host in _LOOPBACK:
        return coordinator
    try:
        address = socket.gethostbyname(host.strip("[]"))
        with socket.socket() as probe:
            probe.bind((address, 0))
    except OSError:
        address = "127."
    return f"[::]:{port}" if address.startswith("127.") else f"{address}:{port}"


def _meet(group: _Group, bind: str, timeout: float) -> None:
    """Waits until every process has come to the first one, at the address of the coordinator.

    Until all are there, the others ask the first one over HTTP who is missing; then it frees the
    address for JAX's service. JAX alone would abort after the timeout and name nobody.

    Raises:
      ValueError: some processes did not come in time, or came with other options.
      OSError: the address cannot be listened at.
    """
    logger.info(
        "process %d of %d waits for the others at %s, at most %d s",
        group.process_id,
        group.num_processes,
        group.coordinator,
        timeout,
    )
    meet = _host if group.process_id == 0 else _visit
    told = time.monotonic()
    end = told + timeout
    for status in meet(group, bind):
        now = time.monotonic()
        if now >= end:
            raise ValueError(f"{status} within {timeout:.0f} s; {_START_ALL}")
        if now >= told + _NOTICE_SECONDS:
            logger.warning("%s; %s", status, _START_ALL)
            told = now


_START_ALL = "start as many as --num_processes or srun --ntasks says, and see how the missing ended"


def _host(group: _Group, bind: str) -> Iterator[str]:
    """Yields the state again and again until all others have come and know that all have."""
    host, _, port = bind.rpartition(":")
    host, count = host.strip("[]"), group.num_processes
    seen: dict[int, float] = {0: math.inf}
    leaving: set[int] = set()
    problems: list[str] = []

    def missing() -> list[int]:
        soon = time.monotonic() - _GONE_SECONDS
        return [k for k in range(count) if seen.get(k, -math.inf) < soon and k not in leaving]

    class Handler(http.server.BaseHTTPRequestHandler):
        timeout = 2  # Of a visitor that says nothing, as a port scanner.

        def do_GET(self) -> None:
            match = re.fullmatch(r"/flaxnets/(\d{1,6})/(\d{1,6})/(\w+)", self.path)
            if match is None:
                self.send_error(404)
                return
            number, theirs = int(match[1]), int(match[2])
            if theirs != count or not 0 < number < count:
                problems.append(
                    f"num_processes: {count} at process 0, but process {number} is one of {theirs}"
                )
            elif names.setdefault(number, match[3]) != match[3] and number not in missing():
                problems.append(f"process_id: expected each once, received {number} twice")
            names[number] = match[3]
            seen[number] = time.monotonic()
            absent = missing()
            if not absent:
                leaving.add(number)
            answer = json.dumps({"missing": absent, "problem": "".join(problems[:1])}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    class Server(http.server.HTTPServer):
        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        timeout = _RETRY_SECONDS

        def server_bind(self) -> None:
            if host == "::":  # IPv4, too.
                self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            socketserver.TCPServer.server_bind(self)

    names: dict[int, str] = {}
    try:
        server = Server((host, int(port)), Handler)
    except OSError as error:
        raise OSError(
            f"coordinator: process 0 cannot listen at {bind} ({error.strerror}); expected a free "
            "port of this machine"
        ) from error
    with server:
        end = math.inf
        while len(leaving) < count - 1 and time.monotonic() < end:
            server.handle_request()
            if problems:
                end = min(end, time.monotonic() + 2 * _RETRY_SECONDS)  # The others hear it as well.
            elif absent := missing():
                yield _state(count, absent)
    if problems:
        raise ValueError(problems[0])


def _visit(group: _Group, bind: str) -> Iterator[str]:
    """Yields the state again and again until the first process answers that all have come."""
    last, answered = "", time.monotonic()
    me = f"/flaxnets/{group.process_id}/{group.num_processes}/{secrets.token_hex(4)}"
    while True:
        try:
            connection = http.client.HTTPConnection(group.coordinator, timeout=5)
            with contextlib.closing(connection):
                connection.request("GET", me)
                answer = json.loads(connection.getresponse().read())
        except (OSError, ValueError, http.client.HTTPException) as error:
            reason = str(error) or type(error).__name__
            if last and time.monotonic() > answered + _GONE_SECONDS:
                where = f"process 0 no longer answers at {group.coordinator} ({reason})"
                raise ValueError(f"{where}; when it did, {last}") from None
            yield f"process 0 has not answered at {group.coordinator} ({reason})"
        else:
            if answer["problem"]:
                raise ValueError(answer["problem"])
            if not answer["missing"]:
                return
            last, answered = _state(group.num_processes, answer["missing"]), time.monotonic()
            yield last
        time.sleep(_RETRY_SECONDS)


def _state(count: int, missing: Sequence[int]) -> str:
    """Returns ``1 of 3 processes have joined, not 1, 2``."""
    shown = ", ".join(map(str, missing[:8])) + (", …" if len(missing) > 8 else "")
    return f"{count - len(missing)} of {count} processes have joined, not {shown}"


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
    # The first condition spares a program that fails early the search for devices.
    if not jax.distributed.is_initialized() or jax.process_count() == 1:
        return ""
    return (
        f"process {jax.process_index()} of {jax.process_count()} "
        f"({os.getpid()} on {socket.gethostname()})"
    )


@dataclasses.dataclass(frozen=True)
class _Peer:
    """Process of the run.

    Attributes:
      pid: its number on its machine.
      host: name of the machine.
      place: boot and PID namespace in which ``pid`` counts; empty if the system has none.
    """

    pid: int
    host: str
    place: str

    @property
    def name(self) -> str:
        return f"{self.pid} on {self.host}"


def _find_peers() -> list[_Peer]:
    """Returns all processes in order; collective."""
    place = ""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        place = f"{boot} {os.readlink('/proc/self/ns/pid')}"
    own = json.dumps([os.getpid(), socket.gethostname()[:128], place]).encode()
    row = np.zeros(512, np.uint8)
    row[: len(own)] = np.frombuffer(own, np.uint8)
    rows = multihost_utils.process_allgather(row)
    return [_Peer(*json.loads(row.tobytes().rstrip(bytes(1)))) for row in rows]


def _find_dead(peers: Sequence[_Peer]) -> str:
    """Returns the processes of this machine that no longer run, in words; "" if all do."""
    own = jax.process_index()
    near = [k for k, peer in enumerate(peers) if peer.place and peer.place == peers[own].place]
    dead = [k for k in near if k != own and not _runs(peers[k].pid)]
    return " and ".join(f"process {k} of {len(peers)} ({peers[k].name})" for k in dead)


def _runs(pid: int) -> bool:
    """Returns True if a process of this machine exists and is no zombie."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] not in "ZX"


def _leave_with_peers(peers: Sequence[_Peer], ends: threading.Event) -> None:
    """Ends this process when another one of this machine has died.

    The main thread may wait for that one in an operation of all, or while it closes a checkpointer.
    """
    while not ends.wait(_WATCH_SECONDS):
        if dead := _find_dead(peers):
            logger.error("%s: %s", describe_process(), _say_dead(dead))
            leave(LOST_PROCESS)


def _say_dead(dead: str) -> str:
    return f"{dead} has died, and this one ends; the output of the dead or dmesg has the reason"


def _is_lost_connection(error: BaseException) -> bool:
    """Returns True for an error of JAX, or one that quotes it, about a connection to a process."""
    pattern = _LOST if isinstance(error, jax.errors.JaxRuntimeError) else _LOST_IN_JAX
    return pattern.search(str(error)) is not None


def _find_lost(error: BaseException, peers: Sequence[_Peer], heartbeat_timeout: int) -> str:
    """Returns which process has died, if an error is the loss of a connection to it; else "".

    An operation in which all processes take part fails in those that are left, with a message of
    the library that carried it. Processes of this machine are looked up; for others this waits
    until JAX, which misses their heartbeats, names them and aborts this process.

    Args:
      error: raised in this process.
      peers: the processes.
      heartbeat_timeout: seconds.
    """
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    message = next((str(one) for one in chain if _is_lost_connection(one)), None)
    if message is None:
        return ""
    end = time.monotonic() + 1  # The process may be on its way out.
    while not (dead := _find_dead(peers)) and time.monotonic() < end:
        time.sleep(0.05)
    if dead:
        return _say_dead(dead)
    reason = message.splitlines()[0]
    logger.error("a process of another machine is lost (%s); JAX will name it", reason)
    time.sleep(heartbeat_timeout + 15)
    return f"a process of another machine is lost: {reason}"
