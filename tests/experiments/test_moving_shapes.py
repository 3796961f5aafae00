"""Comparison on the embedded data set: its folds, and its frozen encoder."""

import jax
import numpy as np
import pytest

from experiments.moving_shapes import get_config
from tests.experiments import grid


def test_folds_are_parts_of_the_training_clips() -> None:
    tested = []
    for fold in (1, 2, 3):
        config = get_config("smoke")
        config.set_fold(fold)
        sizes = [config.make_data(split).num_examples for split in ("train", "validation", "test")]
        assert sum(sizes) == 32
        batches = list(config.make_data("test").batches())
        videos = np.concatenate([batch["video"][batch["mask"]] for batch in batches])
        indices = np.concatenate([batch["index"][batch["mask"]] for batch in batches])
        assert indices.tolist() == list(range(sizes[2]))
        np.testing.assert_array_equal(config.load_clip("test", 4), videos[4])
        tested += [video.tobytes() for video in videos]
    plain = get_config("smoke")
    clips = {plain.load_clip("train", index).tobytes() for index in range(32)}
    assert set(tested) == clips
    assert len(tested) == 32


def test_a_fold_that_is_none_is_refused() -> None:
    config = get_config("smoke")
    for fold in (0, 4):
        with pytest.raises(ValueError, match=f"1 to data.num_folds = 3, received {fold}"):
            config.set_fold(fold)


@pytest.mark.parametrize("frozen", [True, False])
# ml_collections loads the file of an experiment by a deprecated function.
@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
def test_a_frozen_encoder_does_not_move_under_weight_decay(frozen: bool) -> None:
    config = grid.parse(
        "moving_shapes.py:smoke",
        "--config.batch_size=2",
        "--config.optimizer.name=adamw",
        "--config.optimizer.weight_decay=0.5",
        f"--config.model.encoder.frozen={frozen}",
    )
    assert config.frozen_parts() == (("encoder",) if frozen else ())
    assert config.make_optimizer_config().frozen == config.frozen_parts()
    _, moved = grid.train_two_steps(config, grid.first_batch(config))
    assert (max(jax.tree.leaves(moved["encoder"])) > 0) != frozen
    for part in ("recurrent", "classifier"):
        assert max(jax.tree.leaves(moved[part])) > 0
