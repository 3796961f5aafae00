"""How the configuration in force differs from that of an earlier run."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

from flaxnets.training.config import Config, to_dict


def differences(
    recorded: Mapping[str, Any], config: Config, *, include_runtime: bool = False
) -> list[str]:
    """One line for each value that differs: ``optimizer.learning_rate: 0.01 there, 0.001 now``.

    Args:
      recorded: nested values as ``to_dict`` wrote them.
      config: the configuration in force.
      include_runtime: whether fields made by ``runtime`` count too.
    """
    then = dict(_added_defaults(config)) | dict(_flatten_mapping(recorded))
    now = dict(_flatten_mapping(to_dict(config)))
    ignored = set() if include_runtime else set(_runtime_fields(config))
    lines = []
    for name in sorted((then.keys() | now.keys()) - ignored):
        old, new = then.get(name, "absent"), now.get(name, "absent")
        if not _equal(old, new):
            lines.append(f"{name}: {old!r} there, {new!r} now")
    return lines


def _flatten_mapping(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten_mapping(value, f"{prefix}{name}.")
        else:
            yield prefix + name, list(value) if isinstance(value, tuple) else value


def _runtime_fields(config: Any, prefix: str = "") -> Iterator[str]:
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from _runtime_fields(value, f"{prefix}{field.name}.")
        elif field.metadata.get("runtime"):
            yield prefix + field.name


def _added_defaults(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from _added_defaults(value, f"{prefix}{field.name}.")
        elif field.metadata.get("added"):
            yield prefix + field.name, field.default


def _equal(old: Any, new: Any) -> bool:
    both_numbers = isinstance(old, int | float) and isinstance(new, int | float)
    if both_numbers and math.isnan(old) and math.isnan(new):
        return True
    return bool(old == new)
