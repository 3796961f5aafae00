"""The comparison on the embedded data set: its folds."""

import numpy as np
import pytest

from experiments.moving_shapes import get_config


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
