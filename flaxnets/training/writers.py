"""Where metrics go: ``metrics.jsonl``, one record a line, and TensorBoard."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter


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
        # Written beside and renamed, so that a kill here loses nothing.
        temporary = path.with_suffix(".jsonl.tmp")
        temporary.write_text("".join(_line(record) for record in kept))
        temporary.replace(path)
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
