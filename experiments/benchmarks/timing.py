"""Timing of several implementations of the same computation, side by side in one run.

A ``Step`` computes once and returns when the result is ready. A ``Case`` is one comparison: a
function for each way (implementation) that makes its step; the first way is ours. ``measure`` times
the ways in turn, so that other load on the machine affects all of them; ``compare`` returns
medians, ranges and speed-ups: the median of a peer over ours.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

Step = Callable[[], object]
"""Function that computes once and returns when the result is ready."""

PAUSE = 0.3
"""Seconds before each measurement: PyTorch's threads spin for 0.2 s after a call."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One comparison.

    Attributes:
      name: computation and sizes.
      ways: functions that make the steps, by the name of the implementation; the first is ours.
      rounds_at_most: greatest number of rounds, by way, for steps that take seconds.
      fresh: whether each way is also measured in its own process (``fresh.py``).
      items: number of items that a step computes, by way (default 1); times are for one item.
    """

    name: str
    ways: Mapping[str, Callable[[], Step]]
    rounds_at_most: Mapping[str, int] = dataclasses.field(default_factory=dict)
    fresh: bool = True
    items: Mapping[str, int] = dataclasses.field(default_factory=dict)


class Jitted:
    """A step of JAX: a jitted function on constant arguments.

    Attributes:
      function: the jitted function.
      arguments: its arguments, pytrees of arrays.
    """

    def __init__(self, function: Callable[..., Any], *arguments: Any):
        self.function = jax.jit(function)
        self.arguments = arguments

    def __call__(self) -> Any:
        """Returns the result when it is ready."""
        return jax.block_until_ready(self.function(*self.arguments))

    def temporary_bytes(self) -> int:
        """Returns the bytes that XLA allocates for temporaries."""
        analysis: Any = self.function.lower(*self.arguments).compile().memory_analysis()
        return int(analysis.temp_size_in_bytes)


def measure(
    steps: Mapping[str, Step],
    rounds: int,
    rounds_at_most: Mapping[str, int] | None = None,
    pause: float = PAUSE,
) -> dict[str, list[float]]:
    """Returns the seconds of each way's step in each round; the ways take turns in a round.

    A measurement is a pause, an untimed step and the timed step. Ways in ``rounds_at_most`` have no
    untimed step, because a step of seconds needs no warm-up.

    Args:
      steps: the steps, by way.
      rounds: number of timed rounds.
      rounds_at_most: greatest number of rounds, by way.
      pause: seconds before each measurement.
    """
    limits = rounds_at_most or {}
    seconds: dict[str, list[float]] = {way: [] for way in steps}
    for step in steps.values():
        step()
    for number in range(rounds):
        for way, step in steps.items():
            if number >= limits.get(way, rounds):
                continue
            time.sleep(pause)
            if way not in limits:
                step()
            begin = time.perf_counter()
            step()
            seconds[way].append(time.perf_counter() - begin)
    return seconds


def compare(seconds: Mapping[str, list[float]]) -> dict[str, dict[str, float]]:
    """Returns median and range in milliseconds, rounds and our speed-up, by way.

    Args:
      seconds: seconds of each round, by way; the first is ours.
    """
    medians = {way: statistics.median(rounds) for way, rounds in seconds.items()}
    ours = next(iter(medians.values()))
    return {
        way: {
            "milliseconds": 1e3 * medians[way],
            "milliseconds_min": 1e3 * min(rounds),
            "milliseconds_max": 1e3 * max(rounds),
            "rounds": len(rounds),
            "ours_is_times_as_fast": medians[way] / ours,
        }
        for way, rounds in seconds.items()
    }
