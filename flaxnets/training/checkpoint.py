"""Checkpoints by Orbax: state and data position together, the newest few and the best one.

Each step is a folder with ``digests.json``, the SHA-256 of its files, so that damage is found
before a run continues from it. A step is saved before it is evaluated, so that no evaluation can
lose it; ``metrics.json``, which ranks it, is added to the folder afterwards. Both files end in a
digest of themselves. Shapes are compared with the model's before Orbax restores, since a failed
restore would leave its coroutines behind. ``initialize_from`` starts a run from another run's best
checkpoint.
"""

import asyncio
import contextlib
import dataclasses
import hashlib
import json
import logging
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import LatestN

from flaxnets.tasks.task import CARRY
from flaxnets.training.config import data_differences
from flaxnets.training.distributed import broadcast_from_first, is_first
from flaxnets.training.state import TrainState
from flaxnets.training.workdir import Workdir, write_atomically
from flaxnets.typing import PyTree

logger = logging.getLogger(__name__)

DIGESTS = "digests.json"
METRICS = "metrics.json"
# Suffixes of folders of steps that count no more: one that is being deleted, a damaged one.
_REMOVED, _DAMAGED = ".removed", ".damaged"
_ATTEMPTS = 10  # To read a run that removes its old steps meanwhile.


class DamagedCheckpoint(ValueError):
    """Files of a checkpoint differ from what was written."""


class CheckpointNotWritten(OSError):
    """A checkpoint could not be written; earlier ones are kept."""


class DataChanged(ValueError):
    """The training data differ from those of the checkpoint."""


@dataclasses.dataclass(frozen=True)
class Position:
    """Position in the training data.

    Attributes:
      next_batch: number of the next batch; equals the state's step, as each step reads one batch.
      order: what determines the batches and their order, from ``Data.describe``.
    """

    next_batch: int
    order: Mapping[str, Any]


def check_order(position: Position, order: Mapping[str, Any]) -> None:
    """Raises DataChanged if the data of a checkpoint differ from ``order``."""
    if lines := data_differences(position.order, order):
        raise DataChanged(
            "the training data are not those of the checkpoint, so the run cannot resume: "
            + "; ".join(lines)
        )


class _DigestedPath(ocp.path.atomicity.AtomicRenameTemporaryPath):
    """Folder of a step until it is complete: gets its digests, then its final name.

    Orbax's own class writes two more files at the very end, after every hook, of which there could
    be no digest.
    """

    @classmethod
    def from_final(
        cls, final_path: Any, *, checkpoint_metadata_store: Any = None, **options: Any
    ) -> "_DigestedPath":
        """Returns the temporary folder of a step."""
        path = super().from_final(
            final_path, checkpoint_metadata_store=checkpoint_metadata_store, **options
        )
        path.metadata_store = checkpoint_metadata_store
        return path

    async def finalize(self) -> None:
        """Writes the digests and renames the folder; in one process, when all have written."""
        folder, final = Path(self.get()), Path(self.get_final())
        if not final.name.isdecimal():  # A part of a step, as ``state``.
            await super().finalize()
            return
        if self.metadata_store is not None:
            await asyncio.to_thread(self.metadata_store.wait_until_finished)
        await asyncio.to_thread(write_digests, folder, int(final.name))
        os.rename(folder, final)


class _Manager(ocp.CheckpointManager):
    """Orbax's manager for several processes that may fail or get a signal.

    It does not call JAX's preemption service: it would report steps where ``Preemption`` reports
    its own count of calls; a signal would then be missed, or end the processes at different steps.
    """

    failure: Exception | None = None
    """Error of this process's part of the last save."""

    def reached_preemption(self, step: int) -> bool:
        """Returns False: the training asks ``Preemption``."""
        return False

    def _wait_for_checkpointers(self) -> None:
        # In Orbax's thread, which after an error waits ten minutes for the other processes; they
        # wait for this one.
        try:
            super()._wait_for_checkpointers()
        except Exception as error:
            self.failure = error
            raise

    def wait_until_finished(self) -> None:
        """Waits for the last save, but not for other processes once this one has failed."""
        while jax.process_count() > 1 and self.is_saving_in_progress():
            if self.failure is not None:
                raise self.failure
            time.sleep(0.01)
        super().wait_until_finished()


@contextlib.contextmanager
def _without_notice_of_reading() -> Iterator[None]:
    """Drops Orbax's warning that a folder is opened for reading, since that is on purpose."""

    def keep(record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith("Given directory is read only")

    absl_logger = logging.getLogger("absl")
    absl_logger.addFilter(keep)
    try:
        yield
    finally:
        absl_logger.removeFilter(keep)


class Checkpointer:
    """Saves and restores the checkpoints of one run in ``directory``.

    A checkpoint that was interrupted while it was written is ignored; a damaged one raises an error
    before it is used. The arrays may be sharded over any devices of any number of processes, and be
    restored onto any others. Of several processes each calls every method with the same arguments;
    they share ``directory``.
    """

    def __init__(
        self,
        directory: Path,
        *,
        keep: int = 2,
        best_metric: str = "accuracy",
        mode: str = "max",
        read_only: bool = False,
        skip_damaged: bool = False,
    ) -> None:
        """Opens ``directory``, or makes it.

        Args:
          directory: has one folder for each step.
          keep: number of newest steps kept beside the best one.
          best_metric: metric that ranks the evaluated steps.
          mode: ``max`` or ``min``, the better end of ``best_metric``.
          read_only: writes and removes nothing, as another process may be training.
          skip_damaged: renames the folders of damaged steps, as ``8.damaged``, so that they no
            longer count.

        Raises:
          DamagedCheckpoint: the metrics of a step are damaged, unless ``read_only``; or all
            checkpoints are damaged, for ``skip_damaged``.
        """
        self._directory = directory.absolute()
        self._keep, self._best_metric = keep, best_metric
        self._sign = 1.0 if mode == "max" else -1.0
        self._saved: int | None = None
        self._failed = False
        if not read_only:
            self._delete_removed()
        if skip_damaged:
            self._set_damaged_aside()
        if not read_only:
            _ = self.best_evaluated_step  # Else damaged metrics are told at the first save.
        options = ocp.CheckpointManagerOptions(
            # Old steps are removed here, by a ranking that Orbax does not know.
            preservation_policy=LatestN(n=None),
            cleanup_tmp_directories=not read_only,
            read_only=read_only,
            # Orbax sets both for a reader itself, but with a warning for each.
            save_interval_steps=0 if read_only else 1,
            create=not read_only,
            temporary_path_class=_DigestedPath,
            # On the calling thread: if a folder cannot be made in the background, closing the
            # manager hangs for minutes.
            async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
        )
        with _without_notice_of_reading():
            self._manager = _Manager(
                self._directory,
                item_handlers={
                    "state": ocp.StandardCheckpointHandler(),
                    "data": ocp.JsonCheckpointHandler(),
                },
                options=options,
            )

    @property
    def latest_step(self) -> int | None:
        """The newest complete step; None without any."""
        return max(self.steps, default=None)

    @property
    def best_step(self) -> int | None:
        """The step with the best metric; the newest one if none has metrics."""
        best = self.best_evaluated_step
        return self.latest_step if best is None else best

    @property
    def best_evaluated_step(self) -> int | None:
        """The step with the best finite metric, of equal ones the last; None if none has any.

        Raises:
          DamagedCheckpoint: the metrics of a step differ from what was written.
          ValueError: no such metric.
        """
        # Steps saved between two evaluations have no metrics and cannot be the best.
        figures: list[tuple[float, int]] = []
        for step in self.steps:
            metrics = self.metrics(step)
            if metrics is None:
                continue
            if self._best_metric not in metrics:
                raise ValueError(
                    f"best_metric: no {self._best_metric!r} among the metrics {', '.join(metrics)}"
                )
            if math.isfinite(metrics[self._best_metric]):
                figures.append((self._sign * metrics[self._best_metric], step))
        return max(figures)[1] if figures else None

    @property
    def steps(self) -> list[int]:
        """All complete steps, ascending."""
        return steps_on_disk(self._directory)

    def metrics(self, step: int) -> dict[str, float] | None:
        """Returns the metrics that ``rank`` gave to a step; None if it was not evaluated.

        Raises:
          DamagedCheckpoint: they differ from what was written.
        """
        path = self._directory / str(step) / METRICS
        try:
            return _read_sealed(path)
        except FileNotFoundError:
            return None
        except ValueError:
            raise self._damaged(step, [METRICS]) from None

    def save(self, state: TrainState, position: Position) -> None:
        """Copies a state and writes it in the background.

        Waits until the state is computed and the step before is on disk.

        Args:
          state: global arrays, as ``Strategy.checkpoint_view`` returns them.
          position: position in the data after this step.

        Raises:
          CheckpointNotWritten: the step before could not be written, or was removed since.
        """
        self.wait()
        # The next training step donates the state, so its buffers are overwritten while Orbax still
        # reads them in the background.
        arrays = jax.tree.map(jnp.copy, state)
        step = int(state.step)
        with self._writing(step):
            begun = self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(arrays),
                    data=ocp.args.JsonSave(dataclasses.asdict(position)),
                ),
            )
            if not begun:
                raise FileExistsError("there is a checkpoint of this step or of a later one")
        self._saved = step

    def rank(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds the metrics of the evaluation to a saved step; removes the one that was the best.

        Waits until the step is on disk.

        Raises:
          CheckpointNotWritten: the step or its metrics could not be written.
        """
        self.wait()
        with self._writing(step):
            self._in_first_process(
                lambda: write_atomically(
                    self._directory / str(step) / METRICS,
                    lambda unfinished: unfinished.write_bytes(_sealed(dict(metrics))),
                )
            )
            self._remove_old()

    def check(self) -> None:
        """Raises an error if the last saved step could not be written; does not wait for it.

        Raises:
          CheckpointNotWritten: the step could not be written.
        """
        if self._saved is None:
            return
        if self._manager.is_saving_in_progress() and self._manager.failure is None:
            return
        if jax.process_count() == 1:
            self.wait()
        else:  # Not collective, since the processes may come here at different moments.
            with self._writing(self._saved):
                self._manager.wait_until_finished()

    def restore(self, like: TrainState, step: int | None = None) -> tuple[TrainState, Position]:
        """Returns the state and the data position of a checkpoint.

        Args:
          like: arrays, or ``jax.ShapeDtypeStruct``, with the wanted shapes and shardings.
          step: one of ``steps``; by default the newest.

        Raises:
          FileNotFoundError: no checkpoint, or none of that step; names the steps that exist.
          DamagedCheckpoint: its files differ from what was written; names the undamaged steps.
          ValueError: the checkpoint is of another model.
        """
        step = self._choose(step)
        self._check_undamaged(step)
        self._check_fits(step, {"params": like.params, "collections": like.collections})
        abstract = vars(jax.tree.map(ocp.utils.to_shape_dtype_struct, like))
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(abstract), data=ocp.args.JsonRestore()
            ),
        )
        return like.replace(**restored.state), Position(**restored.data)

    def restore_variables(self, step: int | None = None) -> dict[str, PyTree]:
        """Returns Linen's variables of a checkpoint, for inference, on this machine's first device.

        The parameters are the averaged ones if training kept an average.

        Args:
          step: one of ``steps``; by default the newest.

        Raises:
          FileNotFoundError: no checkpoint, or none of that step; names the steps that exist.
          DamagedCheckpoint: its files differ from what was written; names the undamaged steps.
        """
        step = self._choose(step)
        self._check_undamaged(step)
        saved = self._manager.item_metadata(step).state
        local = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        abstract = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=local),
            dict(saved),
        )
        restored = self._manager.restore(
            step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
        )
        params = restored.state.get("ema") or restored.state["params"]
        collections = dict(restored.state["collections"])
        collections.pop(CARRY, None)  # It belongs to the training's rows.
        return {"params": params, **collections}

    def _check_fits(self, step: int, variables: Mapping[str, PyTree]) -> None:
        """Raises ValueError with the first arrays that differ in name or shape."""
        saved = self._manager.item_metadata(step).state
        there = {name: saved[name] for name in variables}
        check_shapes(there, variables, str(self._manager.directory / str(step)))

    def _choose(self, step: int | None) -> int:
        if not self.steps:
            raise FileNotFoundError(f"{self._manager.directory}: holds no checkpoint yet")
        if step is None:
            return self.steps[-1]
        if step not in self.steps:
            there = ", ".join(map(str, self.steps))
            raise FileNotFoundError(
                f"{self._manager.directory}: holds no checkpoint of step {step}; there are {there}"
            )
        return step

    def wait(self) -> None:
        """Waits until the last saved step is on disk.

        Raises:
          CheckpointNotWritten: it could not be written, or was removed since.
        """
        if self._saved is None:
            return
        step, self._saved = self._saved, None
        with self._writing(step):
            self._manager.wait_until_finished()
            if not (self._directory / str(step)).is_dir():
                raise FileNotFoundError("its folder is gone")
            self._remove_old()

    def close(self) -> None:
        """Waits for the last step and ends the manager's threads.

        Raises:
          CheckpointNotWritten: the step could not be written, and no call has told so yet.
        """
        try:
            self.wait()
        finally:
            try:
                # Of several processes this one ends, and Orbax would wait for the others.
                if not self._failed or jax.process_count() == 1:
                    self._manager.close()
            except Exception:
                if not self._failed:
                    raise
                # Errors that follow from the one that was raised, and would hide it.
                logger.debug("closing after a checkpoint that was not written", exc_info=True)

    @contextlib.contextmanager
    def _writing(self, step: int) -> Iterator[None]:
        """Turns errors inside ``with`` into CheckpointNotWritten for ``step``."""
        try:
            yield
        except jax.errors.JaxRuntimeError:
            raise  # Another process died; JAX names it.
        except DamagedCheckpoint:
            raise  # Of another step, found while the best one was sought.
        except Exception as error:
            self._failed, self._saved = True, None
            kept = ", ".join(map(str, steps_on_disk(self._directory))) or "none"
            # Without tensorstore's specification, a thousand characters of JSON.
            reason = str(error).partition("\n")[0].partition(" [tensorstore_spec=")[0]
            if isinstance(error.__cause__, jax.errors.JaxRuntimeError):  # Of a barrier.
                reason = "another process failed meanwhile; its output tells why"
            raise CheckpointNotWritten(
                f"{self._directory / str(step)}: the checkpoint could not be written: {reason}; "
                f"steps that are kept: {kept}"
            ) from error

    def _in_first_process(self, act: Callable[[], None]) -> None:
        """Calls ``act`` in the first process; its error is raised in all."""
        error: OSError | None = None
        if is_first():
            try:
                act()
            except OSError as caught:
                error = caught
        if broadcast_from_first(error is not None):
            raise error or OSError("the first process could not write; its message has the reason")

    def _remove_old(self) -> None:
        """Deletes all steps but the newest few and the best one."""

        def rename() -> None:
            steps = steps_on_disk(self._directory)
            kept = {*steps[-self._keep :], self.best_evaluated_step}
            for step in steps:
                if step not in kept:
                    folder = self._directory / str(step)
                    # A kill during the deletion would else leave half a step, which is reported as
                    # damaged; and a program that reads it finds all of it or nothing.
                    folder.rename(folder.with_name(f"{step}{_REMOVED}"))

        self._in_first_process(rename)
        self._manager.reload()
        self._delete_removed()

    def _delete_removed(self) -> None:
        """Deletes the folders that ``_remove_old`` has renamed."""
        if is_first():
            for folder in self._directory.glob(f"*{_REMOVED}"):
                shutil.rmtree(folder)

    def _set_damaged_aside(self) -> None:
        """Renames the folders of damaged steps.

        Raises:
          DamagedCheckpoint: no undamaged step would remain.
        """
        damaged = self._find_damaged(steps_on_disk(self._directory))
        if damaged and len(damaged) == len(steps_on_disk(self._directory)):
            raise self._damaged(*next(iter(damaged.items())))

        def rename() -> None:
            for step, names in damaged.items():
                folder = self._directory / str(step)
                aside = folder.with_name(f"{step}{_DAMAGED}")
                if aside.is_dir():  # Of an earlier call: the same step, computed again.
                    shutil.rmtree(aside)
                folder.rename(aside)
                logger.warning(
                    "%s: the checkpoint is damaged (%s) and set aside as %s, which may be deleted",
                    folder,
                    ", ".join(names[:3]),
                    aside.name,
                )

        self._in_first_process(rename)

    def _check_undamaged(self, step: int) -> None:
        """Raises DamagedCheckpoint, in all processes, if the step is damaged."""
        if damaged := self._find_damaged([step]):
            raise self._damaged(step, damaged[step])

    def _find_damaged(self, steps: Sequence[int]) -> dict[int, list[str]]:
        """Returns the damaged files of the damaged ``steps``; the first process reads them."""
        names = [damaged_files(self._directory / str(step)) if is_first() else [] for step in steps]
        found = [broadcast_from_first(bool(each)) for each in names]
        return {step: each for step, each, bad in zip(steps, names, found, strict=True) if bad}

    def _damaged(self, step: int, names: Sequence[str]) -> DamagedCheckpoint:
        folder = self._directory / str(step)
        if not names:
            return DamagedCheckpoint(f"{folder}: the checkpoint is damaged; process 0 names files")
        others = [other for other in steps_on_disk(self._directory) if other != step]
        whole = [other for other in others if not damaged_files(self._directory / str(other))]
        return DamagedCheckpoint(
            f"{folder}: the checkpoint is damaged; files that differ from what was written: "
            f"{', '.join(names[:3])}. Undamaged steps: {', '.join(map(str, whole)) or 'none'}"
            + (
                "; launch.train --skip_damaged resumes from the newest of them, and evaluate, "
                "predict, caption and export take one by --step"
                if whole
                else ""
            )
        )


def restore_variables(
    workdir: Workdir, step: int | None = None, *, like: PyTree | None = None
) -> tuple[int, dict[str, PyTree]]:
    """Returns the step and the variables, Linen's collections, of a checkpoint of a run.

    The run may be training: if it removes the checkpoint meanwhile, another one is chosen.

    Args:
      workdir: of the run; its configuration tells which checkpoint is the best.
      step: by default the best one, or the newest if none was evaluated.
      like: variables whose names and shapes the checkpoint must have; None: not checked.

    Raises:
      FileNotFoundError: no checkpoint, or none of that step.
      DamagedCheckpoint: its files differ from what was written.
      ValueError: names or shapes differ from those of ``like``.
    """
    workdir.check_trained()
    config = workdir.read_config()["config"]
    for attempt in range(_ATTEMPTS):
        before = steps_on_disk(workdir.checkpoints)
        try:
            checkpointer = Checkpointer(
                workdir.checkpoints,
                best_metric=config["best_metric"],
                mode=config["best_mode"],
                read_only=True,
            )
            try:
                chosen = checkpointer.best_step if step is None else step
                variables = checkpointer.restore_variables(chosen)
            finally:
                checkpointer.close()
        except Exception:
            # A folder that is renamed while it is read fails in many ways, but the new list of
            # steps lacks it. Several processes would have to agree on another attempt.
            removed = set(before) - set(steps_on_disk(workdir.checkpoints))
            if not removed or jax.process_count() > 1 or attempt == _ATTEMPTS - 1:
                raise
            logger.info("step %s was removed while it was read", ", ".join(map(str, removed)))
            continue
        assert chosen is not None  # Or restore_variables has raised.
        if like is not None:
            check_shapes(variables, like, str(workdir.checkpoints / str(chosen)))
        return chosen, variables
    raise AssertionError("unreachable")


def steps_on_disk(directory: Path) -> list[int]:
    """Returns the steps of the folders of complete checkpoints, ascending."""
    if not directory.is_dir():
        return []
    names = (path.name for path in directory.iterdir())
    # Another spelling of a number, as 008, is the name of somebody's copy.
    return sorted(int(name) for name in names if name.isdecimal() and name == str(int(name)))


def write_digests(folder: Path, step: int) -> None:
    """Writes ``digests.json``: the step, and SHA-256 of every file in ``folder`` by its path."""
    digests = {
        path.relative_to(folder).as_posix(): _digest(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    content = _sealed({"step": step, "files": digests})
    write_atomically(folder / DIGESTS, lambda unfinished: unfinished.write_bytes(content))


def damaged_files(folder: Path) -> list[str]:
    """Returns the files of a checkpoint that are missing, unreadable or differ from their digest.

    ``digests.json`` itself is among them if it is missing, altered or of another step, and
    ``metrics.json`` if it is altered.

    Args:
      folder: one checkpoint, named after its step.

    Raises:
      PermissionError: a file may not be read.
    """
    try:
        content = _read_sealed(folder / DIGESTS)
        if str(content["step"]) != folder.name:
            return [DIGESTS]
    except (FileNotFoundError, ValueError):
        return [DIGESTS]
    damaged = [
        name
        for name, digest in content["files"].items()
        if _digest_if_readable(folder / name) != digest
    ]
    try:
        _read_sealed(folder / METRICS)
    except FileNotFoundError:  # The step was not evaluated.
        return damaged
    except ValueError:
        return [*damaged, METRICS]
    return damaged


def _sealed(content: Mapping[str, Any]) -> bytes:
    """Returns JSON text with a digest of itself, by which any other byte in it is found."""
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    return (json.dumps({"content": content, "sha256": digest}, indent=1) + "\n").encode()


def _read_sealed(path: Path) -> dict[str, Any]:
    """Returns the content of a file of ``_sealed``.

    Raises:
      FileNotFoundError: no such file.
      PermissionError: it may not be read.
      ValueError: a byte differs, or the file system cannot read it, as on a damaged disk.
    """
    try:
        text = path.read_bytes()
    except (FileNotFoundError, PermissionError):
        raise
    except OSError as error:
        raise ValueError(f"{path}: {error}") from error
    return _unsealed(text)


def _unsealed(text: bytes) -> dict[str, Any]:
    """Returns the content of ``_sealed``; raises ValueError if a byte differs."""
    try:
        content = json.loads(text)["content"]
        if _sealed(content) == text:
            return content
    except (TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"no sealed JSON: {error!r}") from None
    raise ValueError("the digest differs")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest_if_readable(path: Path) -> str | None:
    """Returns the digest of a file; None if it is missing or the file system cannot read it."""
    try:
        return _digest(path)
    except PermissionError:
        raise
    except OSError:
        return None


def shapes_of(tree: PyTree) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of arrays by path, as ``params/classifier/scores/kernel``."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
        for path, leaf in leaves
    }


def check_shapes(saved: PyTree, wanted: PyTree, name: str) -> None:
    """Raises ValueError with the first arrays of ``saved`` that differ in path or shape.

    Args:
      saved: arrays of a checkpoint, or their ``jax.ShapeDtypeStruct``.
      wanted: those of the model.
      name: name of the checkpoint in the message.
    """
    there, now = shapes_of(saved), shapes_of(wanted)
    lines = [
        f"{path}: {there.get(path, 'absent')} there, {now.get(path, 'absent')} now"
        for path in sorted(there.keys() | now.keys())
        if there.get(path) != now.get(path)
    ]
    if lines:
        more = f"; and {len(lines) - 3} more" if len(lines) > 3 else ""
        raise ValueError(
            f"{name}: the checkpoint does not fit the model of this configuration: "
            f"{'; '.join(lines[:3])}{more}"
        )


# Fine-tuning: initial variables from the best checkpoint of another run.


def initialize_from(
    workdir: Path,
    variables: Mapping[str, Any],
    skipped: Sequence[str] = (),
    adapt: Callable[[Mapping[str, Any], Mapping[str, Any], Path], Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """Returns variables with the parameters and statistics of another run's best checkpoint.

    Parameters are the averaged ones if that run kept an average. Step, optimizer state and schedule
    are not taken.

    Args:
      workdir: of the other run.
      variables: Linen's collections of this run's model.
      skipped: top-level parts, as ``("classifier",)``, that keep the values of ``variables``,
        whatever the checkpoint has there.
      adapt: ``Config.adapt_variables``; None: the checkpoint's variables are taken as they are.

    Raises:
      FileNotFoundError: the other run has no checkpoint.
      WorkdirError: the folder has no run.
      ValueError: a part that only the model or only the checkpoint has, or that differs in shape,
        and is not ``skipped``; or a skipped part that neither has.
    """
    step, restored = restore_variables(Workdir(workdir))
    carry = {CARRY: variables[CARRY]} if CARRY in variables else {}
    variables = {name: tree for name, tree in variables.items() if name != CARRY}
    saved = restored if adapt is None else adapt(restored, variables, workdir)
    there, here = _parts(saved), _parts(variables)
    unknown = [part for part in skipped if part not in there.keys() | here.keys()]
    if unknown:
        raise ValueError(
            f"initialize_except: no part {', '.join(unknown)} in the model or in {workdir}; there "
            f"are {', '.join(sorted(there.keys() | here.keys()))}"
        )
    misfits = [
        f"{part} ({_difference(there.get(part, {}), here.get(part, {}))})"
        for part in sorted(there.keys() | here.keys())
        if part not in skipped and there.get(part) != here.get(part)
    ]
    if misfits:
        raise ValueError(
            f"initialize_from: parts of the checkpoint {workdir}/checkpoints/{step} do not fit the "
            f"model: {'; '.join(misfits)}. Parts named in initialize_except are not loaded"
        )
    logger.info(
        "parameters start from step %d of %s%s; step, optimizer and schedule start anew",
        step,
        workdir,
        f", but for {', '.join(skipped)}" if skipped else "",
    )
    return {
        collection: {
            # Cast: an average of parameters in bfloat16 is float32.
            part: tree
            if part in skipped
            else jax.tree.map(lambda x, like: x.astype(like.dtype), saved[collection][part], tree)
            for part, tree in parts.items()
        }
        for collection, parts in variables.items()
    } | carry


def _parts(variables: Mapping[str, Any]) -> dict[str, dict[str, tuple[int, ...]]]:
    """Returns the shapes of each top-level part, by path with the collection before it."""
    parts: dict[str, dict[str, tuple[int, ...]]] = {}
    for path, shape in shapes_of(variables).items():
        parts.setdefault(path.split("/")[1], {})[path] = shape
    return parts


def _difference(there: Mapping[str, tuple[int, ...]], here: Mapping[str, tuple[int, ...]]) -> str:
    """Returns the first array that differs, with both shapes."""
    path = next(p for p in sorted(there.keys() | here.keys()) if there.get(p) != here.get(p))
    return f"{path}: {there.get(path, 'absent')} there, {here.get(path, 'absent')} here"
