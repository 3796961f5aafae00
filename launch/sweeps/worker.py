"""The trials of a study, each of them done by exactly one worker at a time.

A worker takes a waiting trial under the database's lock and shows, while it works, that it is
there. A trial whose worker shows no sign for long, as after a kill, waits again, under its number
and with its values, so that who takes it goes on from its checkpoints. What a worker says of a
trial that is no longer its own counts for nothing.
"""

import contextlib
import dataclasses
import logging
import math
import signal
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any

from launch.sweeps.study import (
    Database,
    DatabaseUnreachable,
    Settings,
    import_optuna,
    make_sampler,
)
from launch.sweeps.trial import Interrupted, Result

if TYPE_CHECKING:
    import optuna

POLL_SECONDS = 1.0

MAX_ERROR_CHARACTERS = 2_000

MAX_DEATHS = 3
"""Workers that may die in one trial before it counts as failed."""

SIGN, DEATHS = "sweep:sign", "sweep:deaths"

SIGNS_IN_PATIENCE = 6

logger = logging.getLogger(__name__)


class TooManyFailures(ValueError):
    """So many trials failed in a row that the next would, too."""


@dataclasses.dataclass(frozen=True)
class Claim:
    """A trial that this worker has taken.

    Attributes:
      trial: which suggests and reports.
      key: its identity in the database.
      owner: this taking of it.
    """

    trial: "optuna.Trial"
    key: int
    owner: str


class Queue:
    """The trials of one study.

    Args:
      database: which the study is in.
      study: made by ``open_study``.
      settings: its own.
      stale_seconds: without a sign of its worker after which a trial waits again.
      is_in_use: whether a process of this machine, or of its file system, works on the trial of a
        number; then it is not taken away.
    """

    def __init__(
        self,
        database: Database,
        study: "optuna.Study",
        settings: Settings,
        *,
        stale_seconds: float = 60.0,
        is_in_use: Callable[[int], bool] = lambda number: False,
    ) -> None:
        self.database, self.study, self._settings = database, study, settings
        self._stale_seconds, self._is_in_use = stale_seconds, is_in_use
        self._storage = database.storage
        self._signs: dict[int, tuple[Any, float]] = {}
        optuna, _ = import_optuna()
        self._state = optuna.trial.TrialState
        self._make_trial = optuna.Trial

    def claim(self) -> Claim | None:
        """Takes a trial; None where none waits.

        Raises:
          DatabaseUnreachable: no answer.
        """
        owner = uuid.uuid4().hex

        def take() -> tuple[int, int] | None:
            self._give_back_abandoned()
            waiting = self._trials(self._state.WAITING)
            if not waiting:
                return None
            number = waiting[0].number
            key = self._key(number)
            self._storage.set_trial_system_attr(key, SIGN, [owner, 0])
            self._storage.set_trial_state_values(key, self._state.RUNNING)
            return number, key

        taken = self.database.exclusively(take)
        if taken is None:
            return None
        number, key = taken
        self.study.sampler = make_sampler(self._settings, number)
        trial = self.database.persist(lambda: self._make_trial(self.study, key))
        return Claim(trial, key, owner)

    def finish(
        self,
        claim: Claim,
        values: Sequence[float] | None,
        *,
        pruned: bool = False,
        attributes: Mapping[str, Any] | None = None,
    ) -> bool:
        """Enters a trial's end.

        Args:
          claim: the trial.
          values: of the objectives; None: it was pruned or has failed.
          pruned: whether it was ended early.
          attributes: what else to remember of it, for JSON.

        Returns:
          False where the trial is no longer this worker's; nothing was entered.

        Raises:
          DatabaseUnreachable: no answer.
        """
        ended = self._state.PRUNED if pruned else self._state.FAIL
        state = ended if values is None else self._state.COMPLETE

        def enter() -> bool:
            if not self._owns(claim):
                return False
            for name, value in (attributes or {}).items():
                self._storage.set_trial_user_attr(claim.key, name, value)
            self.study.tell(claim.trial.number, values=values, state=state)
            return True

        return self.database.exclusively(enter)

    def release(self, claim: Claim) -> None:
        """Lets a trial wait for another worker."""

        def give_back() -> None:
            if self._owns(claim):
                self._storage.set_trial_state_values(claim.key, self._state.WAITING)

        self.database.exclusively(give_back)

    @contextlib.contextmanager
    def signs(self, claim: Claim) -> Iterator[None]:
        """Within ``with``, others are shown that this worker is there."""
        ended = threading.Event()

        def show() -> None:
            if self._owns(claim):
                count = self._storage.get_trial(claim.key).system_attrs[SIGN][1]
                self._storage.set_trial_system_attr(claim.key, SIGN, [claim.owner, count + 1])

        def keep_showing() -> None:
            while not ended.wait(self._stale_seconds / SIGNS_IN_PATIENCE):
                try:
                    self.database.exclusively(show)
                except DatabaseUnreachable as error:
                    logger.warning("%s", error)
            self._storage.remove_session()

        thread = threading.Thread(target=keep_showing, name="signs", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def is_done(self) -> bool:
        """Whether every trial has ended."""
        states = (self._state.WAITING, self._state.RUNNING)
        return not self.database.persist(lambda: self._trials(*states))

    def failures(self) -> tuple[int, list["optuna.trial.FrozenTrial"]]:
        """How many trials have ended, and those that failed last, in a row, the newest first."""
        states = (self._state.COMPLETE, self._state.PRUNED, self._state.FAIL)
        ended = self.database.persist(lambda: self._trials(*states))
        ended.sort(key=lambda trial: str(trial.datetime_complete), reverse=True)
        last = 0
        while last < len(ended) and ended[last].state == self._state.FAIL:
            last += 1
        return len(ended), ended[:last]

    def _give_back_abandoned(self) -> None:
        """Lets trials wait again whose workers are gone."""
        now = time.monotonic()
        for trial in self._trials(self._state.RUNNING):
            sign = trial.system_attrs.get(SIGN)
            before, since = self._signs.get(trial.number, (None, now))
            # By this machine's clock alone: those of others may be wrong.
            if before != sign:
                self._signs[trial.number] = (sign, now)
            elif now - since >= self._stale_seconds and not self._is_in_use(trial.number):
                self._give_back(trial)

    def _give_back(self, trial: "optuna.trial.FrozenTrial") -> None:
        key, deaths = self._key(trial.number), trial.system_attrs.get(DEATHS, 0) + 1
        self._storage.set_trial_system_attr(key, DEATHS, deaths)
        del self._signs[trial.number]
        if deaths < MAX_DEATHS:
            logger.info("trial %d: its worker is gone; it is taken up again", trial.number)
            self._storage.set_trial_state_values(key, self._state.WAITING)
            return
        self._storage.set_trial_user_attr(key, "error", f"its worker died {deaths} times")
        self._storage.set_trial_state_values(key, self._state.FAIL)

    def _owns(self, claim: Claim) -> bool:
        trial = self._storage.get_trial(claim.key)
        sign = trial.system_attrs.get(SIGN, [None])
        return trial.state == self._state.RUNNING and sign[0] == claim.owner

    def _key(self, number: int) -> int:
        study = self._storage.get_study_id_from_name(self.study.study_name)
        return self._storage.get_trial_id_from_study_id_trial_number(study, number)

    def _trials(self, *states: Any) -> list["optuna.trial.FrozenTrial"]:
        return self.study.get_trials(deepcopy=False, states=states)


def work(
    queue: Queue,
    objective: Callable[["optuna.Trial"], Result],
    *,
    max_failures: int = 5,
    poll_seconds: float = POLL_SECONDS,
) -> int:
    """Does trials until all have ended, here or at other workers.

    It waits for the trials of others, too, as they may be killed and have to be taken up. SIGTERM,
    SIGUSR1 and SIGINT end it; its trial then waits for another worker.

    Args:
      queue: of the study.
      objective: trains a trial; what it raises is the trial's error.
      max_failures: trials in a row that fail, of all workers since this one began, after which it
        ends.
      poll_seconds: between two looks while none waits.

    Returns:
      The number of trials done here.

    Raises:
      Interrupted: a signal came.
      TooManyFailures: the last ``max_failures`` trials failed.
      DatabaseUnreachable: no answer.
    """
    already, _ = queue.failures()
    done = 0
    while not queue.is_done():
        ended, failed = queue.failures()
        if min(len(failed), ended - already) >= max_failures:
            raise TooManyFailures(
                f"the last {max_failures} trials failed, the sweep ends; trial "
                f"{failed[0].number}: {failed[0].user_attrs.get('error', 'no error is known')}"
            )
        claim = queue.claim()
        if claim is None:
            time.sleep(poll_seconds)
            continue
        try:
            with queue.signs(claim):
                done += _do(queue, claim, objective)
        except (KeyboardInterrupt, Interrupted):
            queue.release(claim)
            raise
    return done


def _do(queue: Queue, claim: Claim, objective: Callable[["optuna.Trial"], Result]) -> bool:
    """Does one trial; whether its end counts."""
    number = claim.trial.number
    try:
        result = objective(claim.trial)
        if not all(map(math.isfinite, result.values or ())):
            raise ValueError(f"expected finite values, received {result.values}")
    except DatabaseUnreachable:
        raise  # No failure of the trial, and nothing can be told of it.
    except Exception as error:
        lines = traceback.format_exception_only(error)
        text = "".join(lines).strip()[:MAX_ERROR_CHARACTERS]
        logger.warning("trial %d failed", number, exc_info=True)
        return queue.finish(claim, None, attributes={"error": text})
    pruned = result.values is None
    counts = queue.finish(claim, result.values, pruned=pruned, attributes=result.attributes)
    if not counts:
        logger.warning("trial %d was taken over by another worker", number)
    elif result.values is None:
        logger.info("trial %d pruned", number)
    else:
        values = ", ".join(f"{value:.4g}" for value in result.values)
        logger.info("trial %d: %s with %s", number, values, claim.trial.params)
    return counts


def raise_signals() -> None:
    """From now on SIGTERM and SIGUSR1 raise ``Interrupted`` where no training handles them."""

    def raise_interrupted(number: int, frame: FrameType | None) -> None:
        raise Interrupted(number)

    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, raise_interrupted)
