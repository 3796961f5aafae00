"""Lowering of a model's functions to StableHLO for several platforms and open sizes."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
from flax import traverse_util

from flaxnets.inference.runtime import exported as runtime
from flaxnets.typing import Array, PyTree


@dataclasses.dataclass(frozen=True)
class ExportedFunction:
    """One function of an export.

    Attributes:
      name: of the function.
      content: serialised ``jax.export.Exported``.
      function: that was lowered, called with variables and arrays.
      shapes: of its arguments after the variables.
    """

    name: str
    content: bytes
    function: Callable[..., Any]
    shapes: tuple[Any, ...]


def lower(
    name: str, function: Callable[..., Any], variables: Mapping[str, PyTree], *shapes: Any
) -> ExportedFunction:
    """Lowers a function of variables and further arguments for all platforms.

    Args:
      name: of the function.
      function: called with variables and arrays.
      variables: Linen's collections; the exported function takes them flat, by name.
      *shapes: of the further arguments, whose sizes may be symbols.

    Raises:
      ValueError: an operation that has no StableHLO on one of the platforms.
      ModuleNotFoundError: flatbuffers is missing.
    """

    def flat(tensors: Mapping[str, Array], *arguments: Any) -> Any:
        return function(traverse_util.unflatten_dict(dict(tensors), sep="."), *arguments)

    tensors = {
        key: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
        for key, leaf in traverse_util.flatten_dict(dict(variables), sep=".").items()
    }
    try:
        exported = jax.export.export(jax.jit(flat), platforms=runtime.PLATFORMS)(tensors, *shapes)
    except Exception as error:  # JAX raises what the operation at hand raises.
        raise ValueError(
            f"{name}: the model cannot be lowered for {', '.join(runtime.PLATFORMS)}: "
            f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        ) from error
    try:
        return ExportedFunction(name, bytes(exported.serialize()), function, shapes)
    except ImportError:
        raise ModuleNotFoundError(
            "launch.export writes functions with flatbuffers, which is not installed: "
            "pip install -e '.[export]'"
        ) from None


def portable(module: Any) -> Any:
    """Returns a module without what an export for any batch size and platform cannot have.

    Loops over chunks of a batch, which change no values, are left out, and cuDNN's LSTM is a scan.
    """
    updates: dict[str, Any] = {}
    for field in dataclasses.fields(module):
        value = getattr(module, field.name, None)
        if field.name in ("chunk_frames", "chunk_images"):
            updates[field.name] = 0
        elif field.name == "backend" and value == "cudnn":
            updates[field.name] = "scan"
        elif isinstance(value, nn.Module) and field.name != "parent":
            updates[field.name] = portable(value)
    return module.clone(**updates) if updates else module
