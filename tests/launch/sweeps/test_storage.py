"""Databases of sweeps: refused, out of reach, and back again."""

import contextlib
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from sqlite3 import dbapi2
from typing import Any

import pytest

from launch.sweeps import study
from launch.sweeps.study import Database, DatabaseUnreachable

optuna = pytest.importorskip("optuna")


@contextlib.contextmanager
def connect(folder: Path) -> Iterator[Database]:
    with contextlib.closing(Database(f"sqlite:///{folder / 'study.db'}")) as database:
        yield database


@pytest.mark.parametrize(
    "address", ["nothing", "mysql://host/name", "sqlite://", "sqlite:///:memory:", "postgresql://h"]
)
def test_other_databases_are_refused(address: str) -> None:
    with pytest.raises(ValueError, match="storage: expected sqlite:///FILE or postgresql://"):
        Database(address)


def test_a_file_that_is_not_a_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "study.db").write_text("no database, but text that is longer than a header " * 9)
    with pytest.raises(ValueError, match=r"study\.db is not a database: file is not a database"):
        Database(f"sqlite:///{tmp_path / 'study.db'}")


def test_an_unreachable_database_is_tried_again_and_then_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
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
    monkeypatch.setattr(study, "FIRST_WAIT_SECONDS", 0.001)
    calls: list[None] = []
    connect_before = dbapi2.connect

    def connect_at_fourth(*arguments: Any, **options: Any) -> Any:
        calls.append(None)
        if len(calls) < 4:
            raise dbapi2.OperationalError("unable to open database file")
        return connect_before(*arguments, **options)

    with connect(tmp_path) as database:
        database.close()  # The pooled connections, as an outage does.
        monkeypatch.setattr(dbapi2, "connect", connect_at_fourth)
        assert optuna.get_all_study_names(database.storage) == []
        assert len(calls) == 4
