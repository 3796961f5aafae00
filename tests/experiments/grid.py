"""Networks of the grid from flags, trained for two steps on tiny embedded clips."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from ml_collections import config_flags

from flaxnets.training.optimizer import make_optimizer
from flaxnets.training.parallel import DataParallel
from flaxnets.training.state import initialize_variables, make_state
from flaxnets.training.step import make_train_step
from launch.program import conform_tuples

EXPERIMENTS = Path(__file__).parents[2] / "experiments"

ENCODER_FLAGS: dict[str, tuple[str, ...]] = {
    "alexnet": ("level=conv1",),
    "caffenet": ("level=conv1",),
    "vgg11": ("level=conv1_1",),
    "crnn_vgg": ("level=stage_1", "features=(4,4,4,4)"),
    "raw_columns": (),
    "resnet18": ("level=stem",),
    "googlenet": ("level=conv1",),
    "mobilenet_v2": ("level=stem",),
    "efficientnet_lite0": ("level=stem",),
    "small_cnn": ("features=(4,)", "strides=(4,)"),
    "downsampled_frames": ("input_size=4",),
}
"""One encoder of each family, cut off at an early endpoint, so that it compiles quickly."""
QUICK = ("--config.optimizer.name=sgd",)
"""An update that compiles in less time than AdamW's."""
CELLS = (
    *("lstm", "gru", "elman", "convlstm", "convgru", "mingru", "lru"),
    *("flax.linen:MGUCell", "own_cell:LeakyCell"),
)
HEADS = ("none", "last", "mean", "max", "attention", "concatenate")

OWN_CELL = '''
"""A leaky integrator: a cell of one's own."""

import flax.linen as nn
import jax.numpy as jnp


class LeakyCell(nn.RNNCellBase):
    """h' = h / 2 + tanh(W x) / 2."""

    features: int

    @nn.compact
    def __call__(self, carry, inputs):
        """One step."""
        carry = (carry + nn.tanh(nn.Dense(self.features)(inputs))) / 2
        return carry, carry

    def initialize_carry(self, rng, input_shape):
        """Zeros."""
        return jnp.zeros((*input_shape[:-1], self.features))

    @property
    def num_feature_axes(self):
        """1: vectors."""
        return 1


class CellWithoutAxes(nn.RNNCellBase):
    """Lacks num_feature_axes."""

    features: int

    def initialize_carry(self, rng, input_shape):
        """Zeros."""
        return jnp.zeros((*input_shape[:-1], self.features))
'''


def parse(spec: str, *given: str) -> Any:
    """Returns the configuration of ``--config=experiments/SPEC`` with further flags."""
    values = flags.FlagValues()
    arguments = ["test", f"--config={EXPERIMENTS / spec}", *given]
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=arguments)
    values(arguments)
    return conform_tuples(values.config)


def encoder_flags(name: str) -> tuple[str, ...]:
    """Returns the flags of a small version of an encoder."""
    options = (f"name={name}", "weights=", "level=", "features=()", "strides=()", "input_size=0")
    return tuple(f"--config.model.encoder.{each}" for each in (*options, *ENCODER_FLAGS[name]))


def train_two_steps(config: Any, batch: Mapping[str, np.ndarray]) -> tuple[list[float], Any]:
    """Returns the losses of two steps, and how far each parameter moved."""
    model, task = config.make_model(), config.make_task()
    strategy = DataParallel(jax.devices()[:1])
    variables = initialize_variables(model, task, batch, config.seed)
    optimizer = make_optimizer(
        config.make_optimizer_config(), config.num_steps, variables["params"]
    )
    state = make_state(variables, optimizer, config.seed)
    before = jax.tree.map(np.array, state.params)
    step = make_train_step(model, task, optimizer, strategy=strategy)
    state = strategy.place(state)
    compiled, placed = strategy.compile_train(step, state), strategy.shard(batch)
    losses = []
    for _ in range(2):
        state, sums = compiled(state, placed)
        total, count = sums["loss"]
        losses.append(float(total) / float(count))
    moved = jax.tree.map(lambda a, b: float(np.abs(a - np.asarray(b)).max()), before, state.params)
    return losses, moved


@functools.cache
def clips(num_frames: int = 4, size: int = 32) -> Mapping[str, np.ndarray]:
    """Returns two embedded clips, (2,4,32,32,3)."""
    batch = first_batch(parse("moving_shapes.py:smoke", "--config.batch_size=2"))
    video = batch["video"][:, ::4, ::2, ::2]
    assert video.shape[1:4] == (num_frames, size, size)
    return {**batch, "video": video, "lengths": np.full(2, num_frames, np.int32)}


def first_batch(config: Any) -> dict[str, np.ndarray]:
    """Returns the first training batch of a configuration."""
    with config.make_data("train").batches() as batches:
        return dict(next(batches))


def covering_rows(columns: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    """Returns rows that hold each pair of values of two columns at least once."""
    first, second, third = columns
    rows = [
        (a, b, third[(i + j) % len(third)])
        for i, a in enumerate(first)
        for j, b in enumerate(second)
    ]
    rows += [
        (first[(j + k) % len(first)], b, c)
        for j, b in enumerate(second)
        for k, c in enumerate(third)
    ]
    rows += [
        (a, second[(i + k) % len(second)], c)
        for i, a in enumerate(first)
        for k, c in enumerate(third)
    ]
    chosen: list[tuple[str, ...]] = []
    seen: set[tuple[int, str, int, str]] = set()
    for row in rows:
        pairs = {(i, row[i], j, row[j]) for i in range(3) for j in range(i + 1, 3)}
        if not pairs <= seen:
            seen |= pairs
            chosen.append(row)
    return chosen
