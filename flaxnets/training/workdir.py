"""Workdir of a run: its lock, its configuration and its files."""

import contextlib
import json
import logging
import math
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import filelock

from flaxnets.configuration import describe_part, local_path
from flaxnets.training.config import Config, data_differences, differences, plain, to_dict

logger = logging.getLogger(__name__)

HOLDER = "lock.holder"
"""File that names the holder of the lock; its time of change is the last sign of life."""
BEAT_SECONDS = 15.0
"""Seconds between two signs of life of a lock's holder."""
MODEL_FORMAT = 1
"""Version of ``model.json``; readers refuse others."""
ALPHABET, LANGUAGE_MODEL, LEXICON = "alphabet.json", "language_model.safetensors", "lexicon.txt"
"""Files of a reader: its characters, and the n-gram model and the words of its search."""
SILENT_SECONDS = 90.0
"""Seconds without a sign of life after which the holder counts as dead."""


class WorkdirError(Exception):
    """A workdir cannot be used; the message gives the reason and the fix."""


class WorkdirInUse(WorkdirError):
    """Another process holds the lock of a workdir."""


class Workdir:
    """Folder of a run, locked inside ``with``.

    Contains ``config.json``, ``data.json``, ``model.json``, ``metrics.jsonl``, ``checkpoints/``,
    ``tensorboard/``, ``log.txt``, ``predictions/`` and ``report.html``. Of several processes the
    first one holds the lock and writes; all need to see the folder on a shared file system.
    """

    def __init__(
        self, path: Path | str, *, writes: bool = True, break_lock_after: float = math.inf
    ) -> None:
        """Sets the path; touches no file.

        Args:
          path: of the folder, which ``with`` makes if it is missing.
          writes: False for all but the first of several processes; neither locks nor writes.
          break_lock_after: seconds without a sign of life of a holder on another machine after
            which its lock is broken, at least ``SILENT_SECONDS``: a file system may keep the lock
            of a machine that is gone. Infinite: never.

        Raises:
          ValueError: a URL.
        """
        self.path = Path(local_path("workdir", os.fspath(path)))
        self._writes = writes
        self._break_lock_after = max(break_lock_after, SILENT_SECONDS)
        self._lock = filelock.FileLock(self.path / "lock")
        self._ends = threading.Event()
        self._beats: threading.Thread | None = None
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
          WorkdirInUse: another process holds the lock.
          WorkdirError: not a folder, or not writable.
        """
        if not self._writes:
            return self
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            try:
                self._lock.acquire(blocking=False)
                self._holder.write_text(_own_name() + "\n")
            except filelock.Timeout:
                # One process at a time: another one must not break the new lock.
                with filelock.FileLock(self.path / "lock.breaking", timeout=BEAT_SECONDS):
                    self._break_lock()
                    self._lock.acquire(blocking=False)
                    self._holder.write_text(_own_name() + "\n")
        except filelock.Timeout:
            raise WorkdirInUse(f"{self.path}: in use by another process") from None
        except OSError as error:
            self._lock.release()
            raise WorkdirError(f"{self.path}: no folder that can be written to: {error}") from error
        self._ends.clear()
        self._beats = threading.Thread(target=self._beat, name="workdir-lock", daemon=True)
        self._beats.start()
        return self

    def _beat(self) -> None:
        """Shows others, on this machine and others, that the holder of the lock lives."""
        while not self._ends.wait(BEAT_SECONDS):
            with contextlib.suppress(OSError):  # A file server that is away ends no training.
                if self._holder.read_text().strip() == _own_name():
                    os.utime(self._holder)

    def _break_lock(self) -> None:
        """Puts the lock of a dead machine aside; raises WorkdirInUse where it may not be dead."""
        clock = self.path / f".clock.{secrets.token_hex(4)}"
        clock.touch()
        now = clock.stat().st_mtime  # By the clock of the file server.
        clock.unlink()
        text, silent = read_holder(self.path, now)
        since = "" if silent is None else f", last sign of life {_ago(silent)}"
        problem = f"{self.path}: in use by another process ({text or 'unknown'}){since}; "
        if silent is None or silent < SILENT_SECONDS or _lives_here(text):
            raise WorkdirInUse(f"{problem}wait for it or name another workdir")
        if silent < self._break_lock_after:
            raise WorkdirInUse(
                f"{problem}wait for it, name another workdir or, if its machine is gone, break the "
                f"lock with --break_lock_after={SILENT_SECONDS:.0f}"
            )
        # Not deleted: a holder that lives after all keeps its lock on this file.
        os.replace(self.path / "lock", self.path / f"lock.broken.{secrets.token_hex(4)}")
        self._lock = filelock.FileLock(self.path / "lock")
        logger.warning("%s: broke the lock of %s, silent for %d s", self.path, text, silent)

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
        self._ends.set()
        if self._beats is not None:
            self._beats.join()
        with contextlib.suppress(OSError):
            if self._holder.read_text().strip() == _own_name():
                self._holder.unlink()
        self._lock.release()

    @property
    def _has_begun(self) -> bool:
        return (self.path / "metrics.jsonl").exists()

    @property
    def _holder(self) -> Path:
        return self.path / HOLDER

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
        return _read_record(path, {"experiment": str, "config": dict})

    def write_chosen(self, values: Mapping[str, Any]) -> None:
        """Writes values of fields of evaluation that were chosen after the training.

        Programs that use the run take them instead of those of ``config.json``.

        Args:
          values: by path of the field, as ``{"search.width": 10}``.
        """
        _write_json(self.path / "chosen.json", values)

    def read_chosen(self) -> Mapping[str, Any]:
        """Returns what ``write_chosen`` wrote; empty if nothing was chosen.

        Raises:
          WorkdirError: the file is damaged.
        """
        path = self.path / "chosen.json"
        if not path.exists():
            return {}
        try:
            values = json.loads(path.read_bytes())
        except (ValueError, RecursionError):
            values = None
        if not isinstance(values, dict):
            raise WorkdirError(
                f"{path}: damaged; expected a JSON object of fields of evaluation. Delete it, and "
                "choose again, as by launch.tune_search"
            )
        return values

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

    def record_run(
        self, described: Mapping[str, Any], inference: Mapping[str, Any] | None = None
    ) -> None:
        """Writes ``data.json``: the data of this run are those of its checkpoints.

        And ``model.json``, with which ``flaxnets.load`` uses the model without its experiment.

        Args:
          described: what ``flaxnets.training.config.describe_run`` returned.
          inference: what ``Config.describe_inference`` returned; None: no ``model.json``.
        """
        if inference is not None:
            try:
                _write_json(self.path / "model.json", describe_model(inference))
            except ValueError as error:  # A part of one's own may be a local function.
                logger.warning("no model.json, so flaxnets.load cannot use the run: %s", error)
        # Without a check it may be left from a call that failed before its first checkpoint.
        known = self.read_data()["evaluated"] if self._data_checked else {}
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
        types = {"class_names": list, "preprocessing": dict, "splits": dict, "evaluated": dict}
        return _read_record(path, types)

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
        evaluated = {**recorded["evaluated"], split: plain(described)}
        _write_json(self.path / "data.json", {**recorded, "evaluated": evaluated})


def describe_model(inference: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the content of ``model.json`` of what ``Config.describe_inference`` returned.

    Raises:
      ValueError: a part of the network that JSON cannot describe.
    """
    network = describe_part(inference["network"])
    return plain({"format": MODEL_FORMAT, **inference, "network": network})


def read_holder(path: Path, now: float | None = None) -> tuple[str, float | None]:
    """Returns who holds the lock of a workdir, as it wrote it, and the seconds since it lived.

    It takes no lock, which could keep a run from starting at that moment.

    Args:
      path: of the workdir.
      now: time by the file system's clock; None: by this machine's.

    Returns:
      ``process 4711 on node7`` and the age of its last sign of life; ("", None) without a holder.
    """
    try:
        text = (path / HOLDER).read_text(encoding="utf-8", errors="replace").strip()
        age = (time.time() if now is None else now) - (path / HOLDER).stat().st_mtime
    except OSError:
        return "", None
    return text, max(age, 0.0)


def is_in_use(path: Path) -> bool:
    """Returns True if a process uses a workdir: one that lives, on this machine or another.

    It takes no lock, either.
    """
    with contextlib.suppress(OSError):  # Of Linux: the locks that processes of this machine hold.
        inode = str((path / "lock").stat().st_ino)
        for line in Path("/proc/locks").read_text().splitlines():
            words = line.split()  # 1: FLOCK ADVISORY WRITE PID DEVICE:INODE START END
            if words[1] == "FLOCK" and words[5].rpartition(":")[2] == inode:
                return True
    text, silent = read_holder(path)
    if silent is None or silent > SILENT_SECONDS:
        return False
    return text.rpartition(" on ")[2] != socket.gethostname() or _lives_here(text)


def _own_name() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"


def _lives_here(text: str) -> bool:
    """Returns True if ``process 4711 on node7`` is a process of this machine that lives."""
    process, _, host = text.removeprefix("process ").partition(" on ")
    if host != socket.gethostname() or not process.isdecimal():
        return False
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _ago(seconds: float) -> str:
    """Returns ``40 s ago``, ``3 min ago`` or ``2.5 h ago``."""
    if seconds < 120:
        return f"{seconds:.0f} s ago"
    return f"{seconds / 60:.0f} min ago" if seconds < 7200 else f"{seconds / 3600:.1f} h ago"


def _read_record(path: Path, types: Mapping[str, type]) -> Mapping[str, Any]:
    """Returns the record of a JSON file, whose fields have the given types, or WorkdirError."""
    try:
        record = json.loads(path.read_bytes())
        wrong = [name for name, kind in types.items() if not isinstance(record[name], kind)]
        if not wrong:
            return record
        reason = f"{wrong[0]} is {record[wrong[0]]!r:.40}"
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}"
    raise WorkdirError(
        f"{path}: damaged ({reason}); expected JSON with {', '.join(types)}. Delete it and give "
        "the command of the training again, which writes it anew"
    )


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    write_text_atomically(path, json.dumps(values, indent=1, ensure_ascii=False) + "\n")


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
