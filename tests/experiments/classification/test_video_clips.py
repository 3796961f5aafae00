"""Clips of the papers on action recognition: streams of whole videos, one cache for all folds."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments import lrcn_ucf101
from experiments.classification.video_clips import adapt_to_ut_interaction
from experiments.gru_rcn import GRURCNConfig, get_config
from flaxnets.encoders.config import EncoderConfig
from tests.data.video_files import write_video

CLASSES = ("Hug", "Push")
GROUPS = (1, 2, 3)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """UT-Interaction in small: a video of each class in three sequences, and a fold for each."""
    root = tmp_path_factory.mktemp("ut")
    lists = root / "splits"
    lists.mkdir()
    original = write_video(root / "original.avi", 12, size=(32, 48)).read_bytes()
    names = {group: [f"{c}/{label}_{group}_{label}.avi" for label, c in enumerate(CLASSES)]
             for group in GROUPS}  # fmt: skip
    for group in GROUPS:
        for name in names[group]:
            (root / "videos" / name).parent.mkdir(parents=True, exist_ok=True)
            (root / "videos" / name).write_bytes(original)
        rest = [name for other in GROUPS if other != group for name in names[other]]
        (lists / f"testlist{group:02d}.txt").write_text("\n".join(names[group]) + "\n")
        lines = [f"{name} {CLASSES.index(name.split('/')[0]) + 1}" for name in rest]
        (lists / f"trainlist{group:02d}.txt").write_text("\n".join(lines) + "\n")
    (lists / "classInd.txt").write_text("1 Hug\n2 Push\n")
    return root


def configure(root: Path, cache: Path) -> GRURCNConfig:
    config = get_config()
    adapt_to_ut_interaction(config, "difference_whole", size=16, steps=3)
    config.data.root, config.data.cache, config.batch_size = str(root), str(cache), 8
    config.model.encoder = EncoderConfig("small_cnn", features=(4,), strides=(4,), frozen=True)
    config.endpoints = {"stage_1": 2, "pooled": 3}
    config.validate()
    return config


def test_crops_at_test_are_those_that_clips_can_have() -> None:
    config: Any = lrcn_ucf101.get_config("smoke")
    config.data.test_crops, config.data.flip = 5, False
    config.validate()
    assert config.describe_inference()["preprocessing"]["crops"] == 5
    assert not config.describe_inference()["preprocessing"]["mirror"]
    for crops, expected in ((10, "expected 1 or 5 with data.flip=False"), (3, "expected 1, 5 or")):
        config.data.test_crops = crops
        with pytest.raises(ValueError, match=f"data.test_crops: {expected}"):
            config.validate()


def first_batch(data: Any) -> Mapping[str, np.ndarray]:
    with data.batches() as batches:
        batch: Mapping[str, np.ndarray] = next(iter(batches))
    return batch


def test_endpoints_are_inputs_of_their_own_and_folds_share_their_caches(
    root: Path, tmp_path: Path
) -> None:
    config = configure(root, tmp_path)
    assert config.inputs == {
        "stage_1": ("difference_whole", "stage_1"),
        "pooled": ("difference_whole", "pooled"),
    }
    train = config.make_data("train")
    batch = first_batch(train)
    assert train.num_examples == 4
    assert batch["stage_1"].shape == (8, 3, 4, 4, 4)
    assert batch["pooled"].shape == (8, 3, 4)
    # Both endpoints are seen at the same steps, and in the same direction.
    np.testing.assert_allclose(batch["stage_1"].mean((2, 3)), batch["pooled"], atol=2e-3)
    there = sorted(tmp_path.iterdir())
    assert len(there) == 2
    config.set_fold(3)
    test = first_batch(config.make_data("test"))
    assert test["stage_1"].shape[1:] == (2 * 4, 3, 4, 4, 4)
    assert sorted(tmp_path.iterdir()) == there
    assert not set(config._videos("train").groups) & set(config._videos("test").groups)


def test_the_cache_of_another_size_is_another(root: Path, tmp_path: Path) -> None:
    config = configure(root, tmp_path)
    described = config.describe_preprocessing()
    config.data.crop_size = 24
    assert config.describe_preprocessing() != described
    config.data.stored_steps = 2
    with pytest.raises(ValueError, match=r"data.stored_steps: expected at least data.num_frames"):
        config.validate()
