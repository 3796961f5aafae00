"""What is recorded between two records of training: sums and times, and whether they are finite."""

import json
import logging
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from tensorboardX import SummaryWriter

from flaxnets.metrics import MeanAccumulator
from flaxnets.training.files import write_text_atomically

logger = logging.getLogger(__name__)


class NonFiniteLoss(FloatingPointError):
    """The loss or the gradient is not finite; the checkpoints before it are whole."""


class Window:
    """Sums and times since the last record."""

    def __init__(self, batch_size: int, *, max_nonfinite_steps: int = 0) -> None:
        """Begins the first window.

        Args:
          batch_size: for the rate.
          max_nonfinite_steps: steps in a row whose loss or gradient is not finite that are let
            pass; they changed nothing, and do not reach the means.
        """
        self._batch_size, self._max_nonfinite_steps = batch_size, max_nonfinite_steps
        self._nonfinite_in_a_row = 0
        self._pending: tuple[int, Any] | None = None
        self.restart()

    def restart(self) -> None:
        """Forgets the time since the last record, as that of a pause."""
        self._sums, self._nonfinite = MeanAccumulator(), 0
        self._steps, self._waited, self._start = 0, 0.0, time.perf_counter()

    def waiting(self) -> "Window":
        """A ``with`` whose time counts as waiting for data.

        It does not where the device is still at the step before when it ends: the data then came in
        time. Else the whole of it counts, though the device may have become idle within it.
        """
        return self

    def __enter__(self) -> None:
        """Begins to wait."""
        self._wait_start = time.perf_counter()

    def __exit__(self, *exception: object) -> None:
        """Ends it."""
        if self._pending is None or _is_ready(self._pending[1]):
            self._waited += time.perf_counter() - self._wait_start

    def add(self, step: int, sums: Any) -> None:
        """Adds the sums of a step, which the device may still be at.

        Raises:
          NonFiniteLoss: the loss or the gradient of the step before is not finite, nor were those
            of as many steps before it as are let pass.
        """
        self._settle()
        self._pending = (step, sums)
        self._steps += 1

    def _settle(self) -> None:
        """Adds the sums of the step before, once the device has them."""
        if self._pending is None:
            return
        (step, sums), self._pending = self._pending, None
        sums = jax.device_get(sums)
        wrong = [
            f"the {name.replace('_', ' ')} is {float(sums[name][0])}"
            for name in ("loss", "gradient_norm")
            if not math.isfinite(float(sums[name][0]))
        ]
        if not wrong:
            self._nonfinite_in_a_row = 0
            self._sums.add(sums)
            return
        self._nonfinite += 1
        self._nonfinite_in_a_row += 1
        if self._nonfinite_in_a_row > self._max_nonfinite_steps:
            before = self._nonfinite_in_a_row - 1
            others = f", as in the {before} steps before" if before else ""
            raise NonFiniteLoss(
                f"step {step}: {wrong[0]}{others}; stopped, and the checkpoints of earlier steps "
                "are kept. A lower optimizer.learning_rate or an optimizer.clip_norm may help"
            )
        logger.warning("step %d: %s; skipped", step, wrong[0])

    def close(self) -> dict[str, float]:
        """The means since the last record, with the rates; starts the next window.

        Raises:
          NonFiniteLoss: as ``add``, of the last step.
        """
        self._settle()
        seconds = max(time.perf_counter() - self._start, 1e-9)
        record = {
            **self._sums.means(),
            **({"nonfinite_steps": float(self._nonfinite)} if self._nonfinite else {}),
            "steps_per_second": self._steps / seconds,
            "clips_per_second": self._steps * self._batch_size / seconds,
            "data_wait_share": self._waited / seconds,
        }
        self.restart()
        return record


def _is_ready(tree: Any) -> bool:
    """Whether the device has computed all arrays of a tree."""
    arrays: list[Any] = [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array)]
    return all(array.is_ready() for array in arrays)


def summary(record: Mapping[str, float]) -> str:
    """A record in a few words, for the progress bar."""
    return (
        f"loss {record.get('loss', math.nan):.4g}, {record['clips_per_second']:.4g} clips/s, "
        f"{record['data_wait_share']:.0%} waiting for data"
    )


# Where metrics go: ``metrics.jsonl``, one record a line, and TensorBoard.


class MetricsWriter:
    """Appends records to ``metrics.jsonl`` and to TensorBoard's events of one workdir.

    Each step stands once in the file, however often the run was killed: on opening, what was
    written after the step that the run resumes from is dropped.
    """

    def __init__(self, workdir: Path, *, resume_step: int, writes: bool = True) -> None:
        """Opens the files.

        Args:
          workdir: an existing folder.
          resume_step: the step of the checkpoint; records of later steps are removed.
          writes: False for all but one of the processes that share the workdir: nothing is written.
        """
        self._writes = writes
        if not writes:
            return
        path = workdir / "metrics.jsonl"
        kept = [record for record in read_metrics(workdir) if record["step"] <= resume_step]
        write_text_atomically(path, "".join(_line(record) for record in kept))
        self._file = path.open("a", buffering=1)
        self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=resume_step + 1)

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Writes one record, ``{"step": …, "split": …, name: value, …}``."""
        if not self._writes:
            return
        self._file.write(_line({"step": step, "split": split, **values}))
        for name, value in values.items():
            self._board.add_scalar(f"{split}/{name}", value, step)

    def close(self) -> None:
        """Writes all that waits and closes the files."""
        if not self._writes:
            return
        self._file.close()
        self._board.close()


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """The records of a workdir's ``metrics.jsonl``; a last line cut by a kill is left out."""
    path = workdir / "metrics.jsonl"
    if not path.exists():
        return []
    lines = path.read_text().split("\n")
    # A whole line ends in a newline, so what follows the last one is cut or empty.
    return [json.loads(line) for line in lines[:-1]]


def _line(record: Mapping[str, Any]) -> str:
    # JSON has no NaN; a mean over nothing is null.
    clean = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in record.items()
    }
    return json.dumps(clean) + "\n"
