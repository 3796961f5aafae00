"""Parameters of PyTorch's recurrent layers, as those of ``Recurrent``."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from flaxnets.recurrent.cells import ElmanCell, GRUCell, LSTMCell

Arrays = dict[str, np.ndarray]


class _Kind(NamedTuple):
    """How PyTorch stacks a cell's gates, in the order that is ours too."""

    gates: int
    torch_name: str


_KINDS: dict[type, _Kind] = {
    LSTMCell: _Kind(4, "LSTM"),
    GRUCell: _Kind(3, "GRU"),
    ElmanCell: _Kind(1, "RNN"),
}


def from_torch(
    state: Mapping[str, Any], cell: type | None = None, *, prefix: str = ""
) -> dict[str, Arrays]:
    """The ``state_dict`` of ``torch.nn.LSTM``, ``GRU`` or ``RNN`` as parameters of ``Recurrent``.

    For a layer of any depth, in one direction or both, with biases or without, with projections
    (``proj_size``) or without, they are those of

        Recurrent(partial(cell, F), num_layers=num_layers, bidirectional=bidirectional)

    with ``cell`` ``LSTMCell`` (``projection_features=proj_size``), ``GRUCell`` or ``ElmanCell``
    (``activation=nn.relu`` for ``nonlinearity="relu"``, which the ``state_dict`` does not tell).
    PyTorch's two biases are added up to one, but for the candidate of the GRU; missing ones are
    zero.

    Args:
      state: arrays by name, ``weight_ih_l0`` and so on: NumPy's, or what ``np.asarray`` takes.
      cell: ``LSTMCell``, ``GRUCell`` or ``ElmanCell``; None: told by the shapes.
      prefix: what stands before each name, as ``rnn.``; other names are left aside.

    Returns:
      ``forward_0``, and so on, and ``backward_0`` where there are two directions, to the cell's
      parameters by name, in the dtype of ``state``.

    Raises:
      ValueError: listing names that are missing, that are not used, or whose arrays are of another
        shape than the first layer's width asks for; another ``cell`` than the shapes tell.
    """
    arrays = {
        name.removeprefix(prefix): np.asarray(value)
        for name, value in state.items()
        if name.startswith(prefix)
    }
    features, projection, kind = _read_first_layer(arrays, cell, prefix)
    gates = _KINDS[kind].gates
    num_layers = 1 + max(int(n) for name in arrays for n in re.findall(r"^weight_ih_l(\d+)", name))
    directions = {"forward": ""}
    if any(name.endswith("_reverse") for name in arrays):
        directions["backward"] = "_reverse"
    width = projection or features
    expected: dict[str, tuple[int, ...]] = {}
    for layer in range(num_layers):
        inputs = len(directions) * width if layer else arrays["weight_ih_l0"].shape[1]
        for suffix in directions.values():
            end = f"_l{layer}{suffix}"
            expected["weight_ih" + end] = (gates * features, inputs)
            expected["weight_hh" + end] = (gates * features, width)
            if "bias_ih_l0" in arrays or "bias_hh_l0" in arrays:
                expected |= {f"bias_{x}h{end}": (gates * features,) for x in "ih"}
            if projection:
                expected["weight_hr" + end] = (projection, features)
    _check_shapes(arrays, expected, prefix)
    return {
        f"{direction}_{layer}": _convert(arrays, f"_l{layer}{suffix}", kind)
        for layer in range(num_layers)
        for direction, suffix in directions.items()
    }


def _read_first_layer(arrays: Arrays, cell: type | None, prefix: str) -> tuple[int, int, type]:
    """F, the width of projections or 0, and the cell that the first layer's kernels are of."""
    needed = ("weight_ih_l0", "weight_hh_l0")
    missing = [prefix + name for name in needed if name not in arrays]
    if missing:
        raise ValueError(
            f"state: expected {missing}, received {sorted(map(prefix.__add__, arrays))}"
        )
    for name in (*needed, "weight_hr_l0"):
        if name in arrays and arrays[name].ndim != 2:
            raise ValueError(
                f"state: {prefix}{name}: expected a matrix, received shape {arrays[name].shape}"
            )
    rows, width = arrays["weight_hh_l0"].shape
    projection = 0
    features = width
    if "weight_hr_l0" in arrays:
        projection, features = arrays["weight_hr_l0"].shape
    kinds = [kind for kind, (gates, _) in _KINDS.items() if gates * features == rows]
    if not kinds:
        raise ValueError(
            f"state: {prefix}weight_hh_l0: expected 4 (LSTM), 3 (GRU) or 1 (RNN) times {features} "
            f"rows, received {rows}"
        )
    if cell is not None and cell is not kinds[0]:
        raise ValueError(
            f"cell: expected {kinds[0].__name__}, since {prefix}weight_hh_l0 {(rows, width)} is of "
            f"torch.nn.{_KINDS[kinds[0]].torch_name}, received {cell.__name__}"
        )
    # Only the LSTM has projections.
    return features, projection if kinds[0] is LSTMCell else 0, kinds[0]


def _check_shapes(arrays: Arrays, expected: dict[str, tuple[int, ...]], prefix: str) -> None:
    """Lists all that is not as expected."""
    faults = [f"{prefix}{name}: missing" for name in expected if name not in arrays]
    faults += [f"{prefix}{name}: not used" for name in arrays if name not in expected]
    faults += [
        f"{prefix}{name}: expected shape {shape}, received {arrays[name].shape}"
        for name, shape in expected.items()
        if name in arrays and arrays[name].shape != shape
    ]
    if faults:
        raise ValueError("state: " + "; ".join(faults))


def _convert(arrays: Arrays, end: str, kind: type) -> Arrays:
    """The parameters of one cell; ``end`` names its layer and direction."""
    kernel, hidden_kernel = arrays["weight_ih" + end].T, arrays["weight_hh" + end].T
    none = np.zeros(kernel.shape[1], kernel.dtype)
    bias, hidden_bias = arrays.get("bias_ih" + end, none), arrays.get("bias_hh" + end, none)
    params = {"input_kernel": kernel, "hidden_kernel": hidden_kernel, "bias": bias + hidden_bias}
    if kind is GRUCell:
        begin = 2 * (len(bias) // 3)
        params["bias"][begin:] = bias[begin:]
        params["hidden_bias"] = hidden_bias[begin:].copy()
    if "weight_hr" + end in arrays:
        params["projection_kernel"] = arrays["weight_hr" + end].T
    return {name: np.ascontiguousarray(value) for name, value in params.items()}
