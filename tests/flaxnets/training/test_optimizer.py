"""Optimizers against updates computed by hand."""

import dataclasses

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
