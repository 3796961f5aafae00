"""PredRNN: numbers of parameters, settings of OpenSTL, other cells in the ST-LSTM's place."""

from typing import Any

import jax
import numpy as np
import pytest

from experiments.predrnn import PredRNNConfig, get_config
from flaxnets.recurrent.st_lstm import PredRNNStack
from flaxnets.tasks.frame_sampling import ReverseScheduledSampling, ScheduledSampling


def on_balls(config: PredRNNConfig) -> PredRNNConfig:
    """Has embedded data in place of MNIST's, with frames of the same size."""
    config.data.dataset, config.data.num_objects = "bouncing_balls", 1
    return config


def parameters(config: PredRNNConfig) -> Any:
    model, task = config.make_model(), config.make_task()
    frames = jax.ShapeDtypeStruct((1, 2, *config.frame_shape), np.uint8)
    key = jax.random.key(0)
    shapes = jax.eval_shape(lambda x: task.initialize(model, key, {"frames": x}), frames)
    return shapes["params"]


@pytest.mark.parametrize(
    ("variant", "count"),
    # Of OpenSTL's PredRNN_Model and PredRNNv2_Model in this setting.
    [(None, 23_838_720), ("v2", 23_855_104), ("small", 4_403_200)],
)
def test_parameters_are_as_many_as_in_openstl(variant: str | None, count: int) -> None:
    shapes = parameters(on_balls(get_config(variant)))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count


def test_the_settings_are_those_of_openstl() -> None:
    for variant, sampling, weights in (
        (None, ScheduledSampling(1.0, 2e-5, 50_000), ()),
        ("v2", ReverseScheduledSampling(25_000, 50_000, 5_000), (("decoupling", 0.1),)),
    ):
        config = on_balls(get_config(variant))
        config.validate()
        task = config.make_task()
        assert task.sampling == sampling
        assert task.auxiliary_weights == weights
        assert (task.loss_kind, task.all_frames, task.num_inputs) == ("mse", True, 10)
        optimizer = config.make_optimizer_config()
        assert (optimizer.name, optimizer.learning_rate) == ("adam", 5e-4)
        assert (optimizer.schedule, optimizer.cycle_momentum) == ("onecycle", True)
        # 200 epochs of 10,000 sequences.
        assert config.num_steps * config.batch_size == 200 * config.data.train_sequences
        model = config.make_model()
        assert isinstance(model.stack, PredRNNStack)
        assert (model.patch_size, model.stack.features) == (4, (128,) * 4)
        assert model.stack.kernel_size == (5, 5)
        assert model.stack.decoupling == bool(weights)


@pytest.mark.parametrize("cell", ["convgru", "minconvgru"])
def test_other_cells_take_the_place_of_the_st_lstm(cell: str) -> None:
    config = get_config("smoke")
    config.auxiliary_weights, config.model.cell = {}, cell
    config.validate()
    assert set(parameters(config)["stack"]) == {"cells_0", "cells_1"}


def test_bad_values_are_refused() -> None:
    with pytest.raises(ValueError, match="predrnn:v3: no such variant"):
        get_config("v3")
    config = get_config("smoke")
    config.model.features = (4, 8)
    with pytest.raises(ValueError, match="features: expected one or more layers of the same width"):
        config.make_model()
    config = get_config("smoke")
    config.model.cell = "convgru"
    with pytest.raises(ValueError, match="auxiliary_weights: expected at most 'decoupling'"):
        config.validate()
    config = get_config("smoke")
    config.auxiliary_weights = {"decouple": 0.1}
    with pytest.raises(ValueError, match="auxiliary_weights: expected at most 'decoupling'"):
        config.validate()
