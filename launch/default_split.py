"""The split that programs take without ``--split``: test, or validation of data without it."""

import logging
from collections.abc import Callable
from typing import TypeVar

HELP = "default: test, or validation of data without a test split."

T = TypeVar("T")
logger = logging.getLogger(__name__)


def on_split(split: str | None, call: Callable[[str], T]) -> tuple[str, T]:
    """Returns the split that was taken, and what a function of it returns.

    Args:
      split: as given; None: ``test`` or, of data that have no such split, ``validation``, which a
        warning says.
      call: the function; a missing split raises a ValueError that begins with ``split:``.

    Raises:
      ValueError: the function's, of a split that was given or for another reason.
    """
    if split is not None:
        return split, call(split)
    try:
        return "test", call("test")
    except ValueError as error:
        if not str(error).startswith("split: "):
            raise
        logger.warning("--split=validation is taken, since there is no test split: %s", error)
    return "validation", call("validation")
