"""The database behind a sweep: SQLite or PostgreSQL, through Optuna's storage.

What must happen as one (making a study, taking a trial) is done under a lock that all workers of
the database share: beside an SQLite file a lock file, in PostgreSQL an advisory lock. Both end with
the process that holds them.
"""

import contextlib
import logging
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import filelock

if TYPE_CHECKING:
    import optuna

ATTEMPTS = 5
FIRST_WAIT_SECONDS = 1.0
CONNECT_SECONDS = 10
SQLITE_BUSY_SECONDS = 60
LOCK_KEY = zlib.crc32(b"flaxnets.sweep")

Result = TypeVar("Result")

logger = logging.getLogger(__name__)


class DatabaseUnreachable(OSError):
    """The database did not answer, however often it was tried."""


class Database:
    """The storage of all studies in one database, and the lock of all who use it.

    Attributes:
      storage: Optuna's.
      close: closes the connections that are kept.
      name: the address, without a password.
    """

    def __init__(self, address: str) -> None:
        """Connects; makes the tables where there are none.

        Args:
          address: ``sqlite:///FILE`` or ``postgresql://USER@HOST/NAME``.

        Raises:
          ValueError: another kind of address, a missing package, a file that is no database, or a
            database of another version of Optuna.
          DatabaseUnreachable: no answer.
        """
        modules = import_optuna()
        sqlalchemy = modules[1]
        try:
            url = sqlalchemy.engine.make_url(address)
        except sqlalchemy.exc.ArgumentError:
            url = None
        kind = "" if url is None else url.get_backend_name()
        if (
            url is None
            or kind not in ("sqlite", "postgresql")
            or url.database in (None, "", ":memory:")
        ):
            raise ValueError(
                "storage: expected sqlite:///FILE or postgresql://USER@HOST/NAME, received "
                f"{address if url is None else url.render_as_string()}"
            )
        self.name = url.render_as_string(hide_password=True)
        options: dict[str, Any]
        if kind == "sqlite":
            path = Path(url.database)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file_lock = filelock.FileLock(path.with_name(path.name + ".lock"))
            options = {"connect_args": {"timeout": SQLITE_BUSY_SECONDS}}
        else:
            _import_psycopg()
            url = url.set(drivername="postgresql+psycopg")
            self._engine = sqlalchemy.create_engine(
                url,
                poolclass=sqlalchemy.NullPool,
                connect_args={"connect_timeout": CONNECT_SECONDS},
            )
            # A connection that was lost meanwhile is opened again.
            options = {
                "connect_args": {"connect_timeout": CONNECT_SECONDS},
                "pool_pre_ping": True,
            }
        self._kind = kind
        full_address = url.render_as_string(hide_password=False)

        def connect() -> "optuna.storages.BaseStorage":
            with self._lock():
                storages = modules[0].storages
                backend = storages.RDBStorage(full_address, engine_kwargs=options)
            self.close = backend.engine.dispose
            return storages.get_storage(backend)

        try:
            self.storage = self.persist(connect)
        except sqlalchemy.exc.DatabaseError as error:
            raise ValueError(f"storage: {self.name} is no database: {error.orig}") from error
        except RuntimeError as error:
            raise ValueError(f"storage: {self.name}: {error}") from error

    def persist(self, action: Callable[[], Result]) -> Result:
        """The action's result; it is tried again while the database does not answer.

        Raises:
          DatabaseUnreachable: it did not in ``ATTEMPTS`` tries.
        """
        wait = FIRST_WAIT_SECONDS
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return action()
            except Exception as error:
                reason = _outage(error)
                if reason is None:
                    raise
                if attempt == ATTEMPTS:
                    raise DatabaseUnreachable(
                        f"storage: {self.name} cannot be reached, tried {ATTEMPTS} times: {reason}"
                    ) from error
                logger.warning("%s does not answer, trying again: %s", self.name, reason)
            time.sleep(wait)
            wait *= 2
        raise AssertionError("the last attempt returns or raises")

    def exclusively(self, action: Callable[[], Result]) -> Result:
        """The action's result, while nobody else's action runs; tried again as by ``persist``.

        Raises:
          DatabaseUnreachable: no answer.
        """

        def locked() -> Result:
            with self._lock():
                return action()

        return self.persist(locked)

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        if self._kind == "sqlite":
            with self._file_lock:
                yield
            return
        _, sqlalchemy = import_optuna()
        with self._engine.connect() as connection:
            # It ends with the connection, which is not kept.
            key = {"key": LOCK_KEY}
            connection.execute(sqlalchemy.text("SELECT pg_advisory_lock(:key)"), key)
            yield


def import_optuna() -> tuple[Any, Any]:
    """The modules ``optuna`` and ``sqlalchemy``.

    Raises:
      ValueError: Optuna is not installed.
    """
    try:
        import optuna
        import sqlalchemy
    except ModuleNotFoundError as error:
        raise ValueError(
            f"launch.sweep needs the package {error.name}; install the extra: "
            "pip install -e '.[sweep]'"
        ) from None
    return optuna, sqlalchemy


def _import_psycopg() -> None:
    try:
        import psycopg  # noqa: F401
    except ImportError as error:
        reason = "" if isinstance(error, ModuleNotFoundError) else f" ({error})"
        raise ValueError(
            f"a sweep over PostgreSQL needs the package psycopg{reason}; install the extra: "
            "pip install -e '.[sweep-postgresql]'"
        ) from None


def _outage(error: Exception) -> str | None:
    """Why the database did not answer; None where the error is another one."""
    _, sqlalchemy = import_optuna()
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, sqlalchemy.exc.OperationalError | sqlalchemy.exc.InterfaceError):
            return " ".join(str(cause.orig).split())
        cause = cause.__cause__
    return None
