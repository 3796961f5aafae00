"""A sweep over a real PostgreSQL server, where its programs are installed."""

import os
import pwd
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flaxnets.training.config import Config
from launch.sweeps import study as study_module
from launch.sweeps.plan import make_plan
from launch.sweeps.study import Database, DatabaseUnreachable, open_study
from launch.sweeps.trial import Result, draw
from launch.sweeps.worker import Queue, work
from tests.launch.jobs import free_port

pytest.importorskip("optuna")
pytest.importorskip("psycopg")

PROGRAMS = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))), None)


@pytest.fixture
def server() -> Iterator[tuple[str, Callable[[], None]]]:
    """The address of an empty database, and what stops its server."""
    if PROGRAMS is None:
        pytest.skip("no PostgreSQL server on this machine")
    # The server refuses to be run by root.
    user = "postgres" if os.geteuid() == 0 else None
    if user and user not in {entry.pw_name for entry in pwd.getpwall()}:
        pytest.skip("no user that could run a PostgreSQL server")
    folder = Path(tempfile.mkdtemp(prefix="flaxnets-postgresql-"))
    if user:
        shutil.chown(folder, user)
    port = free_port()

    def call(program: str, *arguments: str) -> None:
        assert PROGRAMS is not None
        command = [str(PROGRAMS.with_name(program)), "-D", str(folder / "data"), *arguments]
        subprocess.run(command, check=True, user=user, cwd=folder, stdout=subprocess.DEVNULL)

    call("initdb", "--auth=trust", "--username=me")
    options = f"-p {port} -c listen_addresses=127.0.0.1 -k {folder}"
    call("pg_ctl", "-o", options, "-l", str(folder / "log"), "-w", "start")
    running = True

    def stop() -> None:
        nonlocal running
        if running:
            call("pg_ctl", "-m", "fast", "stop")
        running = False

    try:
        yield f"postgresql://me:secret@127.0.0.1:{port}/postgres", stop
    finally:
        stop()
        shutil.rmtree(folder)


@pytest.mark.stress
def test_many_workers_a_dead_one_and_a_server_that_stops(
    server: tuple[str, Callable[[], None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, stop = server
    plan = make_plan(
        "x.py", Config(), space=["seed=0:1000"], sampler="tpe", pruner="none", trials=16
    )
    done: list[int] = []
    start, lock = threading.Barrier(4), threading.Lock()

    databases: list[Database] = []

    def join(trials: int) -> Queue:
        database = Database(address)
        databases.append(database)
        study = open_study(database, "s", plan.settings, trials=trials)
        return Queue(database, study, plan.settings, stale_seconds=0.5)

    def worker() -> None:
        start.wait()  # All make the tables and the study at once.

        def objective(trial: Any) -> Result:
            with lock:
                done.append(trial.number)
            return Result([float(draw(trial, plan.dimensions, None)["seed"])])

        work(join(16), objective, poll_seconds=0.05)

    workers = [threading.Thread(target=worker) for _ in range(4)]
    for thread in workers:
        thread.start()
    for thread in workers:
        thread.join()
    assert sorted(done) == list(range(16))
    queue, other = join(17), join(17)
    assert queue.database.name.startswith("postgresql://me:***@127.0.0.1:")
    lost = queue.claim()
    assert lost is not None
    assert other.claim() is None
    time.sleep(1.0)
    taken = other.claim()
    assert taken is not None
    assert taken.trial.number == lost.trial.number == 16
    assert not queue.finish(lost, [1.0])
    assert other.finish(taken, [2.0])
    stop()
    monkeypatch.setattr(study_module, "FIRST_WAIT_SECONDS", 0.01)
    with pytest.raises(DatabaseUnreachable, match="cannot be reached, tried 5 times"):
        other.is_done()
    for database in databases:
        database.close()
