"""Side by side in one run: ways to compute the same thing take turns and are compared.

A ``Step`` computes once and returns when that is done. A ``Case`` is one comparison: ways by name,
each a function that makes a step; the first way is ours. ``measure`` times all of them in turn, so
that what else the machine does meets all of them; ``compare`` gives medians, spread and how many
times as fast ours is: a peer's median over ours.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

Step = Callable[[], object]
"""One computation, finished when it returns."""

PAUSE = 0.3
"""Seconds before a measurement: PyTorch's threads keep spinning for 0.2 s after a call."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One comparison.

    Attributes:
      name: what is computed and at which size.
      ways: by name, a function that makes the step; the first is ours.
      rounds_at_most: by way, a limit for those that take seconds a step.
      fresh: whether each way is also measured in a process of its own.
      items: by way, how many things a step computes, if times are those of one; 1 for others.
    """

    name: str
    ways: Mapping[str, Callable[[], Step]]
    rounds_at_most: Mapping[str, int] = dataclasses.field(default_factory=dict)
    fresh: bool = True
    items: Mapping[str, int] = dataclasses.field(default_factory=dict)


class Jitted:
    """A step of JAX: a compiled function on arguments that stay the same.

    Attributes:
      function: of ``arguments``.
      arguments: pytrees of arrays.
    """

    def __init__(self, function: Callable[..., Any], *arguments: Any):
        self.function = jax.jit(function)
        self.arguments = arguments

    def __call__(self) -> Any:
        """The result, computed."""
        return jax.block_until_ready(self.function(*self.arguments))

    def temporary_bytes(self) -> int:
        """What XLA reserves for intermediate values."""
        analysis: Any = self.function.lower(*self.arguments).compile().memory_analysis()
        return int(analysis.temp_size_in_bytes)


def measure(
    steps: Mapping[str, Step],
    rounds: int,
    rounds_at_most: Mapping[str, int] | None = None,
    pause: float = PAUSE,
) -> dict[str, list[float]]:
    """Seconds a step by way, one number a round; the ways take turns within each round.

    Each measurement is a pause, a step that is not timed, and the step that is. Ways with a limit
    go without the second: at seconds a step it changes nothing.

    Args:
      steps: by way.
      rounds: that are timed.
      rounds_at_most: by way, a limit.
      pause: seconds.
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
    """By way: median and spread in milliseconds, rounds, and how many times as fast ours is.

    Args:
      seconds: by way; the first is ours.
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
