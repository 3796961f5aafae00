"""Heads by name: the table, and the configuration that builds one."""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import flax.linen as nn

from flaxnets.configuration import (
    check_at_least,
    check_dtype_argument,
    check_rates,
    find_part,
    parameters_of,
)
from flaxnets.heads.classifier import ClipClassifier, StepClassifier
from flaxnets.heads.pooling import (
    AttentionPooling,
    pool_concatenate,
    pool_last,
    pool_max,
    pool_mean,
)
from flaxnets.typing import Dtype

PER_STEP = "none"
"""The value of ``HeadConfig.pool`` for a head with logits at each step."""
FIXED_LENGTH = frozenset({"concatenate"})
"""Heads that need sequences of one length."""


def _per_step(config: "HeadConfig", num_classes: int, dtype: Dtype) -> nn.Module:
    return StepClassifier(
        num_classes,
        hidden_features=config.hidden_features,
        dropout_rate=config.dropout_rate,
        dtype=dtype,
    )


def _pooled(pool: Any, config: "HeadConfig", num_classes: int, dtype: Dtype) -> nn.Module:
    return ClipClassifier(
        num_classes,
        pool,
        hidden_features=(config.hidden_features,) if config.hidden_features else (),
        dropout_rate=config.dropout_rate,
        dtype=dtype,
    )


def _attention(config: "HeadConfig", num_classes: int, dtype: Dtype) -> nn.Module:
    return _pooled(
        AttentionPooling(config.attention_features, dtype=dtype), config, num_classes, dtype
    )


HEADS: Mapping[str, Callable[["HeadConfig", int, Dtype], nn.Module]] = {
    PER_STEP: _per_step,
    "last": partial(_pooled, pool_last),
    "mean": partial(_pooled, pool_mean),
    "max": partial(_pooled, pool_max),
    "attention": _attention,
    "concatenate": partial(_pooled, pool_concatenate),
}
"""Heads by their pooling over time."""


@dataclasses.dataclass
class HeadConfig:
    """The classifier over the steps of a clip; ``make_head`` builds it."""

    pool: str = PER_STEP
    """``none``: logits at each step. ``last``, ``mean``, ``max``, ``attention`` or
    ``concatenate``: the steps are pooled, and the clip gets its logits once. Or
    ``package.module:Name`` of a function, or a Linen module without arguments, that pools
    (B,T,F) and lengths (B,) to (B,F)."""
    hidden_features: int = 0
    """Width of a ReLU layer before the logits; 0: none."""
    attention_features: int = 64
    """``attention`` only: width of the layer that scores the steps."""
    dropout_rate: float = 0.0
    """On the inputs of each linear layer."""


def make_head(
    config: HeadConfig,
    num_classes: int,
    *,
    fixed_length: bool = False,
    dtype: Dtype = "float32",
    field: str = "model.head",
) -> nn.Module:
    """Returns the classifier that a configuration describes.

    Args:
      config: the configuration.
      num_classes: K.
      fixed_length: whether all sequences have the same number of steps.
      dtype: of the matmuls; the logits are float32 at least.
      field: the configuration's path, for errors.

    Raises:
      ValueError: an unknown name or dtype, a value out of range, or a head that needs a fixed
        length where lengths vary.

    >>> make_head(HeadConfig("last"), num_classes=3).num_classes
    3
    """
    check_dtype_argument(dtype)
    check_at_least(field, config, {"hidden_features": 0, "attention_features": 1})
    check_rates(field, config, "dropout_rate")
    if config.pool in FIXED_LENGTH and not fixed_length:
        others = [name for name in HEADS if name not in FIXED_LENGTH]
        raise ValueError(
            f"{field}.pool: {config.pool!r} needs clips of one length and these vary; expected one "
            f"of {', '.join(others)}"
        )
    if ":" not in config.pool:
        make = find_part(f"{field}.pool", config.pool, HEADS, "a pooling over time")
        head: nn.Module = make(config, num_classes, dtype)
        return head
    pool = find_part(f"{field}.pool", config.pool, {}, "a pooling over time")
    if isinstance(pool, type):
        if not issubclass(pool, nn.Module):
            raise ValueError(
                f"{field}.pool: expected a function or a flax.linen.Module that pools (B,T,F) and "
                f"lengths (B,) to (B,F), received the class {config.pool!r}"
            )
        try:
            pool = pool(**({"dtype": dtype} if "dtype" in parameters_of(pool) else {}))
        except Exception as error:  # A part of the user's may raise anything.
            raise ValueError(
                f"{field}.pool: expected a pooling over time that is made without arguments; "
                f"calling {config.pool!r} raised {type(error).__name__}: {error}"
            ) from error
    elif len(parameters_of(pool)) < 2:
        raise ValueError(
            f"{field}.pool: expected a function of (B,T,F) inputs and lengths (B,), received "
            f"{config.pool!r}, which takes {', '.join(parameters_of(pool)) or 'nothing'}"
        )
    return _pooled(pool, config, num_classes, dtype)
