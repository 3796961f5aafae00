"""Training metrics: means and rates over a window of steps, and the files that they go to.

``Window`` collects the sums of the steps between two records, measures time and checks that loss
and gradient are finite; ``MetricsWriter`` appends records to ``metrics.jsonl`` and TensorBoard.
"""

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
from flaxnets.training.workdir import write_text_atomically

logger = logging.getLogger(__name__)


class NonFiniteLoss(FloatingPointError):
    """The loss or the gradient is not finite; earlier checkpoints are not affected."""


class Window:
    """Sums and times of the steps since the last record.

    The sums of a step are read when the next one has been dispatched: reading them at once would
    block the host until the device has finished, and leave the device idle until the next dispatch.
    """

    def __init__(self, batch_size: int, *, max_nonfinite_steps: int = 0) -> None:
        """Starts the first window.

        Args:
          batch_size: examples in a batch, for ``clips_per_second``.
          max_nonfinite_steps: steps in a row with a non-finite loss or gradient that raise no
            error; they changed no parameters and are left out of the means.
        """
        self._batch_size, self._max_nonfinite_steps = batch_size, max_nonfinite_steps
        self._nonfinite_in_a_row = 0
        self._pending: tuple[int, Any] | None = None  # The last step, perhaps still computing.
        self.restart()

    def restart(self) -> None:
        """Starts a new window; the time since the last record counts in none."""
        self._sums, self._nonfinite = MeanAccumulator(), 0
        self._steps, self._waited, self._start = 0, 0.0, time.perf_counter()

    def waiting(self) -> "Window":
        """Returns a context whose time counts as waiting for data.

        It does not count if the device is still computing at its end: the data came in time.
        Otherwise all of it counts, though the device may have finished within it.
        """
        return self

    def __enter__(self) -> None:
        """Starts the clock."""
        self._wait_start = time.perf_counter()

    def __exit__(self, *exception: object) -> None:
        """Stops the clock."""
        if self._pending is None or _is_ready(self._pending[1]):
            self._waited += time.perf_counter() - self._wait_start

    def add(self, step: int, sums: Any) -> None:
        """Adds the sums of a step that was dispatched; blocks until the step before is finished.

        Raises:
          NonFiniteLoss: the loss or the gradient of the step before is not finite, and more than
            ``max_nonfinite_steps`` in a row are not.
        """
        self._settle()
        self._pending = (step, sums)
        self._steps += 1

    def _settle(self) -> None:
        """Waits for the sums of the pending step, checks and adds them."""
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
        """Returns the means and rates of the window, and starts the next one.

        Blocks until the last step is finished.

        Returns:
          Means of the sums; ``nonfinite_steps`` if there were any; ``steps_per_second``,
          ``clips_per_second``; ``data_wait_share`` in [0,1], the share of time spent waiting for
          data.

        Raises:
          NonFiniteLoss: as ``add``, for the last step.
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
    """Returns True if the device has computed all arrays of a tree."""
    arrays: list[Any] = [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array)]
    return all(array.is_ready() for array in arrays)


def summary(record: Mapping[str, float]) -> str:
    """Returns the text of a record for the progress bar."""
    return (
        f"loss {record.get('loss', math.nan):.4g}, {record['clips_per_second']:.4g} clips/s, "
        f"{record['data_wait_share']:.0%} waiting for data"
    )


class MetricsWriter:
    """Appends records to a workdir's ``metrics.jsonl`` and TensorBoard events.

    Each step is recorded once, however often the run was killed: records after the step that the
    run resumes from are dropped on opening, since those steps are computed again.
    """

    def __init__(self, workdir: Path, *, resume_step: int, writes: bool = True) -> None:
        """Opens the files.

        Args:
          workdir: an existing folder.
          resume_step: step of the checkpoint; records of later steps are removed.
          writes: False for all but one of the processes that share the workdir; writes nothing.
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
        """Flushes and closes the files."""
        if not self._writes:
            return
        self._file.close()
        self._board.close()


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """Returns the records of ``metrics.jsonl``, without a last line that a kill has cut."""
    path = workdir / "metrics.jsonl"
    if not path.exists():
        return []
    lines = path.read_text().split("\n")
    # A complete line ends in a newline: what follows the last newline is cut or empty.
    return [json.loads(line) for line in lines[:-1]]


def _line(record: Mapping[str, Any]) -> str:
    # JSON has no NaN, which is the mean over nothing: it becomes null.
    clean = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in record.items()
    }
    return json.dumps(clean) + "\n"
