"""Comparison of recipes: each video is tested once, and the choices are named."""

from pathlib import Path

import numpy as np
import pytest

from experiments.features import compare_recipes
from experiments.features.compare_recipes import compare, format_table
from experiments.video_classification import VideoClassificationConfig
from flaxnets.encoders.config import EncoderConfig
from tests.data.video_files import write_video


@pytest.mark.slow
def test_each_video_is_tested_once_by_each_recipe(tmp_path: Path) -> None:
    for number in range(12):
        write_video(
            tmp_path / "clips" / f"{number % 2}" / f"s{number // 4}_{number}.avi", 5 + number
        )
    config = VideoClassificationConfig()
    config.data.root, config.data.cache = str(tmp_path / "clips"), str(tmp_path / "cache")
    config.data.streams, config.data.size = ("rgb_whole", "difference_whole"), 16
    config.data.stored_steps, config.data.num_steps = 4, 2
    config.data.group_pattern, config.data.num_folds = r"^(s\d)_", 3
    config.batch_size, config.num_steps, config.eval_every = 4, 3, 2
    config.optimizer.warmup_steps = 0
    config.model.encoder = EncoderConfig("small_cnn", features=(4, 8), strides=(2, 2), frozen=True)
    config.model.projection_features, config.model.members = 4, 2
    config.model.recurrent.features = config.model.recurrent.input_features = 4
    found = compare(config, [0])
    assert {len(outcome) for seeds in found.values() for outcome in seeds} == {12}
    # 3 sets of streams, 1 or 2 networks of each, 2 choices of the step; 2 summaries of each stream
    # and of both, and the length and size.
    assert len(found) == 3 * 2 * 2 + 3 * 2 + 1
    assert "rgb_whole + difference_whole | 2 | last" in found


def test_the_table_has_means_and_spreads() -> None:
    outcomes = [[(True, 0.5), (False, 1.5)], [(True, 0.5), (True, 0.5)]]
    table = format_table({"rgb | 1 | last": outcomes, "linear | |": [[(True, np.nan)] * 2] * 2})
    assert "| rgb | 1 | last | 75.0 ± 35.4 | 0.75 |" in table
    assert "| linear | | | 100.0 ± 0.0 |  |" in table


def test_a_folder_is_required(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        compare_recipes.main([])
    assert "--root" in capsys.readouterr().err
