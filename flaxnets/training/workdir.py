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

from flaxnets.configuration import local_path
from flaxnets.training.config import Config, data_differences, differences, plain, to_dict


class WorkdirError(Exception):
    """A workdir cannot be used; the message gives the reason and the fix."""


class Workdir:
    """Folder of a run, locked inside ``with``.

    Contains ``config.json``, ``data.json``, ``metrics.jsonl``, ``checkpoints/``,
    ``tensorboard/``, ``log.txt``, ``predictions/`` and ``report.html``. Of several processes the
    first one holds the lock and writes; all need to see the folder on a shared file system.
    """

    def __init__(self, path: Path | str, *, writes: bool = True) -> None:
        """Sets the path; touches no file.

        Args:
          path: of the folder, which ``with`` makes if it is missing.
          writes: False for all but the first of several processes; neither locks nor writes.

        Raises:
          ValueError: a URL.
        """
        self.path = Path(local_path("workdir", os.fspath(path)))
        self._writes = writes
        self._lock = filelock.FileLock(self.path / "lock")
        self._newly_claimed = False
        self._previous: str | None = None
        self._data_checked = False

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
        except filelock.Timeout:
            holder = self._holder.read_text().strip() if self._holder.exists() else "unknown"
            raise WorkdirError(
                f"{self.path}: in use by another process ({holder}); wait for it or name another "
                "workdir"
            ) from None
        except OSError as error:
            raise WorkdirError(f"{self.path}: no folder that can be written to: {error}") from error
        self._holder.write_text(f"process {os.getpid()} on {socket.gethostname()}\n")
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
        elif error is not None and self._previous is not None:
            write_text_atomically(self.path / "config.json", self._previous)
        self._lock.release()

    @property
    def _has_begun(self) -> bool:
        return (self.path / "metrics.jsonl").exists()

    @property
    def _holder(self) -> Path:
        return self.path / "lock.holder"

    def claim(self, experiment: str, config: Config) -> None:
        """Writes ``config.json``, or checks that the existing one is of the same run.

        Fields made by ``flaxnets.configuration.runtime`` may differ. Their new values are withdrawn
        if the run fails before ``record_run``, as on other data.

        Args:
          experiment: ``FILE[:variant]``; a relative path starts at the root of the repository.
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
        self._previous = None if self._newly_claimed else path.read_text(encoding="utf-8")
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
            f"{path}: damaged ({reason}); expected JSON with experiment and config, as "
            "launch.train writes it. Delete it and give the training command again, which writes "
            "it anew"
        )

    def check_run(self, described: Mapping[str, Any]) -> None:
        """Checks that a run that resumes reads the data of its ``data.json``, if there is one.

        Args:
          described: what ``flaxnets.training.config.describe_run`` returned.

        Raises:
          WorkdirError: the run was trained on other data; names the differences.
        """
        if not (self.path / "data.json").exists():
            return
        recorded, described = self.read_data(), plain(described)
        lines = []
        for part in ("class_names", "preprocessing"):
            lines += data_differences({part: recorded[part]}, {part: described[part]})
        for name, now in described["splits"].items():
            there = recorded["splits"].get(name, now)
            # Classes that differ are told once.
            same = {"class_names": now["class_names"]} if lines and "class_names" in now else {}
            lines += [f"{name}: {line}" for line in data_differences({**there, **same}, now)]
        if lines:
            raise WorkdirError(
                f"{self.path}: was trained on other data, so the run cannot resume: "
                + "; ".join(lines)
            )
        self._data_checked = True

    def record_run(self, described: Mapping[str, Any]) -> None:
        """Writes ``data.json``: the data of this run are those of its checkpoints.

        Args:
          described: what ``flaxnets.training.config.describe_run`` returned.
        """
        # Without a check it may be left from a call that failed before its first checkpoint.
        known = self.read_data().get("evaluated", {}) if self._data_checked else {}
        _write_json(self.path / "data.json", {**plain(described), "evaluated": known})
        self._previous = None

    def check_trained(self) -> None:
        """Raises FileNotFoundError if the run has no checkpoints."""
        if not self.checkpoints.is_dir():
            raise FileNotFoundError(
                f"{self.checkpoints}: no checkpoints; expected a workdir that has trained"
            )

    def read_data(self) -> Mapping[str, Any]:
        """Returns what ``record_run`` wrote.

        ``class_names`` by label, ``preprocessing``, and ``splits``: the description of each split
        that training read; in ``evaluated`` that of each split whose predictions are there.

        Raises:
          FileNotFoundError: the run has not begun.
          WorkdirError: no such file, or a damaged one.
        """
        self.check_trained()
        if not (self.path / "data.json").exists():
            raise WorkdirError(
                f"{self.path}: no data.json in it, which holds the names of the classes; expected "
                "a workdir that launch.train made, with all its files"
            )
        path = self.path / "data.json"
        try:
            record = json.loads(path.read_bytes())
            tables = (record["preprocessing"], record["splits"], record.get("evaluated", {}))
            names = record["class_names"]
            if all(isinstance(table, dict) for table in tables) and isinstance(names, list):
                return record
            reason = "class_names is no list, or preprocessing or splits no table"
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            reason = f"{type(error).__name__}: {error}"
        raise WorkdirError(
            f"{path}: damaged ({reason}); expected JSON with class_names, preprocessing and "
            "splits, as launch.train writes it. Delete it and give the training command again, "
            "which writes it anew"
        )

    def check_data(self, split: str, described: Mapping[str, Any]) -> None:
        """Checks that the data of a split are those that the run knows.

        The classes must be those of the training. The list must be that of the training, too, if
        training has read the split.

        Args:
          split: the split that is evaluated.
          described: what ``Config.describe_data`` returned.

        Raises:
          WorkdirError: they are others; names the differences.
        """
        recorded = self.read_data()
        there: Mapping[str, Any] = {"class_names": recorded["class_names"]}
        now: Mapping[str, Any] = {"class_names": described.get("class_names", there["class_names"])}
        if split in recorded["splits"]:
            there, now = recorded["splits"][split], described
        if lines := data_differences(there, now):
            raise WorkdirError(
                f"{self.path}: the data of the split {split} are not those of the run: "
                + "; ".join(lines)
            )

    def record_evaluated(self, split: str, described: Mapping[str, Any]) -> None:
        """Records the data of the split's predictions in ``data.json``."""
        recorded = self.read_data()
        evaluated = {**recorded.get("evaluated", {}), split: plain(described)}
        _write_json(self.path / "data.json", {**recorded, "evaluated": evaluated})


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    write_text_atomically(path, json.dumps(values, indent=1, ensure_ascii=False) + "\n")


def write_atomically(path: str | os.PathLike[str], write: Callable[[Path], object]) -> None:
    """Writes a temporary file and renames it, so that a kill leaves no partial file.

    If several processes write the same file at once, the last rename wins.

    Args:
      path: of the file, in an existing folder.
      write: writes the complete file to the path that it is given.

    Raises:
      OSError: the file cannot be written; the temporary file is removed.
    """
    path = Path(path)
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}.unfinished")
    try:
        write(unfinished)
        with open(unfinished, "rb") as file:
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_text_atomically(path: str | os.PathLike[str], text: str) -> None:
    """Writes a text file, UTF-8, as ``write_atomically`` does."""
    write_atomically(path, lambda unfinished: unfinished.write_text(text, encoding="utf-8"))
