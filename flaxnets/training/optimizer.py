"""optax optimizers from a configuration: schedule, clipping, learning rates by part, freezing."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from flaxnets.configuration import nearest
from flaxnets.training.config import OptimizerConfig
from flaxnets.typing import PyTree

OPTIMIZERS = ("sgd", "adam", "adamw")
SCHEDULES = ("constant", "cosine", "linear", "step")
FROZEN, REST = "frozen", "rest"
"""Labels in ``optax.partition`` of frozen parameters, and of those without a multiplier."""


def make_schedule(config: OptimizerConfig, num_steps: int) -> Callable[[Any], Any]:
    """Returns the learning rate as a function of the step: linear warm-up, then the schedule.

    Raises:
      ValueError: an unknown schedule, or a warm-up that is not shorter than the training.
    """
    if config.schedule not in SCHEDULES:
        near = nearest(config.schedule, SCHEDULES)
        raise ValueError(f"optimizer.schedule: unknown {config.schedule!r}{near}")
    if not 0 <= config.warmup_steps < num_steps:
        raise ValueError(
            f"optimizer.warmup_steps: expected 0 to num_steps - 1 = {num_steps - 1}, "
            f"received {config.warmup_steps}"
        )
    rate, rest = config.learning_rate, num_steps - config.warmup_steps
    if config.schedule == "constant":
        schedule = optax.constant_schedule(rate)
    elif config.schedule == "cosine":
        schedule = optax.cosine_decay_schedule(rate, rest)
    elif config.schedule == "linear":
        schedule = optax.linear_schedule(rate, 0.0, rest)
    else:
        schedule = optax.exponential_decay(
            rate,
            config.decay_every,
            config.decay_rate,
            transition_begin=config.decay_after,
            staircase=True,
        )
    if config.warmup_steps:
        warmup = optax.linear_schedule(0.0, rate, config.warmup_steps)
        schedule = optax.join_schedules([warmup, schedule], [config.warmup_steps])
    return schedule


def paths_of(params: PyTree) -> PyTree:
    """Returns a tree as ``params`` of the parameters' paths, as ``"encoder/Dense_0/kernel"``."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: jax.tree_util.keystr(path, simple=True, separator="/"), params
    )


def longest_prefix(path: str, prefixes: Iterable[str]) -> str | None:
    """Returns the longest prefix of a path, in whole components; None without any."""
    return max((p for p in prefixes if f"{path}/".startswith(f"{p}/")), key=len, default=None)


def frozen_mask(params: Mapping[str, Any], frozen: tuple[str, ...]) -> PyTree:
    """Returns True for each parameter that is not trained, in a tree as ``params``."""
    return jax.tree.map(lambda path: longest_prefix(path, frozen) is not None, paths_of(params))


def make_optimizer(
    config: OptimizerConfig, num_steps: int, params: Mapping[str, Any]
) -> optax.GradientTransformation:
    """Returns the optimizer of ``config`` for parameters of this structure.

    The global norm that is clipped is that of all trained parameters. Arrays of one axis (biases,
    scales of normalisation) have no weight decay.

    Args:
      config: the hyper-parameters.
      num_steps: steps of the whole training, for the schedule.
      params: nested dict; only its structure and shapes are read.

    Raises:
      ValueError: an unknown optimizer or schedule, or a path in ``multipliers`` or ``frozen`` that
        the parameters do not have.
    """
    if config.learning_rate < 0:
        raise ValueError(
            f"optimizer.learning_rate: expected at least 0, received {config.learning_rate}"
        )
    if config.name not in OPTIMIZERS:
        raise ValueError(
            f"optimizer.name: unknown {config.name!r}{nearest(config.name, OPTIMIZERS)}"
        )
    paths = jax.tree.leaves(paths_of(params))
    for field, names in (("multipliers", config.multipliers), ("frozen", config.frozen)):
        for name in names:
            if not any(longest_prefix(path, [name]) for path in paths):
                candidates = {"/".join(path.split("/")[: name.count("/") + 1]) for path in paths}
                near = nearest(name, candidates)
                raise ValueError(f"optimizer.{field}: no part {name!r} in the model{near}")
    schedule = make_schedule(config, num_steps)

    def is_matrix(tree: PyTree) -> PyTree:
        return jax.tree.map(lambda leaf: jnp.ndim(leaf) > 1, tree)

    def make_part(multiplier: float) -> optax.GradientTransformation:
        def rate(step: Any) -> Any:
            return multiplier * schedule(step)

        decay = optax.add_decayed_weights(config.weight_decay, mask=is_matrix)
        if config.name == "sgd":
            return optax.chain(decay, optax.sgd(rate, momentum=config.momentum or None))
        if config.name == "adam":
            return optax.chain(decay, optax.adam(rate, b1=config.b1, b2=config.b2))
        return optax.adamw(
            rate, b1=config.b1, b2=config.b2, weight_decay=config.weight_decay, mask=is_matrix
        )

    def label(tree: Mapping[str, Any]) -> PyTree:
        def label_of(path: str, is_frozen: bool) -> str:
            return FROZEN if is_frozen else longest_prefix(path, config.multipliers) or REST

        return jax.tree.map(label_of, paths_of(tree), frozen_mask(tree, config.frozen))

    parts = {name: make_part(factor) for name, factor in config.multipliers.items()}
    parts |= {REST: make_part(1.0), FROZEN: optax.set_to_zero()}
    optimizer = optax.partition(parts, label)
    if config.clip_norm:
        # Frozen parameters have zero gradients (make_train_step) and add nothing to the norm.
        optimizer = optax.chain(optax.clip_by_global_norm(config.clip_norm), optimizer)
    return optimizer
