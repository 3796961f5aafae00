"""Checkpoints by Orbax: state and data position together, the newest few and the best one.

Each step is a folder with ``digests.json``, the SHA-256 of its files, so that damage is found
before a run continues from it. Shapes are compared with the model's before Orbax restores, since a
failed restore would leave its coroutines behind. ``initialize_from`` starts a run from another
run's best checkpoint.
"""

import contextlib
import dataclasses
import hashlib
import json
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from flaxnets.training.config import data_differences
from flaxnets.training.distributed import broadcast_from_first, is_first
from flaxnets.training.state import TrainState
from flaxnets.training.workdir import Workdir
from flaxnets.typing import PyTree

logger = logging.getLogger(__name__)

DIGESTS = "digests.json"
_UNFINISHED = ".orbax-checkpoint-tmp"  # Orbax's suffix of a folder that is being written.
_REMOVED = "removed"
# Orbax writes these files again when it renames the finished folder, after the digests.
_UNSETTLED = ("_CHECKPOINT_METADATA", "commit_success.txt")


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
    ) -> None:
        """Opens ``directory``, or makes it.

        Args:
          directory: has one folder for each step.
          keep: number of newest steps kept beside the best one.
          best_metric: metric that ranks the steps that were saved with metrics.
          mode: ``max`` or ``min``, the better end of ``best_metric``.
          read_only: writes and removes nothing, as another process may be training.

        Raises:
          DamagedCheckpoint: the metrics of a step differ from what was written.
        """
        self._directory = directory.absolute()
        self._saved: int | None = None
        sign = 1.0 if mode == "max" else -1.0

        def score(metrics: Mapping[str, float]) -> float:
            if best_metric not in metrics:
                raise ValueError(
                    f"best_metric: no {best_metric!r} among the metrics {', '.join(metrics)}"
                )
            return sign * metrics[best_metric]

        best = BestN(get_metric_fn=score, n=1, keep_checkpoints_without_metrics=False)
        options = ocp.CheckpointManagerOptions(
            best_fn=score,
            preservation_policy=AnyPreservationPolicy([LatestN(n=keep), best]),
            cleanup_tmp_directories=not read_only,
            read_only=read_only,
            # Old steps are moved there before they are deleted: a kill during the deletion would
            # else leave half a step, which is reported as damaged.
            todelete_subdir=None if read_only else _REMOVED,
            # On the calling thread: if a folder cannot be made in the background, closing the
            # manager hangs for minutes.
            async_options=ocp.AsyncOptions(
                post_finalization_callback=self._digest, create_directories_asynchronously=False
            ),
        )
        if not read_only:
            self._empty_removed()
        # Before the manager reads the metrics of all steps.
        self._check_undamaged(self._steps_on_disk(), "metrics")
        self._manager = ocp.CheckpointManager(
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
        return self._manager.latest_step()

    @property
    def best_step(self) -> int | None:
        """The step with the best metric; the newest one if none has metrics."""
        best = self.best_evaluated_step
        return self.latest_step if best is None else best

    @property
    def best_evaluated_step(self) -> int | None:
        """The step with the best metric; None if none has metrics."""
        # Steps saved between two evaluations have no metrics and cannot be the best.
        scored = [step for step in self.steps if self._manager.metrics(step)]
        return self._manager.best_step() if scored else None

    @property
    def steps(self) -> list[int]:
        """All complete steps, ascending."""
        return sorted(self._manager.all_steps())

    def save(
        self, state: TrainState, position: Position, metrics: Mapping[str, float] | None = None
    ) -> None:
        """Copies a state and writes it in the background.

        Waits until the state is computed and the step before is on disk.

        Args:
          state: global arrays, as ``Strategy.checkpoint_view`` returns them.
          position: position in the data after this step.
          metrics: metrics that rank the step; None if it was not evaluated.

        Raises:
          CheckpointNotWritten: the step before could not be written, or was removed since.
        """
        self.wait()
        # The next training step donates the state, so its buffers are overwritten while Orbax still
        # reads them in the background.
        arrays = jax.tree.map(jnp.copy, state)
        step = int(state.step)
        with self._writing(step):
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(arrays),
                    data=ocp.args.JsonSave(dataclasses.asdict(position)),
                ),
                metrics=dict(metrics) if metrics else None,
            )
        self._saved = step

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
        self._check_undamaged([step])
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
        self._check_undamaged([step])
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
        return {"params": params, **restored.state["collections"]}

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
            self._empty_removed()

    def close(self) -> None:
        """Waits for the last step and ends the manager's threads."""
        try:
            self.wait()
        finally:
            self._manager.close()

    @contextlib.contextmanager
    def _writing(self, step: int) -> Iterator[None]:
        """Turns errors inside ``with`` into CheckpointNotWritten for ``step``."""
        try:
            yield
        except jax.errors.JaxRuntimeError:
            raise  # Another process died; JAX names it.
        except Exception as error:
            kept = ", ".join(map(str, self._steps_on_disk())) or "none"
            reason = str(error).partition("\n")[0]
            raise CheckpointNotWritten(
                f"{self._directory / str(step)}: the checkpoint could not be written: {reason}; "
                f"steps that are kept: {kept}"
            ) from error

    def _digest(self) -> None:
        """Writes the digests of a finished step, before Orbax renames its folder to the step."""
        if is_first():
            for folder in self._directory.glob(f"*{_UNFINISHED}"):
                write_digests(folder)

    def _empty_removed(self) -> None:
        """Deletes the old steps that Orbax has moved to ``removed``."""
        if is_first() and (self._directory / _REMOVED).exists():
            shutil.rmtree(self._directory / _REMOVED)

    def _check_undamaged(self, steps: Sequence[int], under: str = "") -> None:
        """Raises DamagedCheckpoint for the first of ``steps`` that is damaged.

        In all processes: the first one reads the files, and its message names them.
        """
        found = [
            (step, names)
            for step in (steps if is_first() else ())
            if (names := damaged_files(self._directory / str(step), under))
        ]
        if not broadcast_from_first(bool(found)):
            return
        if not found:
            raise DamagedCheckpoint(f"{self._directory}: a checkpoint is damaged")
        (step, names), *_ = found
        whole = [
            other
            for other in self._steps_on_disk()
            if not damaged_files(self._directory / str(other))
        ]
        # The best step is unknown without the metrics of all, so --step would not help.
        way = "" if under else "name one with --step, or "
        raise DamagedCheckpoint(
            f"{self._directory / str(step)}: the checkpoint is damaged; files that differ "
            f"from what was written: {', '.join(names[:3])}. Undamaged steps: "
            f"{', '.join(map(str, whole)) or 'none'}; {way}move the damaged folder away to resume "
            "from the newest"
        )

    def _steps_on_disk(self) -> list[int]:
        if not self._directory.is_dir():
            return []
        names = (path.name for path in self._directory.iterdir())
        return sorted(int(name) for name in names if name.isdecimal())


def restore_variables(
    workdir: Workdir, step: int | None = None, *, like: PyTree | None = None
) -> tuple[int, dict[str, PyTree]]:
    """Returns the step and the variables, Linen's collections, of a checkpoint of a run.

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
    checkpointer = Checkpointer(
        workdir.checkpoints,
        best_metric=config["best_metric"],
        mode=config["best_mode"],
        read_only=True,
    )
    try:
        step = checkpointer.best_step if step is None else step
        variables = checkpointer.restore_variables(step)
    finally:
        checkpointer.close()
    if like is not None:
        check_shapes(variables, like, str(workdir.checkpoints / str(step)))
    assert step is not None  # Or restore_variables has raised.
    return step, variables


def write_digests(folder: Path) -> None:
    """Writes ``digests.json``: SHA-256 of every file in ``folder``, by its path in it."""
    digests = {
        path.relative_to(folder).as_posix(): _digest(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in _UNSETTLED
    }
    (folder / DIGESTS).write_text(json.dumps(digests, indent=1) + "\n")


def damaged_files(folder: Path, under: str = "") -> list[str]:
    """Returns the files of a checkpoint that are missing or differ from their digest.

    ``digests.json`` itself is among them if it is missing or cannot be read, unless ``under`` is
    given: the files under it are then unchecked.

    Args:
      folder: one checkpoint.
      under: prefix of the paths to check; empty: all.
    """
    try:
        digests = dict(json.loads((folder / DIGESTS).read_text()))
    except (FileNotFoundError, TypeError, ValueError):
        return [] if under else [DIGESTS]
    return [
        name
        for name, digest in digests.items()
        if name.startswith(under)
        and not ((folder / name).is_file() and _digest(folder / name) == digest)
    ]


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
    workdir: Path, variables: Mapping[str, Any], skipped: Sequence[str] = ()
) -> dict[str, Any]:
    """Returns variables with the parameters and statistics of another run's best checkpoint.

    Parameters are the averaged ones if that run kept an average. Step, optimizer state and schedule
    are not taken.

    Args:
      workdir: of the other run.
      variables: Linen's collections of this run's model.
      skipped: top-level parts, as ``("classifier",)``, that keep the values of ``variables``,
        whatever the checkpoint has there.

    Raises:
      FileNotFoundError: the other run has no checkpoint.
      WorkdirError: the folder has no run.
      ValueError: a part that only the model or only the checkpoint has, or that differs in shape,
        and is not ``skipped``; or a skipped part that neither has.
    """
    step, saved = restore_variables(Workdir(workdir))
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
            part: tree if part in skipped else saved[collection][part]
            for part, tree in parts.items()
        }
        for collection, parts in variables.items()
    }


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
