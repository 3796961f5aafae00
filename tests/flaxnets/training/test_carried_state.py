"""State carried from batch to batch: equal on all devices and for windows of any length."""

import dataclasses
from functools import partial
from typing import Any

import jax
import numpy as np
import optax
import pytest

from data.series import StreamWindows
from flaxnets.encoders.conv_stack import ConvStack
from flaxnets.heads.classifier import StepClassifier
from flaxnets.models.sequence_model import SequenceModel
from flaxnets.recurrent import GRUCell, LSTMCell, Recurrent
from flaxnets.tasks.step_prediction import StepPrediction
from flaxnets.tasks.task import CARRY
from flaxnets.training.evaluation import carry_maker, evaluate
from flaxnets.training.parallel import DataParallel, Pmap, Strategy
from flaxnets.training.state import TrainState, make_state
from flaxnets.training.step import make_evaluation_step, make_train_step

ROWS, TOKENS = 8, 5
TASK = StepPrediction(carried_rows=ROWS)
MODEL = SequenceModel(
    StepClassifier(TOKENS),
    encoder=ConvStack((4,), kernel_size=2),
    recurrent=Recurrent(partial(GRUCell, 6)),
    num_tokens=TOKENS,
    embedding_features=4,
)


def stream(window: int, *, lengths: list[int] | None = None) -> StreamWindows:
    values = np.random.default_rng(0).integers(0, TOKENS, 8 * 24 + 1)
    return StreamWindows(values, rows=ROWS, window=window, lengths=lengths)


def batches(windows: Any) -> list[dict[str, Any]]:
    plan = windows.plan(train=True)
    return [
        plan.stack(k, [windows[int(i)] for i in plan.indices(k)])
        for k in range(windows.num_windows)
    ]


@dataclasses.dataclass
class Split:
    """A split of batches in memory."""

    all_batches: list[dict[str, Any]]
    num_examples: int = 1
    batches_per_epoch: int = 1

    def describe(self) -> dict[str, Any]:
        return {}

    def batches(self, start: int = 0) -> Any:
        return iter(self.all_batches[start:])


def trained(
    strategy: Strategy, steps: list[dict[str, Any]], learning_rate: float = 0.5
) -> tuple[TrainState, list[float]]:
    optimizer = optax.sgd(learning_rate)
    variables = jax.device_get(TASK.initialize(MODEL, jax.random.key(0), steps[0]))
    state = strategy.place(make_state(variables, optimizer, 0))
    step = strategy.compile_train(make_train_step(MODEL, TASK, optimizer, strategy=strategy), state)
    losses = []
    for batch in steps:
        state, sums = step(state, strategy.shard(batch))
        total, count = jax.device_get(sums["loss"])
        losses.append(float(total / count))
    return state, losses


@pytest.fixture(scope="module")
def of_one() -> tuple[TrainState, list[float]]:
    """Returns the state and losses after a pass on one device."""
    return trained(DataParallel(jax.devices()[:1]), batches(stream(6)))


@pytest.mark.parametrize("strategy", [DataParallel, Pmap])
def test_eight_devices_give_the_losses_and_the_carry_of_one(
    strategy: Any, of_one: tuple[TrainState, list[float]]
) -> None:
    state, losses = trained(strategy(), batches(stream(6)))
    np.testing.assert_allclose(losses, of_one[1], rtol=2e-6)
    for name, carry in jax.device_get(state.collections[CARRY]).items():
        assert len(carry) == ROWS
        np.testing.assert_allclose(carry, of_one[0].collections[CARRY][name], atol=2e-6)


def test_windows_of_any_length_give_the_losses_of_the_whole_stream() -> None:
    # Without an update, else the later windows would be predicted by other parameters.
    strategy = DataParallel(jax.devices()[:1])
    lengths = [30, 1, 50, 8 * 24 + 1 - 81]
    sums = []
    for window in (24, 8):
        steps = batches(stream(window, lengths=lengths))
        _, losses = trained(strategy, steps, learning_rate=0.0)
        counts = [int((batch["target_mask"] & batch["mask"][:, None]).sum()) for batch in steps]
        assert sum(counts) == stream(window, lengths=lengths).num_predicted
        sums.append(sum(loss * count for loss, count in zip(losses, counts, strict=True)))
    np.testing.assert_allclose(sums[1], sums[0], rtol=1e-6)


def test_an_evaluation_hands_the_carry_on(of_one: tuple[TrainState, list[float]]) -> None:
    variables = jax.device_get(of_one[0].variables)
    losses = []
    for strategy in (DataParallel(), Pmap(), DataParallel(jax.devices()[:1])):
        placed = strategy.place_variables(variables)
        step = strategy.compile_evaluation(make_evaluation_step(MODEL, TASK))
        split = Split(batches(stream(6)))
        first_carry = carry_maker(TASK, MODEL, placed)
        losses.append(evaluate(step, strategy, placed, split, first_carry=first_carry)["loss"])
    windows = batches(stream(24))
    assert len(windows) == 1
    whole = TASK.evaluate(MODEL, variables, windows[0])[0]["loss"]
    np.testing.assert_allclose(losses, float(whole[0] / whole[1]), rtol=1e-6)


def test_without_a_carry_each_window_begins_anew() -> None:
    windows = batches(stream(6))
    task = StepPrediction()
    variables = task.initialize(MODEL, jax.random.key(0), windows[0])
    assert CARRY not in variables
    again = {**windows[1], "starts": np.zeros_like(windows[1]["starts"])}
    reset = {**windows[1], "starts": np.arange(6)[None] == np.zeros((ROWS, 1))}
    losses = [
        float(task.evaluate(MODEL, variables, batch)[0]["loss"][0]) for batch in (again, reset)
    ]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-6)


def test_micro_batches_are_refused() -> None:
    windows = batches(stream(6))
    optimizer = optax.sgd(0.1)
    state = make_state(TASK.initialize(MODEL, jax.random.key(0), windows[0]), optimizer, 0)
    step = make_train_step(MODEL, TASK, optimizer, accumulate_steps=2)
    with pytest.raises(ValueError, match="accumulate_steps: expected 1"):
        jax.eval_shape(step, state, windows[0])


def test_padding_changes_nothing() -> None:
    model = SequenceModel(
        StepClassifier(3),
        recurrent=Recurrent(partial(LSTMCell, 4)),
    )
    task = StepPrediction("bernoulli")
    rng = np.random.default_rng(0)
    batch = {
        "inputs": rng.normal(size=(2, 6, 3)).astype(np.float32),
        "targets": rng.integers(0, 2, (2, 6, 3)).astype(np.float32),
        "target_mask": np.arange(6) < np.array([[6], [4]]),
        "lengths": np.array([6, 4], np.int32),
        "mask": np.array([True, True]),
    }
    variables = task.initialize(model, jax.random.key(0), batch)
    spoiled = {**batch, "inputs": batch["inputs"].copy(), "targets": batch["targets"].copy()}
    spoiled["inputs"][1, 4:], spoiled["targets"][1, 4:] = np.nan, np.nan

    @jax.jit
    @jax.value_and_grad
    def loss(params: Any, batch: Any) -> jax.Array:
        return task.loss(model, {"params": params}, batch, jax.random.key(1))[0]["loss"][0]

    expected, other = loss(variables["params"], batch), loss(variables["params"], spoiled)
    for one, same in zip(jax.tree.leaves(expected), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(one, same)
