"""Profiler trace of a range of training steps, for TensorBoard and Perfetto."""

import contextlib
import logging
from pathlib import Path
from typing import Any

import jax

from flaxnets.training.distributed import is_first

logger = logging.getLogger(__name__)


class Profile:
    """Trace of a range of steps, on the first process.

    ``tensorboard --logdir=WORKDIR/profile`` shows it if ``xprof`` is installed;
    https://ui.perfetto.dev opens the file ``perfetto_trace.json.gz`` in it.
    """

    def __init__(self, folder: Path, steps: tuple[int, int] | None) -> None:
        """Checks the range; the trace starts at its first step.

        Args:
          folder: of the trace; made if missing.
          steps: first and last step, from 1 on; None: no trace.

        Raises:
          ValueError: not 1 <= first <= last.
        """
        if steps is not None and not 1 <= steps[0] <= steps[1]:
            raise ValueError(
                f"profile_steps: expected 1 <= FROM <= TO, received {steps[0]}:{steps[1]}"
            )
        self._folder = folder
        self._steps = steps if is_first() else None
        self._running = False

    def step(self, step: int) -> contextlib.AbstractContextManager[Any]:
        """Returns a context for the dispatch of a step, which names it in the trace."""
        if self._steps is None:
            return contextlib.nullcontext()
        if not self._running and self._steps[0] <= step <= self._steps[1]:
            jax.profiler.start_trace(self._folder, create_perfetto_trace=True)
            self._running = True
        return jax.profiler.StepTraceAnnotation("train", step_num=step)

    def finish(self, step: int, result: Any) -> None:
        """Ends the trace after its last step; waits for ``result``, an output of the step."""
        if self._running and self._steps is not None and step >= self._steps[1]:
            jax.block_until_ready(result)  # Dispatch is asynchronous: the step may be running.
            self.close()

    def close(self) -> None:
        """Writes the trace if it has started."""
        if self._running:
            self._running = False
            try:
                jax.profiler.stop_trace()
            except (OSError, RuntimeError) as error:  # A full disk, say, must not end a training.
                logger.warning("%s: the trace cannot be written: %s", self._folder, error)
            else:
                logger.info("a trace of the training steps is in %s", self._folder)


def parse_steps(text: str | None) -> tuple[int, int] | None:
    """Returns the numbers in ``FROM:TO``; None for None.

    Raises:
      ValueError: the text has another form.
    """
    if text is None:
        return None
    first, _, last = text.partition(":")
    if not (first.isdecimal() and last.isdecimal()):
        raise ValueError(f"profile_steps: expected FROM:TO, as 10:20, received {text!r}")
    return int(first), int(last)
