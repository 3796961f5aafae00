"""Conversion of PyTorch's recurrent weights to parameters of ``Recurrent``.

PyTorch computes the gates as ``weight_ih @ x + bias_ih + weight_hh @ h + bias_hh``, with the gates
stacked along the rows in the order that our cells use, too:

=====================  ===================  ==================================================
PyTorch                shape                ours
=====================  ===================  ==================================================
``weight_ih_l{n}``     (G·F,D)              ``input_kernel`` (D,G·F), transposed
``weight_hh_l{n}``     (G·F,P or F)         ``hidden_kernel`` (P or F,G·F), transposed
``bias_ih_l{n}``,      (G·F,)               ``bias``: their sum, but for the candidate n of the
``bias_hh_l{n}``                            GRU: ``bias_ih``, and ``hidden_bias``: ``bias_hh``
``weight_hr_l{n}``     (P,F)                ``projection_kernel`` (F,P), transposed
``..._l{n}_reverse``                        ``backward_{n}``; without the suffix ``forward_{n}``
=====================  ===================  ==================================================

with G = 4 gates i, f, g, o for the LSTM, 3 gates r, z, n for the GRU and 1 for the RNN.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from flaxnets.recurrent.cells import ElmanCell, GRUCell, LSTMCell

Arrays = dict[str, np.ndarray]


class _Kind(NamedTuple):
    """PyTorch's counterpart of a cell."""

    gates: int
    """Number of gates, stacked in the same order as ours."""
    torch_name: str


_KINDS: dict[type, _Kind] = {
    LSTMCell: _Kind(4, "LSTM"),
    GRUCell: _Kind(3, "GRU"),
    ElmanCell: _Kind(1, "RNN"),
}


def from_torch(
    state: Mapping[str, Any], cell: type | None = None, *, prefix: str = ""
) -> dict[str, Arrays]:
    """Converts the ``state_dict`` of ``torch.nn.LSTM``, ``GRU`` or ``RNN``, without PyTorch.

    The layer may have any depth, one direction or both, biases or none (they become zeros) and
    projections (``proj_size``). The parameters are those of

        Recurrent(partial(cell, F), num_layers=num_layers, bidirectional=bidirectional)

    with ``cell`` an ``LSTMCell`` (``projection_features=proj_size``), ``GRUCell`` or ``ElmanCell``.
    For ``nonlinearity="relu"``, which a ``state_dict`` does not contain, pass ``ElmanCell``'s
    ``activation=nn.relu``.

    >>> import numpy as np
    >>> from flaxnets.recurrent import from_torch
    >>> state = {"weight_ih_l0": np.ones((16, 3)), "weight_hh_l0": np.ones((16, 4))}
    >>> params = from_torch(state)
    >>> {name: leaf.shape for name, leaf in sorted(params["forward_0"].items())}
    {'bias': (16,), 'hidden_kernel': (4, 16), 'input_kernel': (3, 16)}

    Args:
      state: arrays by name, ``weight_ih_l0`` and so on; anything that ``np.asarray`` takes.
      cell: ``LSTMCell``, ``GRUCell`` or ``ElmanCell``; None: inferred from the shapes.
      prefix: of the layer's names, as ``rnn.``; other names are ignored.

    Returns:
      The parameters of each cell by name, under ``forward_0``, ``backward_0`` (if bidirectional),
      ``forward_1`` and so on, in the dtype of ``state``.

    Raises:
      ValueError: names that are missing or unused, arrays of another shape than the first layer's
        width implies, all of them listed; another ``cell`` than the shapes imply.
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
    """Returns F, the width of projections or 0, and the cell, from the first layer's shapes."""
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
    """Refuses missing and unused names and wrong shapes, all listed in one error."""
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
    """Returns the parameters of one cell; ``end`` is the suffix of its layer and direction."""
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
