"""Damaged, missing and unwritable checkpoints: a clear error each, and older ones are kept."""

import errno
import hashlib
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from flaxnets.training.checkpoint import (
    Checkpointer,
    CheckpointNotWritten,
    DamagedCheckpoint,
    Position,
    damaged_files,
    restore_variables,
)
from flaxnets.training.config import Config
from flaxnets.training.state import TrainState
from flaxnets.training.workdir import Workdir
from tests.file_systems import mounted

SIZE = 50_000
"""Elements of an array that gets a file of its own in a checkpoint."""


def make_state(step: int, size: int = SIZE) -> TrainState:
    kernel = np.random.default_rng(step).normal(size=size).astype(np.float32)
    return TrainState(
        step=jnp.int32(step),
        params={"layer": {"kernel": jnp.asarray(kernel), "bias": jnp.ones(3)}},
        collections={},
        optimizer={},
        ema={},
        key=jnp.zeros(2, jnp.uint32),
    )


def save(checkpointer: Checkpointer, *steps: int, size: int = SIZE) -> None:
    for step in steps:
        checkpointer.save(make_state(step, size), Position(step, {"seed": 0}))
        checkpointer.rank(step, {"accuracy": 1 / step})


def is_restored(path: Path, step: int) -> bool:
    checkpointer = Checkpointer(path, read_only=True)
    try:
        variables = checkpointer.restore_variables(step)
    finally:
        checkpointer.close()
    kernel = make_state(step).params["layer"]["kernel"]
    return bool(np.array_equal(variables["params"]["layer"]["kernel"], kernel))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of steps 1 and 2."""
    path = tmp_path_factory.mktemp("saved")
    checkpointer = Checkpointer(path)
    save(checkpointer, 1, 2)
    checkpointer.close()
    return path


def test_a_reader_logs_no_warning(saved: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert is_restored(saved, 2)
    assert not caplog.records


def flip(path: Path, place: int) -> None:
    whole = bytearray(path.read_bytes())
    whole[place] ^= 1 << place % 8
    path.write_bytes(whole)


def test_a_flipped_bit_in_any_file_is_found(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path / "checkpoints")
    folder = tmp_path / "checkpoints" / "2"
    files = [path for path in folder.rglob("*") if path.is_file()]
    names = {path.relative_to(folder).as_posix() for path in files}
    assert {"digests.json", "metrics.json", "_CHECKPOINT_METADATA", "state/_METADATA"} <= names
    for path in files:
        size = path.stat().st_size
        assert size
        # Most of the digests, whose own digest is nowhere else.
        step = 5 if path.name in ("digests.json", "metrics.json") else size // 4 + 1
        for place in {*range(0, size, step), size - 1}:
            flip(path, place)
            assert damaged_files(folder) == [path.relative_to(folder).as_posix()]
            flip(path, place)
    assert damaged_files(folder) == []


def test_a_damaged_step_is_refused_and_the_older_one_can_be_used(
    saved: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(saved, tmp_path / "checkpoints")
    for name in ("_CHECKPOINT_METADATA", "metrics.json", "digests.json", "data/metadata"):
        flip(folder / "2" / name, 20)
        with pytest.raises(DamagedCheckpoint, match=r"2: the checkpoint is damaged") as error:
            is_restored(folder, 2)
        assert f"from what was written: {name}. Undamaged steps: 1;" in str(error.value)
        assert "launch.train --skip_damaged resumes from the newest" in str(error.value)
        assert is_restored(folder, 1)
        flip(folder / "2" / name, 20)
    assert is_restored(folder, 2)


def test_damaged_metrics_are_told_when_the_best_step_is_wanted(saved: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(saved, tmp_path / "checkpoints")
    flip(folder / "1" / "metrics.json", 30)
    checkpointer = Checkpointer(folder, read_only=True)
    with pytest.raises(DamagedCheckpoint, match=r"1: the checkpoint is damaged.*metrics\.json"):
        _ = checkpointer.best_step
    checkpointer.close()
    with pytest.raises(DamagedCheckpoint, match=r"1: the checkpoint is damaged.*metrics\.json"):
        Checkpointer(folder)  # A training could not tell which steps to keep.
    assert is_restored(folder, 2)


@pytest.mark.parametrize("name", ["state/_METADATA", "digests.json"])
def test_a_file_that_is_gone_is_named(saved: Path, tmp_path: Path, name: str) -> None:
    path = shutil.copytree(saved, tmp_path / "checkpoints")
    (path / "2" / name).unlink()
    with pytest.raises(DamagedCheckpoint, match=rf"from what was written: {name}\. Undam"):
        is_restored(path, 2)
    assert is_restored(path, 1)


def test_a_step_under_the_name_of_another_is_damaged(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved / "1", tmp_path / "checkpoints" / "2")
    with pytest.raises(DamagedCheckpoint, match=r"written: digests\.json\. Undamaged steps: none$"):
        is_restored(tmp_path / "checkpoints", 2)


def test_damaged_steps_are_set_aside_on_demand(
    saved: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = shutil.copytree(saved, tmp_path / "checkpoints")
    for _ in range(2):  # Also if the same step is damaged again.
        flip(folder / "2" / "data" / "metadata", 3)
        checkpointer = Checkpointer(folder, skip_damaged=True)
        assert checkpointer.latest_step == 1
        assert f"{folder}/2: the checkpoint is damaged (data/metadata)" in caplog.text
        save(checkpointer, 2)
        checkpointer.close()
        assert is_restored(folder, 2)
        assert sorted(path.name for path in folder.iterdir()) == ["1", "2", "2.damaged"]
    for step in (1, 2):
        (folder / str(step) / "digests.json").unlink()
    with pytest.raises(DamagedCheckpoint, match="Undamaged steps: none"):
        Checkpointer(folder, skip_damaged=True)
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2", "2.damaged"]


@pytest.mark.parametrize("name", ["digests.json", "metrics.json", "state/_METADATA", ""])
def test_what_cannot_be_read_is_damaged_and_set_aside(
    name: str, saved: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(saved, tmp_path / "checkpoints")
    path = folder / "2" / name
    if name:  # A folder under the name of a file, as a repaired file system may have it.
        path.unlink()
        path.mkdir()
    else:
        shutil.rmtree(path)
        path.write_text("")
    assert damaged_files(folder / "2") == [name or "digests.json"]
    with pytest.raises(DamagedCheckpoint, match=r"2: the checkpoint is damaged.* steps: 1;"):
        is_restored(folder, 2)
    checkpointer = Checkpointer(folder, skip_damaged=True)
    assert checkpointer.steps == [1]
    save(checkpointer, 2)
    checkpointer.close()
    assert is_restored(folder, 2)
    assert (folder / "2.damaged").exists()


def test_a_bad_sector_is_damage(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(saved, tmp_path / "checkpoints")
    bad = folder / "2" / "state" / "_METADATA"

    def read_digest(file: Any, name: str) -> Any:
        if Path(file.name) == bad:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return hashlib.sha256(file.read())

    monkeypatch.setattr(hashlib, "file_digest", read_digest)
    assert damaged_files(folder / "2") == ["state/_METADATA"]
    assert damaged_files(folder / "1") == []


def test_a_copy_under_another_spelling_of_a_step_does_not_count(
    saved: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(saved, tmp_path / "checkpoints")
    shutil.copytree(folder / "1", folder / "0001")
    checkpointer = Checkpointer(folder, keep=1, mode="min")
    assert checkpointer.steps == [1, 2]
    save(checkpointer, 3)
    assert checkpointer.steps == [3]
    checkpointer.close()
    assert (folder / "0001").is_dir()


def test_the_best_step_is_the_best_with_a_finite_metric_and_of_equal_ones_the_last(
    tmp_path: Path,
) -> None:
    checkpointer = Checkpointer(tmp_path, keep=1)
    for step, accuracy in ((1, 0.5), (2, 0.5), (3, float("nan")), (4, float("inf")), (5, 0.1)):
        checkpointer.save(make_state(step), Position(step, {}))
        checkpointer.wait()
        assert checkpointer.metrics(step) is None
        checkpointer.rank(step, {"accuracy": accuracy})
    assert checkpointer.best_step == 2
    assert checkpointer.steps == [2, 5]
    # Saved, but not yet evaluated: the best one may still be needed.
    checkpointer.save(make_state(6), Position(6, {}))
    checkpointer.wait()
    assert checkpointer.steps == [2, 6]
    checkpointer.rank(6, {"accuracy": 0.9})
    assert checkpointer.steps == [6]
    checkpointer.close()
    assert [path.name for path in tmp_path.iterdir()] == ["6"]


def test_a_step_that_training_removes_while_it_is_read_is_not_read_half(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workdir = Workdir(tmp_path)
    workdir.claim("a.py", Config())
    folder = shutil.copytree(saved, workdir.checkpoints)
    original = ocp.CheckpointManager.restore
    read = []

    def remove_and_restore(self: ocp.CheckpointManager, step: int, **options: Any) -> Any:
        read.append(step)
        if step == 1:  # The best one, until training finds a better.
            shutil.rmtree(folder / "1")
        return original(self, step, **options)

    monkeypatch.setattr(ocp.CheckpointManager, "restore", remove_and_restore)
    step, variables = restore_variables(workdir)
    assert (step, read) == (2, [1, 2])
    kernel = make_state(2).params["layer"]["kernel"]
    np.testing.assert_array_equal(variables["params"]["layer"]["kernel"], kernel)
    with pytest.raises(FileNotFoundError, match="holds no checkpoint of step 1; there are 2"):
        restore_variables(workdir, 1)


def test_without_the_newest_step_the_one_before_counts(saved: Path, tmp_path: Path) -> None:
    path = shutil.copytree(saved, tmp_path / "checkpoints")
    shutil.rmtree(path / "2")
    checkpointer = Checkpointer(path)
    assert checkpointer.latest_step == 1
    save(checkpointer, 2)
    checkpointer.close()
    assert is_restored(path, 1)
    assert is_restored(path, 2)


def test_a_kill_while_an_old_step_is_deleted_leaves_no_half_of_it_among_the_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class KillError(BaseException):
        pass

    def delete_a_file_and_die(folder: Path) -> None:
        removed = [file for file in folder.rglob("*") if file.is_file()]
        removed[0].unlink()
        assert len(removed) > 1
        raise KillError

    killed = Checkpointer(tmp_path, keep=1)
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", delete_a_file_and_die)
        with pytest.raises(KillError):
            save(killed, 1, 2, 3)  # The first is the best and stays.
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["1", "2.removed", "3"]
    assert is_restored(tmp_path, 3)
    next_one = Checkpointer(tmp_path, keep=1)
    assert next_one.steps == [1, 3]
    save(next_one, 4)
    next_one.close()
    killed.close()
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["1", "4"]
    assert is_restored(tmp_path, 4)


def test_a_folder_that_is_removed_during_training_ends_it(tmp_path: Path) -> None:
    checkpointer = Checkpointer(tmp_path / "checkpoints")
    save(checkpointer, 1)
    checkpointer.save(make_state(2), Position(2, {}))
    checkpointer._manager.wait_until_finished()
    shutil.rmtree(tmp_path / "checkpoints")
    with pytest.raises(CheckpointNotWritten, match="could not be written: its folder is gone"):
        checkpointer.save(make_state(3), Position(3, {}))
    checkpointer.close()


# After Orbax failed to write, its pending coroutines may find the event loop closed.
@pytest.mark.subprocess
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_full_disk_keeps_the_older_steps(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "size=1m") as disk:
        checkpointer = Checkpointer(disk / "checkpoints", keep=1)
        save(checkpointer, 1)
        with pytest.raises(CheckpointNotWritten, match="No space left on device") as error:
            save(checkpointer, 2, 3, size=10 * SIZE)
        assert "steps that are kept: 1" in str(error.value)
        assert "tensorstore_spec" not in str(error.value)
        checkpointer.close()
        assert is_restored(disk / "checkpoints", 1)
        # With free space again, the run resumes.
        checkpointer = Checkpointer(disk / "checkpoints", keep=1)
        assert checkpointer.latest_step == 1
        save(checkpointer, 2)
        checkpointer.close()
        assert is_restored(disk / "checkpoints", 2)


@pytest.mark.subprocess
def test_a_disk_that_has_become_read_only_can_be_read(saved: Path, tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "size=4m") as disk:
        shutil.copytree(saved, disk / "checkpoints")
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        assert is_restored(disk / "checkpoints", 2)
        checkpointer = Checkpointer(disk / "checkpoints")
        with pytest.raises(CheckpointNotWritten, match=r"[Rr]ead-only file system"):
            save(checkpointer, 3, 4)
        checkpointer.close()
        assert is_restored(disk / "checkpoints", 1)


WRITER = """
import sys
from pathlib import Path
from flaxnets.training.checkpoint import Checkpointer, Position
from tests.flaxnets.training.test_checkpoint_faults import make_state
checkpointer = Checkpointer(Path(sys.argv[1]) / "checkpoints", keep=1)
for step in range(1, 81):
    checkpointer.save(make_state(step), Position(step, {}))
    checkpointer.rank(step, {"accuracy": step / 1000})  # Each is the best: the one before goes.
checkpointer.close()
"""

READER = """
import sys
import numpy as np
from flaxnets.training.checkpoint import restore_variables, steps_on_disk
from flaxnets.training.workdir import Workdir
from tests.flaxnets.training.test_checkpoint_faults import make_state
workdir, step = Workdir(sys.argv[1]), 0
while not steps_on_disk(workdir.checkpoints):
    pass
while step < 80:
    step, variables = restore_variables(workdir)
    kernel = make_state(step).params["layer"]["kernel"]
    np.testing.assert_array_equal(variables["params"]["layer"]["kernel"], kernel)
    print(step)
"""


@pytest.mark.stress
def test_a_reader_never_sees_a_part_of_a_step_while_another_process_saves(tmp_path: Path) -> None:
    Workdir(tmp_path).claim("a.py", Config())
    writer, reader = (
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)],
            cwd=Path(__file__).parents[3],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for code in (WRITER, READER)
    )
    try:
        _, errors = writer.communicate(timeout=200)
        assert writer.returncode == 0, errors
        out, errors = reader.communicate(timeout=60)
        assert reader.returncode == 0, errors
    finally:
        writer.kill()
        reader.kill()
    read = [int(line) for line in out.split()]
    assert read == sorted(read)
    assert len(set(read)) > 10
