"""A trace of chosen training steps, for TensorBoard and Perfetto."""

import contextlib
import logging
from pathlib import Path
from typing import Any

import jax

from flaxnets.training.distributed import is_first

logger = logging.getLogger(__name__)


class Profile:
    """Traces the steps from one to another, of the first process.

    ``tensorboard --logdir=WORKDIR/profile`` shows the trace where ``xprof`` is installed;
    https://ui.perfetto.dev opens the file ``perfetto_trace.json.gz`` in it.
    """

    def __init__(self, folder: Path, steps: tuple[int, int] | None) -> None:
        """Traces nothing yet.

        Args:
          folder: where the trace goes; made when missing.
          steps: the first and the last step, from 1 on; None: no trace.

        Raises:
          ValueError: no such range of steps.
        """
        if steps is not None and not 1 <= steps[0] <= steps[1]:
            raise ValueError(
                f"profile_steps: expected 1 <= FROM <= TO, received {steps[0]}:{steps[1]}"
            )
        self._folder = folder
        self._steps = steps if is_first() else None
        self._running = False

    def step(self, step: int) -> contextlib.AbstractContextManager[Any]:
        """``with`` around the dispatch of a step, whose number names it in the trace."""
        if self._steps is None:
            return contextlib.nullcontext()
        if not self._running and self._steps[0] <= step <= self._steps[1]:
            jax.profiler.start_trace(self._folder, create_perfetto_trace=True)
            self._running = True
        return jax.profiler.StepTraceAnnotation("train", step_num=step)

    def finish(self, step: int, result: Any) -> None:
        """Comes after each step; ``result`` is what the device has when it is done."""
        if self._running and self._steps is not None and step >= self._steps[1]:
            jax.block_until_ready(result)
            self.close()

    def close(self) -> None:
        """Writes the trace, where one has begun."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
            logger.info("a trace of the training steps is in %s", self._folder)


def parse_steps(text: str | None) -> tuple[int, int] | None:
    """The numbers of ``FROM:TO``; None of None.

    Raises:
      ValueError: other text.
    """
    if text is None:
        return None
    first, _, last = text.partition(":")
    if not (first.isdecimal() and last.isdecimal()):
        raise ValueError(f"profile_steps: expected FROM:TO, as 10:20, received {text!r}")
    return int(first), int(last)
