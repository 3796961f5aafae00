"""Placement of arrays by the strategies, and arguments that they refuse."""

from functools import partial

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from flaxnets.encoders.small_cnn import SmallCNN
from flaxnets.models.crnn import CRNN
from flaxnets.training.parallel import (
    DataParallel,
    make_strategy,
    partition,
    with_axis_name,
)
from flaxnets.training.state import TrainState, make_state
from flaxnets.training.step import make_train_step
from tests.flaxnets.training.regression import (
    Line,
    Regression,
    rows,
    variables_of,
)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((256, 1024), PartitionSpec(None, "fsdp")),
        ((1024, 256), PartitionSpec("fsdp")),
        ((512, 512), PartitionSpec("fsdp")),
        ((3, 3, 64, 128), PartitionSpec(None, None, None, "fsdp")),
        ((1000, 9999), PartitionSpec("fsdp")),  # The larger axis is odd.
        ((9999, 1001), PartitionSpec()),
        ((4, 1000), PartitionSpec()),  # Too small.
        ((), PartitionSpec()),
        ((0, 1 << 20), PartitionSpec()),
    ],
)
def test_the_largest_axis_that_can_be_divided_is(
    shape: tuple[int, ...], expected: PartitionSpec
) -> None:
    assert partition(shape, 2) == expected
    assert partition(shape, 1) == PartitionSpec()


def test_parameters_moments_and_averages_are_divided_before_and_after_a_step() -> None:
    strategy = DataParallel(fsdp=4, sharded_size=12)
    model, optimizer = nn.Dense(8), optax.adam(0.1)
    params = jax.device_get(model.init(jax.random.key(0), np.ones((1, 3))))["params"]
    state = strategy.place(make_state({"params": params}, optimizer, 0, ema=True))

    def check(state: TrainState) -> None:
        moments = [leaf for leaf in jax.tree.leaves(state.optimizer) if leaf.ndim]
        leaves = jax.tree.leaves((state.params, state.ema, moments))
        assert len(leaves) == 8
        for leaf in leaves:
            divided = leaf.shape == (3, 8)
            expected = PartitionSpec(None, "fsdp") if divided else PartitionSpec()
            assert leaf.sharding.spec == expected
            assert leaf.addressable_shards[0].data.size == leaf.size // (4 if divided else 1)

    class Sum(Regression):
        def loss(self, model, variables, batch, key, step=0):
            outputs = model.apply(variables, batch["inputs"]).sum(-1)
            return self._sums(outputs, batch), {}

    check(state)
    step = make_train_step(model, Sum(), optimizer, strategy=strategy, ema_decay=0.9)
    state, _ = strategy.compile_train(step, state)(state, strategy.shard(rows(0, np.ones(16))))
    check(state)


@pytest.mark.parametrize("name", ["jit", "pmap", "single"])
def test_an_evaluation_has_outputs_of_all_rows(name: str) -> None:
    strategy, model = make_strategy(name), Line()
    variables, batch = variables_of(model), rows(1, np.arange(16) % 3 > 0)
    evaluation = strategy.compile_evaluation(partial(Regression().evaluate, model))
    sums, outputs = evaluation(strategy.place_variables(variables), strategy.shard(batch))
    expected = batch["inputs"] @ variables["params"]["line"]["kernel"][:, 0]
    np.testing.assert_allclose(outputs["outputs"], expected, rtol=1e-5, atol=1e-6)
    errors = np.square(expected - batch["target"])[batch["mask"]]
    np.testing.assert_allclose(sums["loss"], (errors.sum(), batch["mask"].sum()), rtol=1e-5)


@pytest.mark.parametrize("name", ["jit", "pmap"])
def test_states_go_from_one_strategy_to_another(name: str) -> None:
    model, optimizer = Line(normalizes=True), optax.adam(0.1)
    state = make_state(variables_of(model), optimizer, 0)
    first, second = DataParallel(fsdp=2, sharded_size=1), make_strategy(name)
    there = second.place(jax.device_get(first.checkpoint_view(first.place(state))))
    jax.tree.map(np.testing.assert_array_equal, second.checkpoint_view(there), state)


@pytest.mark.parametrize(
    ("name", "fsdp", "message"),
    [
        ("jitt", 1, "strategy: unknown 'jitt'; did you mean 'jit'"),
        ("jit", 3, "fsdp: expected a divisor of the 8 devices, received 3"),
        ("pmap", 2, "fsdp: expected 1 with the strategy 'pmap', received 2"),
        ("single", 2, "fsdp: expected 1 with the strategy 'single', received 2"),
    ],
)
def test_strategies_that_cannot_be_are_refused(name: str, fsdp: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_strategy(name, fsdp=fsdp)


def test_a_single_device_is_refused_to_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ValueError, match="'jit' or 'pmap' with 2 processes, received 'single'"):
        make_strategy("single")


@pytest.mark.parametrize("name", ["jit", "pmap"])
def test_batches_that_the_devices_cannot_divide_are_refused(name: str) -> None:
    strategy = make_strategy(name)
    strategy.check_batch_size(16)
    with pytest.raises(ValueError, match="a multiple of the 8 devices, received 4; 8 would do"):
        strategy.check_batch_size(4)


class Parts(nn.Module):
    """Network with submodules in every kind of attribute."""

    one: nn.Module
    several: tuple[nn.Module, ...]
    named: dict[str, nn.Module]
    make: partial[Line]


def test_the_axis_reaches_every_part_that_has_one() -> None:
    shared = SmallCNN((4,), (2,))
    model = Parts(
        one=CRNN(classifier=None, encoder=shared),
        several=(shared, Line()),
        named={"line": Line()},
        make=partial(Line, normalizes=True),
    )
    renamed = with_axis_name(model, "devices")
    assert isinstance(renamed, Parts)
    assert renamed.one.encoder.axis_name == "devices"
    assert renamed.one.encoder is renamed.several[0]
    assert renamed.several[1].axis_name == renamed.named["line"].axis_name == "devices"
    assert renamed.make().axis_name == "devices"
    assert renamed.make().normalizes
    assert shared.axis_name is None
    assert with_axis_name(model, None) is model
