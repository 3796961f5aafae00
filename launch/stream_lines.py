"""Output of streams: a JSON line for each result as it comes, a summary on standard error."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from flaxnets.inference.runtime.media import MediaError
from flaxnets.inference.runtime.streaming import Latencies
from launch.stopping import Stopped, stopping


class Source(Protocol):
    """Frames, or blocks of samples, as they arrive."""

    @property
    def problem(self) -> str:
        """Sentence about what was left out at the end; empty if nothing was."""

    def __iter__(self) -> Iterator[Any]:
        """Yields them; raises ``MediaError`` for what is unreadable."""


def print_stream(
    source: Source,
    push: Callable[[Any], list[Any]],
    finish: Callable[[], list[Any]],
    describe: Callable[[Any], Mapping[str, Any]],
    summarise: Callable[[], Mapping[str, Any]],
    empty: Callable[[], str],
) -> int:
    """Prints the results of a stream as they come, then a summary; returns the exit code.

    The summary holds ``seconds`` and, from the second result on, ``steps_per_second`` and the
    quantiles ``latency_p50`` and ``latency_p99`` of the results' latencies in seconds; ``problem``
    tells what ended the stream early.

    Args:
      source: of the stream.
      push: from an item of the source to the results that it makes known, each with a ``latency``.
      finish: returns the results that the end makes known.
      describe: of a result, as its JSON line has it.
      summarise: returns the first entries of the summary.
      empty: returns the error of a source in which there was nothing; "" if there was something.
    """
    latencies, problem, code = Latencies(), "", 0
    started, warm = time.perf_counter(), 0.0

    def show(results: list[Any]) -> None:
        nonlocal warm
        for result in results:
            # The first results wait for the compilation, so they do not count.
            if warm:
                latencies.add(result.latency)
            print(json.dumps(describe(result), ensure_ascii=False), flush=True)
        if results and not warm:
            warm = time.perf_counter()

    try:
        with stopping():
            for item in source:
                show(push(item))
            show(finish())
            problem = source.problem
    except Stopped:
        problem = "stopped"
    except BrokenPipeError:
        # The reader is gone. Python would fail once more as it flushes standard output at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except MediaError as unreadable:
        problem, code = unreadable.reason, 1
    ended = time.perf_counter()
    summary: dict[str, Any] = {**summarise(), "seconds": round(ended - started, 3)}
    if latencies.count:
        summary |= {
            "steps_per_second": round(latencies.count / (ended - warm), 2),
            "latency_p50": round(latencies.quantile(0.5), 5),
            "latency_p99": round(latencies.quantile(0.99), 5),
        }
    if problem:
        summary["problem"] = problem
    print(json.dumps(summary), file=sys.stderr)
    error = "" if code or problem == "stopped" else empty()
    if error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return code
