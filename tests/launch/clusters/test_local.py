"""Jobs of several processes on this machine: output, exit codes, signals, restarts."""

import io
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flaxnets.training.metric_writer import read_metrics
from flaxnets.training.preemption import SIGNALS
from launch import local
from launch.clusters.local_job import LocalJob, run_with_restarts
from tests.launch.jobs import processes_with
from tests.launch.programs import (
    MOVING_SHAPES,
    ROOT,
    finish,
    sentence,
    start,
    succeed,
)

WAIT = "import time; time.sleep(60)"


@pytest.fixture(autouse=True)
def no_nohup() -> Iterator[None]:
    """The tests may run under nohup, which the processes that they start would inherit."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def run(
    *scripts: str, environments: Sequence[dict[str, str]] | None = None, grace: float = 10
) -> tuple[int, list[str], float]:
    """Runs one Python script per process; returns the exit code, sorted lines and seconds."""
    output = io.StringIO()
    commands = [[sys.executable, "-u", "-c", script] for script in scripts]
    job = LocalJob(
        commands, environments or [{} for _ in scripts], output=output, grace_seconds=grace
    )
    start = time.monotonic()
    code = job.run()
    return code, sorted(output.getvalue().splitlines()), time.monotonic() - start


def test_lines_have_their_rank_and_processes_their_environment() -> None:
    script = "import os, sys; print(os.environ['PART'] * 3); print('to error', file=sys.stderr)"
    code, lines, _ = run(script, script, environments=[{"PART": "a"}, {"PART": "b"}])
    assert code == 0
    assert lines == ["[0] aaa", "[0] to error", "[1] bbb", "[1] to error"]


def test_lines_of_processes_do_not_mix() -> None:
    script = "for i in range(300): print('x' * 200)"
    _, lines, _ = run(script, script, script)
    assert lines == [f"[{rank}] {'x' * 200}" for rank in range(3) for _ in range(300)]


def test_no_line_is_lost_at_the_end() -> None:
    script = "import sys; sys.stdout.write('line\\n' * 60_000)"
    code, lines, seconds = run(script)
    assert (code, len(lines)) == (0, 60_000)
    assert seconds < 9


def test_when_one_fails_the_others_get_a_little_time() -> None:
    code, lines, seconds = run("import sys; sys.exit(3)", WAIT, "print('done')", grace=0.5)
    assert code == 3
    assert "[0] ended with exit code 3" in lines
    assert "[1] killing the remaining processes: 1" in lines
    assert "[2] done" in lines
    assert seconds < 30
    late = "import time; time.sleep(0.5); print('saved')"
    code, lines, _ = run("import sys; sys.exit(3)", late, grace=30)
    assert (code, lines) == (3, ["[0] ended with exit code 3", "[1] saved"])


def test_a_killed_process_ends_the_job() -> None:
    kills_itself = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    code, lines, _ = run(WAIT, kills_itself, grace=0.2)
    assert code == 128 + signal.SIGKILL
    assert "[1] ended with exit code 137" in lines
    assert any(line.startswith("[1] error: process 1 of 2 was killed by SIGKILL") for line in lines)


@pytest.mark.slow
def test_errors_that_follow_from_a_death_are_left_out() -> None:
    dies = "import os, time; print('mine'); time.sleep(1); os.kill(os.getpid(), 9)"
    # It loses its connection a moment before the death of the other one can be seen.
    follows = "import sys, time; print('before'); time.sleep(0.9); print('Gloo AllGather failed'); "
    code, lines, _ = run(dies, follows + "time.sleep(1); print('Traceback'); sys.exit(1)")
    assert code == 137
    assert [line for line in lines if "error" not in line] == [
        "[0] ended with exit code 137",
        "[0] mine",
        "[1] before",
        "[1] ended with exit code 1",
    ]
    # Another one may notice the death before the job does.
    slow = "import os, sys, time; time.sleep({}); {}"
    code, lines, _ = run(slow.format(0.2, "sys.exit(134)"), slow.format(0.8, "os.kill(0, 9)"))
    assert code == 137
    assert any(line.startswith("[1] error: process 1 of 2 was killed by SIGKILL") for line in lines)
    # What ends well is shown, and so is the error that came first.
    code, lines, _ = run("import sys; print('why'); sys.exit(3)", follows)
    assert (code, lines) == (
        3,
        ["[0] ended with exit code 3", "[0] why", "[1] Gloo AllGather failed", "[1] before"],
    )


def test_children_of_a_process_end_with_the_job(tmp_path: Path) -> None:
    child = f"import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', {WAIT!r}]); "
    child += "print(p.pid); p.wait()"
    _, lines, _ = run(child, "import time, sys; time.sleep(2); sys.exit(1)", grace=0.2)
    pid = int(next(line for line in lines if re.fullmatch(r"\[0\] \d+", line)).split()[1])
    for _ in range(100):
        if not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text():
            return
        time.sleep(0.1)
    raise AssertionError(f"{pid} lives on")


HANDLES = """
import signal, sys, time
def end(number, frame):
    print("signal", number)
    sys.exit(128 + number)
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
    signal.signal(number, end)
print("ready")
time.sleep(60)
"""


@pytest.mark.parametrize("number", SIGNALS)
def test_signals_reach_every_process(number: int) -> None:
    output = io.StringIO()
    job = LocalJob([[sys.executable, "-u", "-c", HANDLES]] * 2, [{}, {}], output=output)

    def send() -> None:
        while output.getvalue().count("ready") < 2:
            time.sleep(0.05)
        os.kill(os.getpid(), number)

    sender = threading.Thread(target=send)
    sender.start()
    assert job.run() == 128 + number
    sender.join()
    assert job.signal == number
    assert {f"[{rank}] signal {int(number)}" for rank in range(2)} <= set(
        output.getvalue().splitlines()
    )


def test_of_several_signals_one_that_is_requeued_gives_the_exit_code() -> None:
    output = io.StringIO()
    # One of the processes gets no further than SIGINT.
    counts = HANDLES.replace("sys.exit(128 + number)", "time.sleep(0.5); sys.exit(130)")
    job = LocalJob([[sys.executable, "-u", "-c", counts]] * 2, [{}, {}], output=output)

    def send() -> None:
        while output.getvalue().count("ready") < 2:
            time.sleep(0.05)
        for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGTERM):
            os.kill(os.getpid(), number)
            time.sleep(0.1)

    sender = threading.Thread(target=send)
    sender.start()
    assert job.run() == 128 + signal.SIGUSR1
    sender.join()


LAUNCHER = """
import sys
from launch.clusters.local_job import LocalJob
sys.exit(LocalJob([["sh", "-c", script] for script in sys.argv[2:]], [{}] * len(sys.argv[2:]),
                  orphan_seconds=float(sys.argv[1])).run())
"""


def start_launcher(*scripts: str, seconds: float, **options: Any) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", LAUNCHER, str(seconds), *scripts]
    return subprocess.Popen(command, cwd=ROOT, start_new_session=True, **options)


def wait_for(condition: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.subprocess
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP, signal.SIGUSR1])
def test_a_launcher_that_dies_takes_its_processes_with_it(number: int, tmp_path: Path) -> None:
    saved, begun = tmp_path / "saved", tmp_path / "begun"
    mark = f"sleep 6{tmp_path.stat().st_ino}"  # Found in the list of processes.
    saves = f"trap 'sleep 0.3; echo x > {saved}; exit' TERM HUP USR1; echo >> {begun}; "
    # A child of its own, for which it waits so that it hears of signals at once.
    launcher = start_launcher(f"{saves} {mark} & wait $!", seconds=2, stdout=subprocess.DEVNULL)
    wait_for(begun.exists)
    wait_for(lambda: bool(processes_with(mark)))
    launcher.send_signal(number)
    launcher.wait(10)
    wait_for(lambda: not processes_with(mark), 6)
    assert saved.exists()


@pytest.mark.subprocess
def test_a_process_that_goes_on_without_its_launcher_is_killed(tmp_path: Path) -> None:
    begun, mark = tmp_path / "begun", f"sleep 7{tmp_path.stat().st_ino}"
    deaf = f"trap '' TERM; echo >> {begun}; {mark}"
    launcher = start_launcher(deaf, deaf, seconds=1, stdout=subprocess.DEVNULL)
    wait_for(lambda: begun.exists() and len(begun.read_text()) == 2)
    launcher.kill()
    launcher.wait()
    time.sleep(0.4)
    assert processes_with(mark)  # It has a second to save.
    wait_for(lambda: not processes_with(mark), 5)


@pytest.mark.slow
@pytest.mark.subprocess
def test_the_job_goes_on_when_nobody_reads_its_output(tmp_path: Path) -> None:
    done = tmp_path / "done"
    # More than fits into a pipe.
    script = f"i=0; while [ $i -lt 30000 ]; do echo line $i; i=$((i+1)); done; echo > {done}"
    launcher = start_launcher(script, seconds=1, stdout=subprocess.PIPE)
    assert launcher.stdout is not None
    launcher.stdout.close()
    assert launcher.wait(30) == 0
    assert done.exists()


@pytest.mark.parametrize(
    ("code", "restarts", "runs", "expected"),
    [(1, 2, 3, 0), (1, 5, 3, 0), (143, 1, 2, 143), (2, 5, 1, 2), (1, 0, 1, 1)],
)
def test_failures_are_tried_again_and_wrong_flags_are_not(
    code: int,
    restarts: int,
    runs: int,
    expected: int,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # Fails in its first two runs.
    script = (
        f"import sys; file = open({str(tmp_path / 'runs')!r}, 'a+'); file.write('x'); "
        f"file.seek(0); sys.exit(0 if len(file.read()) == 3 else {code})"
    )

    def make_job() -> LocalJob:
        return LocalJob([[sys.executable, "-c", script]], [{}], output=io.StringIO())

    assert run_with_restarts(make_job, restarts) == expected
    assert len((tmp_path / "runs").read_text()) == runs
    told = capsys.readouterr().err
    assert told.count(": restart ") == runs - 1
    if runs == 3:
        assert f"exit code 1: restart 2 of {restarts}" in told


def test_a_signal_ends_the_attempts() -> None:
    jobs = []

    def make_job() -> LocalJob:
        output = io.StringIO()
        jobs.append(LocalJob([[sys.executable, "-u", "-c", HANDLES]], [{}], output=output))

        def send() -> None:
            while "ready" not in output.getvalue():
                time.sleep(0.05)
            os.kill(os.getpid(), signal.SIGTERM)

        threading.Thread(target=send).start()
        return jobs[-1]

    assert run_with_restarts(make_job, 3) == 128 + signal.SIGTERM
    assert len(jobs) == 1


def test_each_process_is_told_who_it_is_and_which_devices_it_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(local, "PROGRAM", SimpleNamespace(value="launch.train"))
    monkeypatch.setattr(local, "CPU_DEVICES", SimpleNamespace(value=0))
    monkeypatch.setattr(local, "GPUS_PER_PROCESS", SimpleNamespace(value=2))
    first, second = local.make_commands(["--workdir=x"], 2)
    assert first[1:5] == ["-u", "-m", "launch.train", "--workdir=x"]
    assert first[:-1] == second[:-1]
    assert re.fullmatch(r"--coordinator=127\.0\.0\.1:\d+", first[5])
    assert first[6:] == ["--num_processes=2", "--process_id=0"]
    assert second[-1] == "--process_id=1"
    assert local.make_environments(2) == [
        {"CUDA_VISIBLE_DEVICES": "0,1"},
        {"CUDA_VISIBLE_DEVICES": "2,3"},
    ]
    assert local.make_commands(["--workdir=x"], 1)[0][5:] == ["--cluster=none"]
    monkeypatch.setattr(local, "CPU_DEVICES", SimpleNamespace(value=4))
    monkeypatch.setattr(local, "GPUS_PER_PROCESS", SimpleNamespace(value=0))
    [environment] = local.make_environments(1)
    assert environment == {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "4"}


@pytest.mark.stress
def test_a_training_of_two_processes_and_flags_that_are_missing(tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    trained = start("local", "--cpu_devices=2", "--", MOVING_SHAPES, f"--workdir={workdir}")
    empty = start("local", "--processes=2")
    both = start("local", "--cpu_devices=2", "--gpus_per_process=1", "--", f"--workdir={workdir}")
    lines = succeed(trained).splitlines()
    assert any(line.startswith("[1] ") and "2 × cpu" not in line for line in lines)
    assert any(line.startswith("[0] ") and "on 4 × cpu" in line for line in lines)
    records = read_metrics(workdir)
    assert [record["step"] for record in records if record["split"] == "validation"][-1] == 6
    message = "error: expected the flags of launch.train after --, received none"
    assert sentence(finish(empty)) == message
    assert sentence(finish(both)).startswith("error: cpu_devices, gpus_per_process: expected one")
