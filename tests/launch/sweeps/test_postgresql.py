"""Sweep over a real PostgreSQL server, if its programs are installed."""

import os
import pwd
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flaxnets.training.config import Config
from launch.sweeps import study as study_module
from launch.sweeps.plan import make_plan
from launch.sweeps.space import draw
from launch.sweeps.study import (
    Database,
    DatabaseUnreachable,
    current_trials,
    open_study,
)
from launch.sweeps.worker import is_done, work
from tests.launch.jobs import free_port

pytest.importorskip("optuna")
pytest.importorskip("psycopg")

PROGRAMS = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))), None)


@pytest.fixture
def server() -> Iterator[tuple[str, Callable[[], None]]]:
    """Gives the address of an empty database, and a function that stops its server."""
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

    class Killed(BaseException):
        """Ends a worker in the middle of its trial."""

    databases: list[Database] = []

    def join(trials: int) -> tuple[Database, Any]:
        database = Database(address, stale_seconds=1)
        databases.append(database)
        return database, open_study(database, "s", plan.settings, trials=trials)

    def train(trial: Any, number: int) -> list[float]:
        with lock:
            done.append(number)
        return [float(draw(trial, plan.dimensions, None)["seed"])]

    def die(trial: Any, number: int) -> list[float]:
        train(trial, number)
        raise Killed

    def run(trials: int, train: Any) -> Any:
        database, study = join(trials)
        work(database, study, plan.settings, train, poll_seconds=0.05)
        return study

    def worker() -> None:
        start.wait()  # All create the tables and the study at once.
        run(16, train)

    workers = [threading.Thread(target=worker) for _ in range(4)]
    for thread in workers:
        thread.start()
    for thread in workers:
        thread.join()
    assert sorted(done) == list(range(16))
    with pytest.raises(Killed):
        run(17, die)
    study = run(17, train)
    assert done[-2:] == [16, 16]
    lost, retry = study.get_trials()[16:]
    assert (lost.state.name, retry.state.name) == ("FAIL", "COMPLETE")
    assert lost.params == retry.params
    assert current_trials(study)[16].number == 17
    database, study = join(17)
    assert database.name.startswith("postgresql://me:***@127.0.0.1:")
    stop()
    monkeypatch.setattr(study_module, "FIRST_WAIT_SECONDS", 0.01)
    with pytest.raises(DatabaseUnreachable, match="cannot be reached, tried 5 times"):
        is_done(study)
    for database in databases:
        database.close()
