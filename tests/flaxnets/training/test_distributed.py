"""Options of several processes are checked; a single process works without any."""

import dataclasses
import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import pytest

from flaxnets.training import distributed
from flaxnets.training.distributed import (
    broadcast_from_first,
    describe_process,
    is_first,
    joined,
    leave,
    synchronize,
)
from flaxnets.training.metric_writer import MetricsWriter
from flaxnets.training.workdir import Workdir
from tests.launch.jobs import free_port


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"coordinator": "a:1"}, "received no num_processes and no process_id"),
        ({"num_processes": 2, "process_id": 0}, "all three or none, received no coordinator"),
        (
            {"coordinator": "node7", "num_processes": 2, "process_id": 0},
            "coordinator: expected HOST:PORT, received 'node7'",
        ),
        (
            {"coordinator": "a:1", "num_processes": 2, "process_id": 2},
            "process_id: expected 0 <= process_id < num_processes = 2, received 2",
        ),
        ({"cluster": "slrum"}, "cluster: expected one of auto, none, slurm, .*received 'slrum'"),
    ],
)
def test_options_that_do_not_fit_together_are_refused(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message), joined(**options):
        pass


def test_a_single_process_is_the_first_and_waits_for_nobody() -> None:
    with joined(cluster="none"):
        assert is_first()
        assert broadcast_from_first(True)
        assert not broadcast_from_first(False)
        synchronize("here")
        assert describe_process() == ""
        leave(1)  # Exits only if there are other processes.


def test_other_processes_leave_the_workdir_alone(tmp_path: Path) -> None:
    with Workdir(tmp_path), Workdir(tmp_path, writes=False):
        before = sorted(tmp_path.iterdir())
        writer = MetricsWriter(tmp_path, resume_step=0, writes=False)
        writer.write(1, "train", {"loss": 1.0})
        writer.close()
        assert sorted(tmp_path.iterdir()) == before


SLURM = {
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_NODELIST": "node[007-009,12],other",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "1",
}


@pytest.fixture
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in [name for name in os.environ if name.startswith(("SLURM_", "JAX_CO", "JAX_LOCAL"))]:
        monkeypatch.delenv(name)
    return monkeypatch


@pytest.mark.parametrize(
    ("missing", "where"),
    [
        ((), "no Slurm job"),
        (("SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID"), "the allocation of a job"),
        (("SLURM_PROCID",), "the allocation of a job"),
    ],
)
def test_slurm_without_srun_is_one_sentence(
    missing: tuple[str, ...], where: str, no_cluster: pytest.MonkeyPatch
) -> None:
    for name, value in SLURM.items() if missing else ():
        if name not in missing:
            no_cluster.setenv(name, value)
    with pytest.raises(ValueError, match=f"received {where}.*start the program with srun"):
        joined(cluster="slurm").__enter__()
    if missing:  # The default does not mind.
        assert distributed._slurm_group(required=False) is None


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("node7", "node7"), ("node7,a", "node7"), ("n[007-9,12],a", "n007"), ("n[3,7],a", "n3")],
)
def test_tasks_of_slurm_meet_where_jax_would(
    nodes: str, first: str, no_cluster: pytest.MonkeyPatch
) -> None:
    from jax._src.clusters import ClusterEnv  # Not public, and read by this test alone.

    for name, value in {**SLURM, "SLURM_STEP_NODELIST": nodes}.items():
        no_cluster.setenv(name, value)
    group = distributed._slurm_group(required=True)
    theirs = ClusterEnv.auto_detect_unset_distributed_params(None, None, None, None, "slurm", 1)
    assert group == distributed._Group(*theirs)
    assert group.coordinator.partition(":")[0] == first
    no_cluster.setenv("SLURM_NTASKS", "many")
    with pytest.raises(ValueError, match="SLURM_NTASKS=many"):
        distributed._slurm_group(required=False)


def meet(
    port: int, num_processes: int, process_id: int, timeout: float = 20
) -> tuple[str, list[str]]:
    """Joins the others, as one of several threads; returns the error and the states it was told."""
    group = distributed._Group(f"127.0.0.1:{port}", num_processes, process_id)
    states: list[str] = []
    part = distributed._host if process_id == 0 else distributed._visit
    end = time.monotonic() + timeout
    try:
        for state in part(group, group.coordinator):
            states.append(state)
            if time.monotonic() > end:
                return "late", states
    except (ValueError, OSError) as error:
        return str(error), states
    return "", states


def test_processes_that_are_missing_are_counted_and_named(caplog: pytest.LogCaptureFixture) -> None:
    port = free_port()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(meet, port, 3, 0)
        second = pool.submit(meet, port, 3, 2)
        time.sleep(1)  # A stranger at the port is no process.
        for text in (b"GET / HTTP/1.1\r\n\r\n", b"\0" * 99):
            with socket.create_connection(("127.0.0.1", port)) as stranger:
                stranger.sendall(text)
        assert meet(port, 3, 1) == ("", [])
        for future in (first, second):
            error, states = future.result()
            assert error == ""
            assert states[-1] == "2 of 3 processes have joined, not 1"
    with socket.create_server(("127.0.0.1", port)):  # It is free for JAX at once.
        pass


def test_a_sentence_comes_soon_and_the_end_is_one(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(distributed, "_NOTICE_SECONDS", 0.3)
    for number, state in (
        (0, "1 of 2 processes have joined, not 1"),
        (1, "process 0 has not answered at 127.0.0.1:"),
    ):
        caplog.clear()
        where = f"127.0.0.1:{free_port()}"
        with pytest.raises(ValueError, match=f"^{state}.* within 1 s; start as many as"):
            joined(where, 2, number, initialization_timeout=1).__enter__()
        assert any(record.getMessage().startswith(state) for record in caplog.records)


def test_who_was_missing_is_known_when_the_first_process_gives_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(distributed, "_GONE_SECONDS", 0.5)
    port = free_port()
    with ThreadPoolExecutor(1) as pool:
        second = pool.submit(meet, port, 3, 2)
        assert meet(port, 3, 0, timeout=1)[0] == "late"
        error, _ = second.result()
    assert error.startswith(f"process 0 no longer answers at 127.0.0.1:{port} (")
    assert error.endswith("; when it did, 2 of 3 processes have joined, not 1")


def test_processes_of_other_runs_do_not_meet() -> None:
    port = free_port()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(meet, port, 2, 0)
        theirs = meet(port, 3, 1)[0]
        ours = first.result()[0]
    assert theirs == ours == "num_processes: 2 at process 0, but process 1 is one of 3"
    with ThreadPoolExecutor(2) as pool:
        parts = [pool.submit(meet, port, 3, number) for number in (0, 1)]
        time.sleep(1)
        errors = [meet(port, 3, 1)[0], *(part.result()[0] for part in parts)]
    assert errors == ["process_id: expected each once, received 1 twice"] * 3
    with socket.create_server(("127.0.0.1", port)):
        assert "cannot listen at 127.0.0.1" in meet(port, 2, 0)[0]


def test_it_listens_at_the_interface_that_is_named(no_cluster: pytest.MonkeyPatch) -> None:
    assert distributed._bind_address("127.0.0.1:1") == "127.0.0.1:1"
    assert distributed._bind_address("[::1]:1") == "[::1]:1"
    # TEST-NET-1 is an address of no machine: one behind a NAT, say.
    assert distributed._bind_address("192.0.2.1:7") == "[::]:7"
    no_cluster.setattr(socket, "gethostbyname", lambda name: "127.0.1.1")
    assert distributed._bind_address("node7:7") == "[::]:7"
    no_cluster.setenv("JAX_COORDINATOR_BIND_ADDRESS", "10.1.2.3:9")
    assert distributed._bind_address("node7:7") == "10.1.2.3:9"


def test_the_dead_among_the_processes_are_named() -> None:
    own = distributed._find_peers()
    assert [peer.pid for peer in own] == [os.getpid()]
    ended = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)  # A zombie counts as dead.
    dead = dataclasses.replace(own[0], pid=ended.pid)
    elsewhere = dataclasses.replace(dead, place="another machine")
    where = f"{ended.pid} on {socket.gethostname()}"
    assert distributed._find_dead([*own, dead]) == f"process 1 of 2 ({where})"
    assert distributed._find_dead([*own, elsewhere]) == ""
    lost = jax.errors.JaxRuntimeError("INTERNAL: Gloo AllGather failed: Connection closed by peer")
    try:
        raise RuntimeError("a checkpoint cannot be written") from lost
    except RuntimeError as error:
        named = distributed._find_lost(error, [*own, dead], 1)
    assert named.startswith(f"process 1 of 2 ({where}) has died")
    quoted = ValueError("9: the checkpoint could not be written: UNKNOWN: Gloo AllGather failed")
    assert distributed._find_lost(quoted, [*own, dead], 1) == named
    assert distributed._find_lost(OSError("Connection refused"), [*own, dead], 1) == ""
    ended.wait()
