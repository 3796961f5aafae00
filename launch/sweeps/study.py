"""Study of a sweep in its database: created once, joined by any number of workers.

All trials are enqueued when the study is created, so their number does not depend on how many
workers there are. A trial whose worker died is retried as a new trial, which Optuna links to the
first one.
"""

import contextlib
import dataclasses
import importlib.util
import logging
import sqlite3
import time
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock
import numpy as np

from flaxnets.configuration import local_path, nearest
from flaxnets.training.config import Config, differences, to_dict
from launch.sweeps.space import Label

if TYPE_CHECKING:
    import optuna
    from optuna import Study
    from optuna.trial import FrozenTrial

SAMPLERS = ("grid", "random", "tpe", "gp")
PRUNERS = ("none", "median", "hyperband")
STEP_SECONDS = "step_seconds"
"""Objective that is not a metric: median time of a training step, in seconds."""
SETTINGS = "sweep"
"""User attribute of the study that holds its settings."""

ATTEMPTS = 5
FIRST_WAIT_SECONDS = 1.0
CONNECT_SECONDS = 10
SQLITE_BUSY_SECONDS = 60
LOCK_KEY = zlib.crc32(b"flaxnets.sweep")
HEARTBEATS_PER_GRACE_PERIOD = 6

logger = logging.getLogger(__name__)


class DatabaseUnreachable(OSError):
    """No connection to the database after ``ATTEMPTS`` attempts."""


class Database:
    """SQLite or PostgreSQL database of studies, with a lock shared by all its workers.

    Attributes:
      name: the address, without a password.
      storage: Optuna's storage, with heartbeats.
    """

    def __init__(self, address: str, *, stale_seconds: int = 60) -> None:
        """Connects, and creates the tables if they are missing.

        Args:
          address: ``sqlite:///FILE`` or ``postgresql://USER@HOST/NAME``.
          stale_seconds: time without a heartbeat after which a running trial is stale. It is
            measured by the clock of the database: with SQLite, by those of the workers' machines,
            which must agree.

        Raises:
          ValueError: another kind of address, a missing package, a file that is not a database,
            or a database of another version of Optuna.
          DatabaseUnreachable: no connection.
        """
        optuna = import_optuna()
        import sqlalchemy

        url = _parse_address(address)
        self.name = url.render_as_string(hide_password=True)
        self._file_lock: filelock.FileLock | None = None
        outage: type[Exception]
        if url.get_backend_name() == "sqlite":
            path = Path(url.database)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file_lock = filelock.FileLock(path.with_name(path.name + ".lock"))
            outage, connection = sqlite3.OperationalError, {"timeout": SQLITE_BUSY_SECONDS}
        else:
            url = url.set(drivername="postgresql+psycopg")
            outage = _import_psycopg().OperationalError
            connection = {"connect_timeout": CONNECT_SECONDS}
        options = {
            "connect_args": connection,
            "poolclass": _make_pool_class(self.name, outage),
            "pool_pre_ping": True,  # Replaces connections that were lost meanwhile.
        }
        self._engine = sqlalchemy.create_engine(url, **options)
        try:
            # Workers that create the tables at the same moment would crash each other.
            with self.lock():
                backend = optuna.storages.RDBStorage(
                    url.render_as_string(hide_password=False),
                    engine_kwargs=options,
                    heartbeat_interval=max(1, stale_seconds // HEARTBEATS_PER_GRACE_PERIOD),
                    grace_period=stale_seconds,
                )
        except sqlalchemy.exc.DatabaseError as error:
            raise ValueError(f"storage: {self.name} is not a database: {error.orig}") from error
        except RuntimeError as error:
            raise ValueError(f"storage: {self.name}: {error}") from error
        self._engines = (self._engine, backend.engine)
        self.storage: Any = optuna.storages.get_storage(backend)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Excludes all other workers of the database until the end of ``with``.

        The lock is released when its process dies.

        Raises:
          DatabaseUnreachable: no connection.
        """
        if self._file_lock is not None:
            with self._file_lock:
                yield
            return
        import sqlalchemy

        with self._engine.begin() as connection:
            key = {"key": LOCK_KEY}
            connection.execute(sqlalchemy.text("SELECT pg_advisory_xact_lock(:key)"), key)
            yield

    def close(self) -> None:
        """Closes the pooled connections."""
        for engine in self._engines:
            engine.dispose()


def import_optuna() -> Any:
    """Returns the module ``optuna``.

    Raises:
      ValueError: Optuna is not installed.
    """
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise ValueError(
            f"launch.sweep needs the package {error.name}; install the extra: "
            "pip install -e '.[sweep]'"
        ) from None
    # Heartbeats and retries are marked experimental; pyproject.toml bounds Optuna's version.
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    return optuna


def _import_psycopg() -> Any:
    try:
        import psycopg
    except ImportError as error:
        reason = "" if isinstance(error, ModuleNotFoundError) else f" ({error})"
        raise ValueError(
            f"a sweep over PostgreSQL needs the package psycopg{reason}; install the extra: "
            "pip install -e '.[sweep-postgresql]'"
        ) from None
    return psycopg


def _parse_address(address: str) -> Any:
    """Returns SQLAlchemy's URL of a database that a sweep can use."""
    import sqlalchemy

    try:
        url = sqlalchemy.engine.make_url(address)
    except sqlalchemy.exc.ArgumentError:
        url = None
    if (
        url is None
        or url.get_backend_name() not in ("sqlite", "postgresql")
        or url.database in ("", None, ":memory:")
    ):
        raise ValueError(
            "storage: expected sqlite:///FILE or postgresql://USER@HOST/NAME, received "
            f"{address if url is None else url.render_as_string()}"
        )
    if url.get_backend_name() == "sqlite":
        url = url.set(database=local_path("storage", url.database))
    return url


def _make_pool_class(name: str, outage: type[Exception]) -> Any:
    """Returns a class of connection pools that retry while the database does not answer.

    The retries are in the pool because Optuna opens connections inside ``study.optimize``, too, for
    heartbeats and results.
    """
    import sqlalchemy

    class PatientPool(sqlalchemy.pool.QueuePool):
        def connect(self) -> Any:
            wait = FIRST_WAIT_SECONDS
            for attempt in range(1, ATTEMPTS + 1):
                try:
                    return super().connect()
                except outage as error:
                    reason = " ".join(str(error).split())
                    if attempt == ATTEMPTS:
                        raise DatabaseUnreachable(
                            f"storage: {name} cannot be reached, tried {ATTEMPTS} times: {reason}"
                        ) from error
                logger.warning("%s does not answer, trying again: %s", name, reason)
                time.sleep(wait)
                wait *= 2
            raise AssertionError("the last attempt returns or raises")

    # Named by its module, it would not be as quiet as SQLAlchemy's own pools.
    logging.getLogger(f"{__name__}.PatientPool").setLevel(logging.WARNING)
    return PatientPool


@dataclasses.dataclass(frozen=True)
class Objective:
    """Metric of ``eval_split`` that judges the trials, or ``step_seconds``.

    Attributes:
      metric: its name.
      mode: ``max`` or ``min``.
    """

    metric: str
    mode: str

    def __str__(self) -> str:
        return f"{self.metric}:{self.mode}"


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings that all workers of a study share.

    Attributes:
      experiment: ``FILE[:variant]``.
      config: configuration before a trial changes it.
      space: the dimensions as text.
      space_file: digest of the file that draws values, empty without one.
      objectives: one or more.
      sampler: one of ``SAMPLERS``.
      pruner: one of ``PRUNERS``.
      folds: number of folds of a cross-validation, 0 without one.
      seeds: seeds of each trial's runs; empty: the configuration's seed.
      sampler_seed: seed of the sampler.
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
        """Returns the settings as JSON values, for the study's attribute."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return values | {
            "config": to_dict(self.config),
            "space": sorted(self.space),
            "objectives": [str(objective) for objective in self.objectives],
            "seeds": list(self.seeds),
        }

    def differences(self, recorded: Mapping[str, Any]) -> list[str]:
        """Returns one line for each value that differs from recorded settings."""
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
) -> "Study":
    """Returns the study, which it creates with its trials or joins.

    If the study has fewer trials than asked for, the missing ones are enqueued.

    Args:
      database: holds the study.
      name: the study's name.
      settings: settings of the sweep, which must equal those of an existing study.
      trials: number of trials, retries not counted.
      cells: values of each trial; None: a sampler draws them.

    Raises:
      ValueError: the existing study is of another sweep (with the differences), or has more trials.
      DatabaseUnreachable: no connection.
    """
    optuna = import_optuna()
    with database.lock():
        study: Study = optuna.create_study(
            study_name=name,
            storage=database.storage,
            directions=["maximize" if o.mode == "max" else "minimize" for o in settings.objectives],
            load_if_exists=True,
        )
        there = len(current_trials(study))
        _check_joins(study, settings, there, trials)
        study.set_user_attr(SETTINGS, settings.to_json())
        # Of a new study, of a longer sweep, or of one whose creator was killed. The cells of a grid
        # are enqueued, because Optuna's GridSampler lets two workers do the same cell.
        for number in range(there, trials):
            study.enqueue_trial({} if cells is None else dict(cells[number]))
    study.pruner = make_pruner(settings)
    return study


def load_study(database: Database, name: str | None) -> "Study":
    """Returns an existing study, for reading.

    Args:
      database: holds the study.
      name: the study's name; None: the only study of the database.

    Raises:
      ValueError: no such study, several studies and no name, or a study of another program.
      DatabaseUnreachable: no connection.
    """
    optuna = import_optuna()
    names = optuna.get_all_study_names(database.storage)
    if name is None and len(names) == 1:
        name = names[0]
    if name is None or name not in names:
        there = f"; there are {', '.join(sorted(names))}" if names else ""
        raise ValueError(f"study: no study {name or 'given'} in {database.name}{there}")
    study: Study = optuna.load_study(study_name=name, storage=database.storage)
    if SETTINGS not in study.user_attrs:
        raise ValueError(f"study: {name} in {database.name} was not made by launch.sweep")
    return study


def run_number(trial: "FrozenTrial") -> int:
    """Returns the number in the name of the run: of a retry, that of the first trial."""
    retried = import_optuna().storages.RetryHeartbeatStaleTrialCallback.retried_trial_number(trial)
    return trial.number if retried is None else int(retried)


def current_trials(study: "Study") -> list["FrozenTrial"]:
    """Returns the trials in order of ``run_number``; of a retried trial, only the last retry."""
    last = {run_number(trial): trial for trial in study.get_trials(deepcopy=False)}
    return [last[number] for number in sorted(last)]


def attempts_of(trial: "FrozenTrial") -> int:
    """Returns the number of times that a trial was started: 1 more than its retries."""
    history = import_optuna().storages.RetryHeartbeatStaleTrialCallback.retry_history(trial)
    return len(history) + 1


def _check_joins(study: "Study", settings: Settings, there: int, trials: int) -> None:
    recorded = study.user_attrs.get(SETTINGS)
    place = f"study: {study.study_name}"
    if recorded is None and there:
        raise ValueError(f"{place} was not made by launch.sweep; name another --study")
    lines = [] if recorded is None else settings.differences(recorded)
    if there > trials:
        lines.append(f"trials: {there} there, {trials} now")
    if lines:
        raise ValueError(
            f"{place} is of another sweep; name another --study or --workdir, or give these flags "
            "as they were:\n  " + "\n  ".join(lines)
        )


def make_sampler(settings: Settings, number: int) -> "optuna.samplers.BaseSampler":
    """Returns the sampler of one trial.

    Its seed depends on the trial's number and not on the worker, so two workers never draw the same
    values.

    Args:
      settings: settings of the sweep.
      number: ``run_number`` of the trial.

    Raises:
      ValueError: an unknown sampler, or ``gp`` without PyTorch.
    """
    optuna = import_optuna()
    check_sampler(settings.sampler)
    seed = int(np.random.SeedSequence((settings.sampler_seed, number)).generate_state(1)[0])
    samplers = {
        "grid": optuna.samplers.RandomSampler,  # Draws nothing: the trial holds its cell's values.
        "random": optuna.samplers.RandomSampler,
        "tpe": optuna.samplers.TPESampler,
        "gp": optuna.samplers.GPSampler,
    }
    return samplers[settings.sampler](seed=seed)


def check_sampler(name: str) -> None:
    """Raises ValueError for an unknown sampler, or one that needs a package that is missing."""
    if name not in SAMPLERS:
        raise ValueError(f"sampler: unknown {name!r}{nearest(name, SAMPLERS)}")
    if name == "gp" and importlib.util.find_spec("torch") is None:
        raise ValueError("the sampler gp needs PyTorch, which is not installed: pip install torch")


def make_pruner(settings: Settings) -> "optuna.pruners.BasePruner":
    """Returns the pruner, which stops bad trials early.

    ``median`` stops a trial whose best value so far is worse than the median of the other trials'
    values at the same evaluation, from the fifth trial on. ``hyperband`` gives brackets of trials
    (Li et al., 1603.06560) a first evaluation, and the best third of them three times the steps.

    Raises:
      ValueError: an unknown pruner, or one with several objectives.
    """
    optuna = import_optuna()
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
