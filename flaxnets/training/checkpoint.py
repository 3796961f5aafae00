"""Checkpoints by Orbax: state and data position together, the newest few and the best."""

import contextlib
import dataclasses
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from flaxnets.training.distributed import broadcast_from_first, is_first
from flaxnets.training.state import TrainState
from flaxnets.training.workdir import Workdir
from flaxnets.typing import PyTree

# Where the data of a checkpoint stood, and whether a run's data are still the same.


@dataclasses.dataclass(frozen=True)
class Position:
    """Where the data stood: the number of the next batch, and what fixes the order.

    Attributes:
      next_batch: equals the state's step.
      order: what ``Data.describe`` said.
    """

    next_batch: int
    order: Mapping[str, Any]


class DataChanged(ValueError):
    """The data of a checkpoint are not the data of the run that would resume from it."""


def check_order(position: Position, order: Mapping[str, Any]) -> None:
    """Raises DataChanged where the data of a checkpoint differ from ``order``."""
    lines = [
        f"{name}: {position.order.get(name)!r} there, {order.get(name)!r} now"
        for name in sorted(position.order.keys() | order.keys())
        if position.order.get(name) != order.get(name)
    ]
    if lines:
        raise DataChanged(
            "the training data are not those of the checkpoint, so the run cannot go on with "
            "them: " + "; ".join(lines)
        )


_UNFINISHED = ".orbax-checkpoint-tmp"
_REMOVED = "removed"


class DamagedCheckpoint(ValueError):
    """Files of a checkpoint are not what was written."""


class CheckpointNotWritten(OSError):
    """A checkpoint could not be written; those before it are kept."""


class Checkpointer:
    """Saves and restores the steps of one run in ``directory``.

    A step that is written halfway, as by a kill, is never seen again; a file that changed since it
    was written is found before it is used. The arrays of a step may lie on any devices of any
    number of processes, and be restored onto any others. Of several processes each calls every
    method, with the same arguments; they share ``directory``.
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
        """Opens or makes ``directory``.

        Args:
          directory: holds one folder a step.
          keep: newest steps kept, beside the best.
          best_metric: the metric that ranks the steps saved with metrics.
          mode: ``max`` or ``min``.
          read_only: nothing is written or removed; another process may be training.

        Raises:
          DamagedCheckpoint: the metrics of a step are not what was written.
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
            # Deleted where it is, a folder of which a kill leaves a half would be found damaged.
            todelete_subdir=None if read_only else _REMOVED,
            # Made in the background, a folder that cannot be made holds up the end for minutes.
            async_options=ocp.AsyncOptions(
                post_finalization_callback=self._digest, create_directories_asynchronously=False
            ),
        )
        if not read_only:
            self._empty_removed()
        # The manager reads the metrics of all of them.
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
        """The newest whole step, None without any."""
        return self._manager.latest_step()

    @property
    def best_step(self) -> int | None:
        """The step with the best metric; the newest where none has metrics."""
        best = self.best_evaluated_step
        return self.latest_step if best is None else best

    @property
    def best_evaluated_step(self) -> int | None:
        """The step with the best metric, None where none has metrics."""
        # Steps saved between two evaluations have no metrics and cannot be the best.
        scored = [step for step in self.steps if self._manager.metrics(step)]
        return self._manager.best_step() if scored else None

    @property
    def steps(self) -> list[int]:
        """All whole steps, ascending."""
        return sorted(self._manager.all_steps())

    def save(
        self, state: TrainState, position: Position, metrics: Mapping[str, float] | None = None
    ) -> None:
        """Writes a step in the background; returns once the arrays are safe from donation.

        Args:
          state: global arrays.
          position: of the data.
          metrics: what ranks the step; None where it was not evaluated.

        Raises:
          CheckpointNotWritten: the step before could not be written, or was removed since.
        """
        self.wait()
        # A copy: the caller's next step is free to overwrite the arrays it donates.
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
        """The state and the data position of ``step``, by default the newest.

        Args:
          like: arrays (or ``jax.ShapeDtypeStruct``) with the shapes and shardings wanted.
          step: one of ``steps``.

        Raises:
          FileNotFoundError: no checkpoint, or none of that step (which there are).
          DamagedCheckpoint: its files are not what was written; the message says which are.
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
        """Linen's variables of ``step``, by default the newest, for inference on this machine.

        Parameters are averaged ones where training kept an average.

        Raises:
          FileNotFoundError: no checkpoint, or none of that step (which there are).
          DamagedCheckpoint: its files are not what was written; the message says which are.
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
        """Raises ValueError naming the first arrays that differ in name or shape."""
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
        """Returns when all that was saved is on disk.

        Raises:
          CheckpointNotWritten: the last step could not be written, or was removed since.
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
        """Finishes writing and ends the manager's threads."""
        try:
            self.wait()
        finally:
            self._manager.close()

    @contextlib.contextmanager
    def _writing(self, step: int) -> Iterator[None]:
        """Within ``with``, what goes wrong is told as a failure to write ``step``."""
        try:
            yield
        except jax.errors.JaxRuntimeError:
            raise  # Another process is gone, which JAX will name.
        except Exception as error:
            kept = ", ".join(map(str, self._steps_on_disk())) or "none"
            reason = str(error).partition("\n")[0]
            raise CheckpointNotWritten(
                f"{self._directory / str(step)}: the checkpoint could not be written: {reason}; "
                f"steps that are kept: {kept}"
            ) from error

    def _digest(self) -> None:
        """Before Orbax puts a finished step in its place: what it holds."""
        if is_first():
            for folder in self._directory.glob(f"*{_UNFINISHED}"):
                write_digests(folder)

    def _empty_removed(self) -> None:
        """Deletes what Orbax has moved out of the way."""
        if is_first() and (self._directory / _REMOVED).exists():
            shutil.rmtree(self._directory / _REMOVED)

    def _check_undamaged(self, steps: Sequence[int], under: str = "") -> None:
        """Raises DamagedCheckpoint for the first of the steps whose files differ.

        The first process reads them, and its message has the names.
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
        # Without the metrics of all steps the best one is unknown.
        way = "" if under else "name one with --step, or "
        raise DamagedCheckpoint(
            f"{self._directory / str(step)}: the checkpoint is damaged; not what was written: "
            f"{', '.join(names[:3])}. Whole are steps {', '.join(map(str, whole)) or '(none)'}: "
            f"{way}move the damaged folder away to go on from the newest"
        )

    def _steps_on_disk(self) -> list[int]:
        if not self._directory.is_dir():
            return []
        names = (path.name for path in self._directory.iterdir())
        return sorted(int(name) for name in names if name.isdecimal())


# Digests of a checkpoint's files, so that damage is found before it is trained on.

FILE = "digests.json"
# Orbax writes these once more when it puts the folder in its place.
_UNSETTLED = ("_CHECKPOINT_METADATA", "commit_success.txt")


def write_digests(folder: Path) -> None:
    """Writes ``digests.json``: SHA-256 of every file in ``folder``, by its path in it."""
    digests = {
        path.relative_to(folder).as_posix(): _digest(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in _UNSETTLED
    }
    (folder / FILE).write_text(json.dumps(digests, indent=1) + "\n")


def damaged_files(folder: Path, under: str = "") -> list[str]:
    """What in ``folder`` differs from its digest or is missing.

    Digests that cannot be read are themselves damaged, where all of the folder is asked for.

    A folder without any, as older versions wrote it, passes.

    Args:
      folder: of one checkpoint.
      under: only paths that begin so.
    """
    if not (folder / FILE).exists():
        return []
    try:
        digests = dict(json.loads((folder / FILE).read_text()))
    except ValueError:
        return [] if under else [FILE]
    return [
        name
        for name, digest in digests.items()
        if name.startswith(under)
        and not ((folder / name).is_file() and _digest(folder / name) == digest)
    ]


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# The shapes of a checkpoint's arrays, and whether they are those of a model.


def shapes_of(tree: PyTree) -> dict[str, tuple[int, ...]]:
    """Shapes by path, as ``params/classifier/scores/kernel``."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
        for path, leaf in leaves
    }


def check_shapes(saved: PyTree, wanted: PyTree, name: str) -> None:
    """Raises ValueError naming the first arrays of ``saved`` that differ in path or shape.

    Args:
      saved: arrays, or what has their shapes.
      wanted: the same of the model.
      name: what the message calls the checkpoint.
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


def restore_variables(
    workdir: Workdir, step: int | None = None, *, like: PyTree | None = None
) -> tuple[int, dict[str, PyTree]]:
    """A checkpoint's step and its variables, Linen's collections.

    Args:
      workdir: of a run; its configuration says which checkpoint is the best.
      step: by default the best one, the newest where none was evaluated.
      like: if given, variables of the names and shapes that are wanted.

    Raises:
      FileNotFoundError: no checkpoint, or none of that step.
      ValueError: variables of other names or shapes than ``like``.
    """
    if not workdir.checkpoints.is_dir():
        raise FileNotFoundError(
            f"{workdir.checkpoints}: no checkpoints; expected a workdir that has trained"
        )
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
