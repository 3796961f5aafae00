"""Frozen parts: no gradient, no weight decay, no moving statistics, whichever switch froze them."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from flaxnets.encoders.small_cnn import SmallCNN
from flaxnets.heads.classifier import StepClassifier
from flaxnets.models.crnn import CRNN
from flaxnets.models.stream_fusion import StreamFusion
from flaxnets.tasks.video_classification import VideoClassification
from flaxnets.training.config import OptimizerConfig
from flaxnets.training.optimizer import make_optimizer
from flaxnets.training.state import initialize_variables, make_state
from flaxnets.training.step import make_train_step
from tests.flaxnets.training.regression import Line, Regression, rows, variables_of

RNG = np.random.default_rng(0)
BATCH = {
    "video": RNG.integers(0, 256, (2, 3, 8, 8, 3)).astype(np.uint8),
    "audio": RNG.normal(size=(2, 3, 4)).astype(np.float32),
    "lengths": np.array([3, 2], np.int32),
    "label": np.array([0, 1], np.int32),
    "mask": np.ones(2, bool),
}
ENCODER = partial(SmallCNN, (4,), (2,))


def crnn(**options: Any) -> CRNN:
    return CRNN(StepClassifier(2), encoder=ENCODER(), **options)


def train(model: nn.Module, frozen: tuple[str, ...], task: Any = None) -> tuple[Any, Any, Any]:
    """Returns the state before and after three steps with decay, and the last sums."""
    task = task or VideoClassification()
    variables = initialize_variables(model, task, BATCH, 0)
    config = OptimizerConfig(name="adamw", learning_rate=0.1, weight_decay=0.1, frozen=frozen)
    optimizer = make_optimizer(config, 9, variables["params"])
    state = before = make_state(variables, optimizer, 0)
    step = jax.jit(make_train_step(model, task, optimizer, frozen=frozen))
    for _ in range(3):
        state, sums = step(state, BATCH)
    return before, state, sums


def moved(before: Any, after: Any) -> dict[str, float]:
    """Returns the largest change of each top-level part, of parameters and statistics."""
    changes = {}
    for name in ("params", "collections"):
        trees = [getattr(state, name) for state in (before, after)]
        if name == "collections":
            trees = [tree.get("batch_stats", {}) for tree in trees]
        for part in trees[0]:
            differences = jax.tree.map(lambda a, b: jnp.abs(a - b).max(), *(t[part] for t in trees))
            changes[f"{name}/{part}"] = float(max(jax.tree.leaves(differences)))
    return changes


def test_one_switch_is_as_good_as_the_other() -> None:
    states = []
    for model, frozen in (
        (crnn(), ("encoder",)),
        (crnn(freeze_encoder=True), ()),
        (crnn(freeze_encoder=True), ("encoder",)),
    ):
        before, after, _ = train(model, frozen)
        changes = moved(before, after)
        assert changes["params/encoder"] == changes["collections/encoder"] == 0
        assert changes["params/classifier"] > 0
        states.append(after)
    for other in states[1:]:  # The frozen encoder runs as in evaluation, whoever froze it.
        for a, b in zip(*(jax.tree.leaves(s.params) for s in (states[0], other)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_without_a_switch_everything_moves() -> None:
    before, after, _ = train(crnn(), ())
    assert min(moved(before, after).values()) > 0


def test_an_encoder_inside_a_stream_is_frozen() -> None:
    streams = {
        "video": CRNN(None, encoder=ENCODER(), freeze_encoder=True),
        "audio": CRNN(None),
    }
    model = StreamFusion(streams, StepClassifier(2))
    before, after, _ = train(model, (), VideoClassification(inputs=("video", "audio")))
    changes = moved(before, after)
    assert changes["params/streams_video"] == changes["collections/streams_video"] == 0
    assert changes["params/classifier"] > 0


def test_a_frozen_layer_of_a_trained_encoder_keeps_its_statistics() -> None:
    model, optimizer = Line(normalizes=True), optax.sgd(0.1)
    state = make_state(variables_of(model), optimizer, 0)
    step = jax.jit(make_train_step(model, Regression(), optimizer, frozen=("norm",)))
    after, _ = step(state, rows(3, np.ones(8, bool)))
    changes = moved(state, after)
    assert changes["params/norm"] == changes["collections/norm"] == 0
    assert changes["params/line"] > 0
