"""Workdir of a run: its lock, its configuration and its files."""

import json
import os
import secrets
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import filelock

from flaxnets.training.config import Config, differences, to_dict


class WorkdirError(Exception):
    """A workdir cannot be used; the message gives the reason and the fix."""


class Workdir:
    """Folder of a run, locked inside ``with``.

    Contains ``config.json``, ``metrics.jsonl``, ``checkpoints/``, ``tensorboard/``, ``log.txt``,
    ``predictions/`` and ``report.html``. Of several processes the first one holds the lock and
    writes; all need to see the folder on a shared file system.
    """

    def __init__(self, path: Path | str, *, writes: bool = True) -> None:
        """Sets the path; touches no file.

        Args:
          path: of the folder, which ``with`` makes if it is missing.
          writes: False for all but the first of several processes; neither locks nor writes.
        """
        self.path = Path(path)
        self._writes = writes
        self._lock = filelock.FileLock(self.path / "lock")
        self._newly_claimed = False

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def log(self) -> Path:
        """The log file."""
        return self.path / "log.txt"

    @property
    def profile(self) -> Path:
        """The folder of profiler traces."""
        return self.path / "profile"

    def predictions(self, split: str) -> Path:
        """Returns the path of the outputs of a split, one JSON record per line."""
        return self.path / "predictions" / f"{split}.jsonl"

    def __enter__(self) -> "Workdir":
        """Makes the folder and locks it.

        Raises:
          WorkdirError: not a folder, not writable, or in use by another process.
        """
        if not self._writes:
            return self
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(blocking=False)
            self._holder.write_text(f"process {os.getpid()} on {socket.gethostname()}\n")
        except filelock.Timeout:
            holder = (
                self._holder.read_text(errors="replace").strip()
                if self._holder.exists()
                else "unknown"
            )
            raise WorkdirError(
                f"{self.path}: in use by another process ({holder}); wait for it or name another "
                "workdir"
            ) from None
        except OSError as error:
            raise WorkdirError(f"{self.path}: no folder that can be written to: {error}") from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Unlocks the folder; removes the claim of a run that failed before its first record."""
        if not self._writes:
            return
        # Else the same command with, say, a corrected data path would be refused.
        if error is not None and self._newly_claimed and not self._has_begun:
            (self.path / "config.json").unlink(missing_ok=True)
        self._lock.release()

    @property
    def _has_begun(self) -> bool:
        return (self.path / "metrics.jsonl").exists()

    @property
    def _holder(self) -> Path:
        return self.path / "lock.holder"

    def claim(self, experiment: str, config: Config) -> None:
        """Writes ``config.json``, or checks that the existing one is of the same run.

        Fields made by ``flaxnets.configuration.runtime`` may differ.

        Args:
          experiment: ``FILE[:variant]``.
          config: the configuration of the run.

        Raises:
          WorkdirError: the folder holds another configuration; shows each difference.
        """
        if not self._writes:
            return
        path = self.path / "config.json"
        self._newly_claimed = not path.exists()
        if not self._newly_claimed:
            recorded = self.read_config()
            lines = differences(recorded["config"], config)
            if recorded["experiment"] != experiment:
                lines.insert(0, f"experiment: {recorded['experiment']} there, {experiment} now")
            if lines:
                raise WorkdirError(
                    f"{self.path}: holds a run of another configuration; name another workdir, or "
                    "give these flags as they were:\n  " + "\n  ".join(lines)
                )
        record = {"experiment": experiment, "config": to_dict(config)}
        write_text_atomically(path, json.dumps(record, indent=2) + "\n")

    def read_config(self) -> Mapping[str, Any]:
        """Returns what ``claim`` wrote: ``{"experiment": FILE[:variant], "config": {…}}``.

        Raises:
          WorkdirError: the folder does not exist or holds no run, or the file is damaged.
        """
        path = self.path / "config.json"
        if not self.path.is_dir():
            raise WorkdirError(f"{self.path}: no such folder; expected the workdir of a run")
        if not path.exists():
            raise WorkdirError(
                f"{self.path}: no config.json in it; expected a workdir that launch.train made"
            )
        try:
            record = json.loads(path.read_bytes())
            if isinstance(record["experiment"], str) and isinstance(record["config"], dict):
                return record
            reason = "experiment is no text or config no table"
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            reason = f"{type(error).__name__}: {error}"
        raise WorkdirError(
            f"{path}: damaged ({reason}); expected JSON with experiment and config. Delete it and "
            "give the command of the training again, which writes it anew"
        )


def write_atomically(path: str | os.PathLike[str], write: Callable[[Path], object]) -> None:
    """Writes a temporary file and renames it, so that a kill leaves no partial file.

    If several processes write the same file at once, the last rename wins.

    Args:
      path: of the file, in an existing folder.
      write: writes the complete file to the path that it is given.

    Raises:
      OSError: the file, which it names, cannot be written; the temporary file is removed.
    """
    path = Path(path)
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}.unfinished")
    try:
        write(unfinished)
        with open(unfinished, "rb") as file:
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        # Python names no file where a write fails, as on a full disk.
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        unfinished.unlink(missing_ok=True)


def write_text_atomically(path: str | os.PathLike[str], text: str) -> None:
    """Writes a text file, UTF-8, as ``write_atomically`` does."""
    write_atomically(path, lambda unfinished: unfinished.write_text(text, encoding="utf-8"))
