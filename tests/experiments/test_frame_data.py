"""Data of frame prediction: sources by name, their batches, and files that are continued."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.series.scaling import Scaling
from experiments.frames.files import (
    FrameDataConfig,
    make_frame_loader,
    make_frame_source,
    read_last_frames,
)
from tests.data.shared_data import shared
from tests.data.video_files import frame_numbers, write_video


def _balls(**values: Any) -> FrameDataConfig:
    counts = {f"{split}_sequences": 4 for split in ("train", "validation", "test")}
    sizes = {"num_inputs": 2, "num_outputs": 3, "size": 8, "num_objects": 1}
    return FrameDataConfig("bouncing_balls", **(counts | sizes | values))


def _batches(config: FrameDataConfig, split: str, count: int, seed: int = 0) -> list[np.ndarray]:
    loader = make_frame_loader(
        make_frame_source(config, split, seed),
        batch_size=4,
        train=split == "train",
        seed=seed,
        num_threads=config.num_threads,
    )
    with loader.batches() as batches:
        return [next(batches)["frames"] for _ in range(count)]


def test_training_is_drawn_anew_and_the_other_splits_are_fixed() -> None:
    first, second = _batches(_balls(), "train", 2)
    assert first.shape == (4, 5, 8, 8, 1)
    assert not np.array_equal(first, second)
    assert np.array_equal(_batches(_balls(num_threads=0), "train", 2)[1], second)
    assert not np.array_equal(_batches(_balls(), "train", 1, seed=1)[0], first)
    fixed = _batches(_balls(), "validation", 1)[0]
    assert np.array_equal(_batches(_balls(), "validation", 1, seed=1)[0], fixed)
    assert not np.array_equal(_batches(_balls(), "test", 1)[0], fixed)


def test_the_published_file_of_other_frames_is_refused_before_training() -> None:
    config = FrameDataConfig(root="mnist", test_file="mnist_test_seq.npy", size=32)
    with pytest.raises(ValueError, match=r"^data\.size: expected 64, as the published .* 32"):
        make_frame_source(config, "train")
    with pytest.raises(ValueError, match=r"^data\.test_file: expected with data.dataset=moving_"):
        make_frame_source(_balls(test_file="mnist_test_seq.npy"), "train")


def test_the_real_digits_and_the_published_file(tmp_path: Path) -> None:
    root = str(shared("mnist"))
    array = np.random.default_rng(0).integers(0, 256, (20, 2, 64, 64), np.uint8)
    np.save(tmp_path / "mnist_test_seq.npy", array)
    config = FrameDataConfig(
        root=root, test_file=str(tmp_path / "mnist_test_seq.npy"), num_outputs=5
    )
    source = make_frame_source(config, "test")
    assert np.array_equal(source[1]["frames"], array[:15, 1, ..., None])
    config.num_outputs = 20
    with pytest.raises(ValueError, match=r"^data\.num_inputs \+ num_outputs: .*received 30"):
        make_frame_source(config, "test")


def test_videos_and_fields_are_sources(tmp_path: Path) -> None:
    for name in "abc":
        write_video(tmp_path / "videos" / f"{name}.avi", 9)
    config = FrameDataConfig(
        "videos", str(tmp_path / "videos"), num_inputs=2, num_outputs=1, size=24, grey=False
    )
    for split in ("train", "validation", "test"):
        source = make_frame_source(config, split)
        assert len(source) == 3
        assert frame_numbers(source[1]["frames"]).tolist() == [3, 4, 5]
    config.shares = (0.5, 0.5)
    with pytest.raises(ValueError, match="expected one of train, validation, received 'test'"):
        make_frame_source(config, "test")
    values = np.random.default_rng(0).normal(size=(40, 8, 8, 2))
    np.savez(tmp_path / "fields.npz", radar=values)
    config = FrameDataConfig("fields", str(tmp_path / "fields.npz"), num_inputs=1, num_outputs=1)
    source = make_frame_source(config, "validation")
    assert source.frame_shape == (8, 8, 2)
    assert source.scaling is not None
    assert source.scaling == make_frame_source(config, "test").scaling
    config.num_outputs = 9
    with pytest.raises(ValueError, match=r"^data\.num_inputs .*into the validation part"):
        make_frame_source(config, "validation")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"dataset": "moving_mnits"}, "did you mean 'moving_mnist'"),
        ({"dataset": "videos"}, "give --config.data.root=PATH"),
        ({"num_outputs": 0}, "data.num_outputs"),
        ({"dataset": "moving_mnist", "root": "x", "speeds": (1.0,)}, "data.speeds"),
    ],
)
def test_bad_values_are_one_sentence(values: dict[str, Any], message: str) -> None:
    config = _balls()
    for name, value in values.items():
        setattr(config, name, value)
    with pytest.raises(ValueError, match=message):
        make_frame_source(config, "train")


def test_the_last_frames_of_files_are_read_as_in_training(tmp_path: Path) -> None:
    path = str(write_video(tmp_path / "a.avi", 9))
    config = FrameDataConfig("videos", "", num_inputs=3, size=24, grey=False, stride=2)
    assert frame_numbers(read_last_frames(config, path)).tolist() == [4, 6, 8]
    array = str(tmp_path / "a.npy")
    frames = np.random.default_rng(0).integers(0, 256, (7, 24, 24, 3), np.uint8)
    np.save(array, frames)
    assert np.array_equal(read_last_frames(config, array), frames[2::2])
    config.num_inputs = 8
    for file in (path, array):
        with pytest.raises(ValueError, match=f"^{file}: expected at least the 15 frames"):
            read_last_frames(config, file)
    config.grey = True
    with pytest.raises(ValueError, match=r"\(T,24,24,1\) uint8.*received \(7, 24, 24, 3\) uint8"):
        read_last_frames(config, array)
    scaling = Scaling("standard", (1.0, 1.0, 1.0), (2.0, 2.0, 2.0))
    config.num_inputs = 2
    assert read_last_frames(config, array, scaling).dtype == np.float32
    with pytest.raises(ValueError, match=r"a\.avi: expected fields"):
        read_last_frames(config, path, scaling)
