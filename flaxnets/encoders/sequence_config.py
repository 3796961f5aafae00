"""Encoders of sequences by name: the table, and the configuration that builds one."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn

from flaxnets.configuration import (
    check_at_least,
    check_dtype_argument,
    check_rates,
    find_part,
    parameters_of,
)
from flaxnets.encoders.conv_stack import ConvStack
from flaxnets.encoders.tcn import TCN
from flaxnets.typing import Dtype

NONE = "none"
"""The value of ``SequenceEncoderConfig.name`` for networks without convolutions."""

SEQUENCE_ENCODERS: Mapping[str, Callable[..., nn.Module]] = {"conv": ConvStack, "tcn": TCN}
"""Encoders of (B,T,D) to (B,T,F) by name; they are called as ``Recurrent`` is."""


@dataclasses.dataclass
class SequenceEncoderConfig:
    """The convolutions over time below a recurrent layer; ``make_sequence_encoder`` builds them."""

    name: str = NONE
    """``none``, ``tcn``: dilated residual blocks, ``conv``: plain convolutions, or
    ``package.module:Name`` of a module that is called as ``flaxnets.recurrent.Recurrent``."""
    features: tuple[int, ...] = (64, 64)
    """Output channels of each block or convolution."""
    kernel_size: int = 3
    """Steps that a kernel reads."""
    per_channel: bool = False
    """``conv`` only: each channel of the input is convolved alone."""
    pools: tuple[int, ...] = ()
    """``conv`` only: windows of the max pooling after each convolution, steps; empty: none."""
    weight_norm: bool = True
    """``tcn`` only: normalises the kernels."""
    dropout_rate: float = 0.0
    """After each convolution."""


def make_sequence_encoder(
    config: SequenceEncoderConfig, *, dtype: Dtype = "float32", field: str = "model.encoder"
) -> nn.Module | None:
    """Returns the encoder that a configuration describes; None for ``none``.

    Args:
      config: the configuration.
      dtype: of the matmuls and of the outputs.
      field: the configuration's path, for errors.

    Raises:
      ValueError: an unknown name or dtype, or a value out of range.

    >>> make_sequence_encoder(SequenceEncoderConfig("tcn", features=(8, 8))).receptive_field
    13
    """
    check_dtype_argument(dtype)
    check_at_least(field, config, {"kernel_size": 1})
    check_rates(field, config, "dropout_rate")
    if config.name == NONE:
        return None
    make = find_part(f"{field}.name", config.name, SEQUENCE_ENCODERS, "an encoder of sequences")
    options: dict[str, Any] = {
        "features": tuple(config.features),
        "kernel_size": config.kernel_size,
        "per_channel": config.per_channel,
        "pools": tuple(config.pools),
        "weight_norm": config.weight_norm,
        "dropout_rate": config.dropout_rate,
        "dtype": dtype,
    }
    if not config.features or min(config.features) < 1:
        raise ValueError(
            f"{field}.features: expected at least one number of at least 1, received "
            f"{tuple(config.features)}"
        )
    taken = parameters_of(make)
    for name, unset in (("per_channel", False), ("pools", ())):
        if name not in taken and options[name] != unset:
            raise ValueError(f"{field}.{name}: {config.name!r} has none; take the encoder 'conv'")
    try:
        encoder: nn.Module = make(**{name: options[name] for name in options if name in taken})
    except ValueError as error:
        raise ValueError(f"{field}.{error}") from error
    return encoder
