"""Experiment for tests of dying processes: it compiles quickly and records its batches.

It fits a small network with dropout and batch statistics to random numbers from the loader. Each
process appends the examples of every batch that it receives to a file.
"""

import dataclasses
import json
import os
import resource
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from data.loader import Loader
from flaxnets.training.config import Config

NUM_EXAMPLES, FEATURES = 20, 4


class Network(nn.Module):
    """Maps (B,4) to (B,), with batch statistics of the unmasked rows."""

    @nn.compact
    def __call__(self, x: Any, mask: Any, *, train: bool) -> Any:
        x = nn.Dense(8, use_bias=False)(x)  # A bias would get gradients that are rounding alone.
        x = nn.BatchNorm(use_running_average=not train)(x, mask=mask[:, None])
        x = nn.Dropout(0.3, deterministic=not train)(nn.tanh(x))
        return nn.Dense(1)(x)[:, 0]


class Regression:
    """Regression task with the mean squared error."""

    def initialize(self, model: nn.Module, key: Any, batch: Any) -> Any:
        return model.init(key, batch["x"], batch["mask"], train=False)

    def loss(
        self, model: nn.Module, variables: Any, batch: Any, key: Any, step: Any = 0
    ) -> tuple[Any, Any]:
        outputs, updates = model.apply(
            variables,
            batch["x"],
            batch["mask"],
            train=True,
            rngs={"dropout": key},
            mutable=["batch_stats"],
        )
        return self._sums(outputs, batch), updates

    def evaluate(self, model: nn.Module, variables: Any, batch: Any) -> tuple[Any, Any]:
        outputs = model.apply(variables, batch["x"], batch["mask"], train=False)
        return self._sums(outputs, batch), {"y": outputs}

    def describe_outputs(self, outputs: dict[str, Any], row: int) -> dict[str, Any]:
        return {"y": float(outputs["y"][row])}

    def _sums(self, outputs: Any, batch: Any) -> Any:
        errors = jnp.where(batch["mask"], (outputs - batch["y"]) ** 2, 0)
        return {"loss": (jnp.sum(errors), jnp.sum(batch["mask"], dtype=jnp.float32))}


class Numbers:
    """Random inputs with dependent targets; one validation example cannot be read."""

    def __init__(self, split: str) -> None:
        self.split = split
        rng = np.random.default_rng(len(split))
        self.x = rng.normal(size=(NUM_EXAMPLES, FEATURES)).astype(np.float32)

    def __len__(self) -> int:
        return NUM_EXAMPLES

    def __getitem__(self, index: int, /) -> Mapping[str, Any]:
        return {
            "x": self.x[index],
            "y": self.x[index, 0] * self.x[index, 1],
            "mask": np.asarray(self.split == "train" or index != 5),
            "index": np.asarray(index, np.int32),
        }


class Traced:
    """A slow loader that records every batch it yields."""

    def __init__(self, loader: Loader, trace: str, delay: float) -> None:
        self.loader, self.trace, self.delay = loader, trace, delay
        self.num_examples = loader.num_examples
        self.batches_per_epoch = loader.batches_per_epoch
        self.describe = loader.describe

    def batches(self, start: int = 0) -> Iterator[Mapping[str, np.ndarray]]:
        with self.loader.batches(start) as batches:
            for number, batch in enumerate(batches, start):
                time.sleep(self.delay)
                if self.trace and self.loader.train:
                    self.write(number, batch["index"].tolist())
                elif self.trace:
                    with open(f"{self.trace}-evaluation", "a") as file:
                        file.write(f"{number}\n")
                yield batch

    def write(self, number: int, examples: list[int]) -> None:
        first = jax.process_index() * len(examples)
        line = json.dumps({"number": number, "first_row": first, "examples": examples}) + "\n"
        # In one call, so that a kill leaves no partial line.
        file = os.open(
            f"{self.trace}.{jax.process_index()}", os.O_WRONLY | os.O_APPEND | os.O_CREAT
        )
        os.write(file, line.encode())
        os.close(file)


@dataclasses.dataclass
class RegressionConfig(Config):
    """Thirty steps of eight examples; epochs of twenty examples end within batches."""

    batch_size: int = 8
    num_steps: int = 30
    eval_every: int = 10
    best_metric: str = "loss"
    best_mode: str = "min"
    checkpoint_every: int = dataclasses.field(default=4, metadata={"runtime": True})
    log_every: int = dataclasses.field(default=1, metadata={"runtime": True})
    trace: str = dataclasses.field(default="", metadata={"runtime": True})
    """Prefix of the files of recorded batches, one per process, and of ``-evaluation``, which grows
    with each batch of the validation split; empty: none."""
    delay: float = dataclasses.field(default=0.0, metadata={"runtime": True})
    """Seconds per batch."""
    eval_delay: float = dataclasses.field(default=0.0, metadata={"runtime": True})
    """Seconds per batch of an evaluation."""
    fails_at: int = dataclasses.field(default=-1, metadata={"runtime": True})
    """Training batch that the last process cannot read; -1: none."""

    file_limit: int = dataclasses.field(default=-1, metadata={"runtime": True})
    """Process that cannot write the largest files of a checkpoint; -1: none."""

    def make_model(self) -> nn.Module:
        if self.file_limit == jax.process_index():
            # Its log, on standard output, is shorter.
            size = 4_000 if self.file_limit == 0 else 2_500
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        return Network()

    def make_task(self) -> Any:
        return Regression()

    def make_data(self, split: str) -> Any:
        loader = Loader(
            Numbers(split),
            batch_size=self.batch_size,
            train=split == "train",
            seed=self.seed,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            num_threads=0,
            max_bad_share=0.1,
        )
        delay = self.delay if split == "train" else self.eval_delay
        traced = Traced(loader, self.trace, delay)
        return Failing(traced, self.fails_at) if split == "train" else traced


class Failing:
    """Batches, one of which the last process cannot read."""

    def __init__(self, data: Traced, number: int) -> None:
        self.data, self.number = data, number
        self.num_examples, self.batches_per_epoch = data.num_examples, data.batches_per_epoch
        self.describe = data.describe

    def batches(self, start: int = 0) -> Iterator[Mapping[str, np.ndarray]]:
        last = jax.process_index() == jax.process_count() - 1
        for number, batch in enumerate(self.data.batches(start), start):
            if last and number == self.number:
                raise OSError(f"batch {number}: the disk of this machine is broken")
            yield batch


def read_trace(path: Path, num_steps: int) -> list[int]:
    """Returns the examples of the first steps, in the order of their rows.

    A process that read the same part of a batch several times must have read the same examples.
    """
    parts: dict[tuple[int, int], int] = {}
    for file in path.parent.glob(f"{path.name}.*"):
        for line in file.read_text().splitlines():
            record = json.loads(line)
            for row, example in enumerate(record["examples"], record["first_row"]):
                place = (record["number"], row)
                assert parts.setdefault(place, example) == example, place
    batch_size = RegressionConfig.batch_size
    return [parts[number, row] for number in range(num_steps) for row in range(batch_size)]


def get_config(variant: str | None = None) -> RegressionConfig:
    """Returns the configuration, so that programs accept this file as an experiment."""
    return RegressionConfig()
