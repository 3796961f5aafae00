"""A worker of a sweep: takes trials, one after another, until none is left."""

import logging
import math
import signal
import time
import traceback
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING

from launch.sweep_queue import Claim, Queue
from launch.sweep_storage import DatabaseUnreachable
from launch.sweep_trial import Interrupted, Result

if TYPE_CHECKING:
    import optuna

POLL_SECONDS = 1.0
MAX_ERROR_CHARACTERS = 2_000

logger = logging.getLogger(__name__)


class TooManyFailures(ValueError):
    """So many trials failed in a row that the next would, too."""


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
