"""Where the data of a checkpoint stood, and whether a run's data are still the same."""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Position:
    """Where the data stood: the number of the next batch, and what fixes the order.

    Attributes:
      next_batch: equals the state's step.
      order: what ``Data.describe`` said.
    """

    next_batch: int
    order: Mapping[str, Any]


class DataChanged(ValueError):
    """The data of a checkpoint are not the data of the run that would resume from it."""


def check_order(position: Position, order: Mapping[str, Any]) -> None:
    """Raises DataChanged where the data of a checkpoint differ from ``order``."""
    lines = [
        f"{name}: {position.order.get(name)!r} there, {order.get(name)!r} now"
        for name in sorted(position.order.keys() | order.keys())
        if position.order.get(name) != order.get(name)
    ]
    if lines:
        raise DataChanged(
            "the training data are not those of the checkpoint, so the run cannot go on with "
            "them: " + "; ".join(lines)
        )
