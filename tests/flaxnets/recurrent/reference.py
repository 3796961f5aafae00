"""Recurrent cells and their scan in NumPy, as loops, from their equations.

Nothing of flaxnets is used. The functions are analytic where possible: a complex step gives their
derivative without a difference, f'(x) = Im f(x + iε) / ε, exact to rounding.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Array = np.ndarray
Params = Mapping[str, Array]
Step = Callable[..., tuple[Any, Array]]
"""(params, carry, x, mask of the hidden state) of a batch to the new carry and the output."""


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def relu(x: Array) -> Array:
    return np.where(x.real > 0, x, 0)


def convolve(images: Array, kernel: Array) -> Array:
    """Convolves (B,H,W,C) with (h,w,C,D), SAME; an even kernel pads one row more at the end."""
    h, w, _, depth = kernel.shape
    batch, height, width, channels = images.shape
    padded = np.zeros((batch, height + h - 1, width + w - 1, channels), images.dtype)
    top, left = (h - 1) // 2, (w - 1) // 2
    padded[:, top : top + height, left : left + width] = images
    outputs = np.zeros((batch, height, width, depth), np.result_type(images, kernel))
    for row in range(h):
        for column in range(w):
            seen = padded[:, row : row + height, column : column + width]
            outputs += seen @ kernel[row, column]
    return outputs


def multiply(x: Array, kernel: Array) -> Array:
    return x @ kernel if kernel.ndim == 2 else convolve(x, kernel)


def normalize(x: Array, scale: Array) -> Array:
    mean = x.mean(-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(-1, keepdims=True)
    return scale * (x - mean) / np.sqrt(variance + 1e-5)


def elman(
    params: Params,
    carry: Array,
    x: Array,
    mask: Array | float = 1.0,
    activation: Callable[[Array], Array] = np.tanh,
) -> tuple[Array, Array]:
    """Runs a step of Elman (1990)."""
    recurrent = multiply(mask * carry, params["hidden_kernel"])
    hidden = activation(multiply(x, params["input_kernel"]) + recurrent + params["bias"])
    return hidden, hidden


def lstm(
    params: Params, carry: tuple[Array, Array], x: Array, mask: Array | float = 1.0
) -> tuple[tuple[Array, Array], Array]:
    """Runs a step of the LSTM (Gers et al. 2000).

    The parameters' names select peepholes (1506.04214), layer norm (1607.06450) and the projection
    (Sak et al. 2014).
    """
    cell, hidden = carry
    from_input = multiply(x, params["input_kernel"])
    from_hidden = multiply(mask * hidden, params["hidden_kernel"])
    if "input_scale" in params:
        from_input = normalize(from_input, params["input_scale"])
        from_hidden = normalize(from_hidden, params["hidden_scale"])
    i, f, g, o = np.split(from_input + from_hidden + params["bias"], 4, axis=-1)
    of_i, of_f, of_o = params.get("peepholes", np.zeros(3))
    new_cell = sigmoid(f + of_f * cell) * cell + sigmoid(i + of_i * cell) * np.tanh(g)
    exposed = new_cell
    if "cell_scale" in params:
        exposed = normalize(new_cell, params["cell_scale"]) + params["cell_bias"]
    hidden = sigmoid(o + of_o * new_cell) * np.tanh(exposed)
    if "projection_kernel" in params:
        hidden = hidden @ params["projection_kernel"]
    return (new_cell, hidden), hidden


def gru(params: Params, carry: Array, x: Array, mask: Array | float = 1.0) -> tuple[Array, Array]:
    """Runs a step of the GRU: PyTorch's with ``hidden_bias``, else that of 1406.1078."""
    of_r, of_z, of_n = np.split(params["hidden_kernel"], 3, axis=-1)
    in_r, in_z, in_n = np.split(params["input_kernel"], 3, axis=-1)
    b_r, b_z, b_n = np.split(params["bias"], 3)
    hidden = mask * carry
    r = sigmoid(multiply(x, in_r) + multiply(hidden, of_r) + b_r)
    z = sigmoid(multiply(x, in_z) + multiply(hidden, of_z) + b_z)
    if "hidden_bias" in params:
        candidate = r * (multiply(hidden, of_n) + params["hidden_bias"])
    else:
        candidate = multiply(r * hidden, of_n)
    n = np.tanh(multiply(x, in_n) + b_n + candidate)
    carry = (1 - z) * n + z * carry
    return carry, carry


def st_lstm(
    params: Params, carry: tuple[Array, Array, Array], x: Array, mask: Array | float = 1.0
) -> tuple[tuple[Array, Array, Array], Array]:
    """Runs a step of the ST-LSTM (PredRNN, NeurIPS 2017, section 3.1), forget bias 1."""
    cell, hidden, memory = carry
    from_input = np.split(multiply(x, params["input_kernel"]), 7, axis=-1)
    from_hidden = np.split(multiply(mask * hidden, params["hidden_kernel"]), 4, axis=-1)
    from_memory = np.split(multiply(mask * memory, params["memory_kernel"]), 3, axis=-1)
    i, f, g, o = (a + b for a, b in zip(from_input[:4], from_hidden, strict=True))
    cell = sigmoid(f + 1) * cell + sigmoid(i) * np.tanh(g)
    i, f, g = (a + b for a, b in zip(from_input[4:], from_memory, strict=True))
    memory = sigmoid(f + 1) * memory + sigmoid(i) * np.tanh(g)
    both = np.concatenate([cell, memory], axis=-1)
    content = np.tanh(both @ params["projection_kernel"][0, 0])
    hidden = sigmoid(o + multiply(both, params["output_kernel"])) * content
    return (cell, hidden, memory), hidden


def scan(
    step: Step,
    params: Params,
    carry: Any,
    inputs: Array,
    lengths: Array | None = None,
    *,
    reverse: bool = False,
    mask: Array | None = None,
) -> tuple[Any, Array]:
    """Scans each sequence (T,...) of a batch separately, cut to its length; zeros after it.

    ``carry`` is an array (B,...) or a tuple of them, and so is the returned carry.
    """
    carries, outputs = [], []
    for b, sequence in enumerate(inputs):
        num_steps = len(sequence) if lengths is None else int(lengths[b])
        own = _rows(carry, b)
        options = {} if mask is None else {"mask": mask[b : b + 1]}
        steps: dict[int, Array] = {}
        order = range(num_steps)
        for t in reversed(order) if reverse else order:
            own, steps[t] = step(params, own, sequence[t : t + 1], **options)
        carries.append(own)
        outputs.append(steps)
    shape = next(output for steps in outputs for output in steps.values()).shape[1:]
    zeros = np.zeros((1, *shape))
    stacked = [
        np.concatenate([steps.get(t, zeros) for t in range(inputs.shape[1])]) for steps in outputs
    ]
    return _join(carries), np.stack(stacked)


def _rows(carry: Any, b: int) -> Any:
    if isinstance(carry, tuple):
        return tuple(c[b : b + 1] for c in carry)
    return carry[b : b + 1]


def _join(carries: list[Any]) -> Any:
    if isinstance(carries[0], tuple):
        return tuple(np.concatenate(parts) for parts in zip(*carries, strict=True))
    return np.concatenate(carries)
