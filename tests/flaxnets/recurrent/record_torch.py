"""Recorder of the outputs of PyTorch's recurrent layers for random, packed sequences.

    python -m tests.flaxnets.recurrent.record_torch

writes ``fixtures/``: for each layer its ``state_dict``, inputs, outputs, carries and gradients, so
that the tests need no PyTorch. If PyTorch is installed, one test compares with it directly.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np

from flaxnets.recurrent.cells import ElmanCell, GRUCell, LSTMCell

FIXTURES = Path(__file__).parent / "fixtures"


class Recording(NamedTuple):
    """A layer of PyTorch, and our cell for it."""

    torch_name: str
    options: dict[str, Any]
    cell: Callable[..., Any]


BOTH = {"num_layers": 2, "bidirectional": True}
RECORDINGS = {
    "lstm": Recording("LSTM", BOTH, LSTMCell),
    "lstm_projection": Recording(
        "LSTM", {**BOTH, "proj_size": 3}, partial(LSTMCell, projection_features=3)
    ),
    "lstm_no_bias": Recording("LSTM", {"num_layers": 3, "bias": False}, LSTMCell),
    "gru": Recording("GRU", BOTH, GRUCell),
    "rnn_tanh": Recording("RNN", {**BOTH, "nonlinearity": "tanh"}, ElmanCell),
    "rnn_relu": Recording(
        "RNN", {**BOTH, "nonlinearity": "relu"}, partial(ElmanCell, activation=nn.relu)
    ),
}


def record(
    recording: Recording,
    *,
    inputs: int = 5,
    features: int = 4,
    lengths: tuple[int, ...] = (6, 1, 4),
    dtype: Any = np.float64,
) -> dict[str, np.ndarray]:
    """Returns arrays by name.

    ``state/NAME`` and ``gradients/NAME`` (of the sum of ``outputs`` times ``weights``), ``inputs``
    (B,T,D), ``of_inputs`` its gradient, ``lengths`` (B,), ``outputs`` (B,T,...), ``hidden`` and,
    of LSTMs, ``cell``: (L·directions,B,...) at each sequence's end.
    """
    import torch
    from torch.nn.utils import rnn

    rng = np.random.default_rng(0)
    layer = getattr(torch.nn, recording.torch_name)(
        inputs, features, batch_first=True, **recording.options
    ).to(torch.float64)
    for parameter in layer.parameters():
        parameter.data = torch.from_numpy(rng.normal(0, features**-0.5, parameter.shape))
    layer = layer.to(getattr(torch, np.dtype(dtype).name))
    x = torch.from_numpy(rng.normal(size=(len(lengths), max(lengths), inputs)).astype(dtype))
    x.requires_grad_()
    packed = rnn.pack_padded_sequence(
        x, torch.tensor(lengths), batch_first=True, enforce_sorted=False
    )
    packed_outputs, carry = layer(packed)
    outputs, _ = rnn.pad_packed_sequence(packed_outputs, batch_first=True)
    weights = rng.normal(size=outputs.shape).astype(dtype)
    (outputs * torch.from_numpy(weights)).sum().backward()
    results: dict[str, Any] = {
        "inputs": x,
        "lengths": np.array(lengths, np.int32),
        "weights": weights,
        "outputs": outputs,
        "of_inputs": x.grad,
    }
    results |= dict(
        zip(("hidden", "cell"), carry if type(carry) is tuple else (carry,), strict=False)
    )
    for name, parameter in layer.named_parameters():
        results |= {f"state/{name}": parameter, f"gradients/{name}": parameter.grad}
    return {
        name: value.detach().numpy() if torch.is_tensor(value) else value
        for name, value in results.items()
    }


if __name__ == "__main__":
    FIXTURES.mkdir(exist_ok=True)
    for name, recording in RECORDINGS.items():
        np.savez_compressed(FIXTURES / f"torch_{name}.npz", **record(recording))
