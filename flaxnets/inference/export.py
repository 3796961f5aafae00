"""Variables of a trained model as ``.safetensors``, for other programs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
from flax import traverse_util

from flaxnets.training.files import write_atomically
from flaxnets.typing import PyTree


def to_tensors(variables: Mapping[str, PyTree]) -> dict[str, np.ndarray]:
    """All variables by path, in Flax's layout.

    Args:
      variables: Linen's collections.

    Returns:
      Names as ``params.classifier.scores.kernel`` and ``batch_stats.encoder.norm.mean`` to arrays.
    """
    return traverse_util.flatten_dict(jax.device_get(dict(variables)), sep=".")


def from_tensors(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The variables that ``to_tensors`` was given."""
    return traverse_util.unflatten_dict(dict(tensors), sep=".")


class Named(Protocol):
    """An encoder as far as the names of its weights go; those of ``flaxnets/encoders`` are."""

    def weight_name(self, path: tuple[str, ...], /) -> str:
        """PyTorch's name of the variable at a path, from its collection on."""


def to_encoder_tensors(encoder: Named, variables: Mapping[str, PyTree]) -> dict[str, np.ndarray]:
    """An encoder's variables as ``load_pretrained`` reads them.

    Args:
      encoder: the model's; it says what its variables are called.
      variables: Linen's collections of the model, whose part ``encoder`` counts.

    Returns:
      PyTorch's names to arrays, kernels (out,in,h,w) or (out,in).

    Raises:
      ValueError: the variables have no part ``encoder``.
    """
    own = {name: tree["encoder"] for name, tree in variables.items() if "encoder" in tree}
    if not own:
        raise ValueError("variables: expected a part 'encoder', received none")
    leaves = traverse_util.flatten_dict(jax.device_get(own))
    return {
        encoder.weight_name(path): _to_torch_layout(leaf, path[-1]) for path, leaf in leaves.items()
    }


def _to_torch_layout(array: np.ndarray, leaf: str) -> np.ndarray:
    if leaf == "kernel" and array.ndim == 4:
        array = array.transpose(3, 2, 0, 1)  # (h,w,in,out) -> (out,in,h,w)
    elif leaf == "kernel" and array.ndim == 2:
        array = array.T  # (in,out) -> (out,in)
    return np.ascontiguousarray(array)


def write_safetensors(
    path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> None:
    """Writes a file, whole or not at all.

    Args:
      path: ``FILE.safetensors``.
      tensors: names to arrays.
      metadata: what the file's header says of them.

    Raises:
      ValueError: another suffix.
      OSError: the file cannot be written.
    """
    import safetensors.numpy

    if path.suffix != ".safetensors":
        raise ValueError(f"path: expected FILE.safetensors, received {path}")
    content = safetensors.numpy.save(dict(tensors), dict(metadata))
    write_atomically(path, lambda unfinished: unfinished.write_bytes(content))
