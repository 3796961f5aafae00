"""Damaged, missing and unwritable checkpoints: a clear error each, and older ones are kept."""

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from flaxnets.training.checkpoint import (
    Checkpointer,
    CheckpointNotWritten,
    DamagedCheckpoint,
    Position,
)
from flaxnets.training.state import TrainState

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


@contextlib.contextmanager
def mounted(path: Path, options: str) -> Iterator[Path]:
    """Mounts a file system in memory."""
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("no mount")
    if done.returncode:
        pytest.skip(f"mounting is not allowed: {done.stderr}")
    try:
        yield path
    finally:
        subprocess.run(["umount", str(path)], check=True)


def test_a_flipped_bit_in_any_file_is_found_and_the_older_step_can_be_used(
    saved: Path, tmp_path: Path
) -> None:
    unsettled = ("_CHECKPOINT_METADATA", "commit_success.txt")
    files = [path.relative_to(saved) for path in (saved / "2").rglob("*") if path.is_file()]
    files = [path for path in files if path.name not in unsettled]
    assert any((saved / path).stat().st_size > SIZE for path in files)
    shutil.copytree(saved, tmp_path / "checkpoints")
    for path in files:
        whole = (saved / path).read_bytes()
        for place in (0, len(whole) // 2, len(whole) - 1):
            flipped = bytearray(whole)
            flipped[place] ^= 4
            (tmp_path / "checkpoints" / path).write_bytes(flipped)
            with pytest.raises(DamagedCheckpoint, match=r"2: the checkpoint is damaged") as error:
                is_restored(tmp_path / "checkpoints", 2)
            if path.parts[1] == "metrics":  # Without which the best step is unknown.
                assert "Undamaged steps: 1; move the damaged folder away" in str(error.value)
            else:
                assert "Undamaged steps: 1; name one with --step" in str(error.value)
                assert is_restored(tmp_path / "checkpoints", 1)
        (tmp_path / "checkpoints" / path).write_bytes(whole)
    assert is_restored(tmp_path / "checkpoints", 2)


def test_a_file_that_is_gone_is_named(saved: Path, tmp_path: Path) -> None:
    path = shutil.copytree(saved, tmp_path / "checkpoints")
    (path / "2" / "state" / "_METADATA").unlink()
    with pytest.raises(DamagedCheckpoint, match=r"from what was written: state/_METADATA\. Undam"):
        is_restored(path, 2)


def test_a_checkpoint_without_digests_is_damaged(saved: Path, tmp_path: Path) -> None:
    path = shutil.copytree(saved, tmp_path / "checkpoints")
    (path / "2" / "digests.json").unlink()
    with pytest.raises(DamagedCheckpoint, match=r"written: digests\.json\. Undamaged"):
        is_restored(path, 2)
    assert is_restored(path, 1)


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
        save(killed, 1, 2, 3)  # The first is the best and stays.
        with pytest.raises(KillError):
            killed.wait()
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["1", "3", "removed"]
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
    checkpointer.wait()
    save(checkpointer, 2)
    checkpointer._manager.wait_until_finished()
    shutil.rmtree(tmp_path / "checkpoints")
    with pytest.raises(CheckpointNotWritten, match="could not be written: its folder is gone"):
        save(checkpointer, 3)
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
