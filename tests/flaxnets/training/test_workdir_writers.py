"""Workdir of a run: lock, configuration, metrics."""

import json
import math
import os
import resource
import socket
import subprocess
import sys
import time
from pathlib import Path

import filelock
import pytest

from flaxnets.training import workdir as workdir_module
from flaxnets.training.config import Config
from flaxnets.training.metric_writer import MetricsWriter, read_metrics
from flaxnets.training.workdir import Workdir, WorkdirError, WorkdirInUse, is_in_use, read_holder


@pytest.mark.subprocess
def test_a_workdir_in_use_is_refused_and_free_again_after_a_kill(tmp_path: Path) -> None:
    code = (
        "import sys, time\n"
        "from flaxnets.training.workdir import Workdir\n"
        "workdir = Workdir(sys.argv[1]).__enter__(); print('in', flush=True); time.sleep(60)"
    )
    root = Path(__file__).parents[3]
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, cwd=root
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"in\n"
        message = rf"in use by another process \(process {holder.pid} on"
        with pytest.raises(WorkdirError, match=message):
            Workdir(tmp_path).__enter__()
    finally:
        holder.kill()
        holder.communicate()
    with Workdir(tmp_path):
        pass


def test_a_workdir_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkdirError, match="file: no folder that can be written to"):
        Workdir(tmp_path / "file").__enter__()


def test_another_configuration_is_refused_with_the_difference(tmp_path: Path) -> None:
    workdir = Workdir(tmp_path)
    workdir.claim("a.py", Config())
    workdir.claim("a.py", Config(log_every=7))  # A runtime field may change.
    assert workdir.read_config()["config"]["log_every"] == 7
    with pytest.raises(WorkdirError, match="seed: 0 there, 1 now"):
        workdir.claim("a.py", Config(seed=1))
    with pytest.raises(WorkdirError, match=r"experiment: a\.py there, b\.py now"):
        workdir.claim("b.py", Config())
    assert workdir.read_config()["config"]["seed"] == 0


def test_what_is_no_workdir_is_told(tmp_path: Path) -> None:
    with pytest.raises(WorkdirError, match="no such folder; expected the workdir of a run"):
        Workdir(tmp_path / "none").read_config()
    with pytest.raises(WorkdirError, match=r"no config\.json in it"):
        Workdir(tmp_path).read_config()


@pytest.mark.parametrize(
    "text", [b"", b"{", b"\xff\xfe", b"[]", b'{"experiment": 1}', b"[" * 99_999]
)
def test_a_damaged_configuration_names_its_file(tmp_path: Path, text: bytes) -> None:
    workdir = Workdir(tmp_path)
    (tmp_path / "config.json").write_bytes(text)
    with pytest.raises(WorkdirError, match=r"config\.json: damaged \(.*Delete it and give"):
        workdir.read_config()
    with pytest.raises(WorkdirError, match=r"config\.json: damaged \("):
        workdir.claim("a.py", Config())


def test_a_file_that_cannot_be_written_is_named_and_the_old_one_stays(tmp_path: Path) -> None:
    workdir = Workdir(tmp_path)
    workdir.claim("a.py", Config())
    before = (tmp_path / "config.json").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
    try:
        with pytest.raises(OSError, match=r"File too large: '.*/config\.json'"):
            workdir.claim("a.py", Config(log_every=7))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "config.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_records_after_the_checkpoint_are_dropped_and_a_cut_line_too(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path, resume_step=0)
    for step in (1, 2, 3):
        writer.write(step, "train", {"loss": 1 / step})
    writer.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "spl')
    assert [record["step"] for record in read_metrics(tmp_path)] == [1, 2, 3]
    writer = MetricsWriter(tmp_path, resume_step=2)
    writer.write(3, "train", {"loss": float("nan")})
    writer.close()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3]
    assert json.loads(lines[-1])["loss"] is None
    assert list((tmp_path / "tensorboard").glob("events.out.tfevents.*"))


def test_no_records_yet(tmp_path: Path) -> None:
    assert read_metrics(tmp_path) == []


def holding(path: Path, text: str, silent: float = 0.0) -> filelock.FileLock:
    """Returns the lock that another process would hold, which has shown no sign of life since."""
    lock = filelock.FileLock(path / "lock", thread_local=False)
    lock.acquire()
    (path / "lock.holder").write_text(text + "\n")
    moment = time.time() - silent
    os.utime(path / "lock.holder", (moment, moment))
    return lock


def test_the_lock_of_a_dead_machine_is_broken_after_its_age(tmp_path: Path) -> None:
    lock = holding(tmp_path, "process 17 on elsewhere", 3 * 3600)
    text = r"\(process 17 on elsewhere\), last sign of life 3\.0 h ago; .*--break_lock_after=90$"
    for limit in (math.inf, 4 * 3600):
        with pytest.raises(WorkdirInUse, match=text):
            Workdir(tmp_path, break_lock_after=limit).__enter__()
    with Workdir(tmp_path, break_lock_after=3600):
        assert (tmp_path / "lock.holder").read_text() == (
            f"process {os.getpid()} on {socket.gethostname()}\n"
        )
        with pytest.raises(WorkdirInUse, match=rf"\(process {os.getpid()} on"):
            Workdir(tmp_path, break_lock_after=3600).__enter__()
    lock.release()


@pytest.mark.parametrize("age", [0.0, 60.0])
def test_the_lock_of_a_living_process_is_not_broken(age: float, tmp_path: Path) -> None:
    lock = holding(tmp_path, "process 17 on elsewhere", age)
    with pytest.raises(WorkdirInUse, match=r"wait for it or name another workdir$"):
        Workdir(tmp_path, break_lock_after=0).__enter__()
    lock.release()
    lock = holding(tmp_path, f"process {os.getppid()} on {socket.gethostname()}", 9999)
    with pytest.raises(WorkdirInUse, match=r"wait for it or name another workdir$"):
        Workdir(tmp_path, break_lock_after=0).__enter__()
    lock.release()


def test_a_holder_shows_signs_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workdir_module, "BEAT_SECONDS", 0.05)
    with Workdir(tmp_path):
        os.utime(tmp_path / "lock.holder", (1, 1))
        end = time.monotonic() + 10
        while read_holder(tmp_path)[1] > 60:
            assert time.monotonic() < end
            time.sleep(0.02)
    assert read_holder(tmp_path) == ("", None)


def test_whether_a_workdir_is_in_use_is_told_without_a_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not is_in_use(tmp_path)
    monkeypatch.setattr(filelock.FileLock, "acquire", None)
    for text, silent, used in (
        ("process 17 on elsewhere", 0, True),
        ("process 17 on elsewhere", 100, False),
        (f"process {os.getpid()} on {socket.gethostname()}", 0, True),
        (f"process {2**22 + 1} on {socket.gethostname()}", 0, False),
    ):
        (tmp_path / "lock.holder").write_text(text)
        moment = time.time() - silent
        os.utime(tmp_path / "lock.holder", (moment, moment))
        assert is_in_use(tmp_path) == used, text
    assert [path.name for path in tmp_path.iterdir()] == ["lock.holder"]
