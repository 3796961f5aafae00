"""Cost of a run from abstract shapes: FLOPs, memory, communication; no step is run."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxnets.training.config import Config
from flaxnets.training.flops import Flops, count_flops
from flaxnets.training.optimizer import frozen_mask, make_optimizer
from flaxnets.training.parallel import partition
from flaxnets.training.state import TrainState, make_state
from flaxnets.training.step import make_evaluation_step, make_train_step
from flaxnets.typing import PyTree


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on each device during a training step.

    Attributes:
      state: parameters, statistics, optimizer moments, averages.
      batch: rows of the device.
      temporary: activations, gradients and other buffers of XLA.
    """

    state: int
    batch: int
    temporary: int

    @property
    def peak(self) -> int:
        """Bytes in all; the state counts once, as it is donated and updated in place."""
        return self.state + self.batch + self.temporary


@dataclasses.dataclass(frozen=True)
class Cost:
    """Cost of one step of a run on a number of devices.

    Attributes:
      parameters: number of parameters, by the first component of their path.
      trained: number of parameters that are not frozen.
      train: operations of a training step on the whole batch.
      evaluate: operations of the evaluation of a batch of the same shape; a search for captions
        counts at its full length.
      memory: bytes on each device; None if not requested.
      exchanged_bytes: bytes that each device sends in a step.
    """

    parameters: Mapping[str, int]
    trained: int
    train: Flops
    evaluate: Flops
    memory: Memory | None
    exchanged_bytes: int


def estimate_cost(
    config: Config,
    batch: Mapping[str, np.ndarray],
    *,
    devices: int = 1,
    platform: str = "cpu",
    memory: bool = True,
) -> Cost:
    """Returns the cost of a training step and of an evaluation of a batch.

    Memory is what XLA plans when it compiles one device's share of the step for this machine's
    backend; other platforms use other layouts.

    Args:
      config: the experiment, with ``fsdp`` and ``accumulate_steps``.
      batch: of the training data; only shapes and dtypes are read.
      devices: number of devices that share the batch.
      platform: selects platform-dependent code, as in ``count_flops``.
      memory: compiles the step for ``Cost.memory``, which takes as long as at the start of a run.

    Raises:
      ValueError: a batch that cannot be split over the devices and micro-batches, or an ``fsdp``
        that does not divide the devices.
    """
    shares = devices * config.accumulate_steps
    rows = len(next(iter(batch.values())))
    if rows % shares:
        raise ValueError(
            f"batch_size: expected a multiple of the {devices} devices × accumulate_steps = "
            f"{shares}, received {rows}"
        )
    if devices % config.fsdp:
        raise ValueError(
            f"fsdp: expected a divisor of the {devices} devices, received {config.fsdp}"
        )
    model, task = config.make_model(), config.make_task()
    shapes = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in batch.items()}
    variables = jax.eval_shape(lambda: _initialize(task, model, shapes))
    optimizer_config = config.make_optimizer_config()
    optimizer = make_optimizer(optimizer_config, config.num_steps, variables["params"])
    state = jax.eval_shape(
        lambda tree: make_state(tree, optimizer, config.seed, ema=config.ema_decay > 0), variables
    )
    frozen = tuple(optimizer_config.frozen)
    step = make_train_step(
        model,
        task,
        optimizer,
        frozen=frozen,
        accumulate_steps=config.accumulate_steps,
        ema_decay=config.ema_decay,
    )
    of_device = {
        name: jax.ShapeDtypeStruct((x.shape[0] // devices, *x.shape[1:]), x.dtype)
        for name, x in shapes.items()
    }
    cut = jax.tree.leaves(frozen_mask(state.params, frozen))
    leaves = jax.tree.leaves(state.params)
    trained = [leaf for leaf, is_cut in zip(leaves, cut, strict=True) if not is_cut]
    evaluation_step = make_evaluation_step(model, task)
    return Cost(
        parameters={part: _count(tree) for part, tree in state.params.items()},
        trained=sum(leaf.size for leaf in trained),
        train=count_flops(step, state, shapes, platform=platform),
        evaluate=count_flops(evaluation_step, state.variables, shapes, platform=platform),
        memory=_plan_memory(step, state, of_device, config.fsdp) if memory else None,
        exchanged_bytes=_exchanged(leaves, trained, devices, config.fsdp),
    )


def _initialize(task: Any, model: Any, shapes: Mapping[str, Any]) -> PyTree:
    zeros = {name: jnp.zeros(x.shape, x.dtype) for name, x in shapes.items()}
    return task.initialize(model, jax.random.key(0), zeros)


def _plan_memory(step: Any, state: TrainState, batch: Mapping[str, Any], fsdp: int) -> Memory:
    compiled = jax.jit(step, donate_argnums=0).lower(state, batch).compile()
    analysis: Any = compiled.memory_analysis()
    leaves = jax.tree.leaves(state)
    whole = sum(map(_bytes, leaves))
    held = sum(_bytes(leaf) // (fsdp if partition(leaf.shape, fsdp) else 1) for leaf in leaves)
    temporary = int(analysis.temp_size_in_bytes)
    if fsdp > 1:  # A step gathers all parameters before it reads them.
        temporary += sum(map(_bytes, jax.tree.leaves(state.params)))
    rows = int(analysis.argument_size_in_bytes) - whole
    # Outputs that do not alias the donated state: the sums.
    others = int(analysis.output_size_in_bytes) - int(analysis.alias_size_in_bytes)
    return Memory(state=held, batch=max(rows, 0), temporary=temporary + max(others, 0))


def _exchanged(leaves: list[Any], trained: list[Any], devices: int, fsdp: int) -> int:
    """Returns the bytes that a device sends: (N - 1)/N of an array in each pass of a ring of N."""
    share = (devices - 1) / devices
    gradients = 2 * share * sum(map(_bytes, trained))  # Reduce-scatter, then all-gather.
    if fsdp == 1:
        return round(gradients)
    gathered = sum(_bytes(leaf) for leaf in leaves if partition(leaf.shape, fsdp))
    return round(gradients + (fsdp - 1) / fsdp * gathered)


def _count(tree: PyTree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def _bytes(leaf: Any) -> int:
    return math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize
