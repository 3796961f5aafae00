"""Databases of sweeps: refused, out of reach, back again."""

import socket
import sys
from pathlib import Path

import pytest

from launch.sweeps import study
from launch.sweeps.study import Database, DatabaseUnreachable

pytest.importorskip("optuna")


def connect(folder: Path) -> Database:
    return Database(f"sqlite:///{folder / 'study.db'}")


@pytest.mark.parametrize(
    "address", ["nothing", "mysql://host/name", "sqlite://", "sqlite:///:memory:", "postgresql://h"]
)
def test_other_databases_are_refused(address: str) -> None:
    with pytest.raises(ValueError, match="storage: expected sqlite:///FILE or postgresql://"):
        Database(address)


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "study.db").write_text("no database, but text that is longer than a header " * 9)
    with pytest.raises(ValueError, match=r"study\.db is no database: file is not a database"):
        connect(tmp_path)


def test_an_unreachable_database_is_tried_again_and_then_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(study, "FIRST_WAIT_SECONDS", 0.001)
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ValueError, match=r"needs the package psycopg.*'\.\[sweep-postgresql\]'"):
        Database("postgresql://me:secret@127.0.0.1/sweeps")
    monkeypatch.undo()
    pytest.importorskip("psycopg")
    monkeypatch.setattr(study, "FIRST_WAIT_SECONDS", 0.001)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(DatabaseUnreachable, match="cannot be reached, tried 5 times: ") as error:
        Database(f"postgresql://me:secret@127.0.0.1:{port}/sweeps")
    assert "secret" not in str(error.value)
    assert "refused" in str(error.value)


def test_a_database_that_comes_back_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sqlalchemy

    monkeypatch.setattr(study, "FIRST_WAIT_SECONDS", 0.001)
    database = connect(tmp_path)
    calls: list[None] = []

    def action() -> str:
        calls.append(None)
        if len(calls) < 4:
            raise sqlalchemy.exc.OperationalError("SELECT", {}, Exception("gone"))
        return "there"

    assert database.persist(action) == "there"
    assert len(calls) == 4
