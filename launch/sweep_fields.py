"""Fields of a configuration by name: their types, setting them with a check, and their flags."""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from flaxnets.training.config import Config

JUDGES = ("best_metric", "best_mode", "eval_split")
"""Fields that judge the trials, and so are the same for all."""


def apply(config: Config, values: Mapping[str, Any]) -> dict[str, Any]:
    """Sets fields by their names, as ``optimizer.learning_rate``, in place.

    Returns:
      The values as they were set: integers have become float where the field is one.

    Raises:
      ValueError: no such field (with the nearest), or a value that is not of its type.
    """
    kinds, applied = checked_kinds(config, values), {}
    for name, value in values.items():
        applied[name] = conform(name, value, kinds[name])
        *path, last = name.split(".")
        owner: Any = config
        for part in path:
            owner = getattr(owner, part)
        setattr(owner, last, applied[name])
    return applied


def flag(name: str, value: Any) -> str:
    """``--config.NAME=VALUE``, which sets the value when ``launch.train`` gets it."""
    if isinstance(value, bool):
        value = str(value).lower()
    elif value is None:
        value = "none"
    return f"--config.{name}={value}"


def field_kinds(config: Any, prefix: str = "") -> dict[str, Any]:
    """The type of each leaf of a configuration, by its name with dots."""
    hints = typing.get_type_hints(type(config))
    kinds: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            kinds |= field_kinds(value, f"{prefix}{field.name}.")
        else:
            kinds[prefix + field.name] = hints[field.name]
    return kinds


def checked_kinds(config: Config, names: Iterable[str]) -> dict[str, Any]:
    """The type of each field, once each name is one that may vary."""
    kinds = field_kinds(config)
    for name in names:
        if name not in kinds:
            near = difflib.get_close_matches(name, list(kinds), n=1, cutoff=0.4)
            hint = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(kinds)}"
            raise ValueError(f"space: no field {name} in the configuration{hint}")
        if name in JUDGES:
            raise ValueError(f"space: {name} judges the trials; give it by --objective or --config")
        if typing.get_origin(kinds[name]) is dict or kinds[name] is dict:
            raise ValueError(f"space: {name} is a dict, which no flag can set")
    return kinds


def conform(name: str, value: Any, kind: Any) -> Any:
    """The value as the field has it; ValueError where it is not of the field's type."""
    kinds = typing.get_args(kind) if is_union(kind) else (kind,)
    for one in kinds:
        if one is float and type(value) in (int, float) and math.isfinite(value):
            return float(value)
        if one in (bool, int, str, type(None)) and type(value) is one:
            return value
        if (one is tuple or typing.get_origin(one) is tuple) and isinstance(value, tuple | list):
            # JSON and YAML have lists alone.
            inner = typing.get_args(one)
            each = inner[:1] * len(value) if inner[1:] == (Ellipsis,) else inner
            if not inner:
                return tuple(value)
            if len(each) == len(value):
                return tuple(conform(name, v, k) for v, k in zip(value, each, strict=True))
    shown = getattr(kind, "__name__", str(kind)) if not typing.get_args(kind) else str(kind)
    raise ValueError(f"space: expected {shown} for {name}, received {value!r}")


def is_union(kind: Any) -> bool:
    """Whether a type is one of several, as ``int | None``."""
    return typing.get_origin(kind) in (typing.Union, types.UnionType)
