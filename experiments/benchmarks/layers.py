"""Recurrent layers against ``flax.linen``, PyTorch and Keras; minGRU against scanned GRUs."""

import importlib.util
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from experiments.benchmarks.layer_steps import OnCudnn, Scanned, make_module_step
from experiments.benchmarks.timing import Case, Step
from flaxnets.recurrent.cells import ElmanCell, GRUCell, LSTMCell
from flaxnets.recurrent.convolutional_cells import ConvLSTMCell
from flaxnets.recurrent.linear_cells import MinGRUCell

OURS = "flaxnets"
LINEN = "flax.linen"
PYTORCH = "PyTorch"
KERAS = "Keras"
CUDNN = "our layer on cuDNN"
SCANNED_GRU = "our scanned GRU"
LINEN_GRU = "flax.linen's GRU"

_OURS: Mapping[str, Any] = {
    "lstm": LSTMCell, "gru": GRUCell, "elman": ElmanCell, "convlstm": ConvLSTMCell,
}  # fmt: skip
_LINEN: Mapping[str, Any] = {
    "lstm": nn.LSTMCell, "gru": nn.GRUCell, "elman": nn.SimpleCell, "convlstm": nn.ConvLSTMCell,
}  # fmt: skip
_TITLES = {"lstm": "LSTM", "gru": "GRU", "elman": "Elman", "convlstm": "ConvLSTM"}

VECTOR_SIZES = ((32, 32, 512, 512), (16, 16, 2048, 256))
"""(T, B, D, F)."""
MAP_SIZES = ((10, 8, 16, 16, 64, 5),)
"""(T, B, H = W, C, F, kernel size)."""


def vector_cases(
    name: str, sizes: tuple[tuple[int, int, int, int], ...] = VECTOR_SIZES
) -> list[Case]:
    """Returns forward pass and training step of ``lstm``, ``gru`` or ``elman`` at each size."""
    cases = []
    for t, b, d, f in sizes:
        title = f"{_TITLES[name]}, T={t}, B={b}, {d}→{f}"
        cases += _both_modes(title, partial(_draw, (b, t, d)), name, f, {}, {})
    return cases


def map_cases(sizes: tuple[tuple[int, int, int, int, int, int], ...] = MAP_SIZES) -> list[Case]:
    """Returns forward pass and training step of the ConvLSTM at each size."""
    cases = []
    for t, b, side, c, f, k in sizes:
        title = f"ConvLSTM, T={t}, B={b}, {side}×{side}, {c}→{f}, {k}×{k}"
        draw = partial(_draw, (b, t, side, side, c))
        # Training steps of flax.linen and Keras take 12 s and more.
        cases += _both_modes(
            title, draw, "convlstm", f, {"kernel_size": (k, k)}, {LINEN: 2, KERAS: 2}
        )
    return cases


def mingru_cases(
    sizes: tuple[tuple[int, int, int, int], ...] = ((2048, 8, 256, 256),),
) -> list[Case]:
    """Returns minGRU, parallel over time, against our GRU and flax.linen's of the same width."""
    cases = []
    for t, b, d, f in sizes:
        draw = partial(_draw, (b, t, d))
        for train in (False, True):
            ways = {
                "minGRU": _lazily(draw, partial(_scanned, MinGRUCell, f), train),
                SCANNED_GRU: _lazily(draw, partial(_scanned, GRUCell, f), train),
                LINEN_GRU: _lazily(draw, partial(_linen, nn.GRUCell, f), train),
            }
            cases.append(Case(f"minGRU, T={t}, B={b}, {d}→{f}, {_mode(train)}", ways, fresh=train))
    return cases


def _both_modes(
    title: str,
    draw: Callable[[], np.ndarray],
    name: str,
    features: int,
    kwargs: Mapping[str, Any],
    training_rounds: Mapping[str, int],
) -> list[Case]:
    cases = []
    for train in (False, True):
        ours = partial(_scanned, _OURS[name], features, **kwargs)
        linen = partial(_linen, _LINEN[name], features, **kwargs)
        ways: dict[str, Callable[[], Step]] = {
            OURS: _lazily(draw, ours, train),
            LINEN: _lazily(draw, linen, train),
        }
        if name == "lstm" and jax.default_backend() == "gpu":
            ways[CUDNN] = _lazily(draw, partial(OnCudnn, features), train)
        size = {"kernel_size": kwargs["kernel_size"][0]} if kwargs else {}
        peer = partial(_peer_step, draw, name, features, train, size)
        if importlib.util.find_spec("torch") is not None:
            ways[PYTORCH] = partial(peer, PYTORCH)
        if importlib.util.find_spec("keras") is not None:
            ways[KERAS] = partial(peer, KERAS)
        cases.append(
            Case(f"{title}, {_mode(train)}", ways, training_rounds if train else {}, train)
        )
    return cases


def _mode(train: bool) -> str:
    return "training step" if train else "forward"


def _draw(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def _scanned(make_cell: Any, features: int, **kwargs: Any) -> nn.Module:
    return Scanned(make_cell(features, **kwargs))


def _linen(make_cell: Any, features: int, **kwargs: Any) -> nn.Module:
    return nn.RNN(make_cell(features, **kwargs))


def _lazily(
    draw: Callable[[], np.ndarray], make_module: Callable[[], nn.Module], train: bool
) -> Callable[[], Step]:
    return lambda: make_module_step(make_module, draw(), train)


def _peer_step(
    draw: Callable[[], np.ndarray],
    name: str,
    features: int,
    train: bool,
    kwargs: Mapping[str, Any],
    way: str,
) -> Step:
    if way == PYTORCH:
        from experiments.benchmarks import torch_peers

        return torch_peers.make_layer_step(name, draw(), features, train, **kwargs)
    from experiments.benchmarks import keras_peers

    return keras_peers.make_layer_step(name, draw(), features, train, **kwargs)
