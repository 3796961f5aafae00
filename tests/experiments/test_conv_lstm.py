"""ConvLSTM's experiment: sizes of its variants, what a run keeps, and settings that do not fit."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import conv_lstm
from experiments.conv_lstm import ConvLSTMConfig, get_config
from experiments.frames.config import FRAMES_FILE
from flaxnets.tasks.frame_sampling import ScheduledSampling


def of_shape(variant: str | None, folder: Path, **content: Any) -> ConvLSTMConfig:
    """Returns a variant as one of a trained run, which needs no data."""
    saved = {"frame_shape": [64, 64, 1], "scaling": None, **content}
    (folder / FRAMES_FILE).write_text(json.dumps(saved))
    config = get_config(variant)
    config.load_assets(folder)
    return config


@pytest.mark.parametrize(
    ("variant", "count"),
    [
        (None, 7_585_296),
        ("layers1", 13_524_496),
        ("layers2", 10_042_896),
        ("fc_lstm", 142_667_776),
        ("openstl", 11_675_648),
        ("openstl_small", 2_151_424),
    ],
)
def test_variants_have_the_sizes_that_their_docstring_gives(
    variant: str | None, count: int, tmp_path: Path
) -> None:
    model = of_shape(variant, tmp_path).make_model()
    init = partial(model.init, num_inputs=10, train=False)
    shapes = jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, 11, 64, 64, 1)))
    sizes = [x.size for x in jax.tree.leaves(shapes)]
    assert sum(sizes) == count
    assert min(sizes) > 0  # A checkpoint holds no empty arrays.
    assert f"{count:,}" in (conv_lstm.__doc__ or "") or variant == "openstl_small"


def test_every_variant_is_valid(tmp_path: Path) -> None:
    for variant in (None, *conv_lstm.VARIANTS):
        config = get_config(variant)
        config.data.root = config.data.root or str(tmp_path)
        config.validate()
    with pytest.raises(ValueError, match=r"conv_lstm:openslt: no such variant.*openstl"):
        get_config("openslt")


def test_openstl_follows_its_configuration() -> None:
    config = get_config("openstl")
    task_sampling = config.sampling
    assert (task_sampling.name, task_sampling.rate) == ("scheduled", 2e-5)
    assert config.num_steps * config.batch_size == 200 * config.data.train_sequences
    config.data.dataset = "bouncing_balls"
    task = config.make_task()
    assert (task.loss_kind, task.all_frames, task.ssim_range) == ("mse", True, 2.0)
    assert task.sampling == ScheduledSampling(1.0, 2e-5, 50_000)


def test_thresholds_are_in_the_units_of_the_fields(tmp_path: Path) -> None:
    scaling = {"kind": "standard", "offsets": [10.0], "divisors": [4.0], "constant": []}
    config = of_shape("fields", tmp_path, scaling=scaling)
    config.thresholds = (12.0, 20.0)
    assert config.make_task().thresholds == (0.5, 2.5)
    assert config.scored_metrics("test") == ("csi_12", "hss_12", "csi_20", "hss_20")
    assert config.make_scorer("test") is not None
    assert get_config("fields").make_scorer("test") is None
    np.testing.assert_allclose(config.in_units(np.full((1, 2, 2, 1), 0.5)), 12)
    two = {"kind": "standard", "offsets": [0.0, 1.0], "divisors": [1.0, 1.0], "constant": []}
    config = of_shape("fields", tmp_path, scaling=two)
    config.thresholds = (1.0,)
    with pytest.raises(ValueError, match="thresholds: expected none for fields of several"):
        config.make_task()


@pytest.mark.parametrize(
    ("variant", "changes", "message"),
    [
        ("smoke", {"loss_kind": "mes"}, "loss_kind: unknown 'mes'"),
        ("fields", {"loss_kind": "cross_entropy"}, "loss_kind: expected 'mse' or 'l1' for fields"),
        ("smoke", {"model.name": "encoder_forecaster"}, "sampling.name: expected 'none'"),
        ("smoke", {"sampling.name": "schedule"}, "sampling.name: unknown 'schedule'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    variant: str, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    config = get_config(variant)
    config.data.root = str(tmp_path)
    for path, value in changes.items():
        *parents, name = path.split(".")
        target: Any = config
        for parent in parents:
            target = getattr(target, parent)
        setattr(target, name, value)
    with pytest.raises(ValueError, match=message):
        config.validate()


def test_a_patch_size_that_does_not_divide_the_frames_is_refused() -> None:
    config = get_config("smoke")
    config.model.patch_size = 3
    with pytest.raises(ValueError, match=r"model\.patch_size: .*16×16, received 3"):
        config.make_model()
