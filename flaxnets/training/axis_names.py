"""Tells the parts of a network over which mapped axis of devices they sum."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn


def with_axis_name(model: nn.Module, axis_name: str | None) -> nn.Module:
    """The network whose every part with an attribute ``axis_name`` has this one.

    Such parts (BatchNorm, and encoders and decoders that hold what sums over a batch) are found in
    the attributes of modules, in their tuples, lists, mappings and partial functions. A part that
    several attributes share stays shared.

    Args:
      model: not bound to variables.
      axis_name: of ``jax.pmap`` or ``jax.shard_map``; None: the network as it is.
    """
    if axis_name is None:
        return model
    made: dict[int, Any] = {}

    def renamed(value: Any) -> Any:
        if isinstance(value, nn.Module):
            if id(value) not in made:
                made[id(value)] = renamed_module(value)
            return made[id(value)]
        if isinstance(value, Mapping):
            return {name: renamed(part) for name, part in value.items()}
        if type(value) in (tuple, list):
            return type(value)(renamed(part) for part in value)
        if isinstance(value, functools.partial):
            keywords = {name: renamed(part) for name, part in value.keywords.items()}
            if "axis_name" in getattr(value.func, "__dataclass_fields__", {}):
                keywords["axis_name"] = axis_name
            return functools.partial(value.func, *map(renamed, value.args), **keywords)
        return value

    def renamed_module(module: nn.Module) -> nn.Module:
        names = [field.name for field in dataclasses.fields(module) if field.init]
        parts = {name: getattr(module, name) for name in names if name not in ("parent", "name")}
        changed = {name: renamed(part) for name, part in parts.items()}
        if "axis_name" in changed:
            changed["axis_name"] = axis_name
        return module.clone(**changed)

    return renamed(model)
