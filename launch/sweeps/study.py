"""The study of a sweep in its database: made once, joined by any number of workers.

All its trials are in it from the beginning, waiting; so their number is fixed however many workers
there are, and each is taken by one of them.
"""

import contextlib
import dataclasses
import importlib.util
import logging
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import filelock
import numpy as np

from flaxnets.configuration import nearest
from flaxnets.training.config import Config, differences, to_dict
from launch.sweeps.space import Label

# The database behind a sweep: SQLite or PostgreSQL, through Optuna's storage.
#
# What must happen as one (making a study, taking a trial) is done under a lock that all workers of
# the database share: beside an SQLite file a lock file, in PostgreSQL an advisory lock. Both end
# with the process that holds them.

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


if TYPE_CHECKING:
    import optuna

SAMPLERS = ("grid", "random", "tpe", "gp")
PRUNERS = ("none", "median", "hyperband")
SETTINGS = "sweep"
"""The study's attribute that holds its settings."""


@dataclasses.dataclass(frozen=True)
class Objective:
    """What trials are judged by: a metric of ``eval_split``, or ``step_seconds``."""

    metric: str
    mode: str
    """``max`` or ``min``."""

    def __str__(self) -> str:
        return f"{self.metric}:{self.mode}"

    @property
    def sign(self) -> int:
        """1 where the greatest value is the best, -1 where the smallest is."""
        return 1 if self.mode == "max" else -1


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is the same for all workers of a study.

    Attributes:
      experiment: ``FILE[:variant]``.
      config: before a trial changes it.
      space: the dimensions as text.
      space_file: the digest of the file that draws values, empty without one.
      objectives: one or more.
      sampler: one of ``SAMPLERS``.
      pruner: one of ``PRUNERS``.
      folds: of a cross-validation, 0 without one.
      seeds: of each trial's runs; empty: the configuration's.
      sampler_seed: of the sampler.
    """

    experiment: str
    config: Config
    space: Sequence[str]
    space_file: str
    objectives: Sequence[Objective]
    sampler: str
    pruner: str
    folds: int = 0
    seeds: Sequence[int] = ()
    sampler_seed: int = 0

    def to_json(self) -> dict[str, Any]:
        """For the study's attribute."""
        return {
            "experiment": self.experiment,
            "config": to_dict(self.config),
            "space": sorted(self.space),
            "space_file": self.space_file,
            "objectives": [str(objective) for objective in self.objectives],
            "sampler": self.sampler,
            "pruner": self.pruner,
            "folds": self.folds,
            "seeds": list(self.seeds),
            "sampler_seed": self.sampler_seed,
        }

    def differences(self, recorded: Mapping[str, Any]) -> list[str]:
        """One line for each value that another study's settings have differently."""
        own = self.to_json()
        lines = [
            f"{name}: {_show(recorded.get(name))} there, {_show(value)} now"
            for name, value in own.items()
            if name != "config" and recorded.get(name) != value
        ]
        if recorded.get("experiment") == self.experiment:
            lines += differences(recorded["config"], self.config)
        return lines


def open_study(
    database: Database,
    name: str,
    settings: Settings,
    *,
    trials: int,
    cells: Sequence[Mapping[str, Label]] | None = None,
) -> "optuna.Study":
    """Makes the study with its trials, or joins the one that is there.

    More trials than it has are added to it.

    Args:
      database: where it is.
      name: of the study.
      settings: its own, which those of a study that is there must equal.
      trials: their number.
      cells: the values of each trial; None: a sampler draws them.

    Raises:
      ValueError: the study there is of another sweep, with the differences, or has more trials.
      DatabaseUnreachable: no answer.
    """
    module, _ = import_optuna()
    directions = ["maximize" if o.mode == "max" else "minimize" for o in settings.objectives]

    def make_or_join() -> "optuna.Study":
        if name in module.get_all_study_names(database.storage):
            study = module.load_study(study_name=name, storage=database.storage)
            _check_joins(study, settings, trials)
        else:
            study = module.create_study(
                study_name=name, storage=database.storage, directions=directions
            )
        if SETTINGS not in study.user_attrs:
            study.set_user_attr(SETTINGS, settings.to_json())
        # Those that are missing: of a new study, a longer sweep, or one whose maker was killed.
        for number in range(len(study.get_trials(deepcopy=False)), trials):
            study.enqueue_trial({} if cells is None else dict(cells[number]))
        return study

    study = database.exclusively(make_or_join)
    study.pruner = make_pruner(settings)
    return study


def load_study(database: Database, name: str | None) -> "optuna.Study":
    """A study that is there, to look at.

    Args:
      database: where it is.
      name: of the study; None: the only one of a sweep in the database.

    Raises:
      ValueError: there is none, or there are several without a name.
    """
    optuna, _ = import_optuna()
    names = database.persist(lambda: optuna.get_all_study_names(database.storage))
    if name is None and len(names) == 1:
        name = names[0]
    if name is None or name not in names:
        there = f"; there are {', '.join(sorted(names))}" if names else ""
        raise ValueError(f"study: no study {name or 'given'} in {database.name}{there}")
    study = database.persist(lambda: optuna.load_study(study_name=name, storage=database.storage))
    if SETTINGS not in study.user_attrs:
        raise ValueError(f"study: {name} in {database.name} was not made by launch.sweep")
    return study


def _check_joins(study: "optuna.Study", settings: Settings, trials: int) -> None:
    recorded = study.user_attrs.get(SETTINGS)
    place = f"study: {study.study_name}"
    count = len(study.get_trials(deepcopy=False))
    if recorded is None and count:
        raise ValueError(f"{place} was not made by launch.sweep; name another --study")
    lines = [] if recorded is None else settings.differences(recorded)
    if count > trials:
        lines.append(f"trials: {count} there, {trials} now")
    if lines:
        raise ValueError(
            f"{place} is of another sweep; name another --study or --workdir, or give these flags "
            "as they were:\n  " + "\n  ".join(lines)
        )


def make_sampler(settings: Settings, number: int) -> "optuna.samplers.BaseSampler":
    """What draws the values of a trial.

    It depends on the trial's number, not on who asks, so that workers never draw the same.

    Raises:
      ValueError: ``gp`` without PyTorch.
    """
    optuna, _ = import_optuna()
    check_sampler(settings.sampler)
    seed = int(np.random.SeedSequence((settings.sampler_seed, number)).generate_state(1)[0])
    samplers = {
        # The values of a cell are in its trial.
        "grid": optuna.samplers.RandomSampler,
        "random": optuna.samplers.RandomSampler,
        "tpe": optuna.samplers.TPESampler,
        "gp": optuna.samplers.GPSampler,
    }
    return samplers[settings.sampler](seed=seed)


def check_sampler(name: str) -> None:
    """Raises ValueError for an unknown sampler, or one that needs what is not installed."""
    if name not in SAMPLERS:
        raise ValueError(f"sampler: unknown {name!r}{nearest(name, SAMPLERS)}")
    if name == "gp" and importlib.util.find_spec("torch") is None:
        raise ValueError("the sampler gp needs PyTorch, which is not installed: pip install torch")


def make_pruner(settings: Settings) -> "optuna.pruners.BasePruner":
    """What ends bad trials early.

    ``median`` ends a trial whose best value so far is worse than the median of the others' at the
    same evaluation, from the fifth trial on; ``hyperband`` gives brackets of trials (Li et al.,
    1603.06560) a first evaluation, and the best third of them three times as much.

    Raises:
      ValueError: an unknown one, or one with several objectives.
    """
    optuna, _ = import_optuna()
    if settings.pruner not in PRUNERS:
        raise ValueError(f"pruner: unknown {settings.pruner!r}{nearest(settings.pruner, PRUNERS)}")
    if settings.pruner == "none":
        return optuna.pruners.NopPruner()
    if len(settings.objectives) > 1:
        raise ValueError(
            "pruner: expected none with several objectives, received " + settings.pruner
        )
    if settings.pruner == "median":
        return optuna.pruners.MedianPruner()
    config = settings.config
    runs = max(settings.folds, 1) * max(len(settings.seeds), 1)
    least = min(config.eval_every, config.num_steps)
    return optuna.pruners.HyperbandPruner(
        min_resource=least, max_resource=runs * config.num_steps, reduction_factor=3
    )


def _show(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value)) or "none"
    return "none" if value in ("", None) else str(value)
