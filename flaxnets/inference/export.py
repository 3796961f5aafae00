"""Export of a trained model's variables to ``.safetensors``."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import jax
import numpy as np
from flax import traverse_util

from flaxnets.training.workdir import write_atomically
from flaxnets.typing import PyTree


def to_tensors(variables: Mapping[str, PyTree]) -> dict[str, np.ndarray]:
    """Returns all variables by path, in Flax's layout.

    Args:
      variables: Linen's collections.

    Returns:
      Arrays by name, as ``params.classifier.scores.kernel``, ``batch_stats.encoder.norm.mean``;
      ``flax.traverse_util.unflatten_dict(tensors, sep=".")`` gives the collections back.
    """
    return traverse_util.flatten_dict(jax.device_get(dict(variables)), sep=".")


class HasTorchNames(Protocol):
    """Encoder that knows PyTorch's names of its variables, as all of ``flaxnets/encoders`` do."""

    def weight_name(self, path: tuple[str, ...], /) -> str:
        """Returns PyTorch's name of the variable at a path, which starts with its collection."""


def to_encoder_tensors(
    encoder: HasTorchNames, variables: Mapping[str, PyTree]
) -> dict[str, np.ndarray]:
    """Returns an encoder's variables in PyTorch's names and layout, for ``load_pretrained``.

    Args:
      encoder: of the model.
      variables: Linen's collections of the model; only their part ``encoder`` is exported.

    Returns:
      Arrays by PyTorch's names; kernels (out,in,h,w) or (out,in).

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
    """Writes a ``.safetensors`` file, atomically.

    Args:
      path: ``FILE.safetensors``.
      tensors: arrays by name.
      metadata: texts for the file's header.

    Raises:
      ValueError: the path has another suffix.
      OSError: the file cannot be written.
    """
    import safetensors.numpy

    if path.suffix != ".safetensors":
        raise ValueError(f"path: expected FILE.safetensors, received {path}")
    # It writes the memory as it lies, whatever the strides.
    contiguous = {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}
    content = safetensors.numpy.save(contiguous, dict(metadata))
    write_atomically(path, lambda unfinished: unfinished.write_bytes(content))
