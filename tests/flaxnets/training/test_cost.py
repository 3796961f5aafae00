"""Estimated cost of a step against a compiled one: parameters, memory, communication."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

from flaxnets.training.cost import estimate_cost
from flaxnets.training.evaluation import close_batches
from flaxnets.training.loop import make_variables
from flaxnets.training.optimizer import make_optimizer
from flaxnets.training.state import make_state
from flaxnets.training.step import make_train_step
from launch.program import load_experiment

SPECS = ("experiments/moving_shapes.py:smoke", "experiments/show_attend_tell.py:smoke")


def begin(spec: str) -> tuple[Any, dict[str, np.ndarray]]:
    config: Any = load_experiment(spec)
    batches = config.make_data("train").batches()
    batch = next(batches)
    close_batches(batches)
    return config, batch


@pytest.mark.parametrize("spec", [SPECS[0], pytest.param(SPECS[1], marks=pytest.mark.stress)])
def test_a_plan_is_what_the_compiled_step_has(spec: str) -> None:
    config, batch = begin(spec)
    cost = estimate_cost(config, batch)
    model, task = config.make_model(), config.make_task()
    variables = make_variables(config, model, task, batch)
    parts = {
        part: sum(leaf.size for leaf in jax.tree.leaves(tree))
        for part, tree in variables["params"].items()
    }
    assert cost.parameters == parts
    assert cost.trained == sum(parts.values())
    optimizer = make_optimizer(config.optimizer, config.num_steps, variables["params"])
    state = make_state(variables, optimizer, 0)
    step = jax.jit(make_train_step(model, task, optimizer), donate_argnums=0)
    analysis: Any = step.lower(state, batch).compile().memory_analysis()
    peak = analysis.argument_size_in_bytes + analysis.temp_size_in_bytes
    peak += analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    assert cost.memory is not None
    np.testing.assert_allclose(cost.memory.peak, peak, rtol=0.15)
    assert cost.memory.state == sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    assert cost.train.products > 2 * cost.evaluate.products / 2 > 0
    assert cost.exchanged_bytes == 0


@pytest.mark.slow
def test_devices_share_rows_and_state() -> None:
    config, batch = begin(SPECS[0])
    config.optimizer.frozen = ("encoder",)
    one, four = (estimate_cost(config, batch, devices=n, memory=n == 4) for n in (1, 4))
    assert one.memory is None
    assert one.train == four.train
    trained = 4 * (sum(one.parameters.values()) - one.parameters["encoder"])
    assert four.trained == trained // 4
    assert four.exchanged_bytes == round(2 * 3 / 4 * trained)
    whole = estimate_cost(config, batch)
    assert four.memory is not None
    assert whole.memory is not None
    assert four.memory.batch < 0.5 * whole.memory.batch
    assert four.memory.state == whole.memory.state
    config.fsdp = 4
    config.model.recurrent.features = 256
    shared = estimate_cost(config, batch, devices=4)
    config.fsdp = 1
    replicated = estimate_cost(config, batch, devices=4)
    assert shared.memory is not None
    assert replicated.memory is not None
    assert 0.25 <= shared.memory.state / replicated.memory.state < 0.3
    assert shared.exchanged_bytes > replicated.exchanged_bytes


def test_batches_that_cannot_be_divided_are_refused() -> None:
    config, batch = begin(SPECS[0])
    config.accumulate_steps = 2
    with pytest.raises(ValueError, match=r"multiple of the 3 devices × accumulate_steps = 6, rec"):
        estimate_cost(config, batch, devices=3)
    config.fsdp = 2
    with pytest.raises(ValueError, match="fsdp: expected a divisor of the 1 devices, received 2"):
        estimate_cost(dataclasses.replace(config), batch)
