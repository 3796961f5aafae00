"""Training metrics: means and rates over a window of steps, and the files that they go to.

``Window`` collects the sums of the steps between two records, measures time and checks that loss
and gradient are finite; ``MetricsWriter`` appends records to ``metrics.jsonl`` and TensorBoard.
Both files, and the log, are a ``RecordFile``, whose failures neither block nor end a training.
"""

import json
import logging
import math
import os
import socket
import struct
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import jax
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import masked_crc32c
from tensorboardX.summary import scalar, text

from flaxnets.metrics import MeanAccumulator
from flaxnets.training.workdir import write_atomically

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

    def exclude(self, seconds: float) -> None:
        """Takes time out of the window's rates, as that of compilation."""
        self._start += seconds

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
    scanned = record.get("scan_fallbacks", 0.0)
    return (
        f"loss {record.get('loss', math.nan):.4g}, {record['clips_per_second']:.4g} clips/s, "
        f"{record['data_wait_share']:.0%} waiting for data"
        + (f", {scanned:.2g} fallbacks a sequence and layer" if scanned else "")
    )


def progress_line(step: int, num_steps: int, record: Mapping[str, float]) -> str:
    """Returns the line of the log about a record, where there is no progress bar.

    >>> record = {"loss": 0.5, "steps_per_second": 2.0, "clips_per_second": 64.0}
    >>> progress_line(400, 1_000, {**record, "data_wait_share": 0.02})
    'step 400 of 1,000: loss 0.5, 64 clips/s, 2% waiting for data, 2 steps/s, 5 min left'
    """
    rate = record["steps_per_second"]
    left = (num_steps - step) / rate
    if left < 90:
        remaining = f"{left:.0f} s"
    elif left < 5_400:
        remaining = f"{left / 60:.0f} min"
    else:
        remaining = f"{left / 3_600:.1f} h"
    return (
        f"step {step:,} of {num_steps:,}: {summary(record)}, {rate:.3g} steps/s, {remaining} left"
    )


class RecordFile:
    """File to which whole records are appended, and whose failures end nothing.

    A record that cannot be written, as on a full disk, waits in memory and is written before the
    next one. The first failure is logged as a warning, later ones are not. Records still waiting
    when the file is closed are lost.
    """

    MOST_WAITING = 10_000
    """Records that wait in memory; of more, the oldest are dropped."""

    def __init__(self, path: Path) -> None:
        """Sets the path; the file and its folder are made with the first record."""
        self._path = path
        self._file: BinaryIO | None = None
        self._size = 0  # Bytes of whole records.
        self._torn = False  # True while a part of a record may stand at the end.
        self._waiting: deque[bytes] = deque(maxlen=self.MOST_WAITING)
        self._warned = False

    def append(self, record: bytes) -> None:
        """Appends a record, after those that wait; raises no OSError."""
        self._waiting.append(record)
        self._write_waiting()

    def close(self) -> None:
        """Tries once more to write the records that wait, and closes the file."""
        self._write_waiting()
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write_waiting(self) -> None:
        try:
            while self._waiting:
                self._write(self._waiting[0])
                self._waiting.popleft()
        except OSError as error:
            if self._warned:
                return
            # Before the message, which comes back here if this is the file of the log.
            self._warned = True
            logger.warning(
                "%s: cannot be written: %s; training goes on, and records wait in memory (at most "
                "%d) until they can be written",
                self._path,
                error.strerror or error,
                self.MOST_WAITING,
            )

    def _write(self, record: bytes) -> None:
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # A buffer would keep what a full disk refuses, and fail again when it is closed.
            self._file = self._path.open("ab", buffering=0)
            self._size = os.fstat(self._file.fileno()).st_size
        if self._torn:
            # Needs no space. A part of a record would spoil the next one, and all of TensorBoard's.
            os.ftruncate(self._file.fileno(), self._size)
        self._torn = True
        rest = memoryview(record)
        while rest:
            rest = rest[self._file.write(rest) :]
        self._size += len(record)
        self._torn = False


class MetricsWriter:
    """Appends records to a workdir's ``metrics.jsonl`` and TensorBoard events.

    Each step is recorded once, however often the run was killed: records after the step that the
    run resumes from are dropped on opening, since those steps are computed again. A file that
    cannot be written ends no training, see ``RecordFile``.
    """

    def __init__(
        self,
        workdir: Path,
        *,
        resume_step: int,
        writes: bool = True,
        evaluates: str = "",
        description: str = "",
    ) -> None:
        """Drops the records that are computed again.

        Args:
          workdir: an existing folder.
          resume_step: step of the checkpoint; records of later steps are removed.
          writes: False for all but one of the processes that share the workdir; writes nothing.
          evaluates: split that is evaluated again at ``resume_step``, whose record is removed, too;
            empty: none.
          description: Markdown about the run, which TensorBoard shows as the text ``run``.

        Raises:
          OSError: ``metrics.jsonl`` cannot be read, or not be rewritten; it then stays as it was.
        """
        self._writes = writes
        if not writes:
            return
        path = workdir / "metrics.jsonl"
        whole = path.read_bytes() if path.exists() else b""
        kept = b"".join(
            line
            for line, record in _lines(path, whole)
            if (record["step"], record["split"]) != (resume_step, evaluates)
            and record["step"] <= resume_step
        )
        if whole.startswith(kept) and path.exists():
            os.truncate(path, len(kept))  # Works on a full disk, too.
        else:
            write_atomically(path, lambda unfinished: unfinished.write_bytes(kept))
        self._records = RecordFile(path)
        # tensorboardX's own writer has a thread that dies of a full disk, and a bounded queue that
        # then blocks the training for ever. Its events are therefore written here.
        now = time.time()
        name = f"events.out.tfevents.{int(now):010d}.{socket.gethostname()}"
        self._events = RecordFile(workdir / "tensorboard" / name)
        self._write_event(Event(wall_time=now, file_version="brain.Event:2"))
        # TensorBoard drops what earlier files hold of this step and later ones.
        start = SessionLog(status=SessionLog.START)
        self._write_event(Event(wall_time=now, step=resume_step + 1, session_log=start))
        if description:
            about = text("run", description)
            self._write_event(Event(wall_time=now, step=resume_step + 1, summary=about))

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Writes one record, ``{"step": …, "split": …, name: value, …}``."""
        if not self._writes:
            return
        self._records.append(_line({"step": step, "split": split, **values}).encode())
        for name, value in values.items():
            summary = scalar(f"{split}/{name}", value)
            self._write_event(Event(wall_time=time.time(), step=step, summary=summary))

    def _write_event(self, event: Event) -> None:
        """Appends an event in TensorFlow's record format: length, data, and checksums of both."""
        data = event.SerializeToString()
        length = struct.pack("<Q", len(data))
        checksums = (struct.pack("<I", masked_crc32c(part)) for part in (length, data))
        self._events.append(length + next(checksums) + data + next(checksums))

    def close(self) -> None:
        """Closes the files."""
        if not self._writes:
            return
        self._records.close()
        self._events.close()


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """Returns the records of ``metrics.jsonl``, without a last line that a kill has cut.

    Lines that hold no record, as on a damaged disk, are left out with a warning that names them.
    """
    path = workdir / "metrics.jsonl"
    if not path.exists():
        return []
    return [record for _, record in _lines(path, path.read_bytes())]


def _lines(path: Path, whole: bytes) -> list[tuple[bytes, dict[str, Any]]]:
    """Returns the lines that hold a record, newline included, each with its record."""
    # A complete line ends in a newline: what follows the last newline is cut or empty.
    lines = whole.split(b"\n")[:-1]
    records = [_parse(line) for line in lines]
    bad = [str(number) for number, record in enumerate(records, 1) if record is None]
    if bad:
        more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
        logger.warning(
            "%s: damaged; expected a JSON record with step and split in each line, which are left "
            "out where there is none: line %s%s",
            path,
            ", ".join(bad[:5]),
            more,
        )
    return [
        (line + b"\n", record)
        for line, record in zip(lines, records, strict=True)
        if record is not None
    ]


def _parse(line: bytes) -> dict[str, Any] | None:
    """Returns the record of a line; None if it is none."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict):
        return None
    step, split = record.get("step"), record.get("split")
    if type(step) is not int or not isinstance(split, str):
        return None
    values = (value for name, value in record.items() if name not in ("step", "split"))
    return record if all(v is None or type(v) in (int, float) for v in values) else None


def _line(record: Mapping[str, Any]) -> str:
    # JSON has no NaN, which is the mean over nothing: it becomes null.
    clean = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in record.items()
    }
    return json.dumps(clean) + "\n"
