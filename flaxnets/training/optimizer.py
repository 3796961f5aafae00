"""optax optimizers from a configuration: schedule, clipping, learning rates by part, freezing."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from flaxnets.configuration import nearest
from flaxnets.training.config import OptimizerConfig
from flaxnets.typing import PyTree

OPTIMIZERS = ("sgd", "adam", "adamw", "rmsprop")
SCHEDULES = ("constant", "cosine", "linear", "step", "onecycle")
_DIVISOR, _FINAL_DIVISOR = 25.0, 1e4
_MOMENTA = 0.95, 0.85
"""PyTorch's defaults of ``onecycle``."""
FROZEN, REST = "frozen", "rest"
"""Labels in ``optax.partition`` of frozen parameters, and of those without a multiplier."""


def make_schedule(config: OptimizerConfig, num_steps: int) -> Callable[[Any], Any]:
    """Returns the learning rate as a function of the step: linear warm-up, then the schedule.

    Raises:
      ValueError: an unknown schedule, a warm-up that is not shorter than the training, or values
        that do not fit together.
    """
    if config.schedule not in SCHEDULES:
        near = nearest(config.schedule, SCHEDULES)
        raise ValueError(f"optimizer.schedule: unknown {config.schedule!r}{near}")
    if not 0 <= config.warmup_steps < num_steps:
        raise ValueError(
            f"optimizer.warmup_steps: expected 0 to num_steps - 1 = {num_steps - 1}, "
            f"received {config.warmup_steps}"
        )
    if not 0 < config.rise_share < 1:
        raise ValueError(
            f"optimizer.rise_share: expected above 0 to below 1, received {config.rise_share}"
        )
    if config.schedule == "onecycle" and config.warmup_steps:
        raise ValueError(
            "optimizer.warmup_steps: expected 0 for the schedule 'onecycle', which rises by "
            f"itself, received {config.warmup_steps}"
        )
    if config.cycle_momentum and (config.schedule, config.name) != ("onecycle", "adam"):
        raise ValueError(
            "optimizer.cycle_momentum: expected False but for the schedule 'onecycle' with 'adam', "
            f"received True for {config.schedule!r} with {config.name!r}"
        )
    rate, rest = config.learning_rate, num_steps - config.warmup_steps
    if config.schedule == "constant":
        schedule = optax.constant_schedule(rate)
    elif config.schedule == "cosine":
        schedule = optax.cosine_decay_schedule(rate, rest)
    elif config.schedule == "linear":
        schedule = optax.linear_schedule(rate, 0.0, rest)
    elif config.schedule == "onecycle":
        low = rate / _DIVISOR
        schedule = one_cycle(low, rate, low / _FINAL_DIVISOR, num_steps, config.rise_share)
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


def one_cycle(
    first: float, peak: float, last: float, num_steps: int, rise_share: float
) -> Callable[[Any], Any]:
    r"""Returns a value that goes to ``peak`` and on to ``last``, each along half a cosine.

    .. math::
        b + \tfrac12 (a - b) (1 + \cos π \tfrac{k - s}{e - s})

    from a at step s to b at step e: s = 0 and e = share · steps − 1, then on to the last step, as
    PyTorch's ``OneCycleLR`` (Smith and Topin, 1708.07120). ``optax.cosine_onecycle_schedule``
    reaches both a step later.

    >>> schedule = one_cycle(0.0, 1.0, 0.5, num_steps=10, rise_share=0.3)
    >>> [round(float(schedule(step)), 3) for step in (0, 1, 2, 9)]
    [0.0, 0.5, 1.0, 0.5]

    Args:
      first: value at step 0.
      peak: value in between.
      last: value at step ``num_steps`` - 1.
      num_steps: of the whole training.
      rise_share: share of the steps up to the peak, in (0,1).
    """
    top = max(rise_share * num_steps - 1, 0.0)
    end = max(num_steps - 1.0, top)

    def anneal(a: float, b: float, share: Any) -> Any:
        return b + 0.5 * (a - b) * (1 + jnp.cos(jnp.pi * jnp.clip(share, 0, 1)))

    def value(step: Any) -> Any:
        rising = anneal(first, peak, step / top if top else 1.0)
        falling = anneal(peak, last, (step - top) / (end - top) if end > top else 1.0)
        return jnp.where(step <= top, rising, falling)

    return value


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
        if config.name == "adam" and config.cycle_momentum:
            high, low = _MOMENTA
            b1 = one_cycle(high, low, high, num_steps, config.rise_share)
            scale = optax.inject_hyperparams(optax.scale_by_adam, static_args=("b2", "eps"))
            moments = scale(b1=b1, b2=config.b2, eps=1e-8)
            return optax.chain(decay, moments, optax.scale_by_learning_rate(rate))
        if config.name == "adam":
            return optax.chain(decay, optax.adam(rate, b1=config.b1, b2=config.b2))
        if config.name == "rmsprop":
            return optax.chain(decay, optax.rmsprop(rate, decay=config.rms_decay))
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
