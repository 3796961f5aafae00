"""Training step of the CRNN on lines of text, against the same network in PyTorch.

The step is complete: forward pass, CTC, backward pass, clipping, AdamW, updates of BatchNorm's
statistics; without the average of the parameters, which PyTorch has no counterpart of. Network and
optimizer are those of ``experiments/crnn_text_lines.py``: its default, and ``paper``.
"""

import dataclasses
import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np

from experiments.benchmarks.timing import Case, Step
from experiments.benchmarks.training_step import TrainingStep
from experiments.crnn_text_lines import get_config
from flaxnets.models.column_crnn import make_column_crnn
from flaxnets.tasks.ctc import CTC

OURS, PYTORCH = "flaxnets", "PyTorch"
LENGTHS = (32, 64)
"""Fewest and most characters of a line."""


def draw_batch(batch_size: int, height: int, width: int, num_classes: int) -> dict[str, np.ndarray]:
    """Returns a ``TranscriptBatch`` of random lines that are all ``width`` pixels wide."""
    rng = np.random.default_rng(0)
    fewest, most = LENGTHS
    counts = rng.integers(min(fewest, width // 16), min(most, width // 8) + 1, batch_size)
    tokens = rng.integers(1, num_classes, (batch_size, counts.max()))
    return {
        "image": rng.integers(0, 256, (batch_size, height, width, 1), np.uint8),
        "lengths": np.full(batch_size, width, np.int32),
        "tokens": np.where(np.arange(counts.max()) < counts[:, None], tokens, 0).astype(np.int32),
        "token_lengths": counts.astype(np.int32),
        "mask": np.ones(batch_size, bool),
        "index": np.arange(batch_size, dtype=np.int32),
    }


def make_config(variant: str | None = None, dropout_rate: float | None = None) -> Any:
    """Returns the experiment's configuration of a variant, with another dropout rate if given."""
    config = get_config(variant)
    if dropout_rate is not None:
        model = config.model
        config.model = dataclasses.replace(
            model,
            recurrent=dataclasses.replace(model.recurrent, dropout_rate=dropout_rate),
            head=dataclasses.replace(model.head, dropout_rate=dropout_rate),
        )
    return config


def torch_options(config: Any, num_classes: int) -> dict[str, Any]:
    """Returns the arguments of ``torch_lines.make_step`` for the network of a configuration."""
    encoder, recurrent = config.model.encoder, config.model.recurrent
    return {
        "features": encoder.features or (64, 128, 256, 512),
        "batch_norm": encoder.name == "crnn_vgg_bn",
        "height": config.data.height,
        "hidden": recurrent.features,
        "projection": recurrent.layer_input_features,
        "num_classes": num_classes,
        "dropout_rate": recurrent.dropout_rate,
        "rate": config.optimizer.learning_rate,
        "weight_decay": config.optimizer.weight_decay,
        "clip_norm": config.optimizer.clip_norm,
    }


def cases(batch_size: int = 32, width: int = 928, num_classes: int = 103) -> list[Case]:
    """Returns the training steps of the default and the paper's network."""
    return [
        _case("CRNN-VGG of 16/32/64/128, BatchNorm", None, batch_size, width, num_classes),
        _case("CRNN-VGG of the paper", "paper", batch_size, width, num_classes),
    ]


def _case(name: str, variant: str | None, batch_size: int, width: int, num_classes: int) -> Case:
    config = make_config(variant)
    size = batch_size, config.data.height, width, num_classes

    def ours() -> Step:
        model = make_column_crnn(config.model, num_classes, config.data.height)
        return TrainingStep(
            model, CTC(text=str), config.optimizer, draw_batch(*size), config.num_steps
        )

    ways: dict[str, Callable[[], Step]] = {OURS: ours}
    if importlib.util.find_spec("torch") is not None:

        def torch() -> Step:
            from experiments.benchmarks.torch_lines import make_step

            return make_step(draw_batch(*size), **torch_options(config, num_classes))

        ways[PYTORCH] = torch
    units = config.model.recurrent.features
    title = f"{name}, 2 bidirectional LSTM({units}), {batch_size} lines of {size[1]}×{width}"
    return Case(f"{title}, training step", ways)
