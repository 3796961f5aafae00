"""Files of weights that PyTorch's users exchange: names to arrays, read without PyTorch."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from flaxnets.encoders.pth import read_pth

_WRAPPERS = ("state_dict", "model_state_dict", "model")
_SAFETENSORS_DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    # The NumPy functions of safetensors cannot name this type, which NumPy itself lacks.
    "BF16": np.dtype(jnp.bfloat16),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}


def read_weights(path: str | Path) -> dict[str, Any]:
    """Reads a ``state_dict``.

    Args:
      path: ``.pth`` or ``.pt`` as ``torch.save`` writes them, or ``.safetensors``. What a training
        program saved is unwrapped: the dictionary under ``state_dict``, ``model_state_dict`` or
        ``model``, and the prefix ``module.`` of data-parallel training.

    Returns:
      Names to arrays in PyTorch's layout and the file's dtypes (bfloat16 as ``jnp.bfloat16``).

    Raises:
      FileNotFoundError: no such file.
      PthError: see ``read_pth``.
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
