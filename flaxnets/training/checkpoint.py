"""Checkpoints by Orbax: state and data position together, the newest few and the best."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from flaxnets.training.state import TrainState
from flaxnets.typing import PyTree


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


class Checkpointer:
    """Saves and restores the steps of one run in ``directory``.

    A step that is written halfway, as by a kill, is never seen again.
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
        """
        sign = 1.0 if mode == "max" else -1.0

        def score(metrics: Mapping[str, float]) -> float:
            if best_metric not in metrics:
                raise ValueError(
                    f"best_metric: no {best_metric!r} among the metrics {', '.join(metrics)}"
                )
            return sign * metrics[best_metric]

        best = BestN(get_metric_fn=score, n=1, keep_checkpoints_without_metrics=False)
        self._manager = ocp.CheckpointManager(
            directory.absolute(),
            item_handlers={
                "state": ocp.StandardCheckpointHandler(),
                "data": ocp.JsonCheckpointHandler(),
            },
            options=ocp.CheckpointManagerOptions(
                best_fn=score,
                preservation_policy=AnyPreservationPolicy([LatestN(n=keep), best]),
                cleanup_tmp_directories=not read_only,
                read_only=read_only,
            ),
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
        """Writes a step in the background; returns once the arrays are safe from donation."""
        self._manager.check_for_errors()
        # A copy: the caller's next step is free to overwrite the arrays it donates.
        arrays = jax.tree.map(jnp.copy, state)
        self._manager.save(
            int(state.step),
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(arrays),
                data=ocp.args.JsonSave(dataclasses.asdict(position)),
            ),
            metrics=dict(metrics) if metrics else None,
        )

    def restore(self, like: TrainState, step: int | None = None) -> tuple[TrainState, Position]:
        """The state and the data position of ``step``, by default the newest.

        Args:
          like: arrays (or ``jax.ShapeDtypeStruct``) with the shapes and shardings wanted.
          step: one of ``steps``.

        Raises:
          FileNotFoundError: no checkpoint, or none of that step (which there are).
          ValueError: the checkpoint is of another model.
        """
        step = self._choose(step)
        self._check_fits(step, {"params": like.params, "collections": like.collections})
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(abstract), data=ocp.args.JsonRestore()
            ),
        )
        return restored.state, Position(**restored.data)

    def restore_variables(self, step: int | None = None) -> dict[str, PyTree]:
        """Linen's variables of ``step``, by default the newest, for inference on this machine."""
        step = self._choose(step)
        saved = self._manager.item_metadata(step).state
        local = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        abstract = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=local),
            dict(saved),
        )
        restored = self._manager.restore(
            step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
        )
        return {"params": restored.state["params"], **restored.state["collections"]}

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
        """Returns when all that was saved is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Finishes writing and ends the manager's threads."""
        self._manager.close()


def _shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
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
    there, now = _shapes(saved), _shapes(wanted)
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
