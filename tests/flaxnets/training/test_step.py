"""Training step: micro-batches, averages, norms, and batches that change nothing."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flaxnets.training.metric_writer import NonFiniteLoss, Window
from flaxnets.training.parallel import Strategy, make_strategy
from flaxnets.training.state import TrainState, make_state
from flaxnets.training.step import make_train_step
from tests.flaxnets.training.regression import (
    Line,
    Regression,
    gradient,
    rows,
    variables_of,
)

RATE = 0.1
# Of 32 rows, in micro-batches of every fourth row: one has none that counts, another one alone.
MASK = np.array([row % 4 != 2 and (row % 4 != 1 or row == 5) and row < 29 for row in range(32)])


def run(
    batches: list[dict[str, np.ndarray]],
    strategy: Strategy | None = None,
    *,
    normalizes: bool = False,
    **options: Any,
) -> tuple[list[TrainState], list[Any]]:
    """Returns the states before and after each SGD step, and the sums of each."""
    strategy = strategy or make_strategy("single")
    model, optimizer = Line(normalizes), optax.sgd(RATE)
    ema = options.get("ema_decay", 0) > 0
    state = strategy.place(make_state(variables_of(model), optimizer, 0, ema=ema))
    step = make_train_step(model, Regression(), optimizer, strategy=strategy, **options)
    compiled = strategy.compile_train(step, state)
    states, sums = [jax.device_get(state)], []
    for batch in batches:
        state, found = compiled(state, strategy.shard(batch))
        states.append(jax.device_get(state))
        sums.append(jax.device_get(found))
    return states, sums


@pytest.mark.parametrize("accumulate_steps", [1, 2, 4])
@pytest.mark.parametrize("name", ["single", "jit", "pmap"])
def test_the_gradient_is_that_of_the_mean_over_rows_that_count(
    name: str, accumulate_steps: int
) -> None:
    batch = rows(3, MASK)
    (before, after), (sums,) = run([batch], make_strategy(name), accumulate_steps=accumulate_steps)
    expected = gradient(before.params, batch)
    for leaf, slope in expected.items():
        moved = before.params["line"][leaf] - RATE * slope
        np.testing.assert_allclose(after.params["line"][leaf], moved, rtol=1e-5)
    assert sums["loss"][1] == MASK.sum()
    norm = np.sqrt(sum(np.square(slope).sum() for slope in expected.values()))
    np.testing.assert_allclose(sums["gradient_norm"][0], norm, rtol=1e-5)
    leaves = jax.tree.leaves(after.params)
    parameter_norm = np.sqrt(sum(np.square(leaf).sum() for leaf in leaves))
    np.testing.assert_allclose(sums["parameter_norm"][0], parameter_norm, rtol=1e-5)


@pytest.mark.parametrize("name", ["single", "jit", "pmap"])
def test_statistics_are_of_one_micro_batch_after_the_other(name: str) -> None:
    batch = rows(4, MASK)
    states, _ = run([batch], make_strategy(name), normalizes=True, accumulate_steps=4)
    mean, var = np.zeros(3), np.ones(3)
    for number in (0, 1, 3):  # Nothing counts in micro-batch 2.
        own = batch["inputs"][number::4][MASK[number::4]].astype(np.float64)
        mean, var = 0.9 * mean + 0.1 * own.mean(0), 0.9 * var + 0.1 * own.var(0)
    statistics = states[1].collections["batch_stats"]["norm"]
    np.testing.assert_allclose(statistics["mean"], mean, rtol=1e-5)
    np.testing.assert_allclose(statistics["var"], var, rtol=1e-5)


def test_the_average_follows_the_parameters() -> None:
    batches = [rows(seed, np.ones(8)) for seed in range(3)]
    states, _ = run(batches, ema_decay=0.2)
    average = states[0].params
    for state, kept in zip(states[1:], (1 / 10, 2 / 11, 0.2), strict=True):
        average = jax.tree.map(
            lambda old, new, kept=kept: kept * old + (1 - kept) * new, average, state.params
        )
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), state.ema, average)
        assert state.variables["params"] is state.ema
    plain, _ = run(batches)
    assert plain[-1].variables["params"] is plain[-1].params
    jax.tree.map(np.testing.assert_array_equal, plain[-1].params, states[-1].params)


@pytest.mark.parametrize("accumulate_steps", [1, 2])
@pytest.mark.parametrize("name", ["single", "pmap"])
@pytest.mark.parametrize("kind", ["nothing counts", "not finite"])
def test_a_step_that_cannot_count_changes_nothing_but_its_number(
    name: str, accumulate_steps: int, kind: str
) -> None:
    good, bad = rows(5, np.ones(16)), rows(6, np.full(16, kind == "not finite"))
    if kind == "not finite":
        bad["inputs"][3] = np.inf
    states, sums = run(
        [good, bad, good],
        make_strategy(name),
        normalizes=True,
        accumulate_steps=accumulate_steps,
        ema_decay=0.5,
    )
    jax.tree.map(np.testing.assert_array_equal, states[2].replace(step=1), states[1])
    assert [int(state.step) for state in states] == [0, 1, 2, 3]
    assert np.isfinite(sums[1]["loss"][0]) == (kind == "nothing counts")
    moved = jax.tree.map(lambda a, b: np.any(a != b), states[3].params, states[2].params)
    assert all(jax.tree.leaves(moved))


def sums_of(loss: float) -> Any:
    return {"loss": (2 * loss, 2.0), "gradient_norm": (1.0, 1.0)}


def test_steps_that_are_not_finite_pass_up_to_a_number_in_a_row() -> None:
    window = Window(4, max_nonfinite_steps=2)
    losses = [1.0, np.nan, np.inf, 3.0, np.nan]
    for step, loss in enumerate(losses, 1):
        window.add(step, sums_of(loss))
    record = window.close()
    assert (record["loss"], record["nonfinite_steps"]) == (2.0, 3)
    window.add(6, sums_of(np.nan))  # The second in a row, beyond the record.
    window.add(7, sums_of(np.inf))
    with pytest.raises(NonFiniteLoss, match="step 7: the loss is inf, as in the 2 steps before"):
        window.close()


def test_the_first_step_that_is_not_finite_stops_by_default() -> None:
    window = Window(4)
    window.add(1, sums_of(1.0))
    window.add(2, sums_of(np.nan))
    with pytest.raises(NonFiniteLoss, match="step 2: the loss is nan; stopped"):
        window.add(3, sums_of(1.0))


@pytest.mark.parametrize("weight", [1.0, 0.1, 0.01, 1e-6])
def test_the_gradient_is_that_of_the_quotient_when_weights_sum_to_less_than_one(
    weight: float,
) -> None:
    class Weighed(Regression):
        def loss(self, *arguments: Any) -> Any:
            sums, collections = super().loss(*arguments)
            total, count = sums["loss"]
            return {**sums, "loss": (weight * total, weight * count)}, collections

    batch = rows(3, np.ones(8, bool))
    model, optimizer = Line(), optax.sgd(RATE)
    norms = []
    for task in (Regression(), Weighed()):
        state = make_state(variables_of(model), optimizer, 0)
        _, sums = jax.jit(make_train_step(model, task, optimizer))(state, batch)
        norms.append(float(sums["gradient_norm"][0]))
    assert norms[1] == pytest.approx(norms[0], rel=1e-5)


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16, np.float16])
def test_an_average_of_parameters_in_half_precision_moves(dtype: Any) -> None:
    model, optimizer = Line(), optax.sgd(0.0)
    variables = jax.tree.map(lambda x: jnp.ones(x.shape, dtype), variables_of(model))
    state = make_state(variables, optimizer, 0, ema=True)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.ema)} == {np.dtype(np.float32)}
    ema = jax.tree.map(jnp.zeros_like, state.ema)
    state = state.replace(step=jnp.int32(20_000), ema=ema)
    step = make_train_step(model, Regression(), optimizer, ema_decay=0.999)
    batch = rows(3, np.ones(8, bool))
    steps = jax.jit(lambda state: jax.lax.fori_loop(0, 1000, lambda _, s: step(s, batch)[0], state))
    state = steps(state)
    for leaf in jax.tree.leaves(state.ema):
        np.testing.assert_allclose(leaf, 1 - 0.999**1000, rtol=1e-3)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {np.dtype(dtype)}


def test_gradients_of_many_micro_batches_add_up_in_float32() -> None:
    model, optimizer = Line(), optax.sgd(1.0)
    variables = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.bfloat16), variables_of(model))
    batch = {**rows(3, np.ones(1024, bool))}
    batch["inputs"] = np.ones_like(batch["inputs"])
    slopes = []
    for accumulate_steps in (1, 1024):
        state = make_state(variables, optimizer, 0)
        step = make_train_step(model, Regression(), optimizer, accumulate_steps=accumulate_steps)
        after, _ = jax.jit(step)(state, batch)
        slopes.append(np.asarray(after.params["line"]["bias"], np.float32))
    np.testing.assert_allclose(slopes[1], slopes[0], rtol=2**-7)
