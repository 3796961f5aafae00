"""Optimizers against updates computed by hand."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flaxnets.training.config import OptimizerConfig
from flaxnets.training.optimizer import frozen_mask, make_optimizer, make_schedule

PARAMS = {
    "encoder": {"kernel": jnp.full((2, 2), 2.0), "bias": jnp.full((2,), 2.0)},
    "head": {"kernel": jnp.full((2, 2), 3.0)},
}
GRADIENTS = jax.tree.map(jnp.ones_like, PARAMS)


def step(config: OptimizerConfig, steps: int = 1) -> dict:
    params = PARAMS
    optimizer = make_optimizer(config, 100, params)
    state = optimizer.init(params)
    for _ in range(steps):
        updates, state = optimizer.update(GRADIENTS, state, params)
        params = optax.apply_updates(params, updates)
    return jax.tree.map(lambda new, old: np.asarray(new - old).ravel()[0], params, PARAMS)


def test_sgd_with_momentum_decay_and_rates_by_part() -> None:
    config = OptimizerConfig(
        name="sgd",
        learning_rate=0.1,
        momentum=0.5,
        weight_decay=0.01,
        multipliers={"head": 10.0},
    )
    change = step(config)
    assert change["encoder"]["kernel"] == pytest.approx(-0.1 * (1 + 0.01 * 2), rel=1e-5)
    assert change["encoder"]["bias"] == pytest.approx(-0.1, rel=1e-5)  # Without decay.
    assert change["head"]["kernel"] == pytest.approx(-1.0 * (1 + 0.01 * 3), rel=1e-5)
    # The second step adds half of the first.
    assert step(config, 2)["encoder"]["bias"] == pytest.approx(-0.1 - 0.15, rel=1e-5)


def test_frozen_parts_do_not_even_decay() -> None:
    for name in ("sgd", "adam", "adamw"):
        change = step(OptimizerConfig(name=name, weight_decay=0.1, frozen=("encoder",)), 3)
        assert change["encoder"] == {"kernel": 0, "bias": 0}
        assert change["head"]["kernel"] < 0


def test_a_path_names_a_parameter_and_the_longest_name_counts() -> None:
    config = OptimizerConfig(
        name="sgd",
        learning_rate=0.1,
        multipliers={"encoder": 2.0, "encoder/bias": 3.0},
        frozen=("head/kernel",),
    )
    change = step(config)
    assert change["encoder"]["kernel"] == pytest.approx(-0.2, rel=1e-5)
    assert change["encoder"]["bias"] == pytest.approx(-0.3, rel=1e-5)
    assert change["head"]["kernel"] == 0
    frozen = dataclasses.replace(config, frozen=("encoder",))
    assert step(frozen)["encoder"] == {"kernel": 0, "bias": 0}


def test_a_name_is_no_beginning_of_a_longer_word() -> None:
    params = {"head": {"kernel": jnp.ones(1)}, "heads": {"kernel": jnp.ones(1)}}
    assert frozen_mask(params, ("head",)) == {"head": {"kernel": True}, "heads": {"kernel": False}}


def test_adamw_decays_apart_from_the_gradient() -> None:
    change = step(OptimizerConfig(name="adamw", learning_rate=0.1, weight_decay=0.5))
    assert change["encoder"]["bias"] == pytest.approx(-0.1, rel=1e-4)
    assert change["encoder"]["kernel"] == pytest.approx(-0.1 - 0.1 * 0.5 * 2, rel=1e-4)


def test_clipping_bounds_the_global_norm() -> None:
    config = OptimizerConfig(name="sgd", learning_rate=1.0, momentum=0.0, clip_norm=0.5)
    change = step(config)
    assert change["head"]["kernel"] == pytest.approx(-0.5 / np.sqrt(10), rel=1e-5)


def test_schedules_at_their_corners() -> None:
    def rates(steps: list[int], **options: object) -> list[float]:
        schedule = make_schedule(OptimizerConfig(learning_rate=1.0, **options), 100)
        return [round(float(schedule(s)), 6) for s in steps]

    assert rates([0, 5, 10, 99], schedule="constant", warmup_steps=10) == [0, 0.5, 1, 1]
    assert rates([0, 50, 100], schedule="cosine") == [1, 0.5, 0]
    assert rates([0, 25, 100], schedule="linear") == [1, 0.75, 0]
    assert rates([9, 10, 20], schedule="step", decay_every=10) == [1, 0.1, 0.01]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "adamv"}, "optimizer.name: unknown 'adamv'; did you mean 'adam"),
        ({"schedule": "cosin"}, "optimizer.schedule: unknown 'cosin'; did you mean 'cosine'"),
        ({"frozen": ("encodr",)}, "optimizer.frozen: no part 'encodr'.*did you mean 'encoder'"),
        ({"frozen": ("head/kernl",)}, "no part 'head/kernl'.*did you mean 'head/kernel'"),
        ({"multipliers": {"heat": 2.0}}, "optimizer.multipliers: no part 'heat'.*'head'"),
        ({"warmup_steps": 100}, "optimizer.warmup_steps: expected 0 to num_steps - 1 = 99"),
    ],
)
def test_wrong_names_are_refused_with_the_nearest(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_optimizer(OptimizerConfig(**options), 100, PARAMS)


def one_cycle_of_pytorch(first: float, peak: float, last: float, step: int, steps: int) -> float:
    """Returns what ``torch.optim.lr_scheduler.OneCycleLR`` computes, annealing by cosine."""
    phases = [(0.0, 0.3 * steps - 1, first, peak), (0.3 * steps - 1, steps - 1.0, peak, last)]
    for begin, end, start, stop in phases:
        if step <= end:
            share = (step - begin) / (end - begin)
            return stop + (start - stop) / 2 * (1 + math.cos(math.pi * share))
    raise AssertionError(step)


def test_one_cycle_and_its_momentum_follow_pytorch() -> None:
    steps, peak = 20, 0.1
    config = OptimizerConfig(
        learning_rate=peak, schedule="onecycle", cycle_momentum=True, b1=float("nan")
    )
    rates = [one_cycle_of_pytorch(peak / 25, peak, peak / 25 / 1e4, k, steps) for k in range(steps)]
    schedule = make_schedule(config, steps)
    np.testing.assert_allclose([float(schedule(k)) for k in range(steps)], rates, rtol=1e-4)
    # PyTorch's milestones: the peak after a share of the steps less one, the end at the last.
    assert rates[5] == pytest.approx(peak)
    assert rates[-1] == pytest.approx(peak / 25 / 1e4)
    params = {"kernel": jnp.ones((2, 2))}
    optimizer = make_optimizer(config, steps, params)
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    x, m, v = 1.0, 0.0, 0.0
    for k in range(steps):
        gradient = math.sin(k) + 2 * k
        updates, state = update({"kernel": jnp.full((2, 2), gradient)}, state, params)
        params = optax.apply_updates(params, updates)
        b1 = one_cycle_of_pytorch(0.95, 0.85, 0.95, k, steps)
        m, v = b1 * m + (1 - b1) * gradient, 0.999 * v + 0.001 * gradient**2
        # Bias corrections with the b1 of this step, as PyTorch's Adam makes them.
        unbiased = m / (1 - b1 ** (k + 1)), v / (1 - 0.999 ** (k + 1))
        x -= rates[k] * unbiased[0] / (math.sqrt(unbiased[1]) + 1e-8)
        np.testing.assert_allclose(params["kernel"], x, atol=2e-5)


def test_rmsprop_divides_by_the_root_of_the_mean_square() -> None:
    config = OptimizerConfig(name="rmsprop", learning_rate=0.1, rms_decay=0.9, weight_decay=0.0)
    mean_squares = [0.1, 0.1 * 0.9 + 0.1]
    expected = -sum(0.1 / math.sqrt(each) for each in mean_squares)
    assert step(config, 2)["head"]["kernel"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schedule": "onecycle", "warmup_steps": 3}, "warmup_steps: expected 0 for .*onecycle"),
        ({"schedule": "onecycle", "rise_share": 1.0}, "rise_share: expected above 0"),
        ({"cycle_momentum": True}, "cycle_momentum: expected False"),
    ],
)
def test_one_cycle_refuses_values_that_it_cannot_follow(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_schedule(OptimizerConfig(**changes), 10)
