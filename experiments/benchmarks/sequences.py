"""Training steps of language models, music models and TCNs against PyTorch; long scans.

The steps are complete: windows of a stream whose state is carried along, loss, backward pass,
clipping, update. The language model is Zaremba et al.'s (``experiments/penn_treebank.py``); the
music model an LSTM on 88 keys with Adam. Of TCNs (those of ``experiments/tcn_sequences.py``) and of
long scans, these against flax.linen, the gradients are timed, of a layer alone.
"""

import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.layer_steps import Scanned, make_module_step, make_step
from experiments.benchmarks.timing import Case, Step
from experiments.benchmarks.training_step import TrainingStep
from experiments.penn_treebank import get_config
from flaxnets.encoders.tcn import TCN
from flaxnets.models.sequence_model import (
    SequenceModelConfig,
    make_sequence_model,
)
from flaxnets.recurrent.cells import GRUCell, LSTMCell
from flaxnets.recurrent.config import RecurrentConfig
from flaxnets.recurrent.scan import ScanOptions
from flaxnets.tasks.step_prediction import StepPrediction
from flaxnets.training.config import OptimizerConfig

OURS, LINEN, PYTORCH = "flaxnets", "flax.linen", "PyTorch"
KEYS = 88
"""Of a piano roll."""


def draw_tokens(rows: int, window: int, num_tokens: int) -> dict[str, np.ndarray]:
    """Returns a window of a stream of random tokens, as ``SequenceBatch``."""
    stream = np.random.default_rng(0).integers(0, num_tokens, (rows, window + 1), np.int32)
    return {"tokens": stream[:, :-1], "targets": stream[:, 1:], **_whole(rows, window)}


def draw_rolls(rows: int, window: int) -> dict[str, np.ndarray]:
    """Returns a window of random piano rolls, as ``SequenceBatch``."""
    shape = rows, window + 1, KEYS
    rolls = (np.random.default_rng(0).random(shape) < 0.05).astype(np.float32)
    return {"inputs": rolls[:, :-1], "targets": rolls[:, 1:], **_whole(rows, window)}


def _whole(rows: int, window: int) -> dict[str, np.ndarray]:
    return {
        "starts": np.zeros((rows, window), bool),
        "target_mask": np.ones((rows, window), bool),
        "lengths": np.full(rows, window, np.int32),
        "mask": np.ones(rows, bool),
        "index": np.arange(rows, dtype=np.int32),
    }


def language_model(
    variant: str, dropout_rate: float | None = None
) -> tuple[SequenceModelConfig, OptimizerConfig]:
    """Returns network and optimizer of a variant of ``experiments/penn_treebank.py``.

    Args:
      variant: ``small``, ``medium`` or ``large``.
      dropout_rate: in place of the variant's.
    """
    config = get_config(variant)
    if dropout_rate is not None:
        config.model.dropout_rate = dropout_rate
        config.model.recurrent.dropout_rate = config.model.head.dropout_rate = dropout_rate
    return config.model, config.optimizer


def music_model(features: int) -> tuple[SequenceModelConfig, OptimizerConfig]:
    """Returns an LSTM on piano rolls and its optimizer."""
    model = SequenceModelConfig(recurrent=RecurrentConfig("lstm", features=features))
    return model, OptimizerConfig(name="adam", learning_rate=1e-3, clip_norm=1.0)


def cases(
    num_tokens: int = 10_000,
    rows: int = 20,
    music: tuple[int, int, int] = (16, 256, 256),
    scans: tuple[tuple[int, int, int], ...] = ((784, 32, 128), (1_000, 32, 128)),
    tcns: tuple[tuple[int, int, int, int, int, int], ...] = (
        (32, 600, 2, 8, 24, 8),
        (16, 784, 1, 8, 25, 7),
        (8, 128, 88, 4, 146, 6),
        (32, 100, 64, 4, 210, 3),
    ),
) -> list[Case]:
    """Returns the training steps.

    Args:
      num_tokens: words of the language model.
      rows: of its batches.
      music: rows, steps and units of the music model.
      scans: steps, rows and units of each long scan.
      tcns: rows, steps, channels, blocks, features and kernel of each TCN.
    """
    found = []
    for variant in ("small", "medium"):
        model, optimizer = language_model(variant)
        window = get_config(variant).data.window
        units = model.recurrent.features
        title = (
            f"Language model, 2 LSTM({units}), {num_tokens:,} words, {rows} rows of {window} steps"
        )
        batch = partial(draw_tokens, rows, window, num_tokens)
        found.append(_against_torch(title, model, optimizer, batch, num_tokens, num_tokens))
    rows, window, units = music
    title = f"Music model, LSTM({units}), {KEYS} keys, {rows} rows of {window} steps"
    found.append(
        _against_torch(title, *music_model(units), partial(draw_rolls, rows, window), KEYS, 0)
    )
    found += [_tcn(*sizes) for sizes in tcns]
    for t, b, f in scans:
        for name, cell, linen in (("LSTM", LSTMCell, nn.LSTMCell), ("GRU", GRUCell, nn.GRUCell)):
            found.append(_long_scan(f"{name}, T={t}, B={b}, 1→{f}", cell, linen, t, b, f))
    return found


def _against_torch(
    title: str,
    config: SequenceModelConfig,
    optimizer: OptimizerConfig,
    draw: Callable[[], dict[str, np.ndarray]],
    num_outputs: int,
    num_tokens: int,
) -> Case:
    def ours() -> Step:
        batch = draw()
        task = StepPrediction("softmax" if num_tokens else "bernoulli", len(batch["mask"]))
        model = make_sequence_model(config, num_outputs, num_tokens=num_tokens)
        return TrainingStep(model, task, optimizer, batch)

    ways: dict[str, Callable[[], Step]] = {OURS: ours}
    if importlib.util.find_spec("torch") is not None:

        def torch() -> Step:
            from experiments.benchmarks.torch_sequences import make_step

            return make_step(draw(), config, optimizer, num_outputs, num_tokens)

        ways[PYTORCH] = torch
    return Case(f"{title}, training step", ways)


def _tcn(b: int, t: int, d: int, blocks: int, width: int, kernel_size: int) -> Case:
    features = (width,) * blocks
    x = np.random.default_rng(0).normal(size=(b, t, d)).astype(np.float32)
    ways: dict[str, Callable[[], Step]] = {OURS: partial(_tcn_step, x, features, kernel_size)}
    if importlib.util.find_spec("torch") is not None:

        def torch() -> Step:
            from experiments.benchmarks.torch_sequences import make_tcn_step

            return make_tcn_step(x, features, kernel_size)

        ways[PYTORCH] = torch
    title = f"TCN, {blocks} blocks of {width}, kernel {kernel_size}, T={t}, B={b}, gradients"
    return Case(title, ways)


def _tcn_step(x: np.ndarray, features: tuple[int, ...], kernel_size: int) -> Step:
    network = TCN(features, kernel_size)
    variables = jax.jit(partial(network.init, train=False))(jax.random.key(0), x)
    apply: Any = partial(network.apply, train=True)
    return make_step(apply, variables, jnp.asarray(x), True)


def _long_scan(title: str, cell: Any, linen: Any, t: int, b: int, f: int) -> Case:
    x = np.random.default_rng(0).normal(size=(b, t, 1)).astype(np.float32)
    segment = round(t**0.5)

    def scanned(options: ScanOptions) -> Step:
        return make_module_step(lambda: Scanned(cell(f), options), x, True)

    ways: dict[str, Callable[[], Step]] = {
        OURS: partial(scanned, ScanOptions()),
        f"flaxnets, remat_steps={segment}": partial(scanned, ScanOptions(remat_steps=segment)),
        LINEN: lambda: make_module_step(lambda: nn.RNN(linen(f)), x, True),
    }
    return Case(f"{title}, training step", ways)
