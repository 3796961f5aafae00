"""Slurm jobs without Slurm: the script, its exit code and requeueing, and refused options."""

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from launch.clusters.slurm_job import (
    SlurmJob,
    make_slurm_script,
    parse_time,
    submit_slurm_job,
)
from tests.launch.programs import (
    MOVING_SHAPES,
    ROOT,
    finish,
    sentence,
    start,
    succeed,
)

GOLDEN = """\
#!/bin/bash
#SBATCH --job-name=lrcn
#SBATCH --chdir='/home/ada/flax nets'
#SBATCH --output=runs/slurm/%x-%A_%a.out
#SBATCH --open-mode=append
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --gres=gpu:8
#SBATCH --time=1-12
#SBATCH --partition=gpu
#SBATCH --array=1-3%2
#SBATCH --signal=USR1@300
#SBATCH --requeue
#SBATCH --account=x

set -e

module load cuda

code=0
srun --label --cpus-per-task=8 bash -c 'JAX_LOCAL_DEVICE_IDS=$(seq -s, $((SLURM_LOCALID * 2)) \
$(((SLURM_LOCALID + 1) * 2 - 1))) exec "$@"' bash /venv/bin/python -u -m launch.train \
--workdir=runs/fold"$SLURM_ARRAY_TASK_ID" '--config.name=a b' || code=$?

# 143, 138 and 129: the run saved a checkpoint after SIGTERM, SIGUSR1 or SIGHUP. A job that was
# cancelled, or that Slurm requeues by itself, is no longer RUNNING.
if [ $code = 143 ] || [ $code = 138 ] || [ $code = 129 ]; then
    job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
    state=$(squeue --noheader --jobs="$job" --format=%T || true)
    if [ "$state" != RUNNING ]; then
        echo "job $job is ${state:-gone}: it does not requeue itself"
    elif [ "${SLURM_RESTART_COUNT:-0}" -ge 100 ]; then
        echo "job $job has been requeued $SLURM_RESTART_COUNT times, the limit"
    else
        echo "job $job requeues itself"
        scontrol requeue "$job"
    fi
fi

exit $code
""".replace("\\\n", "")


def make_job(*arguments: str, **options: Any) -> SlurmJob:
    options = {"python": "/venv/bin/python", "root": "/", "program": "launch.train", **options}
    return SlurmJob(arguments=arguments or ("--workdir=runs/x",), **options)


def test_the_whole_script() -> None:
    job = make_job(
        "--workdir=runs/fold{index}",
        "--config.name=a b",
        root="/home/ada/flax nets",
        nodes=2,
        tasks=4,
        gpus=2,
        cpus=8,
        time="1-12",
        partition="gpu",
        signal_seconds=300,
        array="1-3",
        array_limit=2,
        name="lrcn",
        setup="module load cuda\n",
        extra=("--account=x",),
    )
    assert make_slurm_script(job) == GOLDEN


def test_what_is_not_asked_for_is_not_in_the_script() -> None:
    script = make_slurm_script(make_job(requeue=False))
    options = [line for line in script.splitlines() if line.startswith("#SBATCH")]
    assert [option.partition("--")[2].partition("=")[0] for option in options] == [
        "job-name",
        "chdir",
        "output",
        "open-mode",
        "nodes",
        "ntasks-per-node",
        "signal",
        "no-requeue",
    ]
    assert "\ncode=0\nsrun /venv/bin/python -u -m launch.train --workdir=runs/x ||" in script
    assert "scontrol" not in script


def write_program(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)


@pytest.fixture
def commands(tmp_path: Path) -> Path:
    """A folder with fake Slurm commands; its Python prints its arguments and exits with $CODE."""
    folder = tmp_path / "commands"
    folder.mkdir()
    write_program(folder / "srun", 'while [[ $1 = --* ]]; do shift; done; exec "$@"')
    write_program(folder / "python", 'printf \'<%s>\\n\' "$@" "$JAX_LOCAL_DEVICE_IDS"; exit $CODE')
    write_program(folder / "squeue", 'echo "asked: $*" >&2; echo $STATE')
    write_program(folder / "scontrol", 'echo "scontrol $*"')
    return folder


def run_script(commands: Path, job: SlurmJob, **variables: str) -> tuple[int, str]:
    """Returns the exit code and the output of a job's script."""
    done = subprocess.run(
        ["bash"],
        input=make_slurm_script(job),
        env={
            "PATH": f"{commands}:{os.environ['PATH']}",
            "CODE": "0",
            "STATE": "RUNNING",
            "SLURM_JOB_ID": "41",
            **variables,
        },
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stdout + done.stderr


def test_arguments_reach_the_program_as_they_are(commands: Path) -> None:
    arguments = ["", "a b", "$HOME `x` \\", 'it\'s "so"', "{index}", "x{index}y{index}", "--z=*\n"]
    job = make_job(
        "--workdir=r{index}", *arguments, python=str(commands / "python"), array="7", gpus=2
    )
    code, output = run_script(commands, job, SLURM_ARRAY_TASK_ID="7", SLURM_LOCALID="1")
    expected = ["--workdir=r7", *[argument.replace("{index}", "7") for argument in arguments]]
    words = ["-u", "-m", "launch.train", *expected, "2,3"]
    assert (code, output) == (0, "".join(f"<{word}>\n" for word in words))


@pytest.mark.parametrize(
    ("code", "state", "restarts", "queues"),
    [
        (143, "RUNNING", "", True),
        (138, "RUNNING", "99", True),
        (129, "RUNNING", "", True),
        (143, "RUNNING", "100", False),
        (143, "COMPLETING", "", False),
        (143, "", "", False),
        (130, "RUNNING", "", False),
        (134, "RUNNING", "", False),
        (1, "RUNNING", "", False),
        (0, "RUNNING", "", False),
    ],
)
def test_only_what_a_signal_stopped_is_queued_again(
    code: int, state: str, restarts: str, queues: bool, commands: Path
) -> None:
    variables = {"CODE": str(code), "STATE": state}
    if restarts:
        variables["SLURM_RESTART_COUNT"] = restarts
    job = make_job(python=str(commands / "python"))
    found, output = run_script(commands, job, **variables)
    assert found == code
    assert ("scontrol requeue 41\n" in output) == queues
    assert ("asked: --noheader --jobs=41 --format=%T" in output) == (code in (129, 138, 143))


def test_of_an_array_the_element_alone_is_queued_again(commands: Path) -> None:
    job = make_job("--workdir={index}", python=str(commands / "python"), array="1-3")
    # The last element has the id of the whole array.
    variables = {"SLURM_ARRAY_JOB_ID": "41", "SLURM_ARRAY_TASK_ID": "3"}
    _, output = run_script(commands, job, CODE="143", **variables)
    assert "scontrol requeue 41_3\n" in output


def test_a_setup_that_fails_ends_the_job(commands: Path) -> None:
    job = make_job(python=str(commands / "python"), setup="echo first\nfalse\n")
    assert run_script(commands, job) == (1, "first\n")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30", 1800),
        ("2:30", 150),
        ("1:02:03", 3723),
        ("2-12", 216_000),
        ("1-1:30", 91_800),
        ("1-0:0:5", 86_405),
    ],
)
def test_limits_of_time(text: str, seconds: int) -> None:
    assert parse_time(text) == seconds


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": 0}, "tasks: expected at least 1, received 0"),
        ({"nodes": -1}, "nodes: expected at least 1, received -1"),
        ({"gpus": -1}, "gpus: expected at least 0, received -1"),
        ({"signal_seconds": 0}, "signal_seconds: expected 1 to 65535, received 0"),
        ({"time": "soon"}, "time: expected MINUTES, MINUTES:SECONDS, .* received 'soon'"),
        ({"time": "1:2:3:4"}, "time: .* received '1:2:3:4'"),
        (
            {"time": "2"},
            "time: expected more than signal_seconds = 120, received 2, which is 120 s",
        ),
        ({"array": "3-1"}, "array: expected indices as 1-3 or .* received '3-1'"),
        ({"array": "1-3%2"}, "array: .* received '1-3%2'; array_limit sets"),
        ({"array": "a"}, "array: .* received 'a'"),
        ({"array": "1-3"}, r"workdir: expected \{index\} in it, .* received runs/x"),
        ({"array": "1-3", "program": "launch.crossvalidate"}, r"expected \{index\} in a flag of"),
        ({"array_limit": 2}, "array_limit: expected --array=1-3 beside it, received none"),
        ({"name": "a\n#SBATCH --exclusive"}, "name: expected one line, received"),
        ({"extra": ("account=x",)}, "extra: expected options as --account=x, received 'account=x'"),
    ],
)
def test_what_slurm_could_do_nothing_with(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        make_job(**options)


def test_a_url_is_refused_before_the_job_waits() -> None:
    with pytest.raises(ValueError, match=r"^--workdir: expected a path .* the URL 'gs://bucket/x'"):
        make_job("--workdir=gs://bucket/x")


def test_an_index_needs_an_array_and_workers_of_a_sweep_need_no_index() -> None:
    with pytest.raises(ValueError, match=r"^\{index\} in --workdir=\{index\}: expected --array"):
        make_job("--workdir={index}")
    assert "--workdir=runs/x ||" in make_slurm_script(make_job(array="1-4", program="launch.sweep"))
    make_job("--workdir", "{index}", array="1-4")


def test_submission(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    received = tmp_path / "received"
    write_program(tmp_path / "sbatch", f"cat > {received}; echo '17;here'; exit 7")
    job = make_job(root=str(tmp_path))
    assert submit_slurm_job(job, wait=True) == 7
    assert received.read_text() == make_slurm_script(job)
    assert capsys.readouterr().out == "17\n"
    assert (tmp_path / "runs/slurm").is_dir()
    write_program(
        tmp_path / "sbatch", "cat > /dev/null; echo 'sbatch: no such partition' >&2; exit 1"
    )
    with pytest.raises(ValueError, match=r"received: sbatch: no such partition$"):
        submit_slurm_job(job, wait=False)
    # An sbatch that does not read the script.
    write_program(tmp_path / "sbatch", "echo 'sbatch: no slurm.conf' >&2; exit 1")
    with pytest.raises(ValueError, match=r"received: sbatch: no slurm\.conf$"):
        submit_slurm_job(make_job("x" * 1_000_000, root=str(tmp_path)), wait=False)


@pytest.mark.slow
def test_the_program_where_there_is_no_slurm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    rest = ("--tasks=2", "--", MOVING_SHAPES, "--workdir=runs/x")
    submitted, printed = start("slurm", *rest), start("slurm", "--dry_run", *rest)
    assert sentence(finish(submitted)).startswith("error: expected Slurm's sbatch on this machine")
    script = succeed(printed)
    assert script.startswith("#!/bin/bash\n#SBATCH --job-name=train\n")
    assert f"--chdir={ROOT}\n" in script
    assert f"/python -u -m launch.train {MOVING_SHAPES} --workdir=runs/x ||" in script
