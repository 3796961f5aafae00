"""Worker of a sweep: runs waiting trials with ``study.optimize``, one at a time, until all ended.

While a trial runs, Optuna records heartbeats. A trial without heartbeats, as after a kill of its
worker, is failed and retried as a new trial with the same values, in the folder of the first one,
so that it resumes from its checkpoints. Whatever a worker reports afterwards of the failed trial is
refused by Optuna.
"""

import contextlib
import copy
import itertools
import logging
import math
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any

from flaxnets.training.preemption import handled_signals, prevailing_signal
from launch.sweeps.study import (
    Database,
    DatabaseUnreachable,
    Settings,
    attempts_of,
    current_trials,
    import_optuna,
    make_sampler,
    run_number,
)
from launch.sweeps.trial import Interrupted

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.trial import FrozenTrial

Train = Callable[["Trial", int], Sequence[float]]
"""Function of a trial and its ``run_number`` that returns the values of the objectives."""

POLL_SECONDS = 1.0

MAX_ERROR_CHARACTERS = 2_000

MAX_ATTEMPTS = 3
"""Number of workers that may die in one trial before it counts as failed."""

ERROR = "error"
"""User attribute of a failed trial: the exception of its training."""

logger = logging.getLogger(__name__)


class TooManyFailures(ValueError):
    """So many trials failed in a row that the next ones are expected to fail."""


def work(
    database: Database,
    study: "Study",
    settings: Settings,
    train: Train,
    *,
    max_failures: int = 5,
    poll_seconds: float = POLL_SECONDS,
) -> int:
    """Runs trials until all of the study have ended, here or in other workers.

    It also waits for the trials of other workers, because they may have to be retried.

    Args:
      database: holds the study.
      study: made by ``open_study``.
      settings: settings of the study.
      train: trains a trial; an exception is recorded as the trial's error.
      max_failures: number of trials in a row that fail, of all workers since this call, that ends
        it.
      poll_seconds: seconds between two looks while no trial waits.

    Returns:
      The number of trials that ended here.

    Raises:
      Interrupted: a signal came; the trial waits for the next worker.
      TooManyFailures: the last ``max_failures`` trials failed.
      DatabaseUnreachable: no connection; the trial is retried by another worker.
    """
    states = import_optuna().trial.TrialState
    before, done = sum(t.state.is_finished() for t in current_trials(study)), 0
    while True:
        with contextlib.ExitStack() as turn:
            # Optuna does not exclude other workers here: in SQLite two of them may take one trial
            # or retry one twice, and where none waits, study.optimize adds a trial. The lock is
            # held until the trial is taken.
            turn.enter_context(database.lock())
            _retry_lost(study)
            if is_done(study):
                return done
            _check_failures(study, before, max_failures)
            waiting = study.get_trials(deepcopy=False, states=(states.WAITING,))
            if waiting:
                # Optuna records the first heartbeat after taking the trial; if the worker were
                # killed in between, the trial would never become stale.
                database.storage.record_heartbeat(waiting[0]._trial_id)
                study.sampler = make_sampler(settings, run_number(waiting[0]))
                done += _run_first(study, waiting[0], train, turn)
                continue
        time.sleep(poll_seconds)


def is_done(study: "Study") -> bool:
    """Returns whether every trial has ended and none has to be retried."""
    trials = current_trials(study)
    return all(trial.state.is_finished() and not _is_lost(trial) for trial in trials)


def error_of(trial: "FrozenTrial") -> str:
    """Returns the error of a failed trial; empty for others."""
    if trial.state.name != "FAIL":
        return ""
    return str(trial.user_attrs.get(ERROR, f"its worker died {attempts_of(trial)} times"))


def raise_signals() -> None:
    """Has SIGTERM, SIGHUP, SIGUSR1 and SIGINT raise ``Interrupted``.

    While a trial trains, they save first. Of several signals the prevailing one counts.
    """
    before: list[int] = []

    def raise_interrupted(number: int, frame: FrameType | None) -> None:
        before[:] = [prevailing_signal(before[0] if before else None, number)]
        raise Interrupted(before[0])

    for number in handled_signals():
        signal.signal(number, raise_interrupted)


@contextlib.contextmanager
def _collected_signals() -> Iterator[list[int]]:
    """Context in which the signals that come are added to a list."""
    numbers: list[int] = []
    previous: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in handled_signals():
            previous[number] = signal.signal(number, lambda number, frame: numbers.append(number))
    try:
        yield numbers
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _is_lost(trial: "FrozenTrial") -> bool:
    """Returns whether a trial failed without an error of its own and may be retried."""
    failed = trial.state.name == "FAIL" and ERROR not in trial.user_attrs
    return failed and attempts_of(trial) < MAX_ATTEMPTS


def _retry_lost(study: "Study") -> None:
    """Fails stale trials, and enqueues a retry of each trial that lost its worker or the database.

    Optuna's storage would call the retry for stale trials alone, and never again if the worker that
    does so is killed before it has added the new trial.
    """
    storages = import_optuna().storages
    storages.fail_stale_trials(study)
    retry = storages.RetryHeartbeatStaleTrialCallback(inherit_intermediate_values=True)
    for trial in filter(_is_lost, current_trials(study)):
        retry(study, copy.deepcopy(trial))  # It changes the trial, which Optuna caches.
        new = study.get_trials(deepcopy=False)[-1].number
        logger.info("trial %d: its worker is gone; retried as trial %d", run_number(trial), new)


def _run_first(
    study: "Study",
    waiting: "FrozenTrial",
    train: Train,
    turn: contextlib.ExitStack,
) -> bool:
    """Runs the first waiting trial; returns False if it was retried elsewhere meanwhile.

    Args:
      study: its sampler is the trial's.
      waiting: the trial.
      train: trains it.
      turn: holds the lock, and is closed once the trial is taken.
    """
    optuna = import_optuna()
    number = run_number(waiting)

    def objective(trial: "Trial") -> Sequence[float]:
        turn.close()
        try:
            values = train(trial, number)
            if not all(map(math.isfinite, values)):
                raise ValueError(f"expected finite values, received {values}")
            return values
        except KeyboardInterrupt as error:  # A second Ctrl-C, for which a training does not wait.
            raise Interrupted(getattr(error, "signal", signal.SIGINT)) from None
        except (optuna.TrialPruned, DatabaseUnreachable, optuna.exceptions.StorageInternalError):
            raise  # An outage is not the trial's error: without one it is retried.
        except Exception as error:
            text = "".join(traceback.format_exception_only(error)).strip()
            trial.set_user_attr(ERROR, text[:MAX_ERROR_CHARACTERS])
            raise

    try:
        study.optimize(objective, n_trials=1, catch=(Exception,))
    except Interrupted as error:
        # A further signal must not come between: it would leave the trial as running.
        with _collected_signals() as further:
            # The trial keeps its number: an interruption, unlike a death, is not limited in number.
            with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
                study._storage.set_trial_state_values(
                    waiting._trial_id, optuna.trial.TrialState.WAITING
                )
            for late in further:
                error.signal = prevailing_signal(error.signal, late)
        raise
    except Exception:
        if not study.get_trials(deepcopy=False)[waiting.number].state.is_finished():
            raise
        logger.warning("trial %d was taken over by another worker", number)
        return False
    return True


def _check_failures(study: "Study", before: int, max_failures: int) -> None:
    """Raises TooManyFailures if the last trials failed, of those after the first ``before``."""
    ended = [trial for trial in current_trials(study) if trial.state.is_finished()]
    ended.sort(key=lambda trial: str(trial.datetime_complete), reverse=True)
    failed = list(itertools.takewhile(lambda trial: trial.state.name == "FAIL", ended))
    if min(len(failed), len(ended) - before) >= max_failures:
        raise TooManyFailures(
            f"the last {max_failures} trials failed, the sweep ends; trial "
            f"{run_number(failed[0])}: {error_of(failed[0])}"
        )
