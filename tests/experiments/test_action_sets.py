"""Published data sets and optical flow in the experiment on videos, by its flags."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from experiments import video_classification
from flaxnets.encoders.config import EncoderConfig
from tests.data.pictures import random_image


def small_config(root: Path, dataset: str) -> Any:
    config: Any = video_classification.get_config()
    config.data.dataset, config.data.root = dataset, str(root)
    config.data.cache = str(root.parent / "features")
    config.data.flow = str(root.parent / "flow")
    config.data.size = 16
    config.data.stored_steps = config.data.num_steps = 2
    config.batch_size = 8
    config.model.encoder = EncoderConfig("small_cnn", features=(4,), strides=(4,), frozen=True)
    config.model.recurrent.features = config.model.recurrent.input_features = 4
    config.model.projection_features, config.model.members = 3, 1
    return config


@pytest.fixture
def jester(tmp_path: Path) -> Path:
    """Writes Jester with 16 videos of 3 frames, of which 4 validate, and flow as published."""
    root = tmp_path / "jester"
    labels = ("Swiping Left", "Swiping Right")
    lines: dict[str, list[str]] = {"train": [], "validation": []}
    for k in range(16):
        lines["train" if k < 12 else "validation"].append(f"{k};{labels[k % 2]}\n")
        folder, flow = root / "20bn-jester-v1" / str(k), tmp_path / "flow" / str(k)
        flow.mkdir(parents=True)
        folder.mkdir(parents=True)
        for t in (1, 2, 3):
            Image.fromarray(random_image(20, 24, 3 * k + t)).save(folder / f"{t:05d}.jpg")
        for t in (1, 2):
            for letter in "xy":
                Image.new("L", (24, 20), 100 + k).save(flow / f"flow_{letter}_{t:05d}.jpg")
    for split, rows in lines.items():
        (root / f"jester-v1-{split}.csv").write_text("".join(rows))
    (root / "jester-v1-labels.csv").write_text("\n".join(labels))
    return root


def test_features_of_frames_and_flow(jester: Path) -> None:
    config = small_config(jester, "jester")
    config.data.streams = ("rgb_whole", "flow_whole")
    config.validate()
    splits = config.files.splits
    assert {name: splits.count(name) for name in set(splits)} == {
        "train": 10,
        "validation": 2,
        "test": 4,
    }
    example = next(config.make_data("test").batches())
    assert example["features"].shape[:4] == (8, 2, 2, 2)  # views, steps, streams
    assert example["mask"].sum() == 4
    assert config.describe_inference() is None
    assert config.load_clip("test", 0).shape[0] == 16
    # Other flow has other features.
    features = example["features"]
    for path in (jester.parent / "flow").rglob("flow_x_*"):
        Image.new("L", (24, 20), 250).save(path)
    again: Any = small_config(jester, "jester")
    again.data.streams = ("rgb_whole", "flow_whole")
    changed = next(again.make_data("test").batches())["features"]
    np.testing.assert_array_equal(changed[:4, :, :, 0], features[:4, :, :, 0])
    assert (changed[:4, :, :, 1] != features[:4, :, :, 1]).any()


def test_fine_tuning_on_flow(jester: Path) -> None:
    config = small_config(jester, "jester")
    config.model.encoder.frozen = False
    config.data.images = "flow"
    config.validate()
    batch = next(config.make_data("test").batches())
    assert batch["video"].shape == (8, 2, 2, 16, 16, 3)
    paths = config.select("test").paths
    levels = [100 + int(Path(path).name) for path in paths]
    np.testing.assert_allclose(batch["video"][:4, 0, 0, 8, 8, 0], levels, atol=2)
    assert config.describe_preprocessing()["images"] == "flow"
    alone = next(config.make_prediction_data([paths[0]]).batches())
    np.testing.assert_array_equal(alone["video"][0], batch["video"][0])
    # Without its flow a video is no example.
    for path in (jester.parent / "flow" / Path(paths[0]).name).iterdir():
        path.unlink()
    assert not next(config.make_prediction_data([paths[0]]).batches())["mask"][0]


BAD = {
    "no root": (lambda c: setattr(c.data, "root", ""), "data.root: expected the folder of jester"),
    "list": (lambda c: setattr(c.data, "list", "a.csv"), "jester has lists of its own"),
    "dataset": (lambda c: setattr(c.data, "dataset", "kinetic"), "did you mean 'kinetics'"),
    "images": (lambda c: setattr(c.data, "images", "flwo"), "did you mean 'flow'"),
    "frozen": (lambda c: setattr(c.data, "images", "flow"), "expected rgb with a frozen encoder"),
}


@pytest.mark.parametrize(("change", "message"), BAD.values(), ids=BAD.keys())
def test_bad_values(tmp_path: Path, change: Any, message: str) -> None:
    config = small_config(tmp_path, "jester")
    change(config)
    with pytest.raises(ValueError, match=message):
        config.validate()


def test_errors_name_the_flags(jester: Path) -> None:
    config = small_config(jester, "jester")
    config.data.fold = 2
    with pytest.raises(ValueError, match=r"^data.fold: expected 1, as Jester has one split"):
        _ = config.files
    config = small_config(jester, "hmdb51")
    with pytest.raises(FileNotFoundError, match=r"^data.root: expected the class folders"):
        _ = config.files
