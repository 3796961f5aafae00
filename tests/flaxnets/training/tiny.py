"""Experiment that trains in a second: a recurrent network on random features."""

import dataclasses
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import numpy as np

from flaxnets.heads.classifier import StepClassifier
from flaxnets.models.crnn import CRNN
from flaxnets.recurrent.cells import LSTMCell
from flaxnets.recurrent.layers import Recurrent
from flaxnets.tasks.video_classification import VideoClassification
from flaxnets.training.config import Config

NUM_CLASSES, STEPS, WIDTH = 3, 4, 6


class TinyData:
    """Random features whose mean depends on the class, in an order fixed by the seed."""

    def __init__(self, split: str, batch_size: int, seed: int, num_examples: int = 20) -> None:
        self.train, self.batch_size, self.seed = split == "train", batch_size, seed
        self.num_examples = num_examples
        rng = np.random.default_rng(1 if self.train else 2)
        self.labels = rng.integers(0, NUM_CLASSES, num_examples).astype(np.int32)
        features = rng.normal(size=(num_examples, STEPS, WIDTH))
        features[..., 0] += 2 * self.labels[:, None]
        self.features = features.astype(np.float32)
        self.lengths = rng.integers(1, STEPS + 1, num_examples).astype(np.int32)
        self.poison: int | None = None
        """Number of the batch whose features are not finite."""

    @property
    def batches_per_epoch(self) -> int:
        return -(-self.num_examples // self.batch_size)

    def describe(self) -> dict[str, Any]:
        return {"num_examples": self.num_examples, "seed": self.seed}

    def batches(self, start: int = 0) -> Iterator[Mapping[str, np.ndarray]]:
        number = start
        while self.train or number < self.batches_per_epoch:
            rows = np.arange(number * self.batch_size, (number + 1) * self.batch_size)
            if self.train:
                rng = np.random.default_rng((self.seed, number))
                rows = rng.integers(0, self.num_examples, self.batch_size)
            batch = self.rows(rows)
            if number == self.poison:
                batch["features"] = np.full_like(batch["features"], np.inf)
            yield batch
            number += 1

    def rows(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        there = rows < self.num_examples
        safe = np.where(there, rows, 0)
        return {
            "features": self.features[safe],
            "lengths": self.lengths[safe],
            "label": np.where(there, self.labels[safe], -1).astype(np.int32),
            "mask": there,
            "index": np.where(there, rows, -1).astype(np.int32),
        }


@dataclasses.dataclass
class TinyConfig(Config):
    """Twelve steps with dropout, evaluated and saved every four steps."""

    batch_size: int = 8
    num_steps: int = 12
    eval_every: int = 4
    checkpoint_every: int = 4
    log_every: int = 1
    dropout_rate: float = 0.3

    def make_model(self) -> nn.Module:
        return CRNN(
            classifier=StepClassifier(NUM_CLASSES),
            recurrent=Recurrent(partial(LSTMCell, 5)),
            dropout_rate=self.dropout_rate,
        )

    def make_task(self) -> VideoClassification:
        return VideoClassification()

    def make_data(self, split: str) -> TinyData:
        return TinyData(split, self.batch_size, self.seed)

    @property
    def class_names(self) -> tuple[str, ...]:
        return ("low", "middle", "high")


def get_config(variant: str | None = None) -> TinyConfig:
    """Returns the configuration, for the programs' flag ``--config``."""
    return TinyConfig()
